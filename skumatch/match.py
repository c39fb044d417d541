"""Which SKU does a crop show: an encoder and a gallery behind one object.

The command line, the service and Python programs all hold a Matcher. It knows nothing about output formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skumatch.decide import Decision, decide
from skumatch.embed import Embedded, Pipeline, Progress, Source, no_progress
from skumatch.encoder import Encoder, open_encoder
from skumatch.errors import GalleryError, ImageError
from skumatch.gallery import Gallery, open_gallery
from skumatch.spec import Ids, Vectors


@dataclass(frozen=True)
class Match:
    """One answer for a crop.

    ``sku`` with its ``title`` ("" if none); ``score``: cosine, -1..1; ``rank`` from 1; ``view``: id of the reference
    view that won and ``source`` where it came from; ``decision``: of the crop's best answer.
    """

    sku: str
    title: str
    score: float
    rank: int
    view: int
    source: str
    decision: Decision


@dataclass(frozen=True)
class CropMatches:
    """All answers for one crop, best first; on an unreadable crop no answers and the ``error``."""

    crop: Source
    matches: tuple[Match, ...]
    error: ImageError | None = None

    def __post_init__(self) -> None:
        scores = [match.score for match in self.matches]
        skus = {match.sku for match in self.matches}
        if scores != sorted(scores, reverse=True) or len(skus) != len(scores):
            raise GalleryError("matches are not sorted or name a SKU twice", "report this as a bug")

    @property
    def decision(self) -> str:
        """accept, review, unknown, or error where the crop could not be read."""
        return self.matches[0].decision if self.matches else "error"


class Matcher:
    """Answers crops from one gallery with the encoder that the gallery was built with."""

    def __init__(self, encoder: Encoder, gallery: Gallery, pipeline: Pipeline | None = None) -> None:
        """Raises SpecMismatch when the gallery was built with another encoder, GalleryError when it is empty."""
        gallery.require(encoder.spec)
        if not len(gallery):
            raise GalleryError(f"gallery {gallery.store} is empty", "build it from at least one picture")
        self.encoder = encoder
        self.gallery = gallery
        self.pipeline = pipeline or Pipeline()

    @classmethod
    def open(cls, model: Path | str, gallery: Path | str, device: str = "auto") -> Matcher:
        """Open a model (bundle folder or encoder name) and a gallery folder.

        Raises ModelError, GalleryError, SpecMismatch, ArtefactError or DeviceError.
        """
        return cls(open_encoder(model, device), open_gallery(Path(gallery)))

    def match(self, images: Sequence[Source], k: int = 5) -> list[CropMatches]:
        """Match paths, bytes, uint8 (H, W, 3) RGB arrays or Pillow images to their ``k`` nearest SKUs, in order.

        An unreadable crop carries its error. Raises GalleryError when ``k`` is below 1.
        """
        return list(self.stream(images, k))

    def stream(self, crops: Iterable[Source], k: int = 5, progress: Progress = no_progress) -> Iterator[CropMatches]:
        """Match crops as they come, in order, in bounded memory; for a folder of a million crops."""
        if k < 1:
            raise GalleryError(f"k is {k}", "ask for at least one SKU")
        for batch in self.pipeline.embed(crops, self.encoder, progress):
            yield from self._answer(batch, k)

    def _answer(self, batch: Embedded, k: int) -> Iterator[CropMatches]:
        found = self.gallery.search(batch.vectors, max(k, 2))  # the decision looks at the second SKU
        line_of = {int(place): line for line, place in enumerate(batch.good)}
        for place, (source, error) in enumerate(zip(batch.sources, batch.errors, strict=True)):
            if error is not None:
                yield CropMatches(source, (), error)
                continue
            line = line_of[place]
            yield CropMatches(source, self._matches(found.scores[line], found.skus[line], found.views[line], k))

    def _matches(self, scores: Vectors, skus: Ids, views: Ids, k: int) -> tuple[Match, ...]:
        decision = decide(scores, self.gallery.thresholds)
        answers = []
        for rank, (score, code, view) in enumerate(zip(scores[:k], skus[:k], views[:k], strict=True), start=1):
            if code < 0:
                break
            sku = self.gallery.skus[int(code)]
            title = self.gallery.titles.get(sku, "")
            source = self.gallery.view(int(view)).source
            answers.append(Match(sku, title, float(score), rank, int(view), source, decision))
        return tuple(answers)
