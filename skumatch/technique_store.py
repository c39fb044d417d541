"""What a search technique needs of a gallery, and that gallery with neighbours mixed into its vectors.

Knows nothing about files: a store hands out an index, SKU codes, vectors and prototypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.spec import Ids, Vectors

BLOCK = 1024  # gallery rows mixed at a time


class Store(Protocol):
    """A gallery as the techniques see it; a SKU is an integer code."""

    @property
    def index(self) -> Index:
        """The reference views' vectors, searchable."""
        ...

    def codes(self, ids: Ids) -> Ids:
        """Map int64 view ids (any shape, all >= 0) to SKU codes of the same shape."""
        ...

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (M, D), the unit rows of the views ``ids`` (M,), in that order."""
        ...

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return float32 (S, D) unit rows and their SKU codes (S,), ascending; computed once and kept."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """A Store over arrays; made by ``memory_store``. View i has id i."""

    vectors: Vectors
    sku_codes: Ids
    index: Index

    def codes(self, ids: Ids) -> Ids:
        """Map view ids to SKU codes."""
        return self.sku_codes[ids]

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return the rows of ``ids``."""
        return self.vectors[ids]

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return one unit row per SKU."""
        return self._prototypes

    @cached_property
    def _prototypes(self) -> tuple[Vectors, Ids]:
        return mean_per_sku([(self.sku_codes, self.vectors)], int(self.sku_codes.max(initial=-1)) + 1)


@dataclass(frozen=True)
class AugmentedStore:
    """``base`` with an ``index`` of vectors mixed with their neighbours; made by ``augment`` with these settings."""

    base: Store
    index: Index
    neighbours: int
    alpha: float
    same_sku: bool

    def codes(self, ids: Ids) -> Ids:
        """Map view ids to SKU codes."""
        return self.base.codes(ids)

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return the rows of ``ids`` as they were before mixing."""
        return self.base.vectors_of(ids)

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return the prototypes of ``base``."""
        return self.base.prototypes()


def memory_store(vectors: Vectors, sku_codes: Ids, index: Index) -> MemoryStore:
    """Fill the empty ``index`` with float32 (N, D) unit rows under ids 0 to N - 1; ``sku_codes`` int64 (N,) from 0."""
    _require_empty(index)
    index.add(np.arange(len(vectors), dtype=np.int64), vectors)
    return MemoryStore(vectors, sku_codes, index)


def mean_per_sku(blocks: Iterable[tuple[Ids, Vectors]], skus: int) -> tuple[Vectors, Ids]:
    """Return each SKU's mean vector, scaled to unit length, and the codes of the SKUs that have a view, ascending.

    ``blocks``: (SKU codes (M,), unit rows (M, D)), a gallery in pieces; ``skus``: one more than the largest code.
    One mean per SKU is the prototype of Snell et al. 2017, section 2.2. Views that cancel out leave a zero row.
    """
    count = np.zeros(skus, np.int64)
    total = np.zeros((skus, 0), np.float32)
    for codes, vectors in blocks:
        if not total.shape[1]:
            total = np.zeros((skus, vectors.shape[1]), np.float32)
        np.add.at(total, codes, vectors)
        count += np.bincount(codes, minlength=skus)
    codes = np.flatnonzero(count)
    return unit_rows(total[codes]), codes


def unit_rows(vectors: Vectors) -> Vectors:
    """Return float32 (N, D) rows scaled to unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled


def rows_of(store: Store, ids: Ids, dim: int) -> Vectors:
    """Return float32 (N, n, dim), the views ``ids`` (N, n); zeros where the id is -1."""
    rows = np.zeros((*ids.shape, dim), np.float32)
    rows[ids >= 0] = store.vectors_of(ids[ids >= 0])
    return rows


def mixed(vectors: Vectors, scores: Vectors, neighbours: Vectors, alpha: float) -> Vectors:
    """Return unit rows of ``vectors`` (N, D) plus their ``neighbours`` (N, n, D), each weighted by cosine ** alpha.

    ``scores`` (N, n): cosine of each neighbour; 0 or less weighs nothing, whatever ``alpha``. The weighting of alpha
    query expansion (Radenovic et al. 2018, "Fine-tuning CNN image retrieval with no human annotation").
    """
    positive = np.maximum(scores, 0)  # an index answers -inf, or less, where there is no neighbour
    weights = np.where(positive > 0, positive**alpha, 0)
    return unit_rows(vectors + np.einsum("nk,nkd->nd", weights, neighbours))


def augment(
    store: Store, ids: Ids, index: Index, neighbours: int, alpha: float, same_sku: bool = True
) -> AugmentedStore:
    """Fill the empty ``index`` with the views ``ids``, each mixed with its nearest ``neighbours``; return the store.

    Database-side augmentation (Turcot & Lowe 2009; Arandjelovic & Zisserman 2012, section 4). ``same_sku``: mix with
    views of the same SKU only, which needs no search; otherwise with any nearest views, one search per view (a whole
    gallery against itself). Blocks of 1,024 views are in memory at a time. Raises GalleryError when ``index`` is not
    empty.
    """
    _require_empty(index)
    blocks = _within_skus(store, ids, neighbours, alpha) if same_sku else _among_all(store, ids, neighbours, alpha)
    for found, vectors in blocks:
        index.add(found, vectors)
    return AugmentedStore(store, index, neighbours, alpha, same_sku)


def _require_empty(index: Index) -> None:
    if len(index):
        raise GalleryError("the index to fill is not empty", "hand in a new one")


def _among_all(store: Store, ids: Ids, neighbours: int, alpha: float) -> Iterator[tuple[Ids, Vectors]]:
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        vectors = store.vectors_of(block)
        scores, found = store.index.search(vectors, min(len(store.index), neighbours + 1))
        scores = np.where((found == block[:, None]) | (found < 0), 0, scores)  # not the view itself
        order = np.argsort(-scores, axis=1, kind="stable")[:, :neighbours]
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        yield block, mixed(vectors, scores, rows_of(store, found, vectors.shape[1]), alpha)


def _within_skus(store: Store, ids: Ids, neighbours: int, alpha: float) -> Iterator[tuple[Ids, Vectors]]:
    codes = store.codes(ids)
    order = np.argsort(codes, kind="stable")
    ends = np.flatnonzero(np.diff(codes[order], append=-1)) + 1
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    alone = ids[order[starts[ends - starts == 1]]]  # most of a gallery with few views per SKU: taken as they are
    for start in range(0, len(alone), BLOCK):
        yield alone[start : start + BLOCK], store.vectors_of(alone[start : start + BLOCK])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start > 1:
            yield from _one_sku(store, ids[order[start:end]], neighbours, alpha)


def _one_sku(store: Store, ids: Ids, neighbours: int, alpha: float) -> Iterator[tuple[Ids, Vectors]]:
    """Yield the views of one SKU, each mixed with its nearest siblings."""
    views = store.vectors_of(ids)
    count = min(neighbours, len(ids) - 1)
    step = max(1, min(BLOCK, 2**21 // len(ids)))  # a SKU of a million views: no square matrix
    for start in range(0, len(ids), step):
        vectors = views[start : start + step]
        scores = vectors @ views.T
        scores[np.arange(len(vectors)), start + np.arange(len(vectors))] = -np.inf
        near = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        yield ids[start : start + step], mixed(vectors, np.take_along_axis(scores, near, 1), views[near], alpha)
