"""Design made-up shop products: brands, flavours, sizes and how their packs look.

Products come in families of ``FAMILY`` SKUs that share brand, layout and colours and differ in the printed flavour
word, in the colour of one band, in both, or in the size text alone: the look-alikes of a real shelf. A family depends
on the seed and its own number only, so a larger store starts with the SKUs of a smaller one. This module draws nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from skumatch.errors import ConfigError

Colour = tuple[int, int, int]  # RGB, 0..255
Shape = Literal["box", "bottle", "pouch", "can"]
Emblem = Literal["circle", "ring", "leaf", "star", "cup", "drop", "sun", "peak", "heart", "diamond"]
Pattern = Literal["plain", "stripes", "dots", "rays", "waves", "split", "checks"]
Badge = Literal["plate", "pill"]

FAMILY = 5
# By what the last two packs of a family differ from its first: the band's colour, the flavour word, word and band, or
# the size text. Families take these in turn. Size text is by far the hardest to see at 96 pixels: one pair in thirty
# SKUs (and two by word), for a shelf full of them would measure little else.
NEAR = (("band", "word"), ("band", "both"), ("band", "size"), ("word", "both"), ("band", "both"), ("band", "both"))
ARRANGEMENTS = 5  # ways to place words, band and emblem on a pack: skumatch.synth_pack knows them

# Syllables of fixed length, sliced by number: 3 letters, none or 2, then 2.
FIRSTS = (
    "norbelkasmiltorfinvensollumdalgrobrukelmarholtripalsunricfelgalheijorknilaumonnauoroperqui"
    "rosseltamulmvelwilxanyorzelaltboncamdenelafrogusharingjulkamlinmornesostprorinstatolvik"
)
MIDDLES = ("", "la", "ve", "mi", "no", "ra", "de", "si", "tu", "ga", "be", "ko")
LASTS = "ralanovikotisamodaneluparizobefagohajekilemanyosperosetaunvawexayozabocidoemtugi"
BRANDS = len(FIRSTS) // 3 * len(MIDDLES) * (len(LASTS) // 2)

PALETTE: dict[str, Colour] = {
    "red": (200, 30, 40),
    "orange": (240, 130, 20),
    "yellow": (250, 215, 50),
    "green": (40, 140, 60),
    "teal": (20, 160, 165),
    "blue": (35, 75, 185),
    "purple": (120, 50, 150),
    "pink": (240, 120, 170),
    "brown": (105, 60, 30),
    "black": (30, 30, 34),
    "cream": (245, 232, 200),
    "lime": (160, 205, 50),
}
DARK: Colour = (28, 24, 30)
LIGHT: Colour = (250, 244, 228)


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of product: the noun on the pack, the shapes it is sold in, its flavours and its sizes.

    The usual size and the other differ in the length of their text, as 500g and 1kg do.
    """

    noun: str
    shapes: tuple[Shape, ...]
    flavours: tuple[str, ...]
    sizes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """What the packs of one family share: silhouette, placing (0..ARRANGEMENTS-1), colours (RGB) and drawings."""

    shape: Shape
    arrangement: int
    ground: Colour
    accent: Colour
    emblem: Emblem
    pattern: Pattern
    badge: Badge


@dataclass(frozen=True, slots=True)
class Pack:
    """One SKU. ``label``: the flavour word that is printed; ``flavour`` also names the band where only that differs."""

    sku: str
    brand: str
    noun: str
    flavour: str
    size: str
    title: str
    label: str
    band: Colour
    look: Look


def _category(noun: str, shapes: str, flavours: str, sizes: str) -> Category:
    known = {shape: shape for shape in get_args(Shape)}
    usual, other = sizes.split()
    return Category(noun, tuple(known[s] for s in shapes.split()), tuple(flavours.split()), (usual, other))


CATEGORIES = (
    _category("coffee", "box pouch", "Dark Mild Mocha Decaf Vanilla Nougat", "500g 1kg"),
    _category("tea", "box can", "Green Black Mint Lemon Ginger Rooibos", "20x 100x"),
    _category("juice", "bottle box", "Apple Orange Mango Cherry Grape Pear", "1L 330ml"),
    _category("soda", "can bottle", "Cola Lime Peach Berry Tonic Zero", "330ml 1.5L"),
    _category("soup", "can pouch", "Tomato Pea Onion Lentil Pumpkin Beef", "400g 1kg"),
    _category("chips", "pouch", "Salt Paprika Onion Chili Cheese Pepper", "175g 90g"),
    _category("cereal", "box", "Honey Cocoa Oat Fruit Nut Wheat", "375g 1kg"),
    _category("shampoo", "bottle", "Aloe Mint Rose Honey Silk Pure", "250ml 1L"),
    _category("pasta", "box pouch", "Penne Fusilli Farfalle Rigate Orzo Tubini", "500g 1kg"),
    _category("cocoa", "can pouch", "Classic Bitter Caramel Light Chili Cream", "400g 80g"),
    _category("laundry", "bottle box", "Fresh Ocean Color White Lilac Sport", "1.5L 750ml"),
    _category("biscuits", "box pouch", "Butter Ginger Choco Oat Lemon Coconut", "200g 1kg"),
)


def design_packs(skus: int, seed: int) -> list[Pack]:
    """Return ``skus`` packs with distinct ids; the first n are the same for every ``skus`` >= n.

    Raises ConfigError when ``skus`` is not in 1..FAMILY * BRANDS or ``seed`` is negative.
    """
    if not 1 <= skus <= FAMILY * BRANDS:
        raise ConfigError(f"cannot design {skus} SKUs", f"ask for 1 to {FAMILY * BRANDS}")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative", "choose a seed of 0 or more")
    return list(islice(_families(seed), skus))


def _families(seed: int) -> Iterator[Pack]:
    """Yield the packs of all families in order; brand names are a seeded permutation, so none comes twice."""
    rng = np.random.default_rng([seed, 0])
    offset = int(rng.integers(BRANDS))
    step = int(rng.integers(BRANDS // 3, BRANDS))
    while math.gcd(step, BRANDS) != 1:
        step += 1
    for number in range(BRANDS):
        brand = _brand_name((offset + step * number) % BRANDS)
        yield from _family(brand, NEAR[number % len(NEAR)], np.random.default_rng([seed, 1, number]))


def _brand_name(number: int) -> str:
    """Spell ``number`` in syllables; parts of fixed length make every number a different word."""
    number, last = divmod(number, len(LASTS) // 2)
    first, middle = divmod(number, len(MIDDLES))
    return (FIRSTS[3 * first :][:3] + MIDDLES[middle] + LASTS[2 * last :][:2]).capitalize()


def _family(brand: str, kinds: tuple[str, str], rng: np.random.Generator) -> list[Pack]:
    """Three flavours, each with its own band colour, then two packs that are near to the first."""
    category = CATEGORIES[rng.integers(len(CATEGORIES))]
    look = _look(category, rng)
    bands = _bands(look, rng)
    words = [category.flavours[i] for i in rng.permutation(len(category.flavours))]
    words[3:] = sorted(words[3:], key=lambda word: -abs(len(word) - len(words[0])))  # Nut and Oat look too alike
    size, other_size = category.sizes
    variants = [(words[i], words[i], size, bands[i]) for i in range(FAMILY - 2)]
    near = {
        "band": (words[0], f"{words[0]} {bands[3]}", size, bands[3]),
        "word": (words[3], words[3], size, bands[0]),
        "size": (words[0], words[0], other_size, bands[0]),
        "both": (words[4], words[4], size, bands[4]),
    }
    variants += [near[kind] for kind in kinds]
    return [_pack(brand, category, look, variant) for variant in variants]


def _pack(brand: str, category: Category, look: Look, variant: tuple[str, str, str, str]) -> Pack:
    label, flavour, size, band = variant
    title = f"{brand} {category.noun} {flavour} {size}"
    sku = re.sub("[^a-z0-9]+", "-", title.lower())
    return Pack(sku, brand, category.noun, flavour, size, title, label, PALETTE[band], look)


def _look(category: Category, rng: np.random.Generator) -> Look:
    colours = list(PALETTE.values())
    ground = _tinted(colours[rng.integers(len(colours))], rng)
    accents = [c for c in (*colours, LIGHT) if distance(c, ground) > 150]
    emblems, patterns, badges = get_args(Emblem), get_args(Pattern), get_args(Badge)
    return Look(
        shape=category.shapes[rng.integers(len(category.shapes))],
        arrangement=int(rng.integers(ARRANGEMENTS)),
        ground=ground,
        accent=accents[rng.integers(len(accents))],
        emblem=emblems[rng.integers(len(emblems))],
        pattern=patterns[rng.integers(len(patterns))],
        badge=badges[rng.integers(len(badges))],
    )


def _tinted(colour: Colour, rng: np.random.Generator) -> Colour:
    """Move ``colour`` a little, so that two brands of one colour are seldom of the same shade."""
    red, green, blue = (int(np.clip(c + rng.integers(-28, 29), 20, 240)) for c in colour)
    return red, green, blue


def _bands(look: Look, rng: np.random.Generator) -> list[str]:
    """Return ``FAMILY`` palette names apart from the ground and, as far as the palette goes, from each other."""
    names = [str(name) for name in rng.permutation(sorted(PALETTE))]
    for apart in (150, 120, 90, 60, 0):
        chosen: list[str] = []
        for name in names:
            others = [look.ground, *(PALETTE[c] for c in chosen)]
            if min(distance(PALETTE[name], other) for other in others) >= apart:
                chosen.append(name)
        if len(chosen) >= FAMILY:
            break
    return chosen[:FAMILY]


def distance(a: Colour, b: Colour) -> float:
    """Return the Euclidean distance of two RGB colours, 0..441."""
    return math.dist(a, b)
