"""Labelled pictures with their vectors: what every protocol, audit and sweep works on.

Embedded once, taken apart many times. It knows nothing about galleries on disk or about measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress, unchanged
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.spec import Ids, Image, Vectors


@dataclass(frozen=True)
class Views:
    """Readable rows and their ``vectors``, float32 (N, D) unit rows. Raises DataError when the lengths differ."""

    rows: tuple[Row, ...]
    vectors: Vectors

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.vectors) or self.vectors.ndim != 2:
            raise DataError(f"{len(self.rows)} rows but vectors {self.vectors.shape}", "report this as a bug")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def skus(self) -> list[str]:
        """Distinct SKUs, sorted."""
        return sorted({row.sku for row in self.rows})

    @cached_property
    def codes(self) -> Ids:
        """int64 (N,): the place of each row's SKU in ``skus``."""
        return codes_in(self.rows, self.skus)

    def take(self, places: Ids) -> Views:
        """Return the rows at ``places`` (int64 or bool mask), in that order."""
        chosen = np.flatnonzero(places) if places.dtype == bool else places
        return Views(tuple(self.rows[int(i)] for i in chosen), self.vectors[chosen])


def codes_in(rows: Sequence[Row], skus: Sequence[str]) -> Ids:
    """Return int64 (N,): the place of each row's SKU in ``skus``, -1 where it is not among them."""
    place = {sku: number for number, sku in enumerate(skus)}
    return np.array([place.get(row.sku, -1) for row in rows], np.int64)


def embed_rows(
    rows: Sequence[Row],
    encoder: Encoder,
    pipeline: Pipeline,
    progress: Progress = no_progress,
    change: Callable[[Image], Image] = unchanged,
) -> tuple[Views, tuple[str, ...]]:
    """Return the readable rows with their vectors, and one message per unreadable row."""
    kept: list[Row] = []
    vectors: list[Vectors] = [np.empty((0, encoder.spec.dim), np.float32)]
    problems: list[str] = []
    start = 0
    for batch in pipeline.embed((row.path for row in rows), encoder, progress, change=change):
        kept += [rows[start + int(place)] for place in batch.good]
        vectors.append(batch.vectors)
        problems += [str(error) for error in batch.errors if error is not None]
        start += len(batch.sources)
    return Views(tuple(kept), np.concatenate(vectors)), tuple(problems)
