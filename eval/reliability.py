"""Whether a probability means what it says: reliability bins, expected calibration error, Brier score.

Takes the stated probability that an answer is right and whether it was; how the probability was fitted it does not
know. Everywhere ``probability`` is float64 (N,) in 0..1 and ``right`` bool (N,). Raises ValueError when there are no
queries, when a probability is outside 0..1 or NaN, and when the lengths differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Equal = Literal["mass", "width"]


@dataclass(frozen=True)
class Bin:
    """Queries of like probability: the least and greatest, how many, the mean probability, the share that is right."""

    low: float
    high: float
    count: int
    probability: float
    accuracy: float


def reliability(probability: Floats, right: Flags, bins: int = 10, equal: Equal = "mass") -> list[Bin]:
    """Return the occupied bins by rising probability: at most ``bins`` of equal "mass" (queries) or "width".

    Equal mass is the default: matching gives most queries a probability near 1, where equal widths would put nearly
    all of them into one bin (Naeini et al. 2015; Nixon et al. 2019, "Measuring Calibration in Deep Learning"). Equal
    probabilities share a bin, so ties make bins fewer and unequal. Widths are [low, high), the last closed.
    """
    _check(probability, right)
    if bins < 1:
        raise ValueError(f"{bins} bins")
    place = _places(probability, bins, equal)
    counts = np.bincount(place, minlength=bins)
    stated, found = np.bincount(place, probability, bins), np.bincount(place, right, bins)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(least, place, probability)
    np.maximum.at(most, place, probability)
    return [
        Bin(float(least[i]), float(most[i]), int(counts[i]), float(stated[i] / counts[i]), float(found[i] / counts[i]))
        for i in np.flatnonzero(counts)
    ]


def ece(probability: Floats, right: Flags, bins: int = 10, equal: Equal = "mass") -> float:
    """Return the expected calibration error in 0..1: |accuracy - probability| averaged over queries by bin.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3 (there with equal widths). It is above 0 by
    chance alone, the more so with few queries per bin.
    """
    found = reliability(probability, right, bins, equal)
    return sum(b.count * abs(b.accuracy - b.probability) for b in found) / len(probability)


def brier(probability: Floats, right: Flags) -> float:
    """Return the mean squared distance of the probability from 1 (right) or 0 (wrong), in 0..1 (Brier 1950)."""
    _check(probability, right)
    return float(np.square(probability - right).mean())


def _places(probability: Floats, bins: int, equal: Equal) -> Ids:
    """Return the bin of each query, int64 (N,) in 0..bins - 1."""
    if equal == "width":
        inner = np.linspace(0, 1, bins + 1)[1:-1]
    else:
        inner = np.sort(probability)[np.arange(1, bins) * len(probability) // bins]
    return np.searchsorted(inner, probability, "right")


def _check(probability: Floats, right: Flags) -> None:
    if not len(probability):
        raise ValueError("no queries to average over")
    if len(probability) != len(right):
        raise ValueError(f"{len(probability)} probabilities but {len(right)} answers")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
