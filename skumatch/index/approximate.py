"""Approximate search by faiss, for more vectors than can be compared one by one: a graph, or lists of short codes.

    hnsw         graph of 32 neighbours over 8-bit rows: Malkov and Yashunin 2018, section 4
    ivf-rabitq   lists around centres, rows as one bit per dimension (RaBitQ, Gao and Long 2024, section 3), the best
                 compared again as 8-bit rows

Both go by the distance, which ranks unit rows as the cosine does. By the product RaBitQ finds fewer: of 20,000 random
rows of 512, all lists, 80 candidates, .29 of the ten nearest instead of .59. Scores are approximations too. An index
holds no vectors in full; it knows nothing about segments or manifests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch.artefact import disk_errors
from skumatch.errors import ArtefactError, GalleryError
from skumatch.index.blocks import Block, ascending
from skumatch.index.exact import faiss_module
from skumatch.index.plan import ApproximateKind, Plan, VectorBlocks, train
from skumatch.spec import Ids, Vectors

INDEX, IDS = "index.faiss", "ids.i64"
EFFORT: Final[dict[ApproximateKind, int]] = {"hnsw": 128, "ivf-rabitq": 32}
MOST_EFFORT = 1024  # beyond it, comparing every vector is as quick
CHUNK = 65_536  # rows added at a time
ASKED, TABLES = 256, 64 << 20  # queries asked at a time, and bytes of the tables that faiss keeps for them
CANDIDATES = 64  # rows compared again as 8 bits, at least


class ApproximateIndex:
    """Made by ``build``, ``open_approximate``, ``extended`` or ``without``; may be searched by several threads at once.

    ``facts``: how it was made, ready for JSON. ``effort``: lists looked into, or candidates of the graph, per query.
    """

    def __init__(self, index: Any, rows: Block, facts: dict[str, Any]) -> None:
        self._faiss = faiss_module()
        self._index = index
        self._rows = rows  # position -> id, and what was removed
        self._bits = None if rows.dead is None else _bits(~rows.dead)
        self.facts = facts
        self.kind: ApproximateKind = facts["kind"]
        self.effort = int(facts["effort"])
        self.dim = int(index.d)

    def __len__(self) -> int:
        """Return the number of vectors that were not removed."""
        return len(self._rows)

    def ids(self) -> Ids:
        """Return the ids of the vectors that were not removed, in the order they were added."""
        kept = self._rows.kept(None)
        return self._rows.ids if kept is None else self._rows.ids[kept]

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Mark (N,) which of ``ids`` are here."""
        return self._rows.holds(ids)

    @property
    def most_effort(self) -> int:
        """The largest effort worth trying."""
        lists = self.facts["lists"]
        return MOST_EFFORT if lists is None else min(MOST_EFFORT, int(lists))

    def with_effort(self, effort: int) -> ApproximateIndex:
        """Return this index with another effort; they share everything else."""
        return ApproximateIndex(self._index, copy.copy(self._rows), {**self.facts, "effort": effort})

    def without(self, ids: Ids) -> ApproximateIndex:
        """Return this index less ``ids``; they share the index itself, and ids that are not there are ignored."""
        less = ApproximateIndex(self._index, copy.copy(self._rows), self.facts)
        less.remove(ids)
        return less

    def remove(self, ids: Ids) -> None:
        """Never return ``ids`` again; ids that are not there are ignored. Nothing gets smaller."""
        self._rows.remove(np.ascontiguousarray(ids, np.int64))
        self._bits = None if self._rows.dead is None else _bits(~self._rows.dead)

    def extended(self, blocks: VectorBlocks, progress: Callable[[int], None] | None = None) -> ApproximateIndex:
        """Return a new index that holds the vectors of ``blocks`` as well, under new ids; this one stays as it is.

        Nothing is trained again, so it fits worse the more the new vectors differ. Raises GalleryError for ids that
        are there already.
        """
        index = self._faiss.clone_index(self._index)
        ids = np.concatenate([self._rows.ids, *_fill(index, blocks, progress)])
        rows = Block(ids, np.empty((len(ids), 0), np.float32))
        if not rows.distinct:
            raise GalleryError("an id is there already, or comes twice", "give each vector an id of its own")
        if self._rows.dead is not None:
            rows.remove(self._rows.ids[self._rows.dead])
        return ApproximateIndex(index, rows, {**self.facts, "rows": len(ids)})

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return approximate cosines (N, k), best first, and ids (N, k); -inf and -1 where no more were found.

        That may be before all vectors, or all ``allowed``, are found.
        """
        asked = np.ascontiguousarray(queries, np.float32)
        scores, found = np.empty((len(asked), k), np.float32), np.empty((len(asked), k), np.int64)
        how = self._how(k, None if allowed is None else self._rows.kept(ascending(allowed)))
        step = min(ASKED, max(8, TABLES // (5 * self.dim * self.effort)))  # a table for each query and list
        for start in range(0, len(asked), step):
            part = slice(start, start + step)
            scores[part], found[part] = self._index.search(asked[part], k, params=how)
        ids = np.where(found < 0, -1, self._rows.ids[found])
        return np.where(found < 0, np.float32(-np.inf), 1 - scores / 2), ids  # from squared distances of unit rows

    def _how(self, k: int, kept: NDArray[np.bool_] | None) -> Any:
        """Return faiss's parameters of one search; on the index itself they would be shared between threads."""
        bits = self._bits if kept is None else _bits(kept)
        only = {} if bits is None else {"sel": self._faiss.IDSelectorBitmap(bits)}
        if self.kind == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(self.effort, k), **only)
        again = max(CANDIDATES, 8 * k, 4 * self.effort)
        lists = self._faiss.IVFSearchParameters(nprobe=self.effort, **only)
        return self._faiss.IndexRefineSearchParameters(k_factor=max(1.0, again / k), base_index_params=lists)

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` and ``ids.i64`` into ``folder``; what was removed is in it still, ``facts`` is not.

        Raises ArtefactError when the disk refuses.
        """
        with disk_errors(folder / IDS):
            (folder / IDS).write_bytes(self._rows.ids.astype("<i8").tobytes())
        try:
            self._faiss.write_index(self._index, str(folder / INDEX))
        except RuntimeError as error:
            raise ArtefactError(f"cannot write {folder / INDEX}", "check the disk's space and permissions") from error


def build(plan: Plan, blocks: VectorBlocks, progress: Callable[[int], None] | None = None) -> ApproximateIndex:
    """Index the vectors of ``blocks`` after training on a sample of them; ``progress`` is told the rows done.

    On one machine the same plan and blocks give the same index. Raises GalleryError when the ids are not distinct or
    not ``plan.rows`` in number, DeviceError for a GPU that is not there.
    """
    faiss = faiss_module()
    index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_L2)
    train(index, plan, blocks)
    ids = np.concatenate([np.empty(0, np.int64), *_fill(index, blocks, progress)])
    rows = Block(ids, np.empty((len(ids), 0), np.float32))
    if len(ids) != plan.rows or not rows.distinct:
        raise GalleryError(f"{len(ids)} vectors for {plan.rows} ids", "give each vector an id of its own")
    facts = {"kind": plan.kind, "rows": plan.rows, "dim": plan.dim, "seed": plan.seed, "faiss": plan.factory}
    lists = plan.lists if plan.kind == "ivf-rabitq" else None
    effort = min(EFFORT[plan.kind], lists or MOST_EFFORT)
    return ApproximateIndex(index, rows, {**facts, "lists": lists, "sample": plan.sample, "effort": effort})


def open_approximate(folder: Path, facts: dict[str, Any]) -> ApproximateIndex:
    """Open what ``save`` wrote; ``facts`` are those it had. Verify the files' digests before.

    Raises ArtefactError naming a file that is missing, damaged or another index's.
    """
    remedy = "build the gallery's index again"
    try:
        ids = np.fromfile(folder / IDS, "<i8").astype(np.int64, copy=False)
        index = faiss_module().read_index(str(folder / INDEX))
    except OSError:
        raise ArtefactError(f"{folder / IDS} cannot be read", remedy) from None
    except (RuntimeError, MemoryError) as error:
        raise ArtefactError(f"{folder / INDEX} cannot be read", remedy) from error
    if not index.ntotal == len(ids) == facts["rows"] or index.d != facts["dim"]:
        raise ArtefactError(f"{folder / INDEX} does not fit its ids or its gallery", remedy)
    return ApproximateIndex(index, Block(ids, np.empty((len(ids), 0), np.float32)), facts)


def _fill(index: Any, blocks: VectorBlocks, progress: Callable[[int], None] | None) -> Iterator[Ids]:
    """Add the rows of ``blocks`` to faiss's ``index`` and yield their ids."""
    for ids, rows in blocks():
        for start in range(0, len(ids), CHUNK):
            index.add(np.ascontiguousarray(rows[start : start + CHUNK], np.float32))
            if progress is not None:
                progress(len(ids[start : start + CHUNK]))
        yield np.array(ids, np.int64)


def _bits(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as faiss takes it, one bit per row."""
    return np.packbits(mask, bitorder="little")
