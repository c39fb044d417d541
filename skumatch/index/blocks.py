"""Rows of vectors in blocks, as they were given, and the best of several answers: what the exact indexes stand on.

A block is kept by reference, so a memory map stays a memory map. It knows nothing about how scores are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import GalleryError
from skumatch.spec import Ids, Vectors

SMALL = 256  # rows; an addition smaller than this is gathered with others, each block costing a call per search
GATHERED = 4096  # rows of a gathered block, at most
PIECE = 32 << 20  # bytes of rows copied at a time
FEW = 8  # ids fewer than a block's rows by this factor are looked up one by one
MERGED = 4096  # columns of answers kept before they are merged


class Block:
    """``rows`` float32 (M, D) under ``ids`` int64 (M,), some of them removed."""

    def __init__(self, ids: Ids, rows: Vectors) -> None:
        self.ids = ids
        self.rows = rows
        self.dead: NDArray[np.bool_] | None = None
        self.gone = 0

    def __len__(self) -> int:
        """Return the number of rows that are not removed."""
        return len(self.ids) - self.gone

    @cached_property
    def _sorted(self) -> tuple[Ids, Ids | None]:
        """The ids, ascending, and the order that makes them so, None where they are already."""
        if np.all(self.ids[1:] > self.ids[:-1]):
            return self.ids, None
        order = np.argsort(self.ids, kind="stable")
        return self.ids[order], order

    @property
    def distinct(self) -> bool:
        """Whether no id comes twice."""
        ids, order = self._sorted
        return order is None or bool(np.all(ids[1:] != ids[:-1]))

    def find(self, ids: Ids) -> Ids:
        """Return the positions (F,) of those of ``ids`` that are here and not removed."""
        place, here = self._look(ids)
        return place[here]

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Mark (N,) which of ``ids`` are here and not removed."""
        return self._look(ids)[1]

    def _look(self, ids: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return a position for each of ``ids`` and whether it is that id's."""
        mine, order = self._sorted
        if not len(ids) or not len(mine) or ids.min() > mine[-1] or ids.max() < mine[0]:
            return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
        if mine[-1] - mine[0] == len(mine) - 1:  # no gaps, as in most segments: far quicker for many ids
            place = np.clip(ids - mine[0], 0, len(mine) - 1)
        else:
            place = np.minimum(np.searchsorted(mine, ids), len(mine) - 1)
        here = mine[place] == ids
        place = place if order is None else order[place]
        return place, here if self.dead is None else here & ~self.dead[place]

    def remove(self, ids: Ids) -> None:
        """Mark the rows of ``ids``; ids that are not here are ignored."""
        found = self.find(ids)
        if len(found):
            dead = np.zeros(len(self.ids), bool) if self.dead is None else self.dead.copy()
            dead[found] = True
            self.dead, self.gone = dead, int(np.count_nonzero(dead))

    def kept(self, allowed: Ids | None) -> NDArray[np.bool_] | None:
        """Mark (M,) the rows that are not removed and whose id is ``allowed`` (ascending); None: all of them."""
        if allowed is None:
            return None if self.dead is None else ~self.dead
        if FEW * len(allowed) < len(self.ids):
            mask = np.zeros(len(self.ids), bool)
            mask[self.find(allowed)] = True
            return mask
        ids = self._sorted[0]
        mask = np.isin(self.ids, allowed[np.searchsorted(allowed, ids[0]) : np.searchsorted(allowed, ids[-1], "right")])
        return mask if self.dead is None else mask & ~self.dead


class Blocks:
    """Blocks of ``dim`` columns in the order they were added; small ones are copied into common blocks."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._blocks: list[Block] = []
        self._open: Block | None = None  # the last block, where it has room for small additions
        self._store = np.empty((0, dim), np.float32)  # what the open block's rows are the start of

    def __len__(self) -> int:
        """Return the number of rows that are not removed."""
        return sum(map(len, self._blocks))

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks that hold anything."""
        return (block for block in tuple(self._blocks) if len(block))

    def add(self, ids: Ids, vectors: Vectors) -> Block | None:
        """Add float32 (N, D) rows under (N,) new ids and return the block that holds them, None for no rows.

        Raises GalleryError for a wrong shape and for an id that is there already.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or ids.shape != (len(vectors),):
            raise GalleryError(f"vectors are {vectors.shape}, ids {ids.shape}", f"give (N, {self.dim}) and (N,)")
        if not len(ids):
            return None
        block = Block(np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(np.asarray(vectors), np.float32))
        twice = next((other for other in self._blocks if len(other.find(block.ids))), None)
        if twice is not None or not block.distinct:
            there = block.ids[:1] if twice is None else twice.ids[twice.find(block.ids)]
            raise GalleryError(
                f"ids are there already or come twice (one of {len(ids)} near {there[0]})", "give new ids"
            )
        return self._gather(block) if len(ids) < SMALL else self._append(block)

    def remove(self, ids: Ids) -> None:
        """Forget the rows of ``ids``; ids that are not there are ignored."""
        wanted = np.ascontiguousarray(ids, np.int64)
        for block in self._blocks:
            if block is not self._open:
                block.remove(wanted)
            elif len(found := block.find(wanted)):  # an id may come back, and must not be in one block twice
                rest = np.delete(np.arange(len(block.ids)), found)
                self._store = np.empty_like(self._store)
                self._refill(block.ids[rest], block.rows[rest])

    def _append(self, block: Block) -> Block:
        """Keep ``block`` as it is, before the open one."""
        place = len(self._blocks) - (self._open is not None)
        self._blocks.insert(place, block)
        return block

    def _gather(self, block: Block) -> Block:
        """Copy the rows of ``block`` behind those gathered before."""
        if self._open is None or len(self._open.ids) + len(block.ids) > GATHERED:
            self._store = np.empty((GATHERED, self.dim), np.float32)  # pages are taken as they are written to
            self._blocks.append(Block(np.empty(0, np.int64), self._store[:0]))
            self._open = self._blocks[-1]
        return self._refill(np.concatenate([self._open.ids, block.ids]), block.rows)

    def _refill(self, ids: Ids, rows: Vectors) -> Block:
        """Replace the open block by one of ``ids``; ``rows`` are those of the last of them, the others are in place."""
        self._store[len(ids) - len(rows) : len(ids)] = rows
        self._open = Block(ids, self._store[: len(ids)])
        self._blocks[-1] = self._open
        return self._open


class Best:
    """The ``k`` best of all answers given so far, for N queries."""

    def __init__(self, queries: int, k: int) -> None:
        self.queries = queries
        self.k = k
        self._scores: list[Vectors] = []
        self._ids: list[Ids] = []

    def add(self, scores: Vectors, ids: Ids) -> None:
        """Take (N, F) further answers, each id for the first time; id -1 counts for nothing."""
        self._scores.append(np.where(ids < 0, np.float32(-np.inf), scores))
        self._ids.append(ids)
        if sum(part.shape[1] for part in self._ids) > self.k + max(MERGED, 2 * self.k):
            self._merge()

    def result(self) -> tuple[Vectors, Ids]:
        """Return scores float32 (N, k), best first, equal ones by ascending id, and ids; -inf and -1 beyond the end."""
        lacking = max(0, self.k - sum(part.shape[1] for part in self._ids))
        self._scores.append(np.full((self.queries, lacking), -np.inf, np.float32))
        self._ids.append(np.full((self.queries, lacking), -1, np.int64))
        self._merge()
        return self._scores[0], self._ids[0]

    def _merge(self) -> None:
        scores, ids = np.concatenate(self._scores, 1), np.concatenate(self._ids, 1)
        _order(scores, ids)
        self._scores, self._ids = [scores[:, : self.k]], [ids[:, : self.k]]


def _order(scores: Vectors, ids: Ids) -> None:
    """Sort (N, F) ``scores`` and ``ids`` in place: by falling score, equal ones by rising id, -1 last."""
    lines = np.flatnonzero((scores[:, 1:] >= scores[:, :-1]).any(axis=1))  # the others are in order already
    if len(lines):
        some, theirs = scores[lines], ids[lines]
        order = np.lexsort((np.where(theirs < 0, np.iinfo(np.int64).max, theirs), -some), axis=1)
        scores[lines], ids[lines] = np.take_along_axis(some, order, 1), np.take_along_axis(theirs, order, 1)


def ascending(ids: Ids) -> Ids:
    """Return ``ids`` (N,) as int64, ascending and each once."""
    given = np.ascontiguousarray(ids, np.int64).reshape(-1)
    if np.all(given[1:] > given[:-1]):
        return given
    ordered = np.sort(given)  # np.unique hashes first, which takes far longer
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]
