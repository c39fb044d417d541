"""Whether an answer is accepted, to be reviewed, or the crop shows no known SKU.

The two thresholds are measured on the gallery itself by leaving each view out and searching for it among the rest.
That sees only known SKUs and sister photos: it is a starting point, not a promised false accept rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.spec import Ids, Vectors

Decision = Literal["accept", "review", "unknown"]

SAMPLE = 2000  # views left out, at most
PRECISION = 0.95  # of accepted answers, on the left-out views
MISSED = 0.02  # share of right answers that may fall below the unknown threshold
FEWEST = 20  # left-out views below which nothing is measured


@dataclass(frozen=True)
class Thresholds:
    """Cosine thresholds, -1..1: at or above ``accept`` accepted, below ``unknown`` unknown, between: review."""

    accept: float
    unknown: float
    measured_on: int

    def __post_init__(self) -> None:
        if not self.unknown <= self.accept:
            raise GalleryError(f"thresholds {self.unknown} and {self.accept} are out of order", "rebuild the gallery")

    def to_json(self) -> dict[str, float]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


def decide(score: float, thresholds: Thresholds | None) -> Decision:
    """Return the decision for a best score; without thresholds every answer is for review."""
    if thresholds is None:
        return "review"
    if score >= thresholds.accept:
        return "accept"
    return "unknown" if score < thresholds.unknown else "review"


def measure(index: Index, codes: Ids, ids: Ids, vectors: Vectors, seed: int = 0) -> Thresholds | None:
    """Fit thresholds by leaving views out one at a time.

    ``codes`` int64: SKU code by view id; ``ids`` int64 (N,) and ``vectors`` float32 (N, D): all views. Returns None
    where fewer than 20 views have a sister view.
    """
    views_of = np.bincount(codes[ids])
    eligible = np.flatnonzero(views_of[codes[ids]] >= 2)
    if len(eligible) < FEWEST:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(eligible)[:SAMPLE])
    scores, found = index.search(np.asarray(vectors[chosen]), 2)
    own = found[:, 0] == ids[chosen]
    best = np.where(own, found[:, 1], found[:, 0])
    score = np.where(own, scores[:, 1], scores[:, 0])
    return fit(score, codes[best] == codes[ids[chosen]])


def fit(scores: Vectors, right: NDArray[np.bool_]) -> Thresholds | None:
    """Return the thresholds for (N,) scores and whether each answer was right; None where no answer was right.

    ``accept`` is the lowest score at and above which at least 95 % of the answers are right.
    """
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    complete = np.append(ranked[1:] < ranked[:-1], True)  # a threshold cannot split answers of equal score
    enough = np.flatnonzero((precision >= PRECISION) & complete)
    accept = float(ranked[enough[-1]]) if len(enough) else float(scores.max())
    unknown = float(np.quantile(scores[right], MISSED))
    return Thresholds(accept, min(unknown, accept), len(scores))
