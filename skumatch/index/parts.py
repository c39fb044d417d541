"""Several indexes searched as one: a big approximate one, and a tail of later additions that is searched exactly.

Whatever the big one answers is scored again from the vectors themselves, so a score is the cosine in float32. Knows
nothing about segments or files: it asks for vectors by id.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.index.approximate import ApproximateIndex
from skumatch.index.blocks import PIECE, Best, ascending
from skumatch.index.exact import nearest_rows
from skumatch.spec import Ids, Vectors

EXACT_ALLOWED = 25_000  # ids; so few are compared one by one (of a million at random, lists then find .997 of five)
EXACT_K = 1000  # an answer longer than this is exact: it asks for more than an approximate index looks at
SPARE = 8  # answers of the big index beyond k, whose order by approximate scores need not be the right one


class Parts:
    """An Index over ``big`` and ``tail``, which share no id; ``vectors_of`` returns float32 (M, D) rows of (M,) ids."""

    def __init__(self, big: ApproximateIndex | None, tail: Index, vectors_of: Callable[[Ids], Vectors]) -> None:
        self.big = big
        self.tail = tail
        self._vectors_of = vectors_of

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.tail) + (0 if self.big is None else len(self.big))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 (N, D) unit rows under (N,) new ids to the tail. Raises GalleryError for ids that are there."""
        if self.big is not None and np.any(self.big.holds(np.asarray(ids, np.int64))):
            raise GalleryError("ids are there already", "give new ids")
        self.tail.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Forget the vectors of ``ids``; ids that are not there are ignored."""
        self.tail.remove(ids)
        if self.big is not None:
            self.big.remove(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return cosines (N, k), best first (ties: smaller id first), and ids (N, k), -inf and -1 beyond the end.

        Exact where at most 25,000 ids are allowed or ``k`` is over 1,000.
        """
        if self.big is None:
            return self.tail.search(queries, k, allowed)
        asked = np.ascontiguousarray(queries, np.float32)
        best = Best(len(asked), k)
        best.add(*self.tail.search(asked, k, allowed))
        best.add(*self._of_big(self.big, asked, k, allowed))
        return best.result()

    def _of_big(self, big: ApproximateIndex, queries: Vectors, k: int, allowed: Ids | None) -> tuple[Vectors, Ids]:
        """Return the big index's answers (N, k), scored exactly."""
        chosen = None
        if allowed is not None:
            chosen = ascending(allowed)
            chosen = chosen[big.holds(chosen)]
        count = len(big) if chosen is None else len(chosen)
        if k > EXACT_K or (chosen is not None and count <= EXACT_ALLOWED):
            return self._exact(queries, k, big.ids() if chosen is None else chosen)
        found = big.search(queries, min(count, max(2 * k, k + SPARE)), chosen)[1]
        best = Best(len(queries), k)
        best.add(self._scores(queries, found), found)
        scores, ids = best.result()
        lacking = np.flatnonzero((ids >= 0).sum(axis=1) < min(k, count))
        if len(lacking):
            scores[lacking], ids[lacking] = self._exact(queries[lacking], k, big.ids() if chosen is None else chosen)
        return scores, ids

    def _scores(self, queries: Vectors, ids: Ids) -> Vectors:
        """Return the cosines float32 (N, k) of each query with the vectors of its ``ids``, -inf for -1."""
        scores = np.full(ids.shape, -np.inf, np.float32)
        step = max(1, PIECE // (4 * queries.shape[1] * max(1, ids.shape[1])))
        for start in range(0, len(queries), step):
            some = ids[start : start + step]
            there = some >= 0
            if not there.any():
                continue
            distinct, place = np.unique(some[there], return_inverse=True)
            lines = np.nonzero(there)[0]
            rows = self._vectors_of(distinct)[place]
            scores[start : start + step][there] = np.einsum("nd,nd->n", queries[start + lines], rows)
        return scores

    def _exact(self, queries: Vectors, k: int, ids: Ids) -> tuple[Vectors, Ids]:
        """Compare the queries with the vectors of ``ids``, read piece by piece."""
        best = Best(len(queries), k)
        step = max(1, PIECE // (4 * queries.shape[1]))
        for start in range(0, len(ids), step):
            piece = ids[start : start + step]
            rows = np.ascontiguousarray(self._vectors_of(piece), np.float32)
            scores, found = nearest_rows(queries, rows, k)
            best.add(scores, np.where(found < 0, -1, piece[found]))
        return best.result()
