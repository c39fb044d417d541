"""Knowing what is unknown, and answering only when sure: AUROC, FPR at a TPR, OSCR, coverage against accuracy.

Works on one score per query, larger meaning "more surely this SKU"; where the score comes from it does not know. A
query is accepted when its score is at or above the threshold. Ties never depend on the order of the queries, and all
costs are O(N log N). NaN scores and empty sides raise ValueError; infinite scores are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Selective prediction: what is answered and how often rightly, at each distinct threshold from high to low.

    float64 (T,) each: ``coverage``, the share of queries accepted; ``accuracy`` among the accepted; ``threshold``.
    ``area``: under the risk-coverage curve, the mean over queries of the error rate among all that score as high;
    0 is best, the plain error rate is what a score without information gives.
    """

    coverage: Floats
    accuracy: Floats
    threshold: Floats
    area: float


@dataclass(frozen=True)
class Oscr:
    """Open-set classification rate at each distinct threshold from high to low.

    float64 (T,) each: ``false_positive``, the share of unknowns accepted; ``correct``, the share of knowns that are
    accepted and right; ``threshold``. ``area`` in 0..1: top-1 accuracy times how well right answers outrank unknowns.
    """

    false_positive: Floats
    correct: Floats
    threshold: Floats
    area: float


AnyCurve = TypeVar("AnyCurve", Curve, Oscr)


def auroc(known: Floats, unknown: Floats) -> float:
    """Return the chance that a known query (N,) scores above an unknown one (M,), ties counting half.

    The area under the ROC curve is this Mann-Whitney statistic (Hanley & McNeil 1982). 1 separates, 0.5 is chance.
    """
    _check(known, unknown)
    return _wins(known, unknown) / (len(known) * len(unknown))


def fpr_at_tpr(known: Floats, unknown: Floats, tpr: float = 0.95) -> float:
    """Return the share of unknowns accepted at the highest threshold that accepts at least ``tpr`` of the knowns.

    ``tpr`` in (0, 1] (Hendrycks & Gimpel and after: "FPR95"). 0 is best; a constant score gives 1.
    """
    _check(known, unknown)
    if not 0 < tpr <= 1:
        raise ValueError(f"a true positive rate of {tpr} is not in (0, 1]")
    falling = np.sort(known)[::-1]
    enough = np.arange(1, len(known) + 1) / len(known) >= tpr
    threshold = falling[int(enough.argmax())]
    return float((unknown >= threshold).mean())


def oscr(known: Floats, right: Flags, unknown: Floats) -> Oscr:
    """Return the correct classification rate of knowns against the false positive rate on unknowns.

    ``known`` (N,) scores with ``right`` bool (N,): whether the best answer is the true SKU; ``unknown`` (M,) scores of
    queries whose SKU is not in the gallery (Dhamija et al. 2018, "Reducing Network Agnostophobia", 3). The area is by
    trapezoids, from no query accepted to all.
    """
    _check(known, unknown)
    _same_length(known, right)
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    area = _wins(known[right], unknown) / (len(known) * len(unknown))
    accepted, correct = _at_least(unknown, thresholds), _at_least(known[right], thresholds)
    return Oscr(accepted / len(unknown), correct / len(known), thresholds, area)


def coverage_accuracy(confidence: Floats, right: Flags) -> Curve:
    """Return coverage and accuracy when only queries at or above a threshold are answered.

    ``confidence`` (N,), ``right`` bool (N,) (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017; the area as in Geifman
    et al. 2019, "Bias-Reduced Uncertainty Estimation", 2).
    """
    _check(confidence)
    _same_length(confidence, right)
    thresholds, repeats = np.unique(confidence, return_counts=True)
    thresholds, repeats = thresholds[::-1], repeats[::-1]
    answered = repeats.cumsum()
    accuracy = _at_least(confidence[right], thresholds) / answered
    area = float(((1 - accuracy) * repeats).sum() / len(confidence))
    return Curve(answered / len(confidence), accuracy, thresholds, area)


def thin(curve: AnyCurve, points: int = 200) -> AnyCurve:
    """Return at most ``points`` (2 or more) of the points of ``curve``, evenly picked, with both ends.

    For storing and drawing; the area stays that of the full curve.
    """
    places = np.unique(np.linspace(0, len(curve.threshold) - 1, points).round().astype(np.int64))
    return replace(curve, **{f.name: getattr(curve, f.name)[places] for f in fields(curve) if f.name != "area"})


def _check(*scores: Floats) -> None:
    for part in scores:
        if not len(part):
            raise ValueError("no scores to compare")
        if np.isnan(part).any():
            raise ValueError("a score is NaN")


def _same_length(scores: Floats, right: Flags) -> None:
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} scores but {len(right)} answers")


def _wins(known: Floats, unknown: Floats) -> float:
    """Return over how many pairs the known scores higher, ties counting half."""
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, "left").sum() + np.searchsorted(ordered, known, "right").sum()
    return float(below) / 2


def _at_least(scores: Floats, thresholds: Floats) -> Ids:
    """Return how many of ``scores`` are at or above each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")
