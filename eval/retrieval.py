"""Exact nearest-neighbour answers for measuring: queries stream through the gallery in blocks.

What a query answers is kept (its nearest SKUs, the SKUs of its nearest views, its average precision), never a queries
x gallery matrix. A query's own picture in the gallery is never among its answers. It knows nothing about protocols.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skumatch.embed import Progress, no_progress
from skumatch.errors import DataError
from skumatch.eval.metrics import average_precision_at_r
from skumatch.eval.views import Views, codes_in
from skumatch.index.exact import ExactIndex
from skumatch.nearest import Nearest, first_k_distinct
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import MemoryStore
from skumatch.techniques import NEAREST, Technique, prepared, search

BLOCK = 4096  # queries per search: large enough for the matrix product's full rate
DEEPER = 4  # times as many views where those fetched did not show k SKUs
HELD = 16_000_000  # answers of one deeper search
MOST_RELEVANT = 2000  # mAP@R looks at this many views at most; R of a SKU with more is cut to it


@dataclass(frozen=True)
class Answers:
    """What a gallery answered.

    ``skus``: gallery SKU names by code. ``truth`` int64 (N,): the queries' codes, -1 where the gallery lacks the SKU.
    ``nearest``: k distinct SKUs per query with their best views (places in ``gallery``). ``views`` int64 (N, k): SKU
    codes of the nearest views, -1 where there are no more. ``precision`` float64 (N,): average precision at R, NaN
    where the gallery has no view of the SKU but the query itself. ``seconds``: of the search.
    """

    gallery: Views
    queries: Views
    skus: tuple[str, ...]
    truth: Ids
    nearest: Nearest
    views: Ids
    precision: NDArray[np.float64]
    seconds: float

    def take(self, places: Ids) -> Answers:
        """Return the answers of the queries at ``places``."""
        best = self.nearest
        part = Nearest(best.scores[places], best.skus[places], best.views[places])
        queries = self.queries.take(places)
        views, precision = self.views[places], self.precision[places]
        return Answers(self.gallery, queries, self.skus, self.truth[places], part, views, precision, self.seconds)


def retrieve(
    gallery: Views, queries: Views, k: int, technique: Technique = NEAREST, progress: Progress = no_progress
) -> Answers:
    """Answer every query with its ``k`` nearest SKUs of ``gallery``; a gallery view of the same path never counts.

    ``technique`` ranks the SKUs; the nearest views and the average precision are those of the plain search. Memory
    beyond the inputs: one copy of the gallery's vectors in the index, and blocks of 4,096 queries. Raises DataError
    when one side is empty, when queries are gallery views and ``technique`` is not the plain search, or when the
    gallery holds nothing but the query itself.
    """
    if not len(gallery) or not len(queries):
        raise DataError("no readable picture on one side of the evaluation", "see `skumatch data check`")
    started = time.perf_counter()
    index = _Index(gallery, queries)
    truth = codes_in(queries.rows, gallery.skus)
    relevant = relevant_views(gallery, truth, index.own)
    shape = len(queries), k
    kept = Nearest(np.full(shape, -np.inf, np.float32), np.full(shape, -1), np.full(shape, -1))
    views, precision = np.full(shape, -1), np.full(len(queries), np.nan)
    for block in _blocks(relevant):
        most = int(relevant[block].max(initial=0))
        scores, ids = index.search(block, min(len(gallery), max(DEEPER * k, most)))
        codes = index.codes(ids)
        width = min(k, codes.shape[1])
        views[block, :width] = codes[:, :width]
        right = (codes == truth[block, None]) & (codes >= 0)
        precision[block] = average_precision_at_r(right[:, :most], relevant[block])
        _distinct(index, block, scores, ids, kept)
        progress(len(block))
    if technique != NEAREST:
        kept = _by_technique(technique, index, k)
    seconds = time.perf_counter() - started
    return Answers(gallery, queries, tuple(gallery.skus), truth, kept, views, precision, seconds)


def _by_technique(technique: Technique, index: _Index, k: int) -> Nearest:
    """Return the k SKUs of each query as ``technique`` ranks them. Raises DataError when a query is a gallery view."""
    inside = int((index.own >= 0).sum())
    if inside:
        raise DataError(
            f"{inside} queries are gallery views, which the search '{technique}' cannot leave out",
            "give queries that are not in the gallery",
        )
    gallery = index.gallery
    store = MemoryStore(gallery.vectors, gallery.codes, index.plain)
    ids, dim = np.arange(len(gallery), dtype=np.int64), gallery.vectors.shape[1]
    return search(technique, prepared(technique, store, ids, lambda: ExactIndex(dim)), index.queries.vectors, k)


def own_views(gallery: Views, queries: Views) -> Ids:
    """Return, per query, the place of the gallery view with the same path (the last such), -1 where there is none."""
    place: dict[Path, int] = {row.path: number for number, row in enumerate(gallery.rows)}
    return np.array([place.get(row.path, -1) for row in queries.rows], np.int64)


def relevant_views(gallery: Views, truth: Ids, own: Ids) -> Ids:
    """Return, per query, the number of gallery views of its SKU other than itself, at most 2,000.

    ``truth``: its SKU's code in the gallery; ``own``: what ``own_views`` returns; int64 (N,), -1 where there is none.
    """
    total = np.bincount(gallery.codes, minlength=len(gallery.skus) + 1)
    pictures = zip(own_views(gallery, gallery).tolist(), gallery.codes.tolist(), strict=True)
    listed = Counter(pictures) if (own >= 0).any() else Counter[tuple[int, int]]()
    itself = np.array([listed[pair] for pair in zip(own.tolist(), truth.tolist(), strict=True)], np.int64)
    counted: Ids = np.minimum(np.where(truth >= 0, total[truth], 0) - itself, MOST_RELEVANT)
    return counted


class _Index:
    """A gallery's index that never answers a query with its own picture, however often the gallery lists it."""

    def __init__(self, gallery: Views, queries: Views) -> None:
        self.gallery = gallery
        self.queries = queries
        self.plain = ExactIndex(gallery.vectors.shape[1])
        self.plain.add(np.arange(len(gallery), dtype=np.int64), gallery.vectors)
        self.pictures = own_views(gallery, gallery)  # views of one path share a number
        self.own = own_views(gallery, queries)
        self.spare = int(np.bincount(self.pictures).max()) if (self.own >= 0).any() else 0
        if self.spare == len(gallery):
            raise DataError("the gallery holds nothing but the query itself", "give more pictures")

    def codes(self, ids: Ids) -> Ids:
        """Return the SKU codes of views, -1 where there is none."""
        return np.where(ids >= 0, self.gallery.codes[np.maximum(ids, 0)], -1)

    def search(self, rows: Ids, depth: int) -> tuple[Vectors, Ids]:
        """Return scores and places (N, depth) of the nearest views of the queries at ``rows``, -1 beyond the last."""
        scores, ids = self.plain.search(self.queries.vectors[rows], depth + self.spare)
        if not self.spare:
            return scores, ids
        same = (ids >= 0) & (self.pictures[np.maximum(ids, 0)] == self.own[rows, None])
        order = np.argsort(same | (ids < 0), axis=1, kind="stable")[:, :depth]  # the rest stays as it was
        return np.take_along_axis(scores, order, 1), np.take_along_axis(np.where(same, -1, ids), order, 1)


def _blocks(relevant: Ids) -> Iterator[Ids]:
    """Yield the places of queries in blocks of similar depth, so that one large SKU does not deepen all searches."""
    order = np.argsort(relevant, kind="stable")
    for start in range(0, len(order), BLOCK):
        yield order[start : start + BLOCK]


def _distinct(index: _Index, rows: Ids, scores: Vectors, ids: Ids, kept: Nearest) -> None:
    """Write the k distinct SKUs of the queries at ``rows`` into ``kept``; look deeper for those that show fewer."""
    k = kept.skus.shape[1]
    codes = index.codes(ids)
    first = first_k_distinct(codes, k)
    line, column = np.nonzero(first)
    place = (np.cumsum(first, axis=1) - 1)[line, column]
    kept.scores[rows[line], place] = scores[line, column]
    kept.skus[rows[line], place] = codes[line, column]
    kept.views[rows[line], place] = ids[line, column]
    total = len(index.gallery)
    if ids.shape[1] >= total:
        return
    depth = min(total, ids.shape[1] * DEEPER)
    for part in _parts(rows[first.sum(axis=1) < min(k, len(index.gallery.skus))], depth):
        _distinct(index, part, *index.search(part, depth), kept)


def _parts(rows: Ids, depth: int) -> list[Ids]:
    """Divide ``rows`` so that the answers of one search stay below about 200 MB."""
    size = max(1, HELD // depth)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
