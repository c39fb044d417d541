"""Where each live view of a gallery version lies: id -> SKU code, segment, position. Arrays, no dictionary per view.

It knows nothing about vectors or search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skumatch import arrow
from skumatch.spec import Ids

if TYPE_CHECKING:
    from pyarrow import Array

    from skumatch.segment import Segment

Int32s = NDArray[np.int32]


class SkuNames(Sequence[str]):
    """SKU names by code, over an Arrow array of strings: a million of them take no million objects."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, code: Any) -> Any:
        """Return the name of ``code``, or a list of them for a slice."""
        if isinstance(code, slice):
            return self.array.take(np.arange(len(self))[code]).to_pylist()
        if not -len(self) <= code < len(self):
            raise IndexError(code)
        return self.array[int(code) % len(self)].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self.array.to_pylist())

    def code(self, name: str) -> int:
        """Return the code of ``name``, -1 where it is not there."""
        return int(self.codes([name])[0])

    def codes(self, names: Sequence[str] | Array) -> Int32s:
        """Return the code of each of ``names``, int32 (N,), -1 where it is not there."""
        import pyarrow as pa
        import pyarrow.compute as pc

        asked = names if isinstance(names, pa.Array) else arrow.findable(names)
        found: Int32s = pc.index_in(asked, value_set=self.array).fill_null(-1).to_numpy()
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.code(name) >= 0


@dataclass(frozen=True)
class Directory:
    """The live views, by ascending id: ``ids`` int64 (N,), ``codes`` of their SKUs, ``segments`` (number of the one it
    lies in) and ``positions`` in it, int32 (N,); ``skus``: names by code, each with at least one view."""

    ids: Ids
    codes: Int32s
    segments: Int32s
    positions: Int32s
    skus: SkuNames

    def find(self, ids: Ids) -> Ids:
        """Return the places in ``ids`` of the views asked for (any shape), -1 where a view is not there."""
        if not len(self.ids):
            return np.full(ids.shape, -1, np.int64)
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        found: Ids = np.where(self.ids[places] == ids, places, -1)
        return found

    @cached_property
    def by_sku(self) -> Ids:
        """Places ordered by SKU code, ascending ids within a SKU."""
        return np.argsort(self.codes, kind="stable")

    @cached_property
    def starts(self) -> Ids:
        """Where each SKU's places begin in ``by_sku``, int64 (S + 1,)."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.codes, minlength=len(self.skus)))]).astype(np.int64)

    def ids_with(self, code: int) -> Ids:
        """Return the ids of the views of the SKU with ``code``, ascending."""
        return self.ids[self.by_sku[self.starts[code] : self.starts[code + 1]]]

    def ids_of_codes(self, codes: Int32s) -> Ids:
        """Return the ids of all views of the SKUs with ``codes``, ascending."""
        wanted = np.zeros(len(self.skus), bool)
        wanted[codes] = True
        return self.ids[wanted[self.codes]]


def member(ids: Ids, among: Ids) -> NDArray[np.bool_]:
    """Return whether each of ``ids`` is in ``among``, which is ascending."""
    if not len(among):
        return np.zeros(len(ids), bool)
    found: NDArray[np.bool_] = among[np.minimum(np.searchsorted(among, ids), len(among) - 1)] == ids
    return found


def directory(segments: Sequence[tuple[Segment, Ids]], removed: Ids) -> Directory:
    """Return the directory of the views of ``segments`` (each with its views' ids) but those ``removed`` (ascending).

    SKU codes run in the order of first appearance.
    """
    ids = np.concatenate([ids for _, ids in segments] or [np.empty(0, np.int64)])
    codes, names = _joined([segment for segment, _ in segments])
    numbers = np.repeat(np.arange(len(segments), dtype=np.int32), [len(ids) for _, ids in segments])
    positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for _, ids in segments] or [np.empty(0, np.int32)])
    live = np.flatnonzero(~member(ids, removed))
    if np.any(np.diff(ids[live]) <= 0):
        live = live[np.argsort(ids[live], kind="stable")]
    used = np.bincount(codes[live], minlength=len(names)) > 0
    renumbered = (np.cumsum(used) - 1).astype(np.int32)
    return Directory(
        ids[live], renumbered[codes[live]], numbers[live], positions[live], SkuNames(names.filter(_mask(used)))
    )


def _joined(segments: Sequence[Segment]) -> tuple[Int32s, Array]:
    """Return the SKU code of every row of ``segments`` in turn, and the names by code."""
    import pyarrow as pa

    if not segments:
        return np.empty(0, np.int32), pa.array([], pa.string())
    encoded = pa.concat_arrays([segment.names for segment in segments]).dictionary_encode()
    code_of = encoded.indices.to_numpy()
    starts = np.concatenate([[0], np.cumsum([len(segment.names) for segment in segments])])
    codes = [code_of[start + segment.codes] for start, segment in zip(starts, segments, strict=False)]
    return np.concatenate(codes).astype(np.int32, copy=False), encoded.dictionary


def _mask(used: NDArray[np.bool_]) -> Array:
    import pyarrow as pa

    return pa.array(used)
