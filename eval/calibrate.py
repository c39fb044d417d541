"""Fitting and judging the decision rule: accept, review or unknown at a false accept rate that was asked for.

Known queries show SKUs of the gallery, unknown ones show SKUs that it lacks. A logistic model on three pieces of
evidence (``skumatch.calibration``) is fitted to tell right answers from wrong ones and from answers to unknown crops.
The threshold is set on probabilities that were predicted for SKUs the model was not fitted on (cross-fitting over
SKUs), because crops of one SKU resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skumatch.calibration import NOTHING, Calibration, Floats, cohesion_of, evidence_of, shrunk, sigmoid
from skumatch.errors import DataError
from skumatch.eval.reliability import ece
from skumatch.eval.retrieval import Answers
from skumatch.eval.views import Views
from skumatch.spec import Ids

FOLDS = 5
RIDGE = 1.0  # on standardised evidence: keeps the weights finite where the groups separate
UNKNOWN_SHARE = 0.2  # of the crops on a shelf, assumed: the probability is calibrated for this mixture
TARGET_ACCURACY = 0.98  # of the accepted answers to crops of known SKUs
MISSED = 0.02  # share of the right answers that may be called unknown
FEWEST = 20  # unknown crops, and right answers, below which nothing is fitted


@dataclass(frozen=True)
class Case:
    """Evidence float64 (N, 3) of N best answers, whether each is right (never for an unknown crop), and the SKU
    that each query shows."""

    evidence: Floats
    right: NDArray[np.bool_]
    shown: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.right)

    def take(self, places: NDArray[Any]) -> Case:
        """Return the queries at ``places`` (int64 or bool mask)."""
        chosen = np.flatnonzero(places) if places.dtype == bool else places
        return Case(self.evidence[chosen], self.right[chosen], tuple(self.shown[int(i)] for i in chosen))


def cohesion(gallery: Views) -> tuple[Floats, Ids, float]:
    """Return per SKU of ``gallery`` its cohesion (NaN for a single view) and its number of views, and the median."""
    order = np.argsort(gallery.codes, kind="stable")
    counts = np.bincount(gallery.codes)
    parts = np.split(order, np.cumsum(counts)[:-1])
    found = np.array([cohesion_of(gallery.vectors[part]) for part in parts])
    known = found[~np.isnan(found)]
    return found, counts, float(np.median(known)) if len(known) else 1.0


def case_of(answers: Answers, typical: float | None = None) -> tuple[Case, float]:
    """Return the evidence of ``answers`` (k at least 2) and the typical cohesion: ``typical``, or the gallery's."""
    own, counts, median = cohesion(answers.gallery)
    middle = median if typical is None else typical
    drawn = np.array([shrunk(value, int(count), middle) for value, count in zip(own, counts, strict=True)])
    best = answers.nearest.skus[:, 0]
    evidence = evidence_of(answers.nearest, drawn[best])
    return Case(evidence, best == answers.truth, tuple(row.sku for row in answers.queries.rows)), middle


def fit(known: Case, unknown: Case, target_far: float, digest: str, typical: float, seed: int = 0) -> Calibration:
    """Fit the rule so that at most ``target_far`` (0..1) of the unknown crops, and at most 2 % of wrong answers among
    those accepted, pass as accepted.

    Raises DataError with fewer than 20 unknown crops or right answers, or unknown crops of fewer than two SKUs.
    """
    _require(known, unknown)
    evidence = np.concatenate([known.evidence, unknown.evidence])
    right = np.concatenate([known.right, unknown.right])
    weight = _mixture(len(known), len(unknown))
    outside = _cross_fitted(known, unknown, weight, seed)
    intercept, weights = logistic(evidence, right, weight)
    p_known, p_unknown = outside[: len(known)], outside[len(known) :]
    accept = max(far_threshold(p_unknown, target_far), accuracy_threshold(p_known, known.right, TARGET_ACCURACY))
    lowest = float(np.quantile(p_known[known.right], MISSED))
    twin, rate = worst(p_unknown >= accept, unknown.shown)
    facts = {
        "target_far": target_far,
        "target_accuracy": TARGET_ACCURACY,
        "unknown_share": UNKNOWN_SHARE,
        "known_queries": len(known),
        "known_skus": len(set(known.shown)),
        "unknown_crops": len(unknown),
        "unknown_skus": len(set(unknown.shown)),
        "ece": _mixed_ece(p_known, known.right, p_unknown, seed),
        "fitted_far": float((p_unknown >= accept).mean()),
        "left_out_far": left_out_far(p_unknown, unknown.shown, target_far),
        "worst_unknown": {"sku": twin, "far": rate},
        "fitted_accepted": float((p_known >= accept).mean()),
    }
    return Calibration(digest, intercept, weights, typical, accept, min(lowest, accept), facts)


def _require(known: Case, unknown: Case) -> None:
    if len(unknown) < FEWEST or len(set(unknown.shown)) < 2:
        raise DataError(
            f"{len(unknown)} crops of {len(set(unknown.shown))} unknown SKUs are too few to calibrate on",
            f"hold out more SKUs: at least 2, with {FEWEST} crops together",
        )
    if known.right.sum() < FEWEST:
        raise DataError(
            f"only {int(known.right.sum())} answers to known crops are right, too few to calibrate on",
            f"give at least {FEWEST} validation crops, or fine-tune the model first",
        )


def _mixed_ece(known: Floats, right: NDArray[np.bool_], unknown: Floats, seed: int) -> float:
    """Return the calibration error on known crops and as many unknown ones, drawn, as the assumed share asks for."""
    wanted = round(len(known) * UNKNOWN_SHARE / (1 - UNKNOWN_SHARE))
    chosen = unknown[np.random.default_rng(seed).integers(len(unknown), size=wanted)]
    return ece(np.concatenate([known, chosen]), np.concatenate([right, np.zeros(wanted, bool)]))


def _mixture(known: int, unknown: int) -> Floats:
    """Return weights, mean 1, under which ``UNKNOWN_SHARE`` of the mass is unknown."""
    total = known + unknown
    return np.concatenate(
        [np.full(known, (1 - UNKNOWN_SHARE) * total / known), np.full(unknown, UNKNOWN_SHARE * total / unknown)]
    )


def folds_of(shown: Sequence[str], seed: int) -> Ids:
    """Return the fold of each query, 0..4: crops of one SKU share theirs, and folds hold about as many SKUs each."""
    names = sorted(set(shown))
    place = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    fold = dict(zip(names, place.tolist(), strict=True))
    return np.array([fold[name] for name in shown], np.int64)


def _folds(known: Sequence[str], unknown: Sequence[str], seed: int) -> Ids:
    """Return the folds of known, then unknown queries; a SKU that is both (once removed from the gallery) has one."""
    fold = dict(zip(known, folds_of(known, seed).tolist(), strict=True))
    fold.update(zip(unknown, folds_of(unknown, seed + 1).tolist(), strict=True))
    return np.array([fold[name] for name in (*known, *unknown)], np.int64)


def _cross_fitted(known: Case, unknown: Case, weight: Floats, seed: int) -> Floats:
    """Return the probability of every query, each predicted by a model fitted without its SKU's fold."""
    evidence = np.concatenate([known.evidence, unknown.evidence])
    right = np.concatenate([known.right, unknown.right])
    fold = _folds(known.shown, unknown.shown, seed)
    found = np.empty(len(right))
    for number in range(FOLDS):
        inside, outside = fold != number, fold == number
        if outside.any():
            intercept, weights = logistic(evidence[inside], right[inside], weight[inside])
            found[outside] = sigmoid(evidence[outside] @ np.array(weights) + intercept)
    return found


def logistic(evidence: Floats, right: NDArray[np.bool_], weight: Floats) -> tuple[float, tuple[float, float, float]]:
    """Return (intercept, weights) of a ridge logistic regression of ``right`` on ``evidence`` (N, 3).

    Newton's method on standardised columns (Hastie et al. 2009, 4.4). More of any evidence must never make an answer
    less probable: a column whose weight would be negative is left out and the rest fitted again.
    """
    mean, spread = evidence.mean(axis=0), evidence.std(axis=0) + 1e-9
    scaled = (evidence - mean) / spread
    used = np.ones(scaled.shape[1], bool)
    while True:
        beta = _newton(np.column_stack([np.ones(len(scaled)), scaled[:, used]]), right.astype(np.float64), weight)
        if (beta[1:] >= 0).all():
            break
        used[np.flatnonzero(used)[beta[1:].argmin()]] = False
    slopes = np.zeros(scaled.shape[1])
    slopes[used] = beta[1:]
    slopes /= spread
    first, second, third = (float(value) for value in slopes)
    return float(beta[0] - slopes @ mean), (first, second, third)


def _newton(design: Floats, right: Floats, weight: Floats) -> Floats:
    penalty = np.full(design.shape[1], RIDGE)
    penalty[0] = 1e-6
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = sigmoid(design @ beta)
        gradient = design.T @ (weight * (right - p)) - penalty * beta
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        beta = beta + step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-12))  # separable groups overshoot
        if np.abs(step).max() < 1e-8:
            break
    return beta


def far_threshold(probability: Floats, target: float) -> float:
    """Return the lowest threshold that at most ``target`` of unknown crops like these pass, on average over draws.

    A conformal quantile (Vovk et al. 2005, ch. 2) of N crops; where ``target`` is below 1 / (N + 1), which so few
    crops cannot show, nothing passes. Unknown SKUs differ (one may be the twin of a known SKU), so single SKUs lie far
    above and below the target: ``left_out_far`` and ``worst`` say how far.
    """
    allowed = _allowed(len(probability), target)
    return NOTHING if allowed < 0 else float(np.nextafter(np.sort(probability)[::-1][allowed], 2))


def _allowed(crops: int, target: float) -> int:
    """Return how many of ``crops`` may pass so that another one does with a chance of ``target`` at most; -1: never."""
    return math.floor(target * (crops + 1)) - 1


def left_out_far(probability: Floats, shown: Sequence[str], target: float) -> float:
    """Return the false accept rate of SKUs that the threshold is not set on, each left out in turn."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    code = np.unique(np.array(shown), return_inverse=True)[1][order]
    places = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    accepted = 0
    for own in places:  # the ranks of one SKU's crops, from the highest
        allowed = _allowed(len(code) - len(own), target)
        if allowed >= 0:
            # The rank of the crop that would set the threshold without this SKU: its own crops above it do not count.
            rank = allowed + int(np.searchsorted(own - np.arange(len(own)), allowed, "right"))
            accepted += int((ranked[own] > ranked[rank]).sum())
    return accepted / len(code)


def worst(passed: NDArray[np.bool_], shown: Sequence[str]) -> tuple[str, float]:
    """Return the unknown SKU that is accepted most often, and how often."""
    names, code = np.unique(np.array(shown), return_inverse=True)
    rates = np.bincount(code, passed) / np.bincount(code)
    return str(names[rates.argmax()]), float(rates.max())


def accuracy_threshold(probability: Floats, right: NDArray[np.bool_], target: float) -> float:
    """Return the lowest threshold at and above which at least ``target`` of the answers are right; ``NOTHING`` where
    there is none."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    complete = np.append(ranked[1:] < ranked[:-1], True)
    enough = np.flatnonzero((accuracy >= target) & complete)
    return float(ranked[enough[-1]]) if len(enough) else NOTHING
