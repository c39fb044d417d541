"""Titles in one spelling: Unicode, escapes, entities, letter case, punctuation, and numbers with their units.

What a seller writes as "1 L", "1000ml", "1,000 ml" or "100 cl" becomes the token ``1000ml``. It knows nothing about
catalogues, or about what a title is compared with.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

from skumatch.catalogue.units import BIG, UNITS, spelled

_ANY: Final = "|".join(sorted(UNITS, key=len, reverse=True))
_LARGE: Final = "|".join(sorted(BIG, key=len, reverse=True))
_NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"

_LITERAL: Final = re.compile(r"""\s*b(['"])(.*)\1\s*""", re.DOTALL)
_BYTES: Final = re.compile(r"(?<!\\)(?:\\+x[0-9a-fA-F]{2})+")
_BYTE: Final = re.compile(r"x([0-9a-fA-F]{2})")
_CODE: Final = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_CONTROL: Final = re.compile(r"(?<!\\)\\+[nrt]")
_VULGAR: Final = re.compile(r"([0-9]{0,6}) ?([\u00bc-\u00be\u2150\u2153-\u215e])")

_INSIDE: Final = re.compile(r"(?<=[a-z])'(?=[a-z])")
_INCH: Final = re.compile(r'(?<=[0-9])\\{0,2}"')
_POINT: Final = re.compile(r"(?<![\w.,])\.(?=[0-9])")
_FRACTION: Final = re.compile(rf"(?<![\w.,/])(?:([0-9]{{1,3}}) +)?([1-9])/([2-9])(?= ?(?:{_ANY})\b)")
_PARTED: Final = re.compile(rf"(?<!\w)(?<![0-9][.,])([0-9]+(?:[.,][0-9]+)+)(?=([ -]?(?:{_LARGE})\b)?)")
_PUNCTUATION: Final = re.compile(r"[^0-9a-z.\u0080-\U0010ffff]+|(?<![0-9])\.+|\.+(?![0-9])")

# From here on tokens stand between single blanks.
_APART: Final = re.compile(rf"(?<![^ ])([1-9][0-9]{{0,2}})((?: 000)+)(?= ?(?:{_ANY})(?![^ ]))")
_DOZEN: Final = re.compile(r"(?<![^ ])(?<![0-9] )(?:se)?(lusin|dozen|dussin)(?![^ ])")
_AMOUNT: Final = re.compile(rf"(?<![^ ])({_NUMBER}(?: ?x ?{_NUMBER}){{0,3}}) ?([a-z]+)(?![^ ])")
_TIMES: Final = re.compile(r" ?x ?")
_HOLDS: Final = re.compile(r"(?<![^ ])(isi|contains) ([1-9][0-9]{0,3})(?![^ ])")

_SIGNS: Final = {  # before compatibility forms are resolved, which would make "tm" of a trade mark
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u00b4`"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u2033"), '"'),
    **dict.fromkeys(map(ord, "\u00d7\u2715\u2716\u2a2f"), "x"),
    **dict.fromkeys(map(ord, "\u2122\u00ae\u00a9\u2120\u00a8\u00af\u00b8\u02d8\u02d9\u02da\u02db\u02dc\u02dd"), " "),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-"),
    0x2044: "/",
}
ROUNDS: Final = 4  # of folding; two do but for combining marks out of order


def normalised(title: str) -> str:
    """Return ``title`` in one spelling: lower-case tokens with single blanks between them; any str is taken.

    Escapes spelled out (``\\xe2\\x80\\x99``, ``\\u00e9``, ``\\n``, a whole ``b'...'``) and HTML entities are resolved;
    Unicode in NFKC and case-folded; emoji, zero-width characters and punctuation go, but points inside numbers stay.
    Numbers with a unit (``skumatch.catalogue.units``) are glued to one unit per dimension: "6 x 33 cl" is
    "6 x 330ml", "0.5kg" is "500g", "2 lusin" is "24pcs". Applied to its own result it changes nothing.
    """
    text = _unescaped(title)
    text = text.lower() if text.isascii() else _folded(text)
    if "'" in text:
        text = _INSIDE.sub("", text)
    return _amounts(" ".join(_PUNCTUATION.sub(" ", _numbers(text)).split()))


def _unescaped(text: str) -> str:
    """Resolve what was escaped on the way to the file."""
    if "\\" in text or text[:1] == "b":
        literal = _LITERAL.fullmatch(text)
        text = _BYTES.sub(_decoded, literal[2] if literal else text)
        text = _CONTROL.sub(" ", _CODE.sub(_character, text))
    return html.unescape(text) if "&" in text else text


def _decoded(match: re.Match[str]) -> str:
    """Read bytes as UTF-8, one alone as Latin-1 where it is none; half a character at the end of a cut title goes."""
    data = bytes(int(digits, 16) for digits in _BYTE.findall(match[0]))
    return data.decode("latin-1") if len(data) == 1 else data.decode("utf-8", "ignore")


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2], 16)
    return chr(code) if code < 0x110000 else " "


class _Kept(dict[int, str]):
    """What becomes of a character; filled as characters come."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _kept(chr(code))
        return found


def _kept(char: str) -> str:
    kind = unicodedata.category(char)
    if char < "\x80" or kind[0] == "L" or kind == "Nl":
        return char
    if kind == "Nd":
        return str(unicodedata.decimal(char))
    if kind == "Cf" or kind == "Me" or unicodedata.name(char, "").startswith(("VARIATION SELECTOR", "COMBINING GRAPH")):
        return ""
    return char if kind[0] == "M" else " "


_KEPT: Final = _Kept({0x2BC: "'"})  # of U+0149


def _folded(text: str) -> str:
    """Return ``text`` in lower case with letters, marks, digits and ASCII alone (Unicode 16, 3.13.5, NFKC_Casefold)."""
    text = _VULGAR.sub(lambda match: f" {spelled(int(match[1] or 0) + unicodedata.numeric(match[2]))} ", text)
    text = text.translate(_SIGNS)
    for _ in range(ROUNDS):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_KEPT)
        if folded == text:
            break
        text = folded
    return text


def _numbers(text: str) -> str:
    """Resolve what punctuation means beside digits, before punctuation goes."""
    if '"' in text and text.count('"') == 1:  # two are quotation marks
        text = _INCH.sub(" inch", text)
    if "%" in text:
        text = text.replace("%", " pct ")
    if "/" in text:
        text = _FRACTION.sub(lambda m: spelled(int(m[1] or 0) + int(m[2]) / int(m[3])), text)
    if "." in text or "," in text:
        text = _PARTED.sub(_unparted, _POINT.sub("0.", text))
    return text


def _unparted(match: re.Match[str]) -> str:
    """Return a number with points or commas inside as digits with at most one point, or as several numbers."""
    groups = re.split("[.,]", match[1])
    marks = [char for char in match[1] if char in ".,"]
    first, inner = groups[0], groups[1:-1]
    leads = len(first) <= 3 and first[0] != "0" and all(len(group) == 3 for group in inner)
    if leads and len(groups[-1]) == 3 and len(set(marks)) == 1 and (inner or not match[2]):
        return "".join(groups)
    if not inner or (leads and len(set(marks[:-1])) == 1 and marks[-1] != marks[0]):
        return f"{first}{''.join(inner)}.{groups[-1]}"
    return " ".join(groups)


def _amounts(text: str) -> str:
    """Glue units to their numbers, in one unit per dimension."""
    if " 000" in text:
        text = _APART.sub(lambda match: match[1] + match[2].replace(" ", ""), text)
    text = _AMOUNT.sub(_glued, _DOZEN.sub(r"1 \1", text).replace(" fl oz", " floz"))
    return _HOLDS.sub(r"\1 \2pcs", text)


def _glued(match: re.Match[str]) -> str:
    if match[2] not in UNITS:
        return match[0]
    unit, factor = UNITS[match[2]]
    numbers = _TIMES.split(match[1])
    if unit == "mm":  # "10 x 20 cm": both sides are cm
        return " x ".join(f"{spelled(float(number) * factor)}mm" for number in numbers)
    return " x ".join([*numbers[:-1], f"{spelled(float(numbers[-1]) * factor)}{unit}"])
