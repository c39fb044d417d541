"""Which SKU does a crop show: an encoder and a gallery behind one object.

The command line, the service and Python programs all hold a Matcher. It knows nothing about output formats.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skumatch import techniques
from skumatch.backend import open_gallery
from skumatch.calibration import FILE, Calibration, Decision, evidence_of, shrunk
from skumatch.crops import expand
from skumatch.embed import Embedded, Pipeline, Progress, Source, no_progress
from skumatch.encoder import Encoder, asking, open_engine, pixels_on
from skumatch.errors import GalleryError, ImageError, SpecMismatch
from skumatch.gallery_seam import AnyGallery
from skumatch.index.exact import ExactIndex
from skumatch.model import open_bundle
from skumatch.nearest import Nearest
from skumatch.search import Search, search_of
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import Store
from skumatch.testviews import with_views

if TYPE_CHECKING:
    from skumatch.explain import Explanation


@dataclass(frozen=True)
class Match:
    """One answer for a crop.

    ``sku`` with its ``title`` ("" if none); ``score``: cosine, -1..1; ``rank`` from 1; ``view``: id of the reference
    view that won and ``source`` where it came from; ``decision``: of the crop's best answer; ``probability``: that the
    best answer is right, 0..1, None for the other ranks and without a calibration.
    """

    sku: str
    title: str
    score: float
    rank: int
    view: int
    source: str
    decision: Decision
    probability: float | None = None


@dataclass(frozen=True)
class CropMatches:
    """All answers for one crop, best first, from the gallery's ``version``; on an unreadable crop no answers and the
    ``error``."""

    crop: Source
    matches: tuple[Match, ...]
    error: ImageError | None = None
    version: str = ""

    def __post_init__(self) -> None:
        scores = [match.score for match in self.matches]
        skus = {match.sku for match in self.matches}
        if scores != sorted(scores, reverse=True) or len(skus) != len(scores):
            raise GalleryError("matches are not sorted or name a SKU twice", "report this as a bug")

    @property
    def decision(self) -> str:
        """accept, review, unknown, or error where the crop could not be read."""
        return self.matches[0].decision if self.matches else "error"


@dataclass(frozen=True)
class Held:
    """One version of a gallery, prepared for one way of searching. It never changes, so threads may share it."""

    gallery: AnyGallery
    store: Store
    search: Search
    calibration: Calibration | None

    @staticmethod
    def of(gallery: AnyGallery, where: Mapping[str, str], search: Search, calibration: Calibration | None) -> Held:
        """Prepare the SKUs of ``gallery`` that are as ``where`` says. Raises GalleryError when none is."""
        dim = gallery.spec.dim
        chosen = gallery.selected(where)
        if not techniques.reads_all(search.technique):  # the ids of a gallery on a server take long to read
            return Held(gallery, chosen, search, calibration)
        store = techniques.prepared(search.technique, chosen, chosen.ids, lambda: ExactIndex(dim))
        return Held(gallery, store, search, calibration)

    def answers(self, queries: Vectors, k: int) -> list[tuple[Match, ...]]:
        """Return for each of float32 (N, D) ``queries`` (see ``asking``) its ``k`` nearest SKUs, best first."""
        found = techniques.search(self.search.technique, self.store, queries, max(k, 2))  # a decision looks at two
        probabilities = self._probabilities(found)
        return [
            self._matches((found.scores[line, :k], found.skus[line, :k], found.views[line, :k]), probabilities[line])
            for line in range(len(queries))
        ]

    def _probabilities(self, found: Nearest) -> list[float | None]:
        """Return how probably each best answer is right; None without a calibration."""
        rule = self.calibration
        if rule is None:
            return [None] * len(found.skus)
        alike = [shrunk(*self.gallery.cohesion(int(code)), rule.typical) for code in found.skus[:, 0]]
        return list(rule.probability(evidence_of(found, np.array(alike, np.float64))).tolist())

    def _matches(self, found: tuple[Vectors, Ids, Ids], probability: float | None) -> tuple[Match, ...]:
        gallery, rule = self.gallery, self.calibration
        decision = "review" if rule is None or probability is None else rule.decide(probability)
        answers = []
        for rank, (score, code, view) in enumerate(zip(*found, strict=True), start=1):
            if code < 0:
                break
            sku, title = gallery.skus[int(code)], gallery.title(int(code))
            source = gallery.view(int(view)).source
            sure = probability if rank == 1 else None
            answers.append(Match(sku, title, float(score), rank, int(view), source, decision, sure))
        return tuple(answers)


class Matcher:
    """Answers crops from one gallery with the encoder that the gallery was built with.

    Without a ``calibration`` (see ``skumatch calibrate``) every answer is for review. Several threads may use one
    Matcher at once: each batch is answered from one version of the gallery, also while another thread refreshes it.
    """

    def __init__(
        self,
        encoder: Encoder,
        gallery: AnyGallery,
        pipeline: Pipeline | None = None,
        calibration: Calibration | None = None,
        search: Search | None = None,
        where: Mapping[str, str] | None = None,
    ) -> None:
        """``search``: how crops are looked up; by their nearest views where it is None. ``where``: only SKUs whose
        facts (columns of the gallery's SKU table) are these can be answers.

        Raises SpecMismatch when the gallery or the calibration is of another encoder, GalleryError when no SKU is as
        ``where`` says.
        """
        gallery.require(encoder.spec)
        if calibration is not None and calibration.spec_digest != encoder.spec.digest:
            raise SpecMismatch("the calibration was fitted with another model", "run `skumatch calibrate` again")
        self.search = search or Search()
        self.encoder = with_views(encoder, self.search.views)
        self.where = dict(where or {})
        self.pipeline = pipeline or Pipeline()
        self.calibration = calibration
        self._held = self._prepared(gallery)

    @property
    def gallery(self) -> AnyGallery:
        """The version that answers."""
        return self._held.gallery

    def refresh(self) -> bool:
        """Answer from the gallery's current version from the next batch on; return whether that is another one.

        For programs that run on while others add and remove SKUs. Raises SpecMismatch when the gallery was rebuilt
        with another model, GalleryError, ArtefactError: then the version in use goes on answering.
        """
        gallery = self.gallery.refreshed()
        if gallery is self.gallery:
            return False
        self._held = self._prepared(gallery)  # one assignment: a thread that is answering keeps the old one
        return True

    def on(self, gallery: AnyGallery) -> Matcher:
        """Return a Matcher like this one that answers from another ``gallery`` or version. Raises as the constructor
        does."""
        other = copy.copy(self)
        other._held = other._prepared(gallery)
        return other

    def among(self, where: Mapping[str, str]) -> Matcher:
        """Return a Matcher like this one, of the same version, whose answers are only SKUs with the facts ``where``.

        Everything that is open is shared. Raises GalleryError when no SKU is like that.
        """
        other = copy.copy(self)
        other.where = dict(where)
        other._held = other._prepared(self.gallery)
        return other

    def _prepared(self, gallery: AnyGallery) -> Held:
        gallery.require(self.encoder.spec)
        return Held.of(gallery, self.where, self.search, self.calibration)

    @classmethod
    def open(
        cls,
        model: Path | str,
        gallery: Path | str,
        device: str = "auto",
        runtime: str = "auto",
        precision: str | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Matcher:
        """Open a model (bundle folder or encoder name) with its search and calibration, and a gallery: a folder or an
        address such as "milvus://host:19530/name".

        ``runtime`` and ``precision``: what runs it, see ``open_engine``; ``where``: see the constructor. Raises
        ModelError, GalleryError, SpecMismatch, ArtefactError, DeviceError or ConfigError.
        """
        encoder = open_engine(model, device, runtime, precision)
        opened = open_gallery(gallery, pixels_on(encoder) or "cpu")
        return cls(encoder, opened, None, calibration_of(model), search_of(model), where)

    def match(self, images: Sequence[Source], k: int = 5) -> list[CropMatches]:
        """Match paths, bytes, uint8 (H, W, 3) RGB arrays or Pillow images to their ``k`` nearest SKUs, in order.

        An unreadable crop carries its error. Raises GalleryError when ``k`` is below 1.
        """
        return list(self.stream(images, k))

    def match_paths(
        self, paths: Iterable[Path | str], k: int = 5, progress: Progress = no_progress
    ) -> Iterator[CropMatches]:
        """Match files, the pictures in folders, and globs, as ``stream`` does; for a folder of a million crops.

        Raises DataError for a name that is none of these.
        """
        return self.stream(expand(str(path) for path in paths), k, progress)

    def stream(self, crops: Iterable[Source], k: int = 5, progress: Progress = no_progress) -> Iterator[CropMatches]:
        """Match crops as they come, in order, in bounded memory. Raises GalleryError when ``k`` is below 1."""
        if k < 1:
            raise GalleryError(f"k is {k}", "ask for at least one SKU")
        for batch in self.pipeline.embed(crops, self.encoder, progress):
            yield from self._answer(batch, k)

    def answers(self, vectors: Vectors, k: int = 5) -> list[tuple[Match, ...]]:
        """Return the ``k`` nearest SKUs, best first, for each of float32 (N, D) ``vectors``, as ``encoder`` gives them;
        for programs that decode and batch on their own."""
        return self._held.answers(asking(self.encoder, vectors), k)

    def explain(self, match: Match) -> Explanation:
        """Say why a crop got this answer: the reference view, its SKU's other views, the nearest look-alike, and
        what the decision needed. Raises GalleryError when the view is gone from the gallery."""
        from skumatch.explain import explain

        return explain(self.gallery, self.calibration, match)

    def _answer(self, batch: Embedded, k: int) -> Iterator[CropMatches]:
        held = self._held
        found = iter(held.answers(asking(self.encoder, batch.vectors), k))
        for source, error in zip(batch.sources, batch.errors, strict=True):
            yield CropMatches(source, () if error else next(found), error, held.gallery.version)


def calibration_of(model: Path | str) -> Calibration | None:
    """Return the calibration in a bundle (or a store's current one); None where there is none or ``model`` is a name.

    Raises ModelError or ArtefactError for a broken bundle.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    data = open_bundle(folder).file(FILE)
    return None if data is None else Calibration.read(data)
