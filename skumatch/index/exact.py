"""Exact search by faiss over all vectors in memory. The only module that imports faiss."""

from __future__ import annotations

from typing import Any

import numpy as np

from skumatch.errors import GalleryError
from skumatch.spec import Ids, Vectors

# faiss below this many queries computes distances one by one; above it, by matrix product. Its default of 128,000
# leaves every realistic batch on the slow path (measured: 110 against 750 queries/s per core on 100k x 512).
BLAS_THRESHOLD = 20


def _faiss() -> Any:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
    return faiss


class ExactIndex:
    """An Index that compares every query with every vector."""

    def __init__(self, dim: int) -> None:
        self._faiss = _faiss()
        self._index = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(dim))
        self.dim = dim

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._index.ntotal)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 (N, D) unit rows under (N,) new ids. Raises GalleryError for a wrong shape."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or len(ids) != len(vectors):
            raise GalleryError(f"vectors are {vectors.shape}, ids {ids.shape}", f"give (N, {self.dim}) and (N,)")
        if len(ids):
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))

    def remove(self, ids: Ids) -> None:
        """Forget the vectors of ``ids``."""
        if len(ids):
            self._index.remove_ids(np.ascontiguousarray(ids, np.int64))

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return scores (N, k), best first (ties: smaller id first), and ids (N, k), -1 where there are no more."""
        how = {}
        if allowed is not None:
            chosen = np.ascontiguousarray(allowed, np.int64)
            how["params"] = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBatch(chosen))
        scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), k, **how)
        tied = np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1))  # the rest is in order already
        if len(tied):
            some, theirs = scores[tied], ids[tied]
            order = np.lexsort((np.where(theirs < 0, np.iinfo(np.int64).max, theirs), -some), axis=1)
            scores[tied], ids[tied] = np.take_along_axis(some, order, 1), np.take_along_axis(theirs, order, 1)
        return scores, ids
