"""From nearest views to nearest SKUs: k means distinct SKUs, each by its best view.

Knows nothing about where vectors come from or what a SKU is called: a SKU is an integer code here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.spec import Ids, Vectors

FETCH = 4  # views fetched per SKU wanted, at first


@dataclass(frozen=True)
class Nearest:
    """The k nearest SKUs of N queries.

    ``scores`` float32 (N, k) cosine, best first; ``skus`` int64 (N, k) codes, distinct within a row, -1 where the
    gallery has no more SKUs; ``views`` int64 (N, k) the id of the view that won. Raises GalleryError for nonsense.
    """

    scores: Vectors
    skus: Ids
    views: Ids

    def __post_init__(self) -> None:
        if not self.scores.shape == self.skus.shape == self.views.shape or self.scores.ndim != 2:
            raise GalleryError("scores, SKUs and views differ in shape", "report this as a bug")
        found = self.skus >= 0
        falling = self.scores[:, 1:] <= self.scores[:, :-1]  # a difference of infinities would be NaN
        if not np.all(falling | ~found[:, 1:]):
            raise GalleryError("scores are not sorted", "report this as a bug")


def nearest_skus(
    index: Index, code_of: Callable[[Ids], Ids], queries: Vectors, k: int, allowed: Ids | None = None
) -> Nearest:
    """Search ``index`` for the k nearest distinct SKUs of each row of ``queries``.

    ``code_of`` maps int64 view ids (any shape, all >= 0) to SKU codes. Over-fetches views, four times as many each
    round, until every query has k SKUs or the gallery is exhausted. ``k`` at least 1. Raises GalleryError.
    """
    if k < 1:
        raise GalleryError(f"k is {k}", "ask for at least one SKU")
    total = len(index) if allowed is None else min(len(index), len(allowed))
    scores = np.full((len(queries), k), -np.inf, np.float32)
    skus = np.full((len(queries), k), -1, np.int64)
    views = np.full((len(queries), k), -1, np.int64)
    open_rows = np.arange(len(queries))
    fetch = min(total, k * FETCH)
    while len(open_rows) and fetch > 0:
        found_scores, found_ids = index.search(queries[open_rows], fetch, allowed)
        codes = np.where(found_ids >= 0, code_of(np.maximum(found_ids, 0)), -1)
        keep = first_k_distinct(codes, k)
        _scatter(keep, open_rows, (found_scores, codes, found_ids), (scores, skus, views))
        if fetch >= total:
            break
        open_rows = open_rows[keep.sum(axis=1) < k]
        fetch = min(total, fetch * FETCH)
    return Nearest(scores, skus, views)


def first_k_distinct(codes: Ids, k: int) -> NDArray[np.bool_]:
    """Mark, per row of (N, F) ``codes``, the first occurrence of the first k distinct values (-1 never)."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, 1)
    new = np.ones(codes.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.zeros(codes.shape, bool)
    np.put_along_axis(first, order, new, 1)
    first &= codes >= 0
    kept: NDArray[np.bool_] = first & (np.cumsum(first, axis=1) <= k)
    return kept


def _scatter(
    keep: NDArray[np.bool_],
    rows: Ids,
    found: tuple[Vectors, Ids, Ids],
    answers: tuple[Vectors, Ids, Ids],
) -> None:
    """Write the kept entries of ``found`` into the leading columns of ``answers`` at ``rows``."""
    place = np.cumsum(keep, axis=1) - 1
    line, column = np.nonzero(keep)
    for part in range(3):
        answers[part][rows[line], place[line, column]] = found[part][line, column]
