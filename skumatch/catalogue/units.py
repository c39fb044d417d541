"""Units as sellers write them, and the one spelling of an amount. It knows nothing about titles.

Six dimensions, each counted in one unit: mass in g, volume in ml, length in mm, storage in mb (1 gb is 1024 mb), pieces
in pcs, percent in pct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DIMENSIONS: Final = ("g", "ml", "mm", "mb", "pcs", "pct")  # mass, volume, length, storage, pieces, percent

# English, Swedish, Indonesian and Malay; then what German, French and Spanish add. Not "in" for inches: "2 in 1".
_WORDS: Final[Mapping[str, Mapping[float, str]]] = {
    "g": {
        0.001: "mg milligram milligrams miligram",
        1: "g gr gm gms grm gram grams gramm gramme grammes gramo gramos",
        100: "hg hekto ons",
        1000: "kg kgs kilo kilos kilogram kilograms kilogramm",
        28.3495: "oz ounce ounces",
        453.592: "lb lbs",
    },
    "ml": {
        1: "ml mls milliliter milliliters millilitre millilitres mililiter cc",
        10: "cl centiliter centilitre sentiliter",
        100: "dl deciliter decilitre desiliter",
        1000: "l lt ltr ltrs lit liter liters litre litres litro litros",
        29.5735: "floz",
    },
    "mm": {
        1: "mm millimeter millimeters millimetre milimeter",
        10: "cm cms centimeter centimeters centimetre sentimeter",
        1000: "m mtr meter meters metre metres metro metros",
        25.4: "inch inches inci tum",
    },
    "mb": {1: "mb megabyte", 1024: "gb gigabyte", 1024 * 1024: "tb terabyte"},
    "pcs": {
        1: "pcs pc pce piece pieces count ct pack packs pck pk pak st styck stycken stk buah bh biji butir piezas uds",
        12: "lusin dozen doz dussin",
    },
    "pct": {1: "pct percent persen peratus procent prozent"},
}

UNITS: Final[Mapping[str, tuple[str, float]]] = {
    word: (dimension, factor)
    for dimension, sizes in _WORDS.items()
    for factor, words in sizes.items()
    for word in words.split()
}

# Sold by ones and not by thousands: before them "1.500" is one and a half, before others fifteen hundred.
BIG: Final = frozenset(word for word, (kind, factor) in UNITS.items() if kind != "mb" and factor >= 1000)


def spelled(value: float) -> str:
    """Return ``value`` >= 0 without an exponent or needless zeros: two decimals from 1 on, below it four.

    So few that "1.125" always is a seller's, who may mean thousands by the point. ``spelled(float(spelled(x)))`` is
    ``spelled(x)``.
    """
    text = f"{value:.2f}" if value >= 1 else f"{value:.4f}"
    return text.rstrip("0").rstrip(".")
