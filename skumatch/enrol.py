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
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from skumatch import lock
from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import GalleryError, ImageError
from skumatch.gallery import Gallery
from skumatch.gallery_changes import Change, apply, create, write_segment
from skumatch.gallery_seam import AnyGallery
from skumatch.gallery_state import PENDING, SEGMENTS
from skumatch.jobs import Job, open_job
from skumatch.readers_common import safe_text
from skumatch.segment import NewView, Segment, Views, columns, describe
from skumatch.sku_table import TITLE, LayerBuilder
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table

G = TypeVar("G", bound=AnyGallery, covariant=True)
H = TypeVar("H", bound=AnyGallery)
Seal = Callable[[Iterator[Views]], None]  # keeps the views of one chunk
CHUNK = 8192  # rows per segment of an import: what a kill costs at most
LISTED = 1000  # unreadable pictures named; all are counted


@dataclass
class Enrolled(Generic[G]):
    """What became of the pictures: the gallery, unreadable files with reasons (of very many the first thousand), how
    many there were, how many were there already, and how many an earlier, interrupted run had done."""

    gallery: G
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
) -> Enrolled[Gallery]:
    """Publish a gallery of the rows of ``supply`` alone in ``store``. Raises GalleryError when none is readable."""
    with lock.preparing(store):
        job = _job(store, supply, encoder, "build")
        work = Enrolment(job, encoder, pipeline, sealing(job, encoder))
        layer = work.run(supply, progress)
        return _finished(work, job, create(store, encoder.spec, job.segments, layer))


def extend_gallery(
    gallery: Gallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled[Gallery]:
    """Publish a version of ``gallery`` with the rows of ``supply`` added; files that the SKU has already are skipped.

    What else the rows tell of their SKUs goes into the table of facts. Raises SpecMismatch for another encoder,
    GalleryError when nothing is readable.
    """
    gallery.require(encoder.spec)
    with lock.preparing(gallery.store):
        job = _job(gallery.store, supply, encoder, "extend")
        known = KnownViews(gallery)
        _recall(job, known)
        work = Enrolment(job, encoder, pipeline, sealing(job, encoder), known)
        layer = work.run(supply, progress)
        if layer is not None and gallery.facts.table.knows(layer):
            layer = None
        segments = tuple(job.segments)
        if segments:
            reason = f"add {counted(sum(rows for _, rows in segments), 'view')}"
        elif layer is not None:
            reason = f"update facts of {counted(len(layer), 'SKU')}"
        else:
            return _finished(work, job, gallery)
        return _finished(work, job, apply(gallery, Change(reason, segments, layer=layer)))


def replace_in_gallery(
    gallery: Gallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled[Gallery]:
    """Publish a version of ``gallery`` where the rows of ``supply`` stand for all views that their SKUs had.

    A SKU none of whose rows can be read keeps the views that it has. Raises as ``extend_gallery``.
    """
    gallery.require(encoder.spec)
    with lock.preparing(gallery.store):
        job = _job(gallery.store, supply, encoder, "replace")
        work = Enrolment(job, encoder, pipeline, sealing(job, encoder))
        layer = work.run(supply, progress)
        new = [Segment(gallery.store / SEGMENTS / name) for name, _ in job.segments]
        codes = np.concatenate([gallery.skus.codes(segment.names) for segment in new])
        old = gallery.ids_of_skus(np.unique(codes[codes >= 0]))
        reason = f"update: {counted(sum(segment.rows for segment in new), 'view')} in place of {len(old)}"
        return _finished(work, job, apply(gallery, Change(reason, tuple(job.segments), old, layer)))


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

    def news(self, views: Sequence[NewView]) -> list[NewView]:
        """Note the files of ``views``; return those of which that is news."""
        return [view for view in views if self.add(view.sku, view.sha256)]

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


def sealing(job: Job, encoder: Encoder) -> Seal:
    """Return what writes a chunk as a segment beside the folder of ``job`` and notes it there."""

    def seal(batches: Iterator[Views]) -> None:
        job.segments.append(write_segment(job.folder.parent, encoder.spec.dim, batches))

    return seal


def _recall(job: Job, known: KnownViews) -> None:
    """Know what the interrupted run has added; forget what it has published before it was killed."""
    for name, rows in tuple(job.segments):
        segment = Segment(job.folder.parent / SEGMENTS / name)
        new = sum(known.add(segment.sku(row), segment.sha256(row)) for row in range(rows))  # all, not any
        if not new:
            job.segments.remove((name, rows))
            job.known += rows


def _finished(work: Enrolment, job: Job, gallery: Gallery) -> Enrolled[Gallery]:
    """Forget the job and say what became of it."""
    job.finish()
    return work.outcome(gallery)


class Ledger(Protocol):
    """How far an import is; see ``Job``."""

    done: int
    unreadable: int
    known: int
    failures: list[str]

    @property
    def written(self) -> int:
        """How many views are sealed."""
        ...

    def save(self) -> None:
        """Write down how far it is."""
        ...

    def finish(self) -> None:
        """Forget it."""
        ...


class Known(Protocol):
    """Knows which files each SKU has."""

    def news(self, views: Sequence[NewView]) -> list[NewView]:
        """Note the files of ``views``; return those of which that is news."""
        ...


class Enrolment:
    """One run over a supply: embeds what the job has not done yet and seals it chunk by chunk.

    ``known``: what is there already and is skipped; None where all is taken.
    """

    def __init__(
        self, job: Ledger, encoder: Encoder, pipeline: Pipeline, seal: Seal, known: Known | None = None
    ) -> None:
        self.job = job
        self.encoder = encoder
        self.pipeline = pipeline
        self.seal = seal
        self.known = known
        self.facts = LayerBuilder()
        self.resumed = job.done
        self.interrupted: KeyboardInterrupt | None = None

    def run(self, supply: Supply, progress: Progress) -> Table | None:
        """Write the segments; return what the rows tell of their SKUs, a layer of the table of facts.

        Raises GalleryError when no row was readable; KeyboardInterrupt after noting what was done until then.
        """
        rows = self._noting(supply.rows())
        deque(islice(rows, self.job.done), maxlen=0)
        progress(self.job.done)
        for row in rows:
            self._chunk(chain([row], islice(rows, CHUNK - 1)), progress)
            if self.interrupted is not None:
                raise self.interrupted
        if not self.job.written and not self.job.known:
            self.job.finish()
            raise GalleryError("no view could be read", "give at least one readable picture")
        return self.facts.layer()

    def _noting(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.facts.note(row.sku, facts_of(row))
            yield row

    def _chunk(self, rows: Iterator[Row], progress: Progress) -> None:
        """Embed up to a chunk of rows, seal them and note that they are done."""
        before = self.job.done
        views = self._fresh(self._views(rows, progress))
        first = next(views, None)
        if first is not None:
            self.seal(columns(batch, self.encoder.spec.dim) for batch in chain([first], views))
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
            new = batch if self.known is None else self.known.news(batch)
            self.job.known += len(batch) - len(new)
            if new:
                yield new

    def outcome(self, gallery: H) -> Enrolled[H]:
        """Say what became of the pictures."""
        job = self.job
        return Enrolled(gallery, job.failures, job.unreadable, job.known, self.resumed)
