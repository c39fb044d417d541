"""What a gallery version consists of: its manifest, and the sealed pieces that the manifest names, opened.

    gallery/CURRENT                 one line: the current version
    gallery/LOCK                    held by whoever publishes
    gallery/v000001/gallery.json    spec, pieces, parent, time, reason, counts, digests
                    removed.i64     ids of the views that are no longer there, ascending
    gallery/segments/<digest>/      views; see segment.py
    gallery/tables/<digest>/        facts about SKUs; see sku_table.py
    gallery/indexes/<digest>/       a search index over some of the views
    gallery/pending/                how far interrupted imports and rebuilds are

Pieces are shared by versions and never change. It knows nothing about search or how versions come about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact
from skumatch.errors import ArtefactError, GalleryError
from skumatch.index.approximate import IDS, ApproximateIndex, open_approximate
from skumatch.segment import Segment
from skumatch.sku_table import SkuTable
from skumatch.spec import Ids, Spec
from skumatch.view_directory import Directory, directory, member

MANIFEST = "gallery.json"
REMOVED = "removed.i64"
SEGMENTS, TABLES, INDEXES, PENDING = "segments", "tables", "indexes", "pending"
INDEX_MANIFEST = "index.json"
FORMAT = 2


@dataclass(frozen=True)
class SegmentUse:
    """A segment in a version; ``first_id``: number of its first view, None where the segment brings ids."""

    name: str
    first_id: int | None


@dataclass(frozen=True)
class State:
    """What a version consists of, by name. ``index``: piece that answers most of the search, None for exact search
    of all; ``index_kind``: the kind of index that is wanted ("auto" where the size decides)."""

    spec: Spec
    segments: tuple[SegmentUse, ...]
    removed: Ids
    tables: tuple[str, ...]
    index: str | None
    index_kind: str
    next_id: int

    def to_json(self) -> dict[str, Any]:
        """Return everything but ``removed``, which has a file of its own."""
        return {
            "spec": self.spec.to_json(),
            "segments": [{"name": use.name, "first_id": use.first_id} for use in self.segments],
            "tables": list(self.tables),
            "index": self.index,
            "index_kind": self.index_kind,
            "next_id": self.next_id,
        }

    def pieces(self) -> list[str]:
        """Return the folders of the pieces, relative to the store."""
        named = [f"{SEGMENTS}/{use.name}" for use in self.segments] + [f"{TABLES}/{name}" for name in self.tables]
        return [*named, f"{INDEXES}/{self.index}"] if self.index else named

    def with_segment(self, name: str, rows: int) -> State:
        """Return the state with a new segment whose views are numbered on."""
        use = SegmentUse(name, self.next_id)
        return replace(self, segments=(*self.segments, use), next_id=self.next_id + rows)

    def without(self, ids: Ids) -> State:
        """Return the state with the views ``ids`` removed."""
        return replace(self, removed=np.union1d(self.removed, np.asarray(ids, np.int64)))


@dataclass(frozen=True)
class Version:
    """A published version: folder, manifest and state. ``facts``: parent, time, reason and counts."""

    folder: Path
    facts: Mapping[str, Any]
    state: State

    @property
    def store(self) -> Path:
        """The gallery's folder."""
        return self.folder.parent

    @property
    def name(self) -> str:
        """The version's name."""
        return self.folder.name

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of all that the version holds."""
        return artefact.file_digest(self.folder / MANIFEST)


def read_version(folder: Path, full: bool = False) -> Version:
    """Return the version in ``folder`` after checking its own files. Raises ArtefactError, or GalleryError for
    another format."""
    document = artefact.read_manifest(folder, MANIFEST, full)
    if document.get("kind") != "gallery" or document.get("format") != FORMAT:
        raise GalleryError(f"{folder} was written by another version of skumatch", "build the gallery again")
    removed = np.fromfile(folder / REMOVED, "<i8").astype(np.int64, copy=False)
    uses = tuple(SegmentUse(entry["name"], entry["first_id"]) for entry in document["segments"])
    names = (tuple(document["tables"]), document["index"], document["index_kind"], int(document["next_id"]))
    facts = {key: document[key] for key in ("parent", "time", "reason", "counts")}
    return Version(folder, facts, State(Spec.from_json(document["spec"]), uses, removed, *names))


class Pieces:
    """The pieces of a state, checked and opened. Those that ``reuse`` has opened already are shared."""

    def __init__(self, store: Path, state: State, full: bool = False, reuse: Pieces | None = None) -> None:
        """Raises ArtefactError naming the file that is missing or differs, GalleryError for another format."""
        self.store = store
        self.state = state
        opened = reuse._segments if reuse is not None and not full else {}
        self._segments: dict[str, Segment] = {}
        for use in state.segments:
            known = opened.get(use.name)
            self._segments[use.name] = known or Segment(store / SEGMENTS / use.name, full)
            self._check(self._segments[use.name], use)
        same = reuse is not None and not full and reuse.state.tables == state.tables
        self.table: SkuTable = reuse.table if same and reuse else SkuTable(store / TABLES, state.tables, full)
        self.index_facts = self._read_index(full)
        kept = reuse is not None and reuse.state.index == state.index
        self._loaded: list[ApproximateIndex] = reuse._loaded if kept and reuse else []

    def _check(self, segment: Segment, use: SegmentUse) -> None:
        if segment.dim != self.state.spec.dim or (use.first_id is None) != (segment.own_ids is not None):
            raise ArtefactError(f"{segment.folder} does not belong to this gallery", "restore it from a copy")

    def _read_index(self, full: bool) -> dict[str, Any] | None:
        """Return what the index's manifest says, None without one."""
        if self.state.index is None:
            return None
        folder = self.store / INDEXES / self.state.index
        facts = artefact.read_manifest(folder, INDEX_MANIFEST, full)
        if artefact.file_digest(folder / INDEX_MANIFEST)[:20] != self.state.index:
            raise ArtefactError(f"{folder} holds another index", "restore it from a copy")
        return facts

    def index(self) -> ApproximateIndex | None:
        """Return the approximate index, read when first asked and shared with versions that have the same; None
        where the version has none, or it was pruned before. Do not change it."""
        if self.index_facts is not None and not self._loaded:
            folder = self.store / INDEXES / str(self.state.index)
            try:
                self._loaded.append(open_approximate(folder, self.index_facts["index"]))
            except ArtefactError:
                if folder.is_dir():
                    raise
        return self._loaded[0] if self._loaded else None

    def indexed_ids(self) -> Ids:
        """Return the ids of the views in the index, removed ones too, without reading the index itself."""
        if self.state.index is None:
            return _NONE
        return np.fromfile(self.store / INDEXES / self.state.index / IDS, "<i8").astype(np.int64, copy=False)

    @cached_property
    def segments(self) -> list[tuple[Segment, Ids]]:
        """The segments, each with the ids of its views."""
        return [(self._segments[use.name], _ids(self._segments[use.name], use)) for use in self.state.segments]

    @cached_property
    def directory(self) -> Directory:
        """Where each live view lies."""
        return directory(self.segments, self.state.removed)

    def forget_dropped(self) -> None:
        """Leave out of the state's ``removed`` what has no row in a segment any more."""
        held = np.concatenate([ids[member(ids, self.state.removed)] for _, ids in self.segments] or [_NONE])
        self.state = replace(self.state, removed=np.sort(held))


_NONE = np.empty(0, np.int64)


def _ids(segment: Segment, use: SegmentUse) -> Ids:
    if segment.own_ids is not None:
        return segment.own_ids
    return np.arange(segment.rows, dtype=np.int64) + int(use.first_id or 0)
