"""From pictures to reference views: embed the rows of a data set or table and store them in a gallery.

Views are written in segments of 8,192 and noted as a job, so that a long import that was interrupted goes on where it
was; they are published together at the end.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skumatch import lock
from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import GalleryError, ImageError
from skumatch.gallery import Gallery
from skumatch.gallery_changes import Change, apply, create, write_segment
from skumatch.gallery_state import PENDING, SEGMENTS
from skumatch.jobs import Job, open_job
from skumatch.readers_common import safe_text
from skumatch.segment import NewView, Segment, columns, describe
from skumatch.sku_table import TITLE, LayerBuilder
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table

CHUNK = 8192  # rows per segment of an import: what a kill costs at most
LISTED = 1000  # unreadable pictures named; all are counted


@dataclass
class Enrolled:
    """What became of the pictures: the gallery, unreadable files with reasons (of very many the first thousand), how
    many there were, how many were there already, and how many an earlier, interrupted run had done."""

    gallery: Gallery
    failures: list[str] = field(default_factory=list)
    unreadable: int = 0
    known: int = 0
    resumed: int = 0


@dataclass(frozen=True)
class Supply:
    """Rows to enrol. ``rows`` returns them anew, in the same order, each time; ``identity`` says what they are: an
    import with the same goes on where an interrupted one was."""

    rows: Callable[[], Iterable[Row]]
    identity: str

    @staticmethod
    def of(rows: Sequence[Row]) -> Supply:
        """Return the Supply of rows in memory."""
        digest = hashlib.sha256()
        for row in rows:
            digest.update(os.fsencode(f"{row.path}\0{row.sku}\0"))
        return Supply(lambda: rows, digest.hexdigest())


def build_gallery(
    store: Path, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled:
    """Publish a gallery of the rows of ``supply`` alone in ``store``. Raises GalleryError when none is readable."""
    with lock.preparing(store):
        work = _Enrolment(_job(store, supply, encoder, "build"), encoder, pipeline, None)
        layer = work.run(supply, progress)
        return work.finished(create(store, encoder.spec, work.job.segments, layer))


def extend_gallery(
    gallery: Gallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled:
    """Publish a version of ``gallery`` with the rows of ``supply`` added; files that the SKU has already are skipped.

    What else the rows tell of their SKUs goes into the table of facts. Raises SpecMismatch for another encoder,
    GalleryError when nothing is readable.
    """
    gallery.require(encoder.spec)
    with lock.preparing(gallery.store):
        work = _Enrolment(_job(gallery.store, supply, encoder, "extend"), encoder, pipeline, KnownViews(gallery))
        layer = work.run(supply, progress)
        if layer is not None and gallery.facts.table.knows(layer):
            layer = None
        segments = tuple(work.job.segments)
        if segments:
            reason = f"add {counted(sum(rows for _, rows in segments), 'view')}"
        elif layer is not None:
            reason = f"update facts of {counted(len(layer), 'SKU')}"
        else:
            return work.finished(gallery)
        return work.finished(apply(gallery, Change(reason, segments, layer=layer)))


def replace_in_gallery(
    gallery: Gallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled:
    """Publish a version of ``gallery`` where the rows of ``supply`` stand for all views that their SKUs had.

    A SKU none of whose rows can be read keeps the views that it has. Raises as ``extend_gallery``.
    """
    gallery.require(encoder.spec)
    with lock.preparing(gallery.store):
        work = _Enrolment(_job(gallery.store, supply, encoder, "replace"), encoder, pipeline, None)
        layer = work.run(supply, progress)
        new = [Segment(gallery.store / SEGMENTS / name) for name, _ in work.job.segments]
        codes = np.concatenate([gallery.skus.codes(segment.names) for segment in new])
        old = gallery.ids_of_skus(np.unique(codes[codes >= 0]))
        reason = f"update: {counted(sum(segment.rows for segment in new), 'view')} in place of {len(old)}"
        return work.finished(apply(gallery, Change(reason, tuple(work.job.segments), old, layer)))


def facts_of(row: Row) -> dict[str, str]:
    """Return what a row tells of its SKU, by column."""
    said = {TITLE: row.title, "group": row.group, **row.extra}
    return {name: safe_text(value) for name, value in said.items()}  # a table's bytes may not be UTF-8


class KnownViews:
    """Which files each SKU has already, by 8 bytes per view: of the gallery's views, and of those that were added."""

    def __init__(self, gallery: Gallery) -> None:
        names = np.fromiter(map(hash, gallery.skus), np.int64, len(gallery.skus)).view(np.uint64)
        words = gallery.sha_words()
        self._keys = np.sort((words ^ names[gallery.codes(gallery.ids)])[words != 0])
        self._added: set[int] = set()

    def add(self, sku: str, sha256: str) -> bool:
        """Note that ``sku`` has the file; return whether that is news."""
        if not sha256:
            return True  # an unknown file is like no other
        word = int.from_bytes(bytes.fromhex(sha256[:16]), "little")
        key = word ^ (hash(sku) & 0xFFFFFFFFFFFFFFFF)
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if key in self._added or (place < len(self._keys) and int(self._keys[place]) == key):
            return False
        self._added.add(key)
        return True


def _job(store: Path, supply: Supply, encoder: Encoder, what: str) -> Job:
    identity = {"what": what, "model": encoder.spec.digest, "rows": supply.identity}
    return open_job(store / PENDING, identity, store / SEGMENTS)


class _Enrolment:
    """One run over a supply: embeds what the job has not done yet and seals a segment per chunk.

    ``known``: what is there already and is skipped; None where all is taken.
    """

    def __init__(self, job: Job, encoder: Encoder, pipeline: Pipeline, known: KnownViews | None) -> None:
        self.job = job
        self.store = job.folder.parent
        self.encoder = encoder
        self.pipeline = pipeline
        self.known = known
        self.resumed = job.done
        self.interrupted: KeyboardInterrupt | None = None

    def run(self, supply: Supply, progress: Progress) -> Table | None:
        """Write the segments; return what the rows tell of their SKUs, a layer of the table of facts.

        Raises GalleryError when no row was readable; KeyboardInterrupt after noting what was done until then.
        """
        facts = LayerBuilder()
        self._recall()
        rows = self._noting(supply.rows(), facts)
        deque(islice(rows, self.job.done), maxlen=0)
        progress(self.job.done)
        for row in rows:
            self._chunk(chain([row], islice(rows, CHUNK - 1)), progress)
            if self.interrupted is not None:
                raise self.interrupted
        if not self.job.segments and not self.job.known:
            self.job.finish()
            raise GalleryError("no view could be read", "give at least one readable picture")
        return facts.layer()

    def _recall(self) -> None:
        """Know what the interrupted run has added; forget what it has published before it was killed."""
        if self.known is None:
            return
        for name, rows in tuple(self.job.segments):
            segment = Segment(self.store / SEGMENTS / name)
            new = sum(self.known.add(segment.sku(row), segment.sha256(row)) for row in range(rows))  # all, not any
            if not new:
                self.job.segments.remove((name, rows))
                self.job.known += rows

    def _noting(self, rows: Iterable[Row], facts: LayerBuilder) -> Iterator[Row]:
        for row in rows:
            facts.note(row.sku, facts_of(row))
            yield row

    def _chunk(self, rows: Iterator[Row], progress: Progress) -> None:
        """Embed up to a chunk of rows, seal them and note that they are done."""
        before = self.job.done
        views = self._fresh(self._views(rows, progress))
        first = next(views, None)
        if first is not None:
            dim = self.encoder.spec.dim
            batches = (columns(batch, dim) for batch in chain([first], views))
            self.job.segments.append(write_segment(self.store, dim, batches))
        if self.job.done > before:
            self.job.save()

    def _views(self, rows: Iterator[Row], progress: Progress) -> Iterator[list[NewView]]:
        """Embed ``rows`` batch by batch; unreadable ones are noted. Ends early when it is interrupted."""
        waiting: list[Row] = []

        def paths() -> Iterator[Path]:
            for row in rows:
                waiting.append(row)
                yield row.path

        also = partial(describe, max_pixels=self.pipeline.max_pixels)
        try:
            for batch in self.pipeline.embed(paths(), self.encoder, progress, also):
                theirs = waiting[: len(batch.sources)]
                del waiting[: len(batch.sources)]
                self._fail([error for error in batch.errors if error is not None])
                self.job.done += len(theirs)
                yield [
                    NewView(theirs[int(place)].sku, safe_text(str(theirs[int(place)].path)), sha256, thumb, vector)
                    for place, vector, (sha256, thumb) in zip(batch.good, batch.vectors, batch.extras, strict=True)
                ]
        except KeyboardInterrupt as stop:
            self.interrupted = stop

    def _fail(self, errors: Sequence[ImageError]) -> None:
        self.job.unreadable += len(errors)
        room = max(0, LISTED - len(self.job.failures))
        self.job.failures.extend(str(error) for error in errors[:room])

    def _fresh(self, batches: Iterator[list[NewView]]) -> Iterator[list[NewView]]:
        """Drop what its SKU has already, in the gallery or in this run; yields no empty batch."""
        for batch in batches:
            new = [view for view in batch if self.known is None or self.known.add(view.sku, view.sha256)]
            self.job.known += len(batch) - len(new)
            if new:
                yield new

    def finished(self, gallery: Gallery) -> Enrolled:
        """Forget the job and say what became of it."""
        job = self.job
        job.finish()
        return Enrolled(gallery, job.failures, job.unreadable, job.known, self.resumed)
