"""Making galleries from pictures: embed the rows of a data set and store them as reference views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import ImageError
from skumatch.gallery import Gallery, NewView, add_views, create
from skumatch.readers import safe_text
from skumatch.segment import describe


@dataclass
class Enrolled:
    """What became of the pictures: the gallery, unreadable files with reasons, and how many were there already."""

    gallery: Gallery
    failures: list[ImageError] = field(default_factory=list)
    known: int = 0


def build_gallery(
    store: Path, rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled:
    """Publish a gallery of ``rows`` in ``store``. Raises GalleryError when none is readable."""
    failures: list[ImageError] = []
    batches = _views(rows, encoder, pipeline, progress, failures)
    return Enrolled(create(store, encoder.spec, batches, titles_of(rows)), failures)


def extend_gallery(
    gallery: Gallery, rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, progress: Progress = no_progress
) -> Enrolled:
    """Publish a version of ``gallery`` with ``rows`` added; files that the SKU has already are skipped.

    Raises SpecMismatch for another encoder, GalleryError when nothing is readable.
    """
    gallery.require(encoder.spec)
    failures: list[ImageError] = []
    present = {(view.sku, view.sha256) for view in gallery.views()}
    known = [0]

    def fresh() -> Iterator[Sequence[NewView]]:
        for batch in _views(rows, encoder, pipeline, progress, failures):
            new = []
            for view in batch:
                if (view.sku, view.sha256) in present:
                    known[0] += 1
                else:
                    present.add((view.sku, view.sha256))
                    new.append(view)
            yield new

    source = fresh()
    first = next((batch for batch in source if batch), None)
    if first is None and known[0]:
        return Enrolled(gallery, failures, known[0])

    def all_batches() -> Iterator[Sequence[NewView]]:
        yield first or []
        yield from source

    return Enrolled(add_views(gallery, all_batches(), titles_of(rows)), failures, known[0])


def titles_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the first title of each SKU that has one."""
    found: dict[str, str] = {}
    for row in rows:
        if row.title:
            found.setdefault(row.sku, row.title)
    return found


def _views(
    rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, progress: Progress, failures: list[ImageError]
) -> Iterator[Sequence[NewView]]:
    """Embed ``rows`` batch by batch; unreadable ones go to ``failures``."""
    position = 0
    also = partial(describe, max_pixels=pipeline.max_pixels)
    for batch in pipeline.embed((row.path for row in rows), encoder, progress, also):
        failures.extend(error for error in batch.errors if error is not None)
        views = []
        for place, vector, (sha256, thumb) in zip(batch.good, batch.vectors, batch.extras, strict=True):
            row = rows[position + int(place)]
            views.append(NewView(row.sku, safe_text(str(row.path)), sha256, thumb, vector))
        position += len(batch.sources)
        yield views
