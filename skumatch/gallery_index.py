"""The search index of a gallery: which kind, built or extended beside the current version, measured, then published.

    indexes/<digest>/index.json     how it was made ("index"), how well it answers ("figures"), digests
                     index.faiss, ids.i64

Views that came since are searched exactly beside it; views that went are never returned. Until an index is there, all
views are compared: answers are right from the first moment, and become fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skumatch import artefact, lock
from skumatch.embed import Progress, no_progress
from skumatch.errors import GalleryError
from skumatch.gallery import Gallery
from skumatch.gallery_changes import publish
from skumatch.gallery_compact import compact
from skumatch.gallery_compact import due as compaction_due
from skumatch.gallery_state import INDEX_MANIFEST, INDEXES, State
from skumatch.index.approximate import ApproximateIndex, build
from skumatch.index.choose import Figures, Kind, chosen, tuned
from skumatch.index.exact import ExactIndex
from skumatch.index.matmul import free_bytes
from skumatch.index.plan import Plan
from skumatch.machine import read_memory
from skumatch.spec import Ids, Vectors
from skumatch.view_directory import member

FORMAT = 1
TAIL = 20_000  # views outside the index that make another one worth while, at least
SHARE = 0.05  # and at least this share of those in it
DEAD = 0.25  # removed share of an index from which on it is built anew
GROWN = 2  # times the views that it was trained on from which on it is trained again
BLOCK = 16_384  # views read at a time
MEMORY = 0.5  # share of the available memory that an index may take


@dataclass(frozen=True)
class Indexed:
    """A gallery with the index that it was to have; ``figures`` are None where every view is compared."""

    gallery: Gallery
    kind: Kind
    figures: Figures | None


def due(gallery: Gallery) -> str:
    """Return why another index is worth while, "" where none is."""
    kind, facts = wanted(gallery), gallery.pieces.index_facts
    if facts is None:
        return f"{len(gallery):,} views are compared one by one" if kind != "exact" else ""
    if facts["index"]["kind"] != kind:
        return f"the index is {facts['index']['kind']}, not {kind}"
    ids = gallery.pieces.indexed_ids()
    held = int(np.count_nonzero(member(ids, gallery.ids)))
    if len(gallery) - held > max(TAIL, SHARE * held):
        return f"{len(gallery) - held:,} views are not in the index"
    return f"{len(ids) - held:,} views of the index were removed" if held < (1 - DEAD) * len(ids) else ""


def wanted(gallery: Gallery, kind: str | None = None) -> Kind:
    """Return the kind of index that ``kind`` (the gallery's own setting where it is None) means for the gallery.

    Raises ConfigError for an unknown kind.
    """
    asked: Any = kind or gallery.published.state.index_kind
    available = read_memory().available if gallery.device == "cpu" else free_bytes(gallery.device)
    memory = None if available is None else int(MEMORY * available)
    return chosen(asked, len(gallery), gallery.spec.dim, memory, gallery.device)


def build_index(gallery: Gallery, kind: str | None = None, seed: int = 0, progress: Progress = no_progress) -> Indexed:
    """Publish a version with an index over all views, of ``kind`` ("auto", "exact", "hnsw", "ivf-rabitq"; the gallery's
    own setting where it is None, which it becomes).

    An index that is there is extended where that does it. ``progress``: views done. Raises ConfigError for an unknown
    kind, GalleryError where the gallery was rebuilt with another model meanwhile, LockedError, ArtefactError.
    """
    setting = kind or gallery.published.state.index_kind
    chosen_kind = wanted(gallery, kind)
    if chosen_kind == "exact":
        state = gallery.published.state
        if state.index is None and state.index_kind == setting:
            return Indexed(gallery, "exact", None)
        return Indexed(_publish(gallery, None, setting), "exact", None)
    with lock.preparing(gallery.store):
        index, trained = _extended(gallery, chosen_kind, progress) or _built(gallery, chosen_kind, seed, progress)
        best, figures = tuned(index, exact_over(gallery), gallery.vectors_of, seed)
        name = _write(gallery, best, {"figures": figures.to_json(), "trained": trained})
        return Indexed(_publish(gallery, name, setting), chosen_kind, figures)


def maintain(gallery: Gallery, full: bool = False, progress: Progress = no_progress) -> Gallery:
    """Compact the gallery and bring its index up to date where either is due; ``full``: compact in any case."""
    if full or compaction_due(gallery):
        gallery = compact(gallery, full, progress)
    return build_index(gallery, progress=progress).gallery if due(gallery) else gallery


def figures_of(gallery: Gallery) -> dict[str, Any] | None:
    """Return what was measured of the gallery's index when it was made, None where every view is compared."""
    facts = gallery.pieces.index_facts
    return None if facts is None else dict(facts["figures"])


def exact_over(gallery: Gallery) -> ExactIndex:
    """Return an index that compares every view."""
    index = ExactIndex(gallery.spec.dim)
    for segment, ids in gallery.pieces.segments:
        index.add(ids, np.asarray(segment.vectors))
    index.remove(gallery.published.state.removed)
    return index


def _built(gallery: Gallery, kind: Any, seed: int, progress: Progress) -> tuple[ApproximateIndex, int]:
    device = gallery.device if gallery.device.startswith("cuda") else "cpu"
    plan = Plan(kind, len(gallery), gallery.spec.dim, seed, device)
    return build(plan, lambda: _blocks(gallery, gallery.ids), progress), len(gallery)


def _extended(gallery: Gallery, kind: Kind, progress: Progress) -> tuple[ApproximateIndex, int] | None:
    """Return the index that is there with the views that it lacks, and how many views it was trained on; None where
    it is better built anew."""
    index, facts = gallery.pieces.index(), gallery.pieces.index_facts
    if index is None or facts is None or index.kind != kind:
        return None
    lacking = gallery.ids[~index.holds(gallery.ids)]
    held, trained = len(gallery) - len(lacking), int(facts["trained"])
    if held < (1 - DEAD) * len(index) or len(gallery) > GROWN * trained or not len(lacking):
        return None
    grown = index.extended(lambda: _blocks(gallery, lacking), progress)
    ids = grown.ids()
    return grown.without(ids[~member(ids, gallery.ids)]), trained


def _blocks(gallery: Gallery, ids: Ids) -> Iterator[tuple[Ids, Vectors]]:
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        yield block, gallery.vectors_of(block)


def _write(gallery: Gallery, index: ApproximateIndex, facts: dict[str, Any]) -> str:
    """Write a sealed index and return its name."""
    with artefact.staged(gallery.store / INDEXES, "new", by_content=True) as stage:
        index.save(stage.folder)
        document = {**facts, "kind": "index", "format": FORMAT, "index": index.facts}
        artefact.seal(stage.folder, INDEX_MANIFEST, document)
        stage.name = artefact.file_digest(stage.folder / INDEX_MANIFEST)[:20]
    return stage.name


def _publish(gallery: Gallery, name: str | None, setting: str) -> Gallery:
    digest = gallery.spec.digest

    def changed(before: State | None) -> State:
        if before is None or before.spec.digest != digest:
            raise GalleryError(f"gallery {gallery.store} was rebuilt by another process meanwhile", "run it again")
        return replace(before, index=name, index_kind=setting)

    return publish(gallery.store, f"index ({setting})" if name else f"no index ({setting})", changed, gallery)
