"""The nearest postings of each posting by one signal. Knows nothing about what a signal is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids

Places = NDArray[np.int32]  # of postings in the catalogue, from 0
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """``places`` int32 (N, k): the nearest other postings, best first, -1 where there are no more; ``scores`` float32
    (N, k) in 0..1 or cosines, 0 where there is none. A posting is never its own neighbour.

    Raises ValueError for shapes that differ.
    """

    places: Places
    scores: Scores

    def __post_init__(self) -> None:
        if self.places.shape != self.scores.shape or self.places.ndim != 2:
            raise ValueError(f"places {self.places.shape} and scores {self.scores.shape} are not one (N, k)")

    def __len__(self) -> int:
        return len(self.places)

    def pairs(self) -> tuple[Ids, Ids]:
        """Return both ends of every pair, int64 (M,) each: the posting, its neighbour."""
        rows, columns = np.nonzero(self.places >= 0)
        return rows.astype(np.int64), self.places[rows, columns].astype(np.int64)

    def fill(self, of: Ids, others: Ids, scores: Scores) -> None:
        """Write the best of the ``others`` int64 (P,) of each posting in ``of``, which has none so far. Ties: the
        smaller place first."""
        order = np.lexsort((others, -scores, of))
        of = of[order]
        rank = np.arange(len(of)) - np.searchsorted(of, of)
        kept = rank < self.places.shape[1]
        self.places[of[kept], rank[kept]] = others[order][kept]
        self.scores[of[kept], rank[kept]] = scores[order][kept]


def top_pairs(count: int, left: Ids, right: Ids, scores: Scores, k: int) -> Neighbours:
    """Return the ``k`` best neighbours of each of ``count`` postings out of undirected pairs, each given once.

    ``left``, ``right`` int64 (P,) places, ``scores`` float32 (P,). Ties: the smaller place first.
    """
    found = Neighbours(*empty(count, k))
    found.fill(np.concatenate([left, right]), np.concatenate([right, left]), np.concatenate([scores, scores]))
    return found


def empty(count: int, k: int) -> tuple[Places, Scores]:
    """Return the arrays of Neighbours that nobody has."""
    return np.full((count, k), -1, np.int32), np.zeros((count, k), np.float32)
