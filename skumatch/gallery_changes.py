"""How galleries come about and change: pieces are written first, without a lock, and published under one.

A change says what to do to whatever version is current when its turn comes, so two long imports may run side by side
and nothing that was acknowledged is lost. An error on the way leaves the old version current. It knows nothing about
pictures or encoders.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch import artefact, lock
from skumatch.errors import ArtefactError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery
from skumatch.gallery_state import (
    FORMAT,
    MANIFEST,
    REMOVED,
    SEGMENTS,
    TABLES,
    Pieces,
    SegmentUse,
    State,
    Version,
    read_version,
)
from skumatch.segment import NewView, SegmentWriter, Views, columns, segment_name
from skumatch.sku_table import Facts, layer_of, merge, read_layer, write_layer
from skumatch.spec import Ids, Spec
from skumatch.view_directory import member
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table

NO_IDS: Ids = np.empty(0, np.int64)
SMALL = 4096  # rows up to which a new segment is merged with small ones before it
GROWTH = 2  # a layer of facts takes in the one before it unless that is larger by this factor


@dataclass(frozen=True)
class Change:
    """What a version adds to the one before: ``segments`` (name, rows) of new views, ``remove`` views by id,
    ``layer`` of the table of facts (see sku_table)."""

    reason: str
    segments: tuple[tuple[str, int], ...] = ()
    remove: Ids = field(default_factory=lambda: NO_IDS)
    layer: Table | None = None


def write_segment(store: Path, dim: int, batches: Iterable[Views], with_ids: bool = False) -> tuple[str, int]:
    """Stream views into a new segment of ``store``; return (segment name, number of views).

    Raises GalleryError when there is no view at all, ArtefactError when the disk refuses.
    """
    with artefact.staged(store / SEGMENTS, "new", by_content=True) as stage:
        with SegmentWriter(stage.folder, dim, with_ids) as writer:
            for batch in batches:
                writer.add(batch)
            if not writer.count:
                raise GalleryError("no view could be read", "give at least one readable picture")
            writer.close()
        stage.name = segment_name(stage.folder)
    return stage.name, writer.count


def create(
    store: Path, spec: Spec, segments: Sequence[tuple[str, int]], layer: Table | None = None, reason: str = "build"
) -> Gallery:
    """Publish a gallery of the segments' views alone; the version before it stays on disk but is no longer current.

    To be called while ``lock.preparing`` keeps the segments.
    """
    layers = (write_layer(store / TABLES, layer),) if layer is not None else ()

    def anew(before: State | None) -> State:
        kind, following = (before.index_kind, before.next_id) if before else ("auto", 0)
        state = State(spec, (), NO_IDS, layers, None, kind, following)
        for name, rows in segments:
            state = state.with_segment(name, rows)
        return state

    return publish(store, reason, anew)


def create_from(store: Path, spec: Spec, views: Sequence[NewView], facts: Facts | None = None) -> Gallery:
    """Publish a gallery of ``views``. Raises GalleryError when there are none or a vector is unfit."""
    layer = layer_of(facts) if facts else None
    with lock.preparing(store):
        return create(store, spec, [write_segment(store, spec.dim, [columns(views, spec.dim)])], layer)


def add_views(gallery: Gallery, views: Sequence[NewView], facts: Facts | None = None) -> Gallery:
    """Publish a version with further views, numbered on, and ``facts`` about their SKUs; return it opened.

    Raises GalleryError when there are none or a vector is unfit, LockedError, ArtefactError.
    """
    layer = layer_of(facts) if facts else None
    with lock.preparing(gallery.store):
        segment = write_segment(gallery.store, gallery.spec.dim, [columns(views, gallery.spec.dim)])
        return apply(gallery, Change(f"add {counted(segment[1], 'view')}", (segment,), layer=layer))


def remove_views(gallery: Gallery, ids: Iterable[int]) -> Gallery:
    """Publish a version without the views ``ids``. Raises GalleryError for one that is not there, and when nothing
    would be left."""
    asked = sorted(set(ids))
    if not asked:
        return gallery
    for view_id in asked[:1] + asked[-1:]:  # no number beyond them, not even one of more than 64 bits
        gallery.view(view_id)
    gone = np.array(asked, np.int64)
    for view_id in gone[~member(gone, gallery.ids)][:1]:
        gallery.view(int(view_id))
    return apply(gallery, Change(f"remove {counted(len(gone), 'view')}", remove=gone))


def remove_skus(gallery: Gallery, skus: Iterable[str]) -> Gallery:
    """Publish a version without the SKUs: their views and all that is known of them. Raises as ``remove_views``."""
    names = list(dict.fromkeys(skus))
    codes = gallery.skus.codes(names)
    for place in np.flatnonzero(codes < 0)[:1].tolist():
        gallery.code_of(names[place])
    gone = gallery.ids_of_skus(codes.astype(np.int64))
    return apply(gallery, Change(f"remove {counted(len(names), 'SKU')}", remove=gone, layer=layer_of({}, names)))


def replace_views(gallery: Gallery, skus: Iterable[str], views: Sequence[NewView], facts: Facts) -> Gallery:
    """Publish a version where ``views`` stand for all views that ``skus`` had; facts are added to what is known."""
    codes = gallery.skus.codes(list(skus))
    old = gallery.ids_of_skus(codes[codes >= 0].astype(np.int64))
    with lock.preparing(gallery.store):
        segment = write_segment(gallery.store, gallery.spec.dim, [columns(views, gallery.spec.dim)])
        reason = f"update: {counted(segment[1], 'view')} in place of {len(old)}"
        return apply(gallery, Change(reason, (segment,), old, layer_of(facts) if facts else None))


def set_facts(gallery: Gallery, facts: Facts) -> Gallery:
    """Publish a version that knows ``facts``; "" takes a fact back. The views stay as they are."""
    if not facts:
        return gallery
    return apply(gallery, Change(f"update facts of {counted(len(facts), 'SKU')}", layer=layer_of(facts)))


def apply(gallery: Gallery, change: Change) -> Gallery:
    """Publish ``change`` on top of the current version, be it ``gallery`` or a later one, and return that opened.

    To be called while ``lock.preparing`` keeps the change's segments. Raises SpecMismatch when the gallery was rebuilt
    with another model meanwhile, GalleryError when it would be empty, LockedError when another process is publishing,
    ArtefactError when the disk refuses.
    """
    store, spec = gallery.store, gallery.spec

    def changed(before: State | None) -> State:
        if before is None or before.spec.digest != spec.digest:
            raise SpecMismatch(f"gallery {store} was rebuilt with another model meanwhile", "run it again with that")
        state = before
        for name, rows in change.segments:
            state = _with_segment(gallery.pieces, state, name, rows)
        if len(change.remove):
            state = state.without(change.remove)
        if change.layer is not None:
            state = replace(state, tables=_with_layer(store / TABLES, state.tables, change.layer))
        return state

    return publish(store, change.reason, changed, gallery)


def publish(
    store: Path, reason: str, change: Callable[[State | None], State], opened: Gallery | None = None
) -> Gallery:
    """Publish what ``change`` makes of the current state (None where there is none) as the next version.

    ``opened``: a version whose open pieces are shared. Holds the lock of the store meanwhile. Raises what ``change``
    raises, LockedError, GalleryError when nothing would be left, ArtefactError when the disk refuses.
    """
    with lock.writing(store, reason), artefact.read_errors(store):
        folder = artefact.current(store)
        before = _version_before(folder, needed=opened is not None)
        pieces = Pieces(
            store, change(before.state if before is not None else None), reuse=opened.pieces if opened else None
        )
        if not len(pieces.directory.ids):
            raise GalleryError("this would empty the gallery", "build a new one instead")
        pieces.forget_dropped()
        version = _write_version(store, pieces.state, _facts(before, pieces, reason))
    return Gallery(version, pieces, opened.device if opened else "cpu")


def _version_before(folder: Path | None, needed: bool) -> Version | None:
    """Return the current version, numbering on after later ones: those that were rolled back used ids too.

    None where there is none, or, unless it is ``needed``, where it is of another format.
    """
    if folder is None:
        return None
    try:
        before = read_version(folder)
    except GalleryError:
        if needed:
            raise
        return None  # what is built anew owes it nothing
    names = artefact.versions(before.store)
    used = before.state.next_id
    for name in names[names.index(before.name) + 1 :]:
        with contextlib.suppress(ArtefactError, GalleryError):  # a broken one cannot say, and must not stop the others
            used = max(used, read_version(before.store / name).state.next_id)
    return replace(before, state=replace(before.state, next_id=used))


def _facts(before: Version | None, pieces: Pieces, reason: str) -> dict[str, Any]:
    """Return what the manifest says of the change."""
    views, skus = len(pieces.directory.ids), len(pieces.directory.skus)
    was = before.facts["counts"]["views"] if before else 0
    added = pieces.state.next_id - (before.state.next_id if before else 0)
    same = before is not None and before.state.spec.digest == pieces.state.spec.digest and added >= 0
    counts = {"views": views, "skus": skus, "added": added if same else views}
    counts["removed"] = was + counts["added"] - views
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"parent": before.name if before else None, "time": now, "reason": reason, "counts": counts}


def _write_version(store: Path, state: State, facts: Mapping[str, Any]) -> Version:
    """Write the version's folder and point ``CURRENT`` at it."""
    final = store / artefact.next_version(store)
    with artefact.staged(store, final.name) as stage:
        (stage.folder / REMOVED).write_bytes(state.removed.astype("<i8").tobytes())
        artefact.seal(stage.folder, MANIFEST, {**state.to_json(), **facts, "kind": "gallery", "format": FORMAT})
    artefact.set_current(store, final.name)
    return Version(final, facts, state)


def _with_segment(opened: Pieces, state: State, name: str, rows: int) -> State:
    """Return ``state`` with a segment, merged with small ones before it: many small additions leave few segments."""
    grown = state.with_segment(name, rows)
    pieces = Pieces(opened.store, grown, reuse=opened)
    last, total = len(grown.segments) - 1, rows
    first = last
    while first > 0:
        size = len(pieces.segments[first - 1][1])
        if size > GROWTH * total or size + total > SMALL:
            break
        first, total = first - 1, total + size
    if first == last:
        return grown
    merged = write_segment(opened.store, state.spec.dim, live_views(pieces, range(first, last + 1)), with_ids=True)
    return replace(grown, segments=(*grown.segments[:first], SegmentUse(merged[0], None)))


def live_views(pieces: Pieces, numbers: Iterable[int]) -> Iterator[Views]:
    """Yield the views of some segments that are not removed, with their ids, in the order of the segments."""
    for number in numbers:
        segment, ids = pieces.segments[number]
        alive = np.flatnonzero(~member(ids, pieces.state.removed))
        yield from segment.read(alive, ids[alive])


def _with_layer(store: Path, names: tuple[str, ...], layer: Any) -> tuple[str, ...]:
    """Return the layers with one more, merged with those before it that are not much larger."""
    kept = list(names)
    while kept:
        before = read_layer(store, kept[-1])
        if before.num_rows > GROWTH * layer.num_rows:
            break
        layer = merge([before, layer])
        kept.pop()
    return (*kept, write_layer(store, layer))
