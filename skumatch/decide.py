"""Whether an answer is accepted, to be reviewed, or the crop shows no known SKU.

Look-alikes score high together, so an answer is accepted by its lead over the second SKU, and called unknown by its
score. Both thresholds are measured on the gallery itself by leaving each view out and searching for it among the rest.
That sees only known SKUs and sister photos: it is a starting point, not a promised false accept rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.nearest import first_k_distinct
from skumatch.spec import Ids, Vectors

Decision = Literal["accept", "review", "unknown"]

SAMPLE = 2000  # views left out, at most
PRECISION = 0.95  # of accepted answers, on the left-out views
MISSED = 0.02  # share of right answers that may fall below the unknown threshold
FETCH = 64  # views looked at per left-out view
FEWEST = 20  # left-out views below which nothing is measured


@dataclass(frozen=True)
class Thresholds:
    """``lead``: an answer is accepted when its cosine exceeds the second SKU's by at least this (0..2);
    ``unknown``: below this cosine (-1..1) the crop shows no known SKU; ``measured_on``: left-out views."""

    lead: float
    unknown: float
    measured_on: int

    def __post_init__(self) -> None:
        if not (0 <= self.lead <= 2.01 and -1.01 <= self.unknown <= 1.01):
            raise GalleryError(f"thresholds {self.lead} and {self.unknown} are out of range", "rebuild the gallery")

    def to_json(self) -> dict[str, float]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


def decide(scores: Vectors, thresholds: Thresholds | None) -> Decision:
    """Return the decision for a crop's best scores, best first (an absent second SKU counts as cosine 0).

    Without thresholds every answer is for review.
    """
    if thresholds is None:
        return "review"
    best = float(scores[0])
    second = float(scores[1]) if len(scores) > 1 and np.isfinite(scores[1]) else 0.0
    if best < thresholds.unknown:
        return "unknown"
    return "accept" if best - second >= thresholds.lead else "review"


def measure(index: Index, codes: Ids, ids: Ids, vectors: Vectors, seed: int = 0) -> Thresholds | None:
    """Fit thresholds by leaving views out one at a time.

    ``codes`` int64: SKU code by view id; ``ids`` int64 (N,) and ``vectors`` float32 (N, D): all views. Returns None
    where fewer than 20 views have a sister view, or no answer was right.
    """
    views_of = np.bincount(codes[ids])
    eligible = np.flatnonzero(views_of[codes[ids]] >= 2)
    if len(eligible) < FEWEST:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(eligible)[:SAMPLE])
    parts = [
        _left_out(index, codes, ids[part], vectors[part]) for part in np.array_split(chosen, -(-len(chosen) // 64))
    ]
    best, second, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    return fit(best, second, right)


def _left_out(
    index: Index, codes: Ids, ids: Ids, vectors: Vectors
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return, per view, the best and the second SKU's score without it, and whether the best is right.

    Where the nearest views all show one SKU, the last of them bounds the second SKU's score from above.
    """
    scores, found = index.search(np.asarray(vectors), min(FETCH, len(index)))
    near = np.where((found >= 0) & (found != ids[:, None]), codes[np.maximum(found, 0)], -1)
    distinct = first_k_distinct(near, 2)
    lines = np.arange(len(ids))
    first = distinct.argmax(axis=1)
    last = near.shape[1] - 1 - (near[:, ::-1] >= 0).argmax(axis=1)
    later = distinct & (np.arange(near.shape[1]) > first[:, None])
    other = np.where(later.any(axis=1), later.argmax(axis=1), last)
    return scores[lines, first], scores[lines, other], near[lines, first] == codes[ids]


def fit(best: NDArray[np.float32], second: NDArray[np.float32], right: NDArray[np.bool_]) -> Thresholds | None:
    """Return the thresholds for (N,) best and second scores and whether each answer was right; None if none was.

    ``lead`` is the lowest lead at and above which at least 95 % of the answers are right.
    """
    if not right.any():
        return None
    leads = np.maximum(best - second, 0)
    order = np.argsort(-leads, kind="stable")
    ranked = leads[order]
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    complete = np.append(ranked[1:] < ranked[:-1], True)  # a threshold cannot split answers of equal lead
    enough = np.flatnonzero((precision >= PRECISION) & complete)
    lead = float(ranked[enough[-1]]) if len(enough) else float(ranked[0])
    return Thresholds(lead, float(np.quantile(best[right], MISSED)), len(best))
