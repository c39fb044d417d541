"""What open_clip does to a text before it is cut into tokens, as steps that a ``tokenizer.json`` holds.

open_clip calls ftfy, decodes HTML entities and joins white space. What goes character by character is here: entities
that HTML 4 names, by name and by number, ligatures, wide and narrow forms, quotes, controls, NFC. What is not:

- mending text that was read in a wrong encoding: ftfy guesses at it;
- entities that only HTML 5 names, and numbers of characters that HTML 4 does not name;
- the differences that ftfy makes where a text holds a "<".

It knows nothing about tokens.
"""

from __future__ import annotations

import html
import html.entities
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from skumatch.errors import ModelError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

Steps = Iterator[tuple[str, str]]  # (pattern, what stands in its place)

# Patterns hold characters as they are: not every reader of tokenizer.json knows the same escapes.
ESCAPES: Final = "\x1b\\[[0-9;]*[a-zA-Z]"
CONTROLS: Final = "[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
SPACES: Final = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
PUNCTUATION: Final = "[!-/:-@\\[-`{-~]"
DOUBLE_QUOTES, SINGLE_QUOTES = "[\u201c-\u201f]", "[\u02bc\u2018-\u201b]"
LAST_SIGMA: Final = "(?<=\\p{L})\u03a3(?!\\p{L})"
LIGATURES: Final = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
WIDTHS: Final = (0x3000, *range(0xFF01, 0xFFF0))
DEPTH: Final = 3  # "&amp;amp;eacute;": how often an entity may have been written as text


def normalizer(cleaning: str) -> Normalizer:
    """Return the steps of open_clip's ``cleaning``, "lower", "whitespace" or "canonicalize".

    Raises ModelError for another.
    """
    from tokenizers import Regex, normalizers

    last: dict[str, list[Any]] = {
        "whitespace": [],
        "lower": [normalizers.Replace(Regex(LAST_SIGMA), "\u03c2"), normalizers.Lowercase()],
    }
    unpunctuated = [normalizers.Replace("_", " "), normalizers.Replace(Regex(PUNCTUATION), "")]
    last["canonicalize"] = [*unpunctuated, *last["lower"]]
    if cleaning not in last:
        raise ModelError(f"the cleaning '{cleaning}' of texts cannot be exported", "leave out --text")
    steps = [normalizers.Replace(Regex(pattern), instead) for pattern, instead in (*entities(), *characters())]
    spaces = [normalizers.Replace(Regex(SPACES), " "), normalizers.Strip()]
    return normalizers.Sequence([*steps, normalizers.NFC(), *last[cleaning], *spaces])


def entities() -> Steps:
    """Yield what decodes HTML entities: those that end in a semicolon first, since "&notin;" begins like "&not"."""
    names = {name: html.entities.html5[f"{name};"] for name in html.entities.name2codepoint}
    for _ in range(DEPTH):
        yield f"&(?:(?:amp|AMP);?|{_numbers(ord('&'))})", "&"
    closed: dict[str, list[str]] = defaultdict(list)
    for name, instead in names.items():
        closed[instead].append(f"{name};")
        if name == name.lower() and html.unescape(capitals := f"&{name.upper()};") == capitals:
            closed[instead.upper()].append(f"{name.upper()};")  # as ftfy: "P&EACUTE;REZ"
    for number in (*range(0x20, 0x7F), *map(ord, names.values())):
        if number != ord("&"):
            closed[chr(number)].append(_numbers(number))
    for number, instead in _windows():
        closed[instead].append(_numbers(number))
    for instead, patterns in closed.items():
        yield f"&(?:{'|'.join(dict.fromkeys(patterns))})", instead
    open_ended = {name: value for name, value in html.entities.html5.items() if not name.endswith(";")}
    for name in sorted(open_ended, key=len, reverse=True):
        yield f"&{name}", open_ended[name]


def characters() -> Steps:
    """Yield what replaces single characters as ftfy does."""
    found: dict[str, str] = defaultdict(str)
    for number in LIGATURES:
        parts = unicodedata.decomposition(chr(number)).split()[1:]  # one level: the long s of a ligature stays
        found["".join(chr(int(part, 16)) for part in parts)] += chr(number)
    for number in WIDTHS:
        if (instead := unicodedata.normalize("NFKC", chr(number))) != chr(number):
            found[instead] += chr(number)
    for number, instead in _windows():
        found[instead] += chr(number)
    for instead, several in found.items():
        yield f"[{several}]", instead
    yield from ((DOUBLE_QUOTES, '"'), (SINGLE_QUOTES, "'"), (ESCAPES, ""), (CONTROLS, ""))


def _windows() -> Iterator[tuple[int, str]]:
    """Yield control characters that are meant for others: of Windows-1252."""
    for number in range(0x80, 0xA0):
        instead = bytes([number]).decode("cp1252", "ignore")
        if instead:
            yield number, instead


def _numbers(number: int) -> str:
    """Return what a character's number looks like after the "&", decimal or hexadecimal; its semicolon may lack."""
    digits = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{number:x}")
    return f"#0*{number}(?![0-9]);?|#[xX]0*{digits}(?![0-9a-fA-F]);?"
