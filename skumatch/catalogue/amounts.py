"""Numbers with units in titles, and whether those of two titles contradict each other: 500 g is not 1 kg.

It takes titles as ``skumatch.catalogue.titles`` normalises them, and knows nothing about other signals.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.units import DIMENSIONS
from skumatch.spec import Ids

Counts = NDArray[np.uint8]

TOLERANCE: Final = 0.02  # of the larger value: 12 oz is 340 g to one seller and 341 g to the next
MOST: Final = 16  # values of a posting: who lists more lists what other postings sell
PAIRS: Final = 16_384  # compared at a time, with at most MOST * MOST values each
_CODES: Final = {dimension: code for code, dimension in enumerate(DIMENSIONS)}
_PIECES: Final = _CODES["pcs"]
_MULTIPLIED: Final = ("g", "ml")

_NAMED: Final = re.compile(
    r"(?<![^ ])(?:"
    r"(?P<times>[0-9]{1,4})(?:pcs)? x )?"
    rf"(?:(?P<value>[0-9]+(?:\.[0-9]+)?)(?P<unit>{'|'.join(DIMENSIONS)})"
    r"(?: x ?(?P<after>[0-9]{1,4})(?:pcs)?)?"
    r"|x(?P<pieces>[0-9]{1,3})|(?P<many>[0-9]{1,3})x)(?![^ ])"
)
_REDUCED: Final = re.compile(
    r"(?<![^ ])(?:(?:diskon|disc|discount|rabatt|rea|save|hemat|spara) [0-9.]+pct"
    r"|[0-9.]+pct (?:off|diskon|disc|discount|rabatt|rea))(?![^ ])"
)


@dataclass(frozen=True)
class Amounts:
    """The amounts of N postings: those of posting i are ``offsets[i]:offsets[i + 1]``.

    ``offsets`` int64 (N + 1,); ``dimension`` uint8 (M,), a place in ``units.DIMENSIONS``; ``value`` float64 (M,) in the
    dimension's unit. Raises ValueError for arrays that do not fit each other.
    """

    offsets: Ids
    dimension: Counts
    value: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.offsets) or self.dimension.shape != self.value.shape or self.offsets[-1] != len(self.value):
            raise ValueError(f"{len(self.value)} values and {len(self.dimension)} dimensions do not fit the offsets")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def named(self) -> Counts:
        """Which dimensions each posting names, uint8 (N,): one bit each."""
        found = np.zeros(len(self), np.uint8)
        posting = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        for code in range(len(DIMENSIONS)):
            found[posting[self.dimension == code]] |= np.uint8(1 << code)
        return found


def amounts(texts: Sequence[str]) -> Amounts:
    """Return the amounts that N normalised titles name, at most 16 each.

    "6 x 330ml" is 6 pieces, 330 ml and 1980 ml in all; so is "330ml x 6". "x6" and "6x" are pieces. What a price is
    reduced by ("50pct off") is none.
    """
    offsets, dimension, value = array("q", [0]), array("B"), array("d")
    for text in texts:
        for code, number in sorted(set(_of(text)))[:MOST] if any(map(str.isdigit, text)) else ():
            dimension.append(code)
            value.append(number)
        offsets.append(len(value))
    return Amounts(np.array(offsets, np.int64), np.array(dimension, np.uint8), np.array(value, np.float64))


def _of(text: str) -> Iterator[tuple[int, float]]:
    """Yield dimension and value of each amount in ``text``; nothing that is zero."""
    if "pct" in text:
        text = _REDUCED.sub("|", text)
    for match in _NAMED.finditer(text):
        times = float(match["times"] or match["after"] or match["pieces"] or match["many"] or 0)
        if times:
            yield _PIECES, times
        value = float(match["value"] or 0)
        if value:
            yield _CODES[match["unit"]], value
            if times and match["unit"] in _MULTIPLIED:
                yield _CODES[match["unit"]], value * times


def contradictions(amounts: Amounts, left: Ids, right: Ids) -> Counts:
    """Return, per pair of places, in how many dimensions both name values and none of them agree; uint8 (P,)."""
    return _compared(amounts, left, right)[0]


def agreements(amounts: Amounts, left: Ids, right: Ids) -> Counts:
    """Return, per pair of places, in how many dimensions a value of one is within 2 % of one of the other; uint8 (P,).

    2 % of the larger of the two.
    """
    return _compared(amounts, left, right)[1]


def _compared(amounts: Amounts, left: Ids, right: Ids) -> tuple[Counts, Counts]:
    """Return contradictions and agreements; only pairs that name a dimension both are looked at, block by block."""
    both = amounts.named[left] & amounts.named[right]
    agreed = np.zeros(len(left), np.uint8)
    places = np.flatnonzero(both)
    for start in range(0, len(places), PAIRS):
        part = places[start : start + PAIRS]
        agreed[part] = _agreed(amounts, left[part], right[part])
    return np.bitwise_count(both) - agreed, agreed


def _agreed(amounts: Amounts, left: Ids, right: Ids) -> Counts:
    """Return the number of dimensions in which a value of each pair agrees: every value against every other."""
    rows = np.diff(amounts.offsets)
    wide = rows[right]
    sizes = rows[left] * wide
    pair = np.repeat(np.arange(len(left)), sizes)
    step = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    one = amounts.offsets[left][pair] + step // wide[pair]
    other = amounts.offsets[right][pair] + step % wide[pair]
    a, b = amounts.value[one], amounts.value[other]
    close = np.abs(a - b) <= TOLERANCE * np.maximum(a, b) * (1 + 1e-9)
    met = close & (amounts.dimension[one] == amounts.dimension[other])
    found = np.zeros((len(left), len(DIMENSIONS)), np.bool_)
    found[pair[met], amounts.dimension[one[met]]] = True
    count: Counts = found.sum(axis=1, dtype=np.uint8)
    return count
