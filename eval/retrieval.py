"""Exact nearest-neighbour answers for measuring: queries stream through the gallery in blocks.

What a query answers is kept (its nearest SKUs, the SKUs of its nearest views, its average precision), never a queries
x gallery matrix. A query's own picture in the gallery is never among its answers. It knows nothing about protocols.
"""

from __future__ import annotations

import time
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
MOST_RELEVANT = 2000  # mAP@R looks at this many views at most; R of a SKU with more is cut to it


@dataclass(frozen=True)
class Answers:
    """What a gallery answered.

    ``skus``: gallery SKU names by code. ``truth`` int64 (N,): the queries' codes, -1 where the gallery lacks the SKU.
    ``nearest``: k distinct SKUs per query with their best views (places in ``gallery``). ``views`` int64 (N, k): SKU
    codes of the nearest views, -1 where there are no more. ``precision`` float64 (N,): average precision at R, NaN
    where the gallery lacks the SKU. ``seconds``: of the search.
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
    when one side is empty, or when queries are gallery views and ``technique`` is not the plain search.
    """
    if not len(gallery) or not len(queries):
        raise DataError("no readable picture on one side of the evaluation", "see `skumatch data check`")
    started = time.perf_counter()
    index = ExactIndex(gallery.vectors.shape[1])
    index.add(np.arange(len(gallery), dtype=np.int64), gallery.vectors)
    truth, own = codes_in(queries.rows, gallery.skus), own_views(gallery, queries)
    relevant = relevant_views(gallery, truth, own)
    kept = Nearest(
        np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1), np.full((len(queries), k), -1)
    )
    views, precision = np.full((len(queries), k), -1), np.full(len(queries), np.nan)
    for block in _blocks(relevant):
        most = int(relevant[block].max(initial=0))
        depth = min(len(gallery), max(DEEPER * k, most))
        scores, ids = _without(own[block], *index.search(queries.vectors[block], depth + 1))
        codes = np.where(ids >= 0, gallery.codes[np.maximum(ids, 0)], -1)
        width = min(k, codes.shape[1])
        views[block, :width] = codes[:, :width]
        right = (codes == truth[block, None]) & (codes >= 0)
        precision[block] = average_precision_at_r(right[:, :most], relevant[block])
        _distinct(index, gallery, queries, own, (block, scores, ids), kept)
        progress(len(block))
    if technique != NEAREST:
        kept = _by_technique(technique, MemoryStore(gallery.vectors, gallery.codes, index), queries, own, k)
    seconds = time.perf_counter() - started
    return Answers(gallery, queries, tuple(gallery.skus), truth, kept, views, precision, seconds)


def _by_technique(technique: Technique, store: MemoryStore, queries: Views, own: Ids, k: int) -> Nearest:
    """Return the k SKUs of each query as ``technique`` ranks them. Raises DataError when a query is a gallery view."""
    if (own >= 0).any():
        raise DataError(
            f"{int((own >= 0).sum())} queries are gallery views, which the search '{technique}' cannot leave out",
            "give queries that are not in the gallery",
        )
    ids = np.arange(len(store.sku_codes), dtype=np.int64)
    dim = store.vectors.shape[1]
    return search(technique, prepared(technique, store, ids, lambda: ExactIndex(dim)), queries.vectors, k)


def own_views(gallery: Views, queries: Views) -> Ids:
    """Return, per query, the place of the gallery view with the same path, -1 where there is none."""
    place: dict[Path, int] = {row.path: number for number, row in enumerate(gallery.rows)}
    return np.array([place.get(row.path, -1) for row in queries.rows], np.int64)


def relevant_views(gallery: Views, truth: Ids, own: Ids) -> Ids:
    """Return, per query, the number of gallery views of its SKU other than itself, at most 2,000."""
    total = np.bincount(gallery.codes, minlength=len(gallery.skus) + 1)
    found = np.where(truth >= 0, total[truth], 0)
    itself = (own >= 0) & (gallery.codes[own] == truth)
    counted: Ids = np.minimum(found - itself, MOST_RELEVANT)
    return counted


def _blocks(relevant: Ids) -> Iterator[Ids]:
    """Yield the places of queries in blocks of similar depth, so that one large SKU does not deepen all searches."""
    order = np.argsort(relevant, kind="stable")
    for start in range(0, len(order), BLOCK):
        yield order[start : start + BLOCK]


def _without(own: Ids, scores: Vectors, ids: Ids) -> tuple[Vectors, Ids]:
    """Drop each query's own view (or, where it is not among them, the last one) from (N, K) answers."""
    drop = ids == own[:, None]
    drop[:, -1] |= ~drop.any(axis=1)
    if not (own >= 0).any():  # nothing is dropped but the spare column
        return scores[:, :-1], ids[:, :-1]
    shape = (len(ids), ids.shape[1] - 1)
    return scores[~drop].reshape(shape), ids[~drop].reshape(shape)


def _distinct(
    index: ExactIndex, gallery: Views, queries: Views, own: Ids, found: tuple[Ids, Vectors, Ids], kept: Nearest
) -> None:
    """Write each query's k distinct SKUs into ``kept``; search deeper for those whose views show fewer."""
    rows, scores, ids = found
    k = kept.skus.shape[1]
    depth = ids.shape[1]
    while len(rows):
        codes = np.where(ids >= 0, gallery.codes[np.maximum(ids, 0)], -1)
        first = first_k_distinct(codes, k)
        line, column = np.nonzero(first)
        place = (np.cumsum(first, axis=1) - 1)[line, column]
        kept.scores[rows[line], place] = scores[line, column]
        kept.skus[rows[line], place] = codes[line, column]
        kept.views[rows[line], place] = ids[line, column]
        if depth >= len(gallery):
            return
        rows = rows[first.sum(axis=1) < k]
        depth = min(len(gallery), depth * DEEPER)
        parts = [_without(own[part], *index.search(queries.vectors[part], depth + 1)) for part in _parts(rows, depth)]
        if parts:
            scores, ids = (np.concatenate(column) for column in zip(*parts, strict=True))


def _parts(rows: Ids, depth: int) -> list[Ids]:
    """Divide ``rows`` so that the answers of one search stay below about 200 MB."""
    size = max(1, 16_000_000 // depth)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
