"""Pictures into a gallery in Milvus: what ``enrol`` and ``gallery_rebuild`` do for a folder.

Views are sent chunk by chunk and noted; they are seen together once all are there. An interrupted import goes on when
it is run again, unless another change came between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.enrol import LISTED as MANY
from skumatch.enrol import Enrolled, Enrolment, Supply
from skumatch.errors import GalleryError
from skumatch.gallery_rebuild import Rebuilt, picture_of
from skumatch.milvus.address import Address
from skumatch.milvus.gallery import MilvusGallery
from skumatch.milvus.rows import HEAVY, WHOLE, one_of, unpacked
from skumatch.milvus.writing import Writing
from skumatch.segment import NewView, Views, columns
from skumatch.sku_table import SKU
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table

LISTED, LONGEST = 20, 300  # unreadable pictures that a note names, and characters of each: it has 64 KB


@dataclass
class ServerJob:
    """A Ledger whose note is a row beside the versions."""

    change: Writing
    done: int = 0
    unreadable: int = 0
    known: int = 0
    failures: list[str] = field(default_factory=list)

    @staticmethod
    def of(change: Writing) -> ServerJob:
        """Return the job that ``change`` goes on with, or a new one."""
        noted = change.noted
        counts = {name: int(noted.get(name, 0)) for name in ("done", "unreadable", "known")}
        return ServerJob(change, **counts, failures=list(noted.get("failures", [])))

    @property
    def written(self) -> int:
        """How many views are on the server."""
        return self.change.next_id - self.change.first_id

    def save(self) -> None:
        """Write down how far it is."""
        failures = [failure[:LONGEST] for failure in self.failures[:LISTED]]
        counts = {"done": self.done, "unreadable": self.unreadable, "known": self.known}
        self.change.note({**counts, "failures": failures})

    def finish(self) -> None:
        """Nothing: publishing forgets the note."""


class KnownFiles:
    """Which files each SKU has, asked of the server batch by batch."""

    def __init__(self, change: Writing) -> None:
        self._change = change
        self._added: set[int] = set()

    def news(self, views: Sequence[NewView]) -> list[NewView]:
        """Note the files of ``views``; return those of which that is news."""
        digests = sorted({view.sha256 for view in views if view.sha256})
        asked = self._change.now(one_of("sha256", digests), ["sku", "sha256"]) if digests else iter(())
        there = {(row["sku"], row["sha256"]) for rows in asked for row in rows}
        new = []
        for view in views:
            key = hash((view.sku, view.sha256))
            if view.sha256 and ((view.sku, view.sha256) in there or key in self._added):
                continue
            self._added.add(key)
            new.append(view)
        return new


def build(
    address: Address, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled[MilvusGallery]:
    """Publish a gallery of the rows of ``supply`` alone. Raises GalleryError when none is readable, ServerError."""
    with Writing(address, "build", encoder.spec, _identity("build", supply, encoder)) as change:
        work = _enrolled(change, supply, encoder, pipeline, progress, skip_known=False)
        return work.outcome(change.publish("build"))


def extend(
    gallery: MilvusGallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled[MilvusGallery]:
    """Publish a version of ``gallery`` with the rows of ``supply`` added; files that the SKU has already are skipped.

    Raises SpecMismatch for another encoder, GalleryError when nothing is readable, ServerError.
    """
    gallery.require(encoder.spec)
    with Writing(gallery.store, "add", job=_identity("extend", supply, encoder)) as change:
        change.require(encoder.spec)
        work = _enrolled(change, supply, encoder, pipeline, progress, skip_known=True)
        if change.next_id > change.first_id:
            reason = f"add {counted(change.next_id - change.first_id, 'view')}"
        elif change.news:
            reason = f"update facts of {counted(change.news, 'SKU')}"
        else:
            change.abandon()
            return work.outcome(gallery.refreshed())
        return work.outcome(change.publish(reason))


def replace(
    gallery: MilvusGallery, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled[MilvusGallery]:
    """Publish a version of ``gallery`` where the rows of ``supply`` stand for all views that their SKUs had.

    A SKU none of whose rows can be read keeps the views that it has. Raises as ``extend``.
    """
    gallery.require(encoder.spec)
    with Writing(gallery.store, "update", job=_identity("replace", supply, encoder)) as change:
        change.require(encoder.spec)
        work = _enrolled(change, supply, encoder, pipeline, progress, skip_known=False)
        new = sorted({row["sku"] for rows in change.now(f"view >= {change.first_id}", ["sku"]) for row in rows})
        old = change.remove(SKU, new, f"view < {change.first_id}")
        views = change.next_id - change.first_id
        return work.outcome(change.publish(f"update: {counted(views, 'view')} in place of {old}"))


def add_views(gallery: MilvusGallery, batches: Iterator[Views], layer: Table | None, reason: str) -> MilvusGallery:
    """Publish a version with further views that are embedded already, files that their SKU has left out, and facts.

    Raises GalleryError, ServerError.
    """
    with Writing(gallery.store, reason) as change:
        change.require(gallery.spec)
        if layer is not None:
            change.say(layer)
        _inserted(change, _news(batches, KnownFiles(change)))
        if change.next_id == change.first_id and not change.news:
            return gallery.refreshed()
        return change.publish(f"{reason} {counted(change.next_id - change.first_id, 'view')}")


def create(address: Address, spec: Any, batches: Iterator[Views], layer: Table | None, reason: str) -> MilvusGallery:
    """Publish a gallery of views that are embedded already. Raises GalleryError, ServerError."""
    with Writing(address, reason, spec) as change:
        if layer is not None:
            change.say(layer)
        _inserted(change, batches)
        return change.publish(f"{reason} {counted(change.next_id - change.first_id, 'view')}")


def _inserted(change: Writing, batches: Iterator[Views]) -> None:
    for views in batches:
        change.insert(views, change.known(sorted(set(views.skus))))


def _news(batches: Iterator[Views], known: KnownFiles) -> Iterator[Views]:
    """Leave out what its SKU has already."""
    for views in batches:
        rows = zip(views.skus, views.sources, views.sha256, views.thumbs, views.vectors, strict=True)
        new = known.news([NewView(*row) for row in rows])
        if new:
            yield columns(new, len(new[0].vector))


def _identity(what: str, supply: Supply, encoder: Encoder) -> str:
    said = json.dumps([what, supply.identity, encoder.spec.digest])
    return hashlib.sha256(said.encode()).hexdigest()


def _enrolled(
    change: Writing,
    supply: Supply,
    encoder: Encoder,
    pipeline: Pipeline,
    progress: Progress,
    skip_known: bool,
) -> Enrolment:
    """Send the rows of ``supply`` and what they tell of their SKUs."""

    def seal(batches: Iterator[Views]) -> None:
        for views in batches:
            names = sorted(set(views.skus))
            before = change.known(names)
            change.insert(views, {name: {**before.get(name, {}), **work.facts.of(name)} for name in names})

    work = Enrolment(ServerJob.of(change), encoder, pipeline, seal, KnownFiles(change) if skip_known else None)
    layer = work.run(supply, progress)
    if layer is not None:
        change.say(layer)
    return work


def rebuild(
    gallery: MilvusGallery, encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress, drop: bool = False
) -> Rebuilt[MilvusGallery]:
    """Publish a version of the current views, under their ids, with the vectors of ``encoder``.

    Pictures are read from where they came from or, where a file is gone or has changed, from the thumbnail. ``drop``:
    leave out views that neither gives; without it they are an error. Raises GalleryError, also where the gallery is of
    this model already, LockedError, ServerError.
    """
    if gallery.spec.digest == encoder.spec.digest:
        raise GalleryError(f"gallery {gallery.store} is of this model already", "name another model")
    identity = hashlib.sha256(f"rebuild {gallery.spec.digest} {encoder.spec.digest}".encode()).hexdigest()
    with Writing(gallery.store, "rebuild", encoder.spec, identity) as change:
        work = _Rebuild(change, gallery.refreshed(), encoder, pipeline)
        resumed = work.run(progress)
        if work.left_out and not drop:
            raise GalleryError(
                f"{counted(work.left_out, 'view')} can be read neither from file nor from thumbnail "
                f"(first: {work.failures[0]})",
                "give the files back and run it again, or leave these views out with --drop",
            )
        work.copy_facts()
        made = change.publish(f"rebuild with {encoder.spec.name}", columns=work.gallery.head.columns)
        return Rebuilt(made, work.from_thumbs, work.failures, work.left_out, resumed)


class _Rebuild:
    """One run: embeds what is not there yet."""

    def __init__(self, change: Writing, gallery: MilvusGallery, encoder: Encoder, pipeline: Pipeline) -> None:
        self.change = change
        self.gallery = gallery
        self.encoder = encoder
        self.pipeline = pipeline
        self.failures: list[str] = []
        self.left_out = 0
        self.from_thumbs = 0

    def run(self, progress: Progress) -> int:
        """Embed the views; return how many an interrupted run had done."""
        self.change.note({})
        done = {int(row["view"]) for rows in self.change.now("", ["view"]) for row in rows}
        progress(len(done))
        for rows in self.gallery.rows("", WHOLE, HEAVY):
            self._embed([row for row in rows if int(row["view"]) not in done], progress)
        return len(done)

    def _embed(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        thumbs = [partial(unpacked, row["thumb"]) for row in rows]
        read = [picture_of(row["source"], row["sha256"], thumb) for row, thumb in zip(rows, thumbs, strict=True)]
        position = 0
        for batch in self.pipeline.embed((data for data, _ in read), self.encoder, progress):
            places = range(position, position + len(batch.sources))
            position = places.stop
            for place, error in zip(places, batch.errors, strict=True):
                self.left_out += error is not None
                if error is not None and len(self.failures) < MANY:
                    self.failures.append(f"{rows[place]['source'] or rows[place]['view']}: {error}")
            good = [places[int(place)] for place in batch.good]
            self.from_thumbs += sum(read[place][1] for place in good)
            if good:
                self._insert([rows[place] for place in good], batch.vectors)

    def _insert(self, rows: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        texts = [[row[name] for row in rows] for name in ("sku", "source", "sha256")]
        ids = np.array([int(row["view"]) for row in rows], np.int64)
        views = Views(texts[0], texts[1], texts[2], [unpacked(row["thumb"]) for row in rows], vectors, ids)
        self.change.insert(views, {row["sku"]: row["facts"] for row in rows})

    def copy_facts(self) -> None:
        """Write what is known of all SKUs, with a view or not."""
        gallery = self.gallery
        name = gallery.place.skus(gallery.head.generation)
        for rows in gallery.place.connection.stream(name, gallery.alive, ["sku", "facts"], HEAVY):
            self.change.write_facts({row["sku"]: row["facts"] for row in rows})
