"""Embedding at scale: a source of any size into a folder of shards, that goes on where it was interrupted.

What computes is an engine: ``Plain`` on this machine, ``cluster.OnRay`` on a cluster. Both get the pieces that are
not there yet and hand over rows in order; everything else is the same. It knows nothing about galleries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skumatch import lock
from skumatch.bulk.parts import Picture, Piece, described, read_ahead, reason_of
from skumatch.bulk.places import is_url
from skumatch.bulk.rows import Fact, batch_of
from skumatch.bulk.shards import FORMAT, Shards, begin
from skumatch.bulk.sources import BulkOptions, Plan, first_of, plan_of
from skumatch.embed import Embedded, Pipeline, Progress, Source, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import DataError, ImageError
from skumatch.readers_common import safe_text
from skumatch.spec import Spec

if TYPE_CHECKING:
    from pyarrow import RecordBatch

DEFAULT_PIPELINE, DEFAULT_OPTIONS = Pipeline(), BulkOptions()
UNREAD = b""  # stands for a picture whose bytes could not be read, where the pipeline wants some


class Engine(Protocol):
    """Turns pieces into rows."""

    @property
    def spec(self) -> Spec:
        """What the vectors are of."""
        ...

    def embed(self, pieces: Iterator[Piece], thumbs: bool) -> Generator[RecordBatch, None, None]:
        """Yield the rows of all pieces in order, as ``rows`` has them, each once; pulls few pieces ahead."""
        ...


@dataclass(frozen=True)
class BulkReport:
    """What became of a source: its ``pictures`` in ``shards``; of them ``unreadable``, readable ``without_sku``, and
    ``resumed``, those that earlier runs had done; ``failures``: up to five of this run's unreadable ones, with why."""

    pictures: int
    unreadable: int
    without_sku: int
    shards: int
    resumed: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plain:
    """The engine on this machine: threads read, threads decode, ``encoder`` takes batches. It is one stream over all
    pieces, which does not run dry between shards; what is in memory does not depend on their number or size."""

    encoder: Encoder
    pipeline: Pipeline = DEFAULT_PIPELINE

    @property
    def spec(self) -> Spec:
        """What the vectors are of."""
        return self.encoder.spec

    def embed(self, pieces: Iterator[Piece], thumbs: bool) -> Generator[RecordBatch, None, None]:
        """Yield the rows of all pieces in order. Raises DataError when a network fails."""
        waiting: deque[Fact] = deque()
        places: deque[tuple[int, int]] = deque()

        def pictures() -> Iterator[Picture]:
            for piece in pieces:
                found = (picture for part in piece.parts for picture in part.pictures())
                for place, picture in enumerate(found):
                    places.append((piece.number, place))
                    yield picture

        def sources() -> Iterator[Source]:
            for picture, data in read_ahead(pictures()):
                error = reason_of(data, picture.source) if isinstance(data, ImageError) else None
                waiting.append(Fact(*places.popleft(), picture.source, picture.sku, error=error))
                yield UNREAD if isinstance(data, ImageError) else data

        also = partial(described, thumbs=thumbs, max_pixels=self.pipeline.max_pixels)
        with closing(self.pipeline.embed(sources(), self.encoder, also=also)) as batches:  # type: ignore[type-var]
            for batch in batches:
                facts = [waiting.popleft() for _ in batch.sources]
                yield batch_of(_told(facts, batch), batch.good, batch.vectors, thumbs)


def _told(facts: list[Fact], batch: Embedded) -> list[Fact]:
    """Return ``facts`` with what the pipeline found out."""
    extras = dict(zip(batch.good.tolist(), batch.extras, strict=True))
    found = []
    for place, (fact, error) in enumerate(zip(facts, batch.errors, strict=True)):
        sha256, thumb = extras.get(place, (None, None))
        why = fact.error or (reason_of(error, fact.source) if error is not None else None)
        found.append(Fact(fact.piece, fact.at, fact.source, fact.sku, sha256, why, thumb))
    return found


def embed_source(
    source: str,
    out: Path,
    engine: Engine,
    options: BulkOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> BulkReport:
    """Embed what ``source`` names (see ``sources``) into the folder ``out`` (see ``shards``).

    Done before, or in part: shards that are there stay, and the rest is made. An unreadable picture keeps its row, with
    the reason. ``progress`` is told of pictures, those of earlier runs too.
    Raises DataError for nothing to embed, GalleryError where ``out`` was made from another source, with other options
    or another encoder, LockedError while another process writes it, and what the engine raises; finished shards stay.
    """
    plan = plan_of(source, options)
    _refuse_inside(plan, out)
    pieces = first_of(plan)
    with lock.writing(out, f"embedding {safe_text(source)}", wait=0):
        begin(out, _job(plan, engine.spec, options), options.restart)
        run = _Run(Shards(out, engine.spec.dim, options.thumbs), progress)
        return run.all(engine, pieces, options.thumbs, plan)


def _refuse_inside(plan: Plan, out: Path) -> None:
    """Raise DataError where the shards would be found among what is read."""
    folder = Path(plan.source)
    if not is_url(plan.source) and folder.is_dir() and out.absolute().resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{out} lies inside {safe_text(plan.source)}", "write it elsewhere with --out")


def _job(plan: Plan, spec: Spec, options: BulkOptions) -> dict[str, Any]:
    said = {
        "shard_rows": options.shard_rows,
        "column": options.column,
        "sku_from": options.sku_from,
        "thumbs": options.thumbs,
    }
    about = {"kind": "embed", "format": FORMAT, "source_kind": plan.kind, "source": safe_text(plan.source)}
    return {**about, "spec": spec.to_json(), "options": said}


class _Run:
    """One run over a source."""

    def __init__(self, shards: Shards, progress: Progress) -> None:
        self.shards = shards
        self.progress = progress
        self.resumed = 0

    def all(self, engine: Engine, pieces: Iterator[Piece], thumbs: bool, plan: Plan) -> BulkReport:
        """Embed what is not there yet and seal the folder."""
        try:
            with closing(engine.embed(self._missing(pieces), thumbs)) as batches:
                for rows in batches:
                    self.shards.add(rows)
                    self.progress(len(rows))
            counts = self.shards.seal()
        finally:
            self.shards.close()
        if not counts["pictures"]:
            raise DataError(f"no picture in {safe_text(plan.source)}", "name a source with pictures in it")
        return BulkReport(**counts, resumed=self.resumed, failures=tuple(self.shards.failures))

    def _missing(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            there = self.shards.found(piece)
            if there is None:
                yield piece
            else:
                self.resumed += there.rows
                self.progress(there.rows)
