"""How well postings were matched: F1, precision and recall of each, and the threshold that serves best.

The measure of the Shopee product-matching task: per posting, the matches that were answered (itself included) against
those that are right; the mean over postings. Knows nothing about how pairs were judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.judged import Judged, Matches, matches_of
from skumatch.errors import DataError
from skumatch.eval.intervals import bootstrap
from skumatch.eval.metrics import Accuracy
from skumatch.spec import Ids

STEPS = 100  # thresholds tried at even ranks of the pairs, and as many at ranks that double towards the surest
NONE = 2.0  # the threshold above every probability: nothing is matched
PerPosting = NDArray[np.float64]
Matching = Callable[[int, Judged, float], Matches]  # of postings, their pairs and a threshold


@dataclass(frozen=True)
class Scored:
    """Per posting F1, precision and recall, float64 (N,) in 0..1; ``groups`` int64 (N,): the units of intervals."""

    f1: PerPosting
    precision: PerPosting
    recall: PerPosting
    groups: Ids

    def means(self, seed: int = 0) -> dict[str, Accuracy]:
        """Return the means with their 95 % intervals, whole groups resampled."""
        named = {"f1": self.f1, "precision": self.precision, "recall": self.recall}
        return {name: bootstrap(values, self.groups, seed) for name, values in named.items()}


@dataclass(frozen=True)
class Choice:
    """A threshold, and the mean F1, precision and recall that it has on the postings it was chosen on."""

    threshold: float
    f1: float
    precision: float
    recall: float


def score(matches: Matches, groups: Ids) -> Scored:
    """Compare ``matches`` with the labelled ``groups`` int64 (N,): all postings of a group are one product.

    A posting's own place counts as an answer and is right, as in the task. Raises ValueError for other lengths.
    """
    if len(matches) != len(groups):
        raise ValueError(f"{len(matches)} postings with matches, {len(groups)} with a group")
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    answered = np.diff(matches.offsets)
    rows = np.repeat(np.arange(len(groups)), answered)
    right = np.bincount(rows, codes[rows] == codes[matches.places], minlength=len(groups))
    there = sizes[codes]
    return Scored(
        f1=2 * right / (answered + there),
        precision=np.where(answered > 0, right / np.maximum(answered, 1), 0.0),
        recall=right / there,
        groups=groups,
    )


def by_pairs(count: int, judged: Judged, threshold: float) -> Matches:
    """Match what the pairs from ``threshold`` on say, and nothing that follows from them."""
    return matches_of(count, judged.above(threshold))


def best_f1(judged: Judged, groups: Ids, match: Matching = by_pairs) -> Choice:
    """Return the threshold with the highest mean F1 (ties: the highest) of some 200 that are tried, and none."""
    return max(_tried(judged, groups, match), key=lambda choice: (choice.f1, choice.threshold))


def least_threshold(judged: Judged, groups: Ids, precision: float, match: Matching = by_pairs) -> Choice:
    """Return the threshold with the highest recall whose mean precision is at least ``precision``.

    Raises DataError where none has.
    """
    good = [choice for choice in _tried(judged, groups, match) if choice.precision >= precision]
    if not good:
        raise DataError(f"no threshold reaches a precision of {precision:g}", "ask for less, or label more groups")
    return max(good, key=lambda choice: (choice.recall, choice.threshold))


def _tried(judged: Judged, groups: Ids, match: Matching) -> list[Choice]:
    thresholds = [*map(float, _steps(judged)), NONE]
    if match is by_pairs:
        return _swept(judged, groups, thresholds)
    return [_choice(step, score(match(len(groups), judged, step), groups)) for step in thresholds]


def _steps(judged: Judged) -> NDArray[np.float32]:
    """Return ascending thresholds to try."""
    count = len(judged)
    if not count:
        return np.empty(0, np.float32)
    ranks = np.concatenate([np.linspace(1, count, STEPS), np.geomspace(1, count, STEPS)])
    return np.unique(np.sort(judged.probability)[::-1][ranks.astype(np.int64) - 1])


def _swept(judged: Judged, groups: Ids, thresholds: list[float]) -> list[Choice]:
    """Return what ``by_pairs`` gives at ascending ``thresholds``, the pairs being added once each, from the top."""
    count = len(groups)
    every = matches_of(count, judged)
    rows = np.repeat(np.arange(count), np.diff(every.offsets))
    sure = _probabilities(every, rows, judged)
    order = np.argsort(-sure, kind="stable")
    rows, sure = rows[order], sure[order]
    right = (groups[rows] == groups[every.places[order]]).astype(np.float64)
    sizes = np.unique(groups, return_inverse=True, return_counts=True)
    there = sizes[2][sizes[1]]
    answered, hits = np.zeros(count), np.zeros(count)
    found, start = [], 0
    for threshold in reversed(thresholds):
        end = int(np.searchsorted(-sure, -threshold, side="right"))
        answered += np.bincount(rows[start:end], minlength=count)
        hits += np.bincount(rows[start:end], right[start:end], minlength=count)
        start = end
        figures = 2 * hits / (answered + there), hits / answered, hits / there
        found.append(Choice(threshold, *(float(values.mean()) for values in figures)))
    return found[::-1]


def _probabilities(matches: Matches, rows: Ids, judged: Judged) -> PerPosting:
    """Return the probability of each match, infinite for a posting itself."""
    count = len(matches)
    keys = judged.left.astype(np.int64) * count + judged.right
    order = np.argsort(keys)
    wanted = np.minimum(rows, matches.places) * count + np.maximum(rows, matches.places)
    own = rows == matches.places
    at = order[np.searchsorted(keys[order], wanted[~own])]
    sure = np.full(len(rows), np.inf)
    sure[~own] = judged.probability[at]
    return sure


def _choice(threshold: float, scored: Scored) -> Choice:
    return Choice(threshold, *(float(values.mean()) for values in (scored.f1, scored.precision, scored.recall)))


def figures(matches: Matches, groups: Ids, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return mean F1, precision and recall with their 95 % intervals by group, ready for JSON."""
    means = score(matches, groups).means(seed)
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in means.items()}
