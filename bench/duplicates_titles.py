"""Titles as sellers write them, made up from what is known of a product: the recipe, with its probabilities.

A seller writes in Swedish or in English and picks one of the product's names in that language, or, now and then, only
what the product and its siblings have in common (``VAGUE``): such a title does not say which of them it is. Words are
dropped, misspelt, shortened and moved about; the amount comes in any unit or not at all; around it stands what sellers
add to be seen. Some titles went through a system that left HTML entities or the bytes of their characters behind, as
titles of the Shopee product-matching task have it. A few are empty.

Every probability is below. None was chosen by looking at how well any method does. It knows nothing about pictures,
files or which products there are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from html.entities import codepoint2name
from typing import Final

# Of a title
EMPTY: Final = 0.02
VAGUE: Final = 0.1  # on purpose; 0.2 in all, as a dropped word or a sibling with all the words has the same effect
SWEDISH: Final = 0.5
BRAND: Final = 0.75  # named, where the product has one
MIXED: Final = 0.08  # also says what it is in the other language
GRADE: Final = 0.2  # "class 1" of loose fruit and vegetables
COUNTRY: Final = 0.15
AMOUNT: Final = 0.6  # where the product has one
PIECE: Final = 0.2  # "each" where it has none
ABOUT: Final = 0.2  # "ca" before the amount of loose goods
PRAISED: Final = 0.3  # by a word or two that fit any product of its department
SHUFFLED: Final = 0.2  # all its words and facts
BRAND_LAST: Final = 0.15
CASES: Final = (("as it is", 0.35), ("capital words", 0.25), ("small", 0.27), ("capitals", 0.13))
NOISE: Final = (0.5, 0.28, 0.15, 0.07)  # of none, one, two, three additions
PLAIN: Final = 0.25  # Swedish without its rings and dots
ENTITIES: Final = 0.05
ESCAPES: Final = 0.05
SEPARATORS: Final = ((" ", 0.7), (" - ", 0.1), (", ", 0.1), (" | ", 0.06), ("  ", 0.04))  # between its parts
# Of a word of the name
DROPPED: Final = 0.15
MISSPELT: Final = 0.1  # of four letters and more
SHORTENED: Final = 0.06  # of six letters and more
RUN_ON: Final = 0.03  # no blank before the next

KEYS: Final = ("qwertyuiop\u00e5", "asdfghjkl\u00f6\u00e4", "zxcvbnm")
UNITS: Final = {
    "ml": (("ml", 1), ("cl", 10), ("dl", 100), ("l", 1000), ("L", 1000), ("liter", 1000)),
    "g": (("g", 1), ("gr", 1), ("gram", 1), ("kg", 1000), ("kilo", 1000), ("KG", 1000)),
}
GRADES: Final = (("Class 1", "1st class", "Class I"), ("Klass 1", "kl. 1", "Klass I"))
PIECES: Final = (("each", "1 pc", "per piece", "pcs"), ("/st", "1 st", "styckvis", "per st"))
FROM: Final = ("from", "fr\u00e5n")
# Lists with a bar between, (English, Swedish)
PACKED: Final = (
    "tasty|chilled|no additives|family pack|rich in vitamins|for breakfast",
    "god|kyld|utan tillsatser|familjepack|rik p\u00e5 vitaminer|till frukost",
)
LOOSE: Final = (
    "sweet|juicy|crisp|ripe|hand picked|home grown|for the kitchen|seasonal",
    "s\u00f6t|saftig|krispig|mogen|handplockad|n\u00e4rodlad|till k\u00f6ket|s\u00e4song",
)
SAID: Final = (
    "NEW!!|best price|FREE SHIPPING|in stock|SALE|Super fresh!|daily delivery|[READY STOCK]|good quality|cheap!"
    "|buy 2 get 1|limited offer|don\u2019t miss|#organic|original 100%",
    "NYHET!|b\u00e4sta pris|FRI FRAKT|i lager|REA|Alltid f\u00e4rskt!|snabb leverans|[I LAGER]|h\u00f6g kvalitet"
    "|billigt!|2 f\u00f6r 1|kampanj|\u201dpassa p\u00e5\u201d|#ekologiskt|prisv\u00e4rd",
)
TAGS: Final = ("#food|#fresh|#healthy|#yummy", "#mat|#f\u00e4rskt|#nyttigt|#gott")
STORES: Final = "MatBoden|FreshCorner|Kvarterets Livs|Gr\u00f6nt & Gott|NordicFoods|Saluhallen24|ICO Snabb"
SYMBOLS: Final = "\u2b50|\U0001f525|\u2705|\U0001f60d|\u2764\ufe0f|\U0001f49a|\u2728|\U0001f6d2"


@dataclass(frozen=True)
class Product:
    """What is known of a product; pairs are (English, Swedish).

    ``names``: what it may be called in each language, without brand. ``vague``: what it and at least one other product
    are called alike. ``kind``: its sort, for titles in both languages. ``amount``: a number of "g" or "ml", None where
    it has none. ``country``: "" where none is known. ``loose``: sold by weight or piece, so that it has a grade.
    """

    name: str
    brand: str
    names: tuple[tuple[str, ...], tuple[str, ...]]
    vague: tuple[tuple[str, ...], tuple[str, ...]]
    kind: tuple[str, str]
    amount: tuple[float, str] | None
    country: tuple[str, str]
    loose: bool


def write_title(product: Product, rng: random.Random) -> str:
    """Return a title of ``product`` as some seller writes it; "" now and then. It draws from ``rng`` alone."""
    if rng.random() < EMPTY:
        return ""
    tongue = int(rng.random() < SWEDISH)
    words = [_mangled(word, rng) for word in name_words(product, tongue, rng)]
    facts = _facts(product, tongue, rng)
    if rng.random() < SHUFFLED:
        parts = [*words, *facts]
        rng.shuffle(parts)
        text = " ".join(parts)
    else:
        text = _chosen(SEPARATORS, rng).join([_run_on(words, rng), *facts])
    text = _cased(text, rng)
    if tongue and rng.random() < PLAIN:
        text = text.translate(_PLAINLY)
    return _encoded(_with_noise(text, tongue, rng), rng)


def name_words(product: Product, tongue: int, rng: random.Random) -> list[str]:
    """Return the words by which a seller names ``product`` in English (0) or Swedish (1), spelt right; at least one."""
    if rng.random() < VAGUE:
        return rng.choice(product.vague[tongue]).split()
    name = rng.choice(product.names[tongue]).split()
    kept = [word for word in name if rng.random() >= DROPPED] or [rng.choice(name)]
    if product.brand and rng.random() < BRAND:
        kept = [*kept, product.brand] if rng.random() < BRAND_LAST else [product.brand, *kept]
    if rng.random() < MIXED:
        kept.append(product.kind[1 - tongue])
    return " ".join(kept).split()


def _facts(product: Product, tongue: int, rng: random.Random) -> list[str]:
    """Return what stands beside the name: praise, grade, country and amount, each only in some titles."""
    praise = (LOOSE if product.loose else PACKED)[tongue].split("|")
    found = rng.sample(praise, rng.choice((1, 1, 2))) if rng.random() < PRAISED else []
    if product.loose and rng.random() < GRADE:
        found.append(rng.choice(GRADES[tongue]))
    if product.country[tongue] and rng.random() < COUNTRY:
        country = product.country[tongue]
        found.append(rng.choice((country, f"{FROM[tongue]} {country}", f"({country})")))
    if product.amount and rng.random() < AMOUNT:
        about = "ca " if product.loose and rng.random() < ABOUT else ""
        found.append(about + written_amount(*product.amount, rng))
    elif not product.amount and rng.random() < PIECE:
        found.append(rng.choice(PIECES[tongue]))
    return found


def written_amount(value: float, unit: str, rng: random.Random) -> str:
    """Return ``value`` of "g" or "ml" in one of the units that sellers use, exactly: "1000 ml", "1L", "0,5 kg"."""
    fit = [(name, value / size) for name, size in UNITS[unit] if 0.25 <= value / size <= 2000]
    name, number = rng.choice([(name, number) for name, number in fit if round(number, 2) == number])
    digits = f"{number:g}".replace(".", rng.choice(".,"))
    return digits + rng.choice(("", " ")) + name


def misspelt(word: str, rng: random.Random) -> str:
    """Return ``word`` with one slip behind its first letter: a doubled, missing or neighbouring key, or two swapped."""
    at = rng.randrange(1, len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    slip = rng.randrange(4)
    if slip == 0:
        return before + letter * 2 + after
    if slip == 1:
        return before + after
    if slip == 2:
        return before + after[0] + letter + after[1:]
    row = next((row for row in KEYS if letter in row), letter)
    key = row.find(letter)
    return before + rng.choice(row[max(0, key - 1) : key] + row[key + 1 : key + 2] or letter) + after


def shortened(word: str, rng: random.Random) -> str:
    """Return three or four letters and a full stop, or the first letter and what follows without its vowels."""
    if rng.random() < 0.5:
        return word[: rng.choice((3, 4))] + "."
    return word[0] + "".join(letter for letter in word[1:] if letter.lower() not in "aeiouy\u00e5\u00e4\u00f6")


def _mangled(word: str, rng: random.Random) -> str:
    if not word.isalpha():
        return word
    if len(word) >= 6 and rng.random() < SHORTENED:
        return shortened(word, rng)
    if len(word) >= 4 and rng.random() < MISSPELT:
        return misspelt(word, rng)
    return word


def _run_on(words: list[str], rng: random.Random) -> str:
    text = words[0]
    for word in words[1:]:
        text += word if rng.random() < RUN_ON else f" {word}"
    return text


def _cased(text: str, rng: random.Random) -> str:
    how = _chosen(CASES, rng)
    if how == "capital words":
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    return {"small": text.lower(), "capitals": text.upper()}.get(how, text)


def _with_noise(text: str, tongue: int, rng: random.Random) -> str:
    """Put what sellers add before or behind the text."""
    for _ in range(rng.choices(range(len(NOISE)), NOISE)[0]):
        added = _addition(tongue, rng)
        text = f"{added} {text}" if rng.random() < 0.5 and not added.startswith(("#", "-")) else f"{text} {added}"
    return text


def _addition(tongue: int, rng: random.Random) -> str:
    sort = rng.randrange(6)
    if sort == 0:
        return rng.choice(SYMBOLS.split("|")) * rng.choice((1, 1, 2, 3))
    if sort == 1:
        return rng.choice(STORES.split("|"))
    if sort == 2:
        return " ".join(rng.sample(TAGS[tongue].split("|"), rng.randint(1, 3)))
    if sort == 3:  # numbers that say nothing about the product
        return rng.choice(
            (f"-{rng.randrange(5, 75, 5)}%", f"{rng.randint(9, 99)}kr", f"art.nr {rng.randint(1000, 99999)}")
        )
    return rng.choice(SAID[tongue].split("|"))


def _encoded(text: str, rng: random.Random) -> str:
    """Leave the title as it is, or as a system that could not do with its characters made it."""
    draw = rng.random()
    if draw < ENTITIES:
        return "".join(_entity(letter) for letter in text)
    if draw < ENTITIES + ESCAPES:
        return "".join(c if c.isascii() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text)
    return text


def _entity(letter: str) -> str:
    if letter in "&<>\"'" or not letter.isascii():
        return f"&{codepoint2name[ord(letter)]};" if ord(letter) in codepoint2name else f"&#{ord(letter)};"
    return letter


def _chosen(among: tuple[tuple[str, float], ...], rng: random.Random) -> str:
    names, weights = zip(*among, strict=True)
    return str(rng.choices(names, weights)[0])


_PLAINLY: Final = str.maketrans("\u00e5\u00e4\u00f6\u00e9\u00c5\u00c4\u00d6\u00c9", "aaoeAAOE")
