"""Ways to answer that a sweep tries, and what one of them answers on validation queries at which cost.

Knows nothing about choosing among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder, asking
from skumatch.errors import DataError
from skumatch.eval.metrics import hit_ranks
from skumatch.eval.views import Views, codes_in, embed_rows
from skumatch.index import Index
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import MemoryStore, memory_store
from skumatch.techniques import NEAREST, Technique, prepared, search
from skumatch.testviews import VIEWS, View, ViewsEncoder, ViewSetting, by_setting

DEPTH = 5  # SKUs answered per query
ALL_PAIRS = 50_000  # larger galleries are not searched against themselves

GRID: tuple[Technique, ...] = (  # mildest first: of equally good settings the first is taken
    *(Technique("vote", n, temperature=t) for n in (5, 20, 50) for t in (0.02, 0.05, 0.1)),
    *(Technique("prototype", strength=s) for s in (0.25, 0.5, 0.75, 1.0)),
    *(Technique("expand", n, alpha=a) for n in (1, 3, 10) for a in (10.0, 3.0)),
    *(Technique("augment", n, alpha=a, same_sku=s) for s in (True, False) for n in (3, 10) for a in (10.0, 3.0)),
    *(Technique("reciprocal", n, strength=s) for n in (6, 20) for s in (0.3, 0.7)),
)


@dataclass(frozen=True)
class Option:
    """A technique with test-time views: one way to answer."""

    technique: Technique = NEAREST
    views: ViewSetting = "none"


@dataclass(frozen=True)
class Measured:
    """``ranks`` int64 (N,) of the right SKU from 1, 0 beyond the fifth; ``searches`` and ``milliseconds`` per query."""

    ranks: Ids
    searches: float
    milliseconds: float


class Counting:
    """An Index that counts the queries it is asked."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.asked = 0

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.index)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors under new ids."""
        self.index.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Forget the vectors of ``ids``."""
        self.index.remove(ids)

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Count ``queries``, then search."""
        self.asked += len(queries)
        return self.index.search(queries, k, allowed)


@dataclass(frozen=True)
class Trial:
    """Reference views, and validation queries of SKUs among them as vectors per view setting.

    ``truth`` int64 (N,): each query's SKU code in ``gallery.codes``; ``left_out``: queries of other SKUs.
    """

    gallery: Views
    queries: Mapping[ViewSetting, Vectors]
    truth: Ids
    left_out: int

    @cached_property
    def store(self) -> MemoryStore:
        """The gallery in memory, with an index that counts."""
        return memory_store(self.gallery.vectors, self.gallery.codes, self._index())

    def _index(self) -> Counting:
        return Counting(ExactIndex(self.gallery.vectors.shape[1]))

    def measure(self, option: Option) -> Measured:
        """Answer all queries in one way."""
        ids = np.arange(len(self.gallery), dtype=np.int64)
        store = prepared(option.technique, self.store, ids, self._index)
        index, queries = store.index, self.queries[option.views]
        before = index.asked if isinstance(index, Counting) else 0
        started = time.perf_counter()
        found = search(option.technique, store, queries, DEPTH)
        seconds = time.perf_counter() - started
        asked = index.asked - before if isinstance(index, Counting) else 0
        return Measured(hit_ranks(found.skus, self.truth), asked / len(queries), 1000 * seconds / len(queries))


def trial(gallery: Views, queries: Views, settings: Mapping[ViewSetting, Vectors] | None = None) -> Trial:
    """Set queries against reference views; ``settings`` holds the queries' vectors per test-time view setting.

    Raises DataError when a query is itself a reference view, when no query's SKU is in the gallery, or when
    ``settings`` does not fit the queries.
    """
    same = {row.path for row in gallery.rows} & {row.path for row in queries.rows}
    if same:
        raise DataError(f"{len(same)} queries are reference views themselves", "sweep on the validation split")
    truth = codes_in(queries.rows, gallery.skus)
    known = np.flatnonzero(truth >= 0)
    if not len(known):
        raise DataError("no validation query shows a SKU of the gallery", "give queries of the gallery's SKUs")
    vectors: dict[ViewSetting, Vectors] = {**(settings or {}), "none": queries.vectors}
    for name, rows in vectors.items():
        if rows.shape != queries.vectors.shape:
            raise DataError(f"views '{name}' are {rows.shape}, not {queries.vectors.shape}", "embed the same queries")
    kept = {name: rows[known] for name, rows in vectors.items()}
    return Trial(gallery, kept, truth[known], len(queries) - len(known))


def families(grid: Sequence[Technique], views: int) -> dict[str, list[Technique]]:
    """Return the techniques of ``grid`` by name, without those too costly for a gallery of so many ``views``."""
    found: dict[str, list[Technique]] = {}
    for technique in grid:
        if technique.name != "augment" or technique.same_sku or views <= ALL_PAIRS:
            found.setdefault(technique.name, []).append(technique)
    return found


def embed_settings(
    rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> tuple[Views, dict[ViewSetting, Vectors], tuple[str, ...]]:
    """Return readable rows with the rows to ask with, those per view setting, and messages of the unreadable.

    Embeds each picture three times (as it is, mirrored, zoomed), from which every setting is made.
    """
    plain, problems = embed_rows(rows, encoder, pipeline, progress)
    vectors: dict[View, Vectors] = {"original": plain.vectors}
    for view in VIEWS["flip+scale"][1:]:
        vectors[view] = embed_rows(rows, ViewsEncoder(encoder, (view,)), pipeline, progress)[0].vectors
    settings = {name: asking(encoder, found) for name, found in by_setting(vectors).items()}
    return Views(plain.rows, settings["none"]), settings, problems
