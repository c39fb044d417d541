"""Rows of a big job in columns (Arrow): what the engines hand over, and what a shard keeps.

    piece   int64   number of the piece                    row     int64   place in the source, from 0
    at      int64   place in the piece, from 0
                    source  text    where it came from: a path, a.tar#member or x.parquet#17
                    sku     text    null: unknown
                    sha256  text    of the picture's bytes, hex; null where it could not be read
                    error   text    why it could not be read, else null
                    thumb   binary  JPEG of long side 256; only where asked for
                    vector  float32[D] of unit length; null where it could not be read

Left: while it travels; right: in a shard. It knows nothing about files or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch, Schema

TEXTS = ("source", "sku", "sha256", "error")
VECTOR, THUMB, PIECE, AT, ROW = "vector", "thumb", "piece", "at", "row"


@dataclass(frozen=True)
class Fact:
    """What is known of a picture beside its vector: texts as above, and the thumbnail."""

    piece: int
    at: int
    source: str
    sku: str | None
    sha256: str | None = None
    error: str | None = None
    thumb: bytes | None = None


def shard_schema(dim: int, thumbs: bool) -> Schema:
    """Return the columns of a shard."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in TEXTS]
    thumb = [(THUMB, pa.binary())] if thumbs else []
    return pa.schema([(ROW, pa.int64()), *texts, *thumb, (VECTOR, pa.list_(pa.float32(), dim))])


def fact_columns(facts: Sequence[Fact], thumbs: bool) -> dict[str, Array]:
    """Return ``facts`` by column."""
    import pyarrow as pa

    columns = {name: pa.array([getattr(fact, name) for fact in facts], pa.int64()) for name in (PIECE, AT)}
    columns |= {name: pa.array([getattr(fact, name) for fact in facts], pa.string()) for name in TEXTS}
    if thumbs:
        columns[THUMB] = pa.array([fact.thumb for fact in facts], pa.binary())
    return columns


def vector_column(good: Ids, vectors: Vectors, total: int) -> Array:
    """Return ``vectors`` float32 (M, D) as a column of ``total`` rows, at the places ``good`` (M,); null elsewhere."""
    import pyarrow as pa

    dim = vectors.shape[1]
    if len(good) == total:
        return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(vectors, np.float32).reshape(-1), dim)
    rows, lacking = np.zeros((total, dim), np.float32), np.ones(total, bool)
    rows[good], lacking[good] = vectors, False
    return pa.FixedSizeListArray.from_arrays(rows.reshape(-1), dim, mask=pa.array(lacking))


def batch_of(facts: Sequence[Fact], good: Ids, vectors: Vectors, thumbs: bool) -> RecordBatch:
    """Return rows as they travel: ``facts`` with the vectors of those at the places ``good``."""
    import pyarrow as pa

    return pa.RecordBatch.from_pydict({**fact_columns(facts, thumbs), VECTOR: vector_column(good, vectors, len(facts))})
