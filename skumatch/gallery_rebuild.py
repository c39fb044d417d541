"""A gallery for another model: every view is embedded again under its id, while the old version goes on serving.

Pictures are read from where they came from, or, where a file is gone or has changed, from the thumbnail that the
gallery keeps. An interrupted rebuild goes on where it was; views that come or go meanwhile are taken account of at the
end. It knows nothing about search indexes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Generic

import numpy as np

from skumatch import lock
from skumatch.embed import Pipeline, Progress, cores, no_progress, ordered_batches
from skumatch.encoder import Encoder
from skumatch.enrol import CHUNK, LISTED, G
from skumatch.errors import GalleryError
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import publish, write_segment
from skumatch.gallery_state import PENDING, SEGMENTS, Pieces, SegmentUse, State
from skumatch.jobs import open_job
from skumatch.segment import Segment, Views
from skumatch.spec import Ids, Vectors
from skumatch.view_directory import member
from skumatch.words import counted

READ_AHEAD = 32  # views whose files are read at a time
NO_IDS: Ids = np.empty(0, np.int64)


class _Late(Exception):
    """Views were added since the last of them was embedded."""


@dataclass
class Rebuilt(Generic[G]):
    """What became of it: the gallery, views embedded from their thumbnails, views left out (of very many the first
    thousand are named), and how many views an earlier, interrupted run had done."""

    gallery: G
    from_thumbs: int = 0
    failures: list[str] = field(default_factory=list)
    left_out: int = 0
    resumed: int = 0


def rebuild(
    store: Path, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress, drop: bool = False
) -> Rebuilt[Gallery]:
    """Publish a version of the current views with the vectors of ``encoder``.

    ``drop``: leave out views that can be read neither from their file nor from a thumbnail; without it they are an
    error at the end, and what was done is kept for another run. Raises GalleryError, also where the gallery is of this
    model already, LockedError, ArtefactError; KeyboardInterrupt after noting what was done.
    """
    gallery = open_gallery(store)
    if gallery.spec.digest == encoder.spec.digest:
        raise GalleryError(f"gallery {store} is of this model already", "name another model")
    with lock.preparing(store):
        return _Rebuild(gallery, encoder, pipeline).run(progress, drop)


def picture_of(source: str, sha256: str, thumb: Callable[[], bytes]) -> tuple[bytes, bool]:
    """Return a view's picture, and whether it is what ``thumb`` gives: its file has gone or is another one now."""
    try:
        data = Path(source).read_bytes()
        if sha256 and hashlib.sha256(data).hexdigest() == sha256:
            return data, False
    except (OSError, ValueError):
        pass
    return thumb(), True


class _Rebuild:
    """One run: embeds what the job has not done yet, a segment per chunk."""

    def __init__(self, gallery: Gallery, encoder: Encoder, pipeline: Pipeline) -> None:
        store = gallery.store
        identity = {"what": "rebuild", "from": gallery.spec.digest, "model": encoder.spec.digest}
        self.job = open_job(store / PENDING, identity, store / SEGMENTS)
        self.gallery = gallery
        self.encoder = encoder
        self.pipeline = pipeline
        self.failed = NO_IDS
        self.failures: list[str] = []
        self.interrupted: KeyboardInterrupt | None = None
        held = [Segment(store / SEGMENTS / name).own_ids for name, _ in self.job.segments]
        self.done: Ids = np.sort(np.concatenate([NO_IDS, *[ids for ids in held if ids is not None]]))

    def run(self, progress: Progress, drop: bool) -> Rebuilt[Gallery]:
        """Embed all views, those too that come meanwhile, and publish them."""
        resumed = len(self.done)
        progress(resumed)
        while True:
            self.embed(self.missing(self.gallery.ids), progress)
            if len(self.failed) and not drop:
                raise GalleryError(
                    f"{counted(len(self.failed), 'view')} can be read neither from file nor from thumbnail "
                    f"(first: {self.failures[0]})",
                    "give the files back and run it again, or leave these views out with --drop",
                )
            try:
                made = self.publish()
            except _Late:
                self.gallery = self.gallery.refreshed()
                continue
            self.job.finish()
            return Rebuilt(made, self.job.from_thumbs, self.failures, len(self.failed), resumed)

    def missing(self, ids: Ids) -> Ids:
        """Return those of ``ids`` that are neither embedded nor found unreadable."""
        return ids[~(member(ids, self.done) | member(ids, self.failed))]

    def embed(self, ids: Ids, progress: Progress) -> None:
        """Embed the views ``ids`` and seal them, chunk by chunk."""
        for start in range(0, len(ids), CHUNK):
            batches = self._views(ids[start : start + CHUNK], progress)
            first = next(batches, None)
            if first is not None:
                self._seal(first, batches)
            if self.interrupted is not None:
                raise self.interrupted

    def _seal(self, first: Views, rest: Iterator[Views]) -> None:
        """Write a segment of ``first`` and ``rest`` and note it."""
        written: list[Ids] = []

        def noted() -> Iterator[Views]:
            for views in chain([first], rest):
                written.append(views.ids if views.ids is not None else NO_IDS)
                yield views

        segment = write_segment(self.gallery.store, self.encoder.spec.dim, noted(), with_ids=True)
        self.job.segments.append(segment)
        self.done = np.union1d(self.done, np.concatenate(written))
        self.job.done = len(self.done)
        self.job.save()

    def _views(self, ids: Ids, progress: Progress) -> Iterator[Views]:
        """Yield the readable ones of ``ids`` with their new vectors. Ends early when it is interrupted."""
        waiting: list[tuple[int, bool]] = []

        def pictures() -> Iterator[bytes]:
            for some, read in ordered_batches(ids.tolist(), self._read, READ_AHEAD, self.pipeline.workers or cores()):
                for view_id, (data, thumb) in zip(some, read, strict=True):
                    waiting.append((view_id, thumb))
                    yield data

        try:
            for batch in self.pipeline.embed(pictures(), self.encoder, progress):
                theirs = waiting[: len(batch.sources)]
                del waiting[: len(batch.sources)]
                self._fail([(theirs[i][0], str(error)) for i, error in enumerate(batch.errors) if error is not None])
                good = [theirs[int(place)] for place in batch.good]
                self.job.from_thumbs += sum(thumb for _, thumb in good)
                if good:
                    yield self._stored([view_id for view_id, _ in good], batch.vectors)
        except KeyboardInterrupt as stop:
            self.interrupted = stop

    def _read(self, view_id: int) -> tuple[bytes, bool]:
        """Return a view's picture, and whether it is the thumbnail: its file has gone or is another one now."""
        view = self.gallery.view(view_id)
        return picture_of(view.source, view.sha256, lambda: self.gallery.thumb(view_id))

    def _fail(self, unreadable: Sequence[tuple[int, str]]) -> None:
        self.failed = np.union1d(self.failed, np.array([view_id for view_id, _ in unreadable], np.int64))
        room = max(0, LISTED - len(self.failures))
        for view_id, _ in unreadable[:room]:
            view = self.gallery.view(view_id)
            self.failures.append(f"view {view_id} of {view.sku}, {view.source or 'of no file'}")

    def _stored(self, ids: Sequence[int], vectors: Vectors) -> Views:
        """Return the views as the gallery has them, with other vectors."""
        rows = [self.gallery.view(view_id) for view_id in ids]
        thumbs = [self.gallery.thumb(view_id) for view_id in ids]
        skus, sources, sha256 = ([getattr(row, name) for row in rows] for name in ("sku", "source", "sha256"))
        return Views(skus, sources, sha256, thumbs, vectors, np.array(ids, np.int64))

    def publish(self) -> Gallery:
        """Publish what was embedded, less what was removed meanwhile. Raises _Late when there are new views."""
        store, old = self.gallery.store, self.gallery.spec.digest

        def changed(before: State | None) -> State:
            if before is None or before.spec.digest != old:
                raise GalleryError(f"gallery {store} was rebuilt by another process meanwhile", "nothing was changed")
            alive = Pieces(store, before, reuse=self.gallery.pieces).directory.ids
            if len(self.missing(alive)):
                raise _Late
            uses = tuple(SegmentUse(name, None) for name, _ in self.job.segments)
            gone = self.done[~member(self.done, alive)]
            return replace(before, spec=self.encoder.spec, segments=uses, removed=gone, index=None)

        return publish(store, f"rebuild with {self.encoder.spec.name}", changed, self.gallery)
