"""Of the pairs that ``skumatch dedupe`` wrote, those that a review of its groups can show: why postings are one group,
and which other groups they may belong to.

There may be 20 million pairs: they are streamed, and of each group no more than a handful is held. It knows nothing
about what people decide, nor where groups are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.cards import Reason
from skumatch.catalogue.output import AMOUNTS
from skumatch.errors import ArtefactError
from skumatch.readers_common import shown

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table

    Part = tuple[Table, NDArray[np.int32]]

STRONGEST: Final = 3  # pairs of a group that are kept, and its weakest
LINKS: Final = 5  # other groups of which a group keeps the best pair with it
BATCH: Final = 1_000_000  # pairs at a time
ROWS: Final = 10_000  # pairs made Python objects at a time
ENDS: Final = ("left", "right")


def telling(path: Path, postings: Sequence[str], codes: NDArray[np.int32]) -> Iterator[Reason]:
    """Yield the pairs of the table ``path`` that tell most of the groups of ``postings``; ``codes`` (int32, (N,)): the
    group of each, 0 or more.

    Of each group the three most probable pairs and the least; and the best pair with each of the five groups that are
    nearest to it. A pair with a posting that is not among ``postings`` is left out. Raises ArtefactError for a table
    that cannot be read.
    """
    kept: Part | None = None
    for table, ends in _grouped(path, postings, codes):
        kept = _reduced(table, ends) if kept is None else _reduced(*_joined(kept, (table, ends)))
    for batch in kept[0].to_batches(ROWS) if kept is not None else ():
        yield from map(_reason, batch.to_pylist())


def _grouped(path: Path, postings: Sequence[str], codes: NDArray[np.int32]) -> Iterator[Part]:
    """Yield the pairs of which both ends are in groups, batch by batch, with the groups of both (int32, (2, N))."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known, all_codes = pa.array(postings, pa.string()), np.append(codes, -1)
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(BATCH):
                ends = np.stack([all_codes[_places(batch, end, known)] for end in ENDS])
                there = (ends >= 0).all(axis=0)
                yield pa.Table.from_batches([batch]).filter(pa.array(there)), np.sort(ends[:, there], axis=0)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtefactError(f"{shown(path)} cannot be read", "write it anew with `skumatch dedupe`") from error


def _places(batch: RecordBatch, end: str, known: Any) -> NDArray[np.int32]:
    import pyarrow.compute as pc

    found = pc.index_in(batch.column(end), value_set=known).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)


def _joined(a: Part, b: Part) -> Part:
    import pyarrow as pa

    return pa.concat_tables([a[0], b[0]]), np.concatenate([a[1], b[1]], axis=1)


def _reduced(table: Table, ends: NDArray[np.int32]) -> Part:
    """Return the pairs that tell most. What is dropped is never needed later: there are enough better ones."""
    kept = _kept(ends, table["probability"].to_numpy())
    return table.take(kept).combine_chunks(), ends[:, kept]


def _kept(ends: NDArray[np.int32], probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rows to keep, where ``ends`` (int32, (2, N)) has the smaller group first."""
    order = np.lexsort((-probability, ends[1], ends[0]))
    low, high = ends[:, order]
    new = np.append(True, (np.diff(low) != 0) | (np.diff(high) != 0))[: len(order)]
    rank, last = _ranks(new), np.append(new[1:], True)[: len(order)]
    inside = low == high
    pairs = order[inside & ((rank < STRONGEST) | last)]
    links = order[~inside & (rank == 0)]
    return np.concatenate([pairs, links[_nearest(ends[:, links], probability[links])]])


def _nearest(ends: NDArray[np.int32], probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which links (int32, (2, N)) are among the best of either group."""
    groups, both = ends.ravel(), np.concatenate([probability, probability])
    order = np.lexsort((-both, groups))
    best = np.zeros(len(groups), bool)
    best[order[_ranks(np.append(True, np.diff(groups[order]) != 0)[: len(order)]) < LINKS]] = True
    return np.asarray(best.reshape(2, -1).any(axis=0))


def _ranks(new: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the place of each row within its run; ``new`` is true where one begins."""
    starts = np.flatnonzero(new)
    return np.asarray(np.arange(len(new)) - np.repeat(starts, np.diff(np.append(starts, len(new)))))


def _reason(row: Mapping[str, Any]) -> Reason:
    known = {*ENDS, "probability", *AMOUNTS}
    scores = {name: float(value) for name, value in row.items() if name not in known and value is not None}
    scores = {name: value for name, value in scores.items() if value == value}  # NaN: the signal has none
    contradict, agree = (bool(row.get(name)) for name in AMOUNTS)
    return Reason(row["left"], row["right"], float(row["probability"]), scores, contradict, agree)
