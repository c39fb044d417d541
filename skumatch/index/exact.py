"""Exact search by faiss over vectors that stay where they are. The only module that imports faiss.

Knows nothing about files: a block is an array or a memory map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skumatch.index.blocks import PIECE, Best, Block, Blocks, ascending
from skumatch.spec import Ids, Vectors

# faiss below this many queries computes distances one by one; above it, by matrix product. Its default of 128,000
# leaves every realistic batch on the slow path (measured: 110 against 750 queries/s per core on 100k x 512).
BLAS_THRESHOLD = 20
# Rows and queries per product. With faiss's 1024 rows the threads meet so often that another process on the same cores
# halts them (measured beside others, two cores: 41 against 121 queries/s); 16 MiB hold the scores of one product.
ROWS, QUERIES = 8192, 512
LONG = 4096  # rows from which numpy answers a single query sooner than faiss (100k x 512: 14 against 31 ms)
SPARE = 64  # rows fetched in the place of some that do not count
MORE = 8  # times as many are fetched for a query that lacks rows after that


def faiss_module() -> Any:
    """Return faiss, its settings for matrix products mended."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
    faiss.cvar.distance_compute_blas_database_bs, faiss.cvar.distance_compute_blas_query_bs = ROWS, QUERIES
    return faiss


def nearest_rows(queries: Vectors, rows: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Return float32 inner products (N, min(k, M)), best first, and positions in ``rows`` (M, D).

    ``queries`` float32 (N, D); both C-contiguous. Position -1 where a score is no number.
    """
    if len(queries) == 1 and len(rows) > LONG:
        return _nearest_of_one(queries[0], rows, min(k, len(rows)))
    faiss = faiss_module()
    scores, found = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
    return scores, found


def _nearest_of_one(query: Vectors, rows: Vectors, k: int) -> tuple[Vectors, Ids]:
    """As ``nearest_rows`` for one query (D,), by one product with the matrix, on all cores."""
    scores = rows @ query
    best = np.argpartition(-scores, k - 1)[:k]
    best = best[np.argsort(-scores[best], kind="stable")]
    return scores[best][None], np.where(np.isnan(scores[best]), -1, best)[None]


class ExactIndex:
    """An Index that compares every query with every vector.

    Vectors are not copied: C-contiguous float32 arrays and memory maps are kept by reference (do not write to them),
    but for additions of under 256 rows, which are gathered. May be searched by several threads at once.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._blocks = Blocks(dim)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self._blocks)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 (N, D) unit rows under (N,) new ids, in any order.

        Raises GalleryError for a wrong shape and for an id that is there already.
        """
        self._blocks.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Forget the vectors of ``ids``; ids that are not there are ignored."""
        self._blocks.remove(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return scores (N, k), best first (ties: smaller id first), and ids (N, k), -inf and -1 beyond the end."""
        asked = np.ascontiguousarray(queries, np.float32)
        best = Best(len(asked), k)
        wanted = None if allowed is None else ascending(allowed)
        for block in self._blocks:
            for scores, ids in self._of_block(asked, block, k, wanted) if len(asked) else ():
                best.add(scores, ids)
        return best.result()

    def _of_block(self, queries: Vectors, block: Block, k: int, wanted: Ids | None) -> Iterator[tuple[Vectors, Ids]]:
        """Yield scores and ids of the nearest rows of one block, at least k of them where there are as many."""
        kept = block.kept(wanted)
        count = len(block.ids) if kept is None else int(np.count_nonzero(kept))
        if kept is None or count == len(block.ids):
            scores, found = self._nearest(queries, block, k)
            yield scores, np.where(found < 0, -1, block.ids[found])
        elif 2 * count > len(block.ids):
            yield self._most(queries, block, k, kept)
        else:
            yield from self._some(queries, block, k, np.flatnonzero(kept))

    def _nearest(self, queries: Vectors, block: Block, k: int) -> tuple[Vectors, Ids]:
        """Return scores and positions of the nearest rows of a block, removed ones among them."""
        return nearest_rows(queries, block.rows, k)

    def _some(self, queries: Vectors, block: Block, k: int, places: Ids) -> Iterator[tuple[Vectors, Ids]]:
        """Search the rows at ``places`` alone, copied piece by piece."""
        step = max(1, PIECE // (4 * self.dim))
        for start in range(0, len(places), step):
            piece = places[start : start + step]
            scores, found = nearest_rows(queries, block.rows[piece], k)
            yield scores, np.where(found < 0, -1, block.ids[piece[found]])

    def _most(self, queries: Vectors, block: Block, k: int, kept: NDArray[np.bool_]) -> tuple[Vectors, Ids]:
        """Search all rows and drop those that are not ``kept``; fetch more for the queries that then lack some."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        spare = len(kept) - int(np.count_nonzero(kept))
        lines, more = np.arange(len(queries)), min(spare, SPARE)
        while len(lines):
            theirs, found = self._nearest(queries[lines], block, k + more)
            counts = kept[found] & (found >= 0)
            place = np.cumsum(counts, axis=1) - 1
            line, column = np.nonzero(counts & (place < k))
            scores[lines[line], place[line, column]] = theirs[line, column]
            ids[lines[line], place[line, column]] = block.ids[found[line, column]]
            if more >= spare:
                break
            lines, more = lines[counts.sum(axis=1) < k], min(spare, MORE * (k + more))
        return scores, ids
