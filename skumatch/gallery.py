"""The gallery: reference views per SKU, searchable, as a folder of versions over immutable segments.

    gallery/CURRENT                 one line: the current version
    gallery/v000001/gallery.json    spec, segments, removed ids, SKU titles' file and digests
    gallery/segments/<digest>/      vectors.f32, rows.parquet, thumbs.bin, segment.json

Every change publishes a new version; an error on the way leaves the old one current.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact
from skumatch.calibration import COHESION_VIEWS, cohesion_of
from skumatch.errors import GalleryError, SpecMismatch, nearest
from skumatch.index.exact import ExactIndex
from skumatch.nearest import Nearest, nearest_skus
from skumatch.segment import Segment, SegmentWriter, ViewRow, segment_name
from skumatch.spec import Ids, Spec, Vectors
from skumatch.technique_store import mean_per_sku

MANIFEST = "gallery.json"
TITLES = "titles.json"
SEGMENTS = "segments"
FORMAT = 1
BLOCK = 4096  # views read at a time for prototypes


@dataclass(frozen=True)
class NewView:
    """A view to be added: SKU, where it came from, SHA-256 of its file, JPEG thumbnail, unit vector (D,)."""

    sku: str
    source: str
    sha256: str
    thumb: bytes
    vector: Vectors


class Gallery:
    """One version of a gallery, opened for search. Made by ``open_gallery``."""

    def __init__(
        self, folder: Path, document: dict[str, Any], segments: Sequence[Segment], titles: Mapping[str, str]
    ) -> None:
        self.store = folder.parent
        self.folder = folder
        self.titles = titles
        self.document = document
        self.spec = Spec.from_json(document["spec"])
        self.segments = list(segments)
        removed = np.array(document["removed"], np.int64)
        self.index = ExactIndex(self.spec.dim)
        self._place: dict[int, tuple[int, int]] = {}
        self._codes = np.full(int(document["next_id"]), -1, np.int64)
        code_of: dict[str, int] = {}
        for number, segment in enumerate(self.segments):
            live = np.flatnonzero(~np.isin(segment.ids, removed))
            skus = segment.rows["sku"].take(live).to_pylist()
            self._codes[segment.ids[live]] = [code_of.setdefault(sku, len(code_of)) for sku in skus]
            self._place.update((int(segment.ids[i]), (number, int(i))) for i in live)
            self.index.add(segment.ids[live], np.asarray(segment.vectors[live]))
        self.skus = list(code_of)
        self._cohesion: dict[int, tuple[float, int]] = {}
        self._order: Ids | None = None  # view ids sorted by SKU, made when first needed

    def __len__(self) -> int:
        """Return the number of reference views."""
        return len(self.index)

    @property
    def version(self) -> str:
        """The version's name."""
        return self.folder.name

    def require(self, spec: Spec) -> None:
        """Raise SpecMismatch unless the gallery's vectors were made by the encoder with ``spec``."""
        if spec.digest != self.spec.digest:
            raise SpecMismatch(
                f"gallery {self.store} was built with another model ({self.spec.name}, {self.spec.digest[:12]}; "
                f"the model in use is {spec.name}, {spec.digest[:12]})",
                "run `skumatch gallery build` with this model, or give the --model it was built with",
            )

    def search(self, queries: Vectors, k: int) -> Nearest:
        """Return the k nearest distinct SKUs of float32 (N, D) unit rows; codes index ``skus``."""
        return nearest_skus(self.index, self.codes, queries, k)

    def codes(self, ids: Ids) -> Ids:
        """Map view ids (any shape) to SKU codes, places in ``skus``."""
        return self._codes[ids]

    @cached_property
    def ids(self) -> Ids:
        """All view ids, ascending."""
        return np.array(sorted(self._place), np.int64)

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return each SKU's mean vector, float32 (S, D) unit rows, and the SKU codes (S,), ascending."""
        return self._prototypes

    @cached_property
    def _prototypes(self) -> tuple[Vectors, Ids]:
        blocks = (self.ids[start : start + BLOCK] for start in range(0, len(self.ids), BLOCK))
        return mean_per_sku(((self.codes(block), self.vectors_of(block)) for block in blocks), len(self.skus))

    def view(self, view_id: int) -> ViewRow:
        """Return a view by id. Raises GalleryError when it is not there."""
        number, position = self._find(view_id)
        return self.segments[number].row(position)

    def thumb(self, view_id: int) -> bytes:
        """Return a view's JPEG thumbnail. Raises GalleryError when it is not there."""
        number, position = self._find(view_id)
        return self.segments[number].thumb(position)

    def _find(self, view_id: int) -> tuple[int, int]:
        try:
            return self._place[view_id]
        except KeyError:
            raise GalleryError(f"gallery {self.store} has no view {view_id}", "list them with --sku") from None

    def views(self) -> Iterator[ViewRow]:
        """Yield all views in id order."""
        for view_id in sorted(self._place):
            yield self.view(view_id)

    def ids_of(self, sku: str) -> list[int]:
        """Return the ids of a SKU's views, ascending. Raises GalleryError for an unknown SKU."""
        if sku not in self.skus:
            near = nearest(sku, self.skus)
            raise GalleryError(
                f"gallery {self.store} has no SKU '{sku}'", f"nearest names are: {near or 'none similar'}"
            )
        return list(map(int, self._ids_with(self.skus.index(sku))))

    def _ids_with(self, code: int) -> Ids:
        """Return the ids of the views of the SKU with ``code``, ascending."""
        if self._order is None:
            self._order = np.argsort(self._codes, kind="stable")
        low, high = np.searchsorted(self._codes, [code, code + 1], sorter=self._order)
        return self._order[low:high]

    def counts(self) -> dict[str, int]:
        """Return the number of views per SKU."""
        found = Counter(self._codes[self._codes >= 0].tolist())
        return {sku: found[code] for code, sku in enumerate(self.skus)}

    def cohesion(self, code: int) -> tuple[float, int]:
        """Return how alike the views of the SKU with ``code`` are (mean cosine to the nearest sister; NaN for a single
        view) and how many it has."""
        if code not in self._cohesion:
            ids = self._ids_with(code)
            self._cohesion[code] = (cohesion_of(self.vectors_of(ids[:COHESION_VIEWS])), len(ids))
        return self._cohesion[code]

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id. Raises GalleryError when one is not there."""
        places = [self._find(int(i)) for i in ids]
        found = np.empty((len(places), self.spec.dim), np.float32)
        for line, (number, position) in enumerate(places):
            found[line] = self.segments[number].vectors[position]
        return found


def open_gallery(store: Path, full: bool = False) -> Gallery:
    """Open the current version after checking its digests (``full``: every byte again).

    Raises GalleryError when there is no gallery, ArtefactError when a byte differs.
    """
    folder = artefact.current(store)
    if folder is None:
        raise GalleryError(f"there is no gallery in {store}", "make one with `skumatch gallery build`")
    document = artefact.read_manifest(folder, MANIFEST, full)
    if document.get("kind") != "gallery" or document.get("format") != FORMAT:
        raise GalleryError(f"{folder} was written by another version", "build the gallery again")
    titles: dict[str, str] = json.loads((folder / TITLES).read_text())
    return Gallery(folder, document, [Segment(store / SEGMENTS / s, full) for s in document["segments"]], titles)


def write_segment(store: Path, spec: Spec, batches: Iterator[Sequence[NewView]], first_id: int) -> tuple[str, int]:
    """Stream views into a new segment of ``store``; return (segment name, number of views).

    Ids run from ``first_id``. Raises GalleryError when there is no view at all.
    """
    with artefact.staged(store / SEGMENTS, "new", by_content=True) as stage:
        with SegmentWriter(stage.folder) as writer:
            for batch in batches:
                start = first_id + writer.count
                rows = [ViewRow(start + i, view.sku, view.source, view.sha256) for i, view in enumerate(batch)]
                if rows:
                    writer.add(rows, np.stack([view.vector for view in batch]), [view.thumb for view in batch])
            if not writer.count:
                raise GalleryError("no view could be read", "give at least one readable picture")
            writer.close(spec.dim)
        stage.name = segment_name(stage.folder)
    return stage.name, writer.count


def publish(store: Path, document: dict[str, Any], titles: Mapping[str, str]) -> Gallery:
    """Publish ``document`` as the next version and return it opened."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = {**document, "kind": "gallery", "format": FORMAT, "time": now}
    final = store / artefact.next_version(store)
    with artefact.staged(store, final.name) as stage:
        (stage.folder / TITLES).write_text(json.dumps(dict(titles), indent=0, sort_keys=True))
        artefact.seal(stage.folder, MANIFEST, facts)
    artefact.set_current(store, final.name)
    return open_gallery(store)


def create(store: Path, spec: Spec, batches: Iterator[Sequence[NewView]], titles: Mapping[str, str]) -> Gallery:
    """Publish a gallery of the given views; an older version in ``store`` stays on disk but is no longer current."""
    name, count = write_segment(store, spec, batches, 0)
    document = {
        "spec": spec.to_json(),
        "segments": [name],
        "removed": [],
        "next_id": count,
        "parent": artefact.versions(store)[-1] if artefact.versions(store) else None,
        "reason": "build",
    }
    return publish(store, document, titles)


def add_views(gallery: Gallery, batches: Iterator[Sequence[NewView]], titles: Mapping[str, str]) -> Gallery:
    """Publish a version with further views, in a segment of their own."""
    name, count = write_segment(gallery.store, gallery.spec, batches, int(gallery.document["next_id"]))
    changes = {
        "segments": [*gallery.document["segments"], name],
        "next_id": int(gallery.document["next_id"]) + count,
        "parent": gallery.version,
        "reason": f"add {count} views",
    }
    return publish(gallery.store, {**_kept(gallery), **changes}, {**gallery.titles, **titles})


def remove_views(gallery: Gallery, ids: Sequence[int]) -> Gallery:
    """Publish a version without the views of ``ids``. Raises GalleryError when nothing would be left."""
    for view_id in ids:
        gallery.view(view_id)
    if len(set(ids)) >= len(gallery):
        raise GalleryError("this would empty the gallery", "build a new one instead")
    changes = {
        "removed": sorted({*gallery.document["removed"], *ids}),
        "parent": gallery.version,
        "reason": f"remove {len(set(ids))} views",
    }
    return publish(gallery.store, {**_kept(gallery), **changes}, gallery.titles)


def _kept(gallery: Gallery) -> dict[str, Any]:
    return {k: v for k, v in gallery.document.items() if k not in ("files", "time")}
