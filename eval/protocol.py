"""The closed protocol: nearest neighbours of the query split in the gallery split, leaks left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skumatch.dataset import Dataset, Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.eval.leaks import identical
from skumatch.index.exact import ExactIndex
from skumatch.nearest import Nearest, nearest_skus
from skumatch.spec import Ids, Spec, Vectors

KS = (1, 3, 5)


@dataclass(frozen=True)
class Closed:
    """Which rows are reference views, which are queries, and which queries were left out as copies of a view."""

    gallery: tuple[Row, ...]
    queries: tuple[Row, ...]
    leaks: tuple[tuple[Row, str], ...]


@dataclass(frozen=True)
class Answers:
    """What the encoder answered.

    ``queries``: the readable ones (N,). ``skus``: gallery SKU names by code. ``truth`` int64 (N,): code, -1 where the
    gallery lacks the SKU. ``nearest``: k SKUs per query; ``views`` int64 (N, K): SKU codes of the nearest views.
    ``gallery``: the readable views; ``unreadable``: messages; ``seconds``: embedding and search.
    """

    spec: Spec
    gallery: tuple[Row, ...]
    queries: tuple[Row, ...]
    skus: tuple[str, ...]
    truth: Ids
    nearest: Nearest
    views: Ids
    unreadable: tuple[str, ...]
    seconds: float


def closed(dataset: Dataset, split: str = "test") -> Closed:
    """Set the gallery split against ``split``, leaving out queries that are byte for byte a gallery view.

    Raises ConfigError when ``split`` is the gallery itself, DataError when rows are missing or all are leaks.
    """
    source = dataset.gallery_split
    if split == source:
        raise ConfigError(f"split '{split}' is the gallery", "evaluate on test or val")
    gallery, queries = dataset.split(source), dataset.split(split)
    copies = identical(gallery.rows, queries.rows)
    kept = tuple(row for row in queries if row.path not in copies)
    if not kept:
        raise DataError(f"every query in split '{split}' is a copy of a gallery view", "give other queries")
    leaks = tuple((row, str(copies[row.path])) for row in queries if row.path in copies)
    return Closed(gallery.rows, kept, leaks)


def answer(protocol: Closed, encoder: Encoder, pipeline: Pipeline, k: int, progress: Progress = no_progress) -> Answers:
    """Embed both sides and search. Raises DataError when one side has no readable picture."""
    started = time.perf_counter()
    problems: list[str] = []
    gallery, views = _embed(protocol.gallery, encoder, pipeline, progress, problems)
    queries, vectors = _embed(protocol.queries, encoder, pipeline, progress, problems)
    if not gallery or not queries:
        raise DataError("no readable picture on one side of the evaluation", f"first: {problems[0]}")
    skus = sorted({row.sku for row in gallery})
    code = {sku: number for number, sku in enumerate(skus)}
    codes = np.array([code[row.sku] for row in gallery], np.int64)
    index = ExactIndex(encoder.spec.dim)
    index.add(np.arange(len(gallery), dtype=np.int64), views)
    nearest = nearest_skus(index, lambda ids: codes[ids], vectors, k)
    _, ids = index.search(vectors, min(k, len(gallery)))
    truth = np.array([code.get(row.sku, -1) for row in queries], np.int64)
    seconds = time.perf_counter() - started
    return Answers(encoder.spec, gallery, queries, tuple(skus), truth, nearest, codes[ids], tuple(problems), seconds)


def _embed(
    rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, progress: Progress, problems: list[str]
) -> tuple[tuple[Row, ...], Vectors]:
    """Return the readable rows and their vectors; messages for the others go to ``problems``."""
    kept: list[Row] = []
    vectors: list[Vectors] = [np.empty((0, encoder.spec.dim), np.float32)]
    start = 0
    for batch in pipeline.embed((row.path for row in rows), encoder, progress):
        kept += [rows[start + int(place)] for place in batch.good]
        vectors.append(batch.vectors)
        problems += [str(error) for error in batch.errors if error is not None]
        start += len(batch.sources)
    return tuple(kept), np.concatenate(vectors)
