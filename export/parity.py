"""Whether an exported network gives the answers that the model gave: cosines, and top-1 on the user's crops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skumatch import images
from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, cores, no_progress, ordered_batches
from skumatch.encoder import Encoder, asking
from skumatch.errors import DataError, ImageError
from skumatch.spec import Ids, Pixels, Vectors

VIEWS, CROPS = 4000, 2000  # gallery views and crops at most that answers are compared on
BLOCK = 256


@dataclass(frozen=True)
class Limit:
    """What an export may change: least cosine of any picture (None: any), and points of top-1 that it may lose."""

    min_cosine: float | None
    points: float


LIMITS = {
    "fp32": Limit(0.99999, 0.1),
    "fp16": Limit(0.999, 0.5),
    "bf16": Limit(0.999, 0.5),
    "int8": Limit(None, 0.5),
}


@dataclass(frozen=True)
class Answers:
    """Of ``queries`` crops: the share whose nearest view shows the same SKU before and after (``agreement``), and top-1
    before and after, all 0..1."""

    queries: int
    agreement: float
    before: float
    after: float

    @property
    def points_lost(self) -> float:
        """Points of top-1 lost."""
        return 100 * (self.before - self.after)

    @property
    def crops_lost(self) -> int:
        """How many fewer crops are answered rightly."""
        return round(self.queries * (self.before - self.after))


@dataclass(frozen=True)
class Parity:
    """How an export of ``precision`` compares: the least and the mean cosine of ``pictures`` crops with the model's
    vectors, and its ``answers``, None where there is no gallery to ask."""

    precision: str
    pictures: int
    min_cosine: float
    mean_cosine: float
    answers: Answers | None = None

    def beyond(self) -> list[str]:
        """Return what is beyond the limits of its precision, in words; empty when the answers did not change.

        A single crop lost is within them however few there are.
        """
        limit, found = LIMITS[self.precision], []
        if limit.min_cosine is not None and self.min_cosine < limit.min_cosine:
            found.append(f"least cosine {self.min_cosine:.6f} is below {limit.min_cosine}")
        lost = self.answers is not None and self.answers.points_lost > limit.points + 1e-9
        if self.answers is not None and lost and self.answers.crops_lost > 1:
            found.append(f"top-1 falls by {self.answers.points_lost:.1f} points, more than {limit.points}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the figures and what is beyond the limits, JSON-ready."""
        return {**asdict(self), "beyond": self.beyond()}


def compare(
    before: Encoder,
    others: Mapping[str, Encoder],
    gallery: Sequence[Row],
    queries: Sequence[Row],
    pipeline: Pipeline,
    progress: Progress = no_progress,
) -> dict[str, Parity]:
    """Compare engines of one model with ``before`` on the crops ``queries``; all ask a gallery that ``before`` embedded
    (an empty one: vectors alone are compared). Returns a Parity per name in ``others``.

    Of more than 4,000 views or 2,000 crops, evenly spaced ones are taken. Raises DataError when no crop can be read.
    """
    views, view_skus = _embedded(thinned(gallery, VIEWS), (before,), pipeline, progress)
    crops, skus = _embedded(thinned(queries, CROPS), (before, *others.values()), pipeline, progress)
    if not len(skus):
        raise DataError("no readable crop to compare the answers on", "see `skumatch data check`")
    found = {}
    for (name, other), vectors in zip(others.items(), crops[1:], strict=True):
        cosines = (crops[0] * vectors).sum(1)
        answers = None
        if len(view_skus):
            old = view_skus[_nearest(asking(before, crops[0]), views[0])]
            new = view_skus[_nearest(asking(other, vectors), views[0])]
            answers = Answers(len(skus), *(float(np.mean(same)) for same in (old == new, old == skus, new == skus)))
        found[name] = Parity(other.spec.precision, len(skus), float(cosines.min()), float(cosines.mean()), answers)
    return found


def _embedded(
    rows: Sequence[Row], encoders: Sequence[Encoder], pipeline: Pipeline, progress: Progress
) -> tuple[list[Vectors], NDArray[np.str_]]:
    """Return the vectors of the readable rows by each encoder, from one decoding, and their SKUs."""
    how = encoders[0].spec
    found: list[list[Vectors]] = [[np.empty((0, how.dim), np.float32)] for _ in encoders]
    skus: list[str] = []

    def read(row: Row) -> Pixels | None:
        try:
            return images.to_pixels(images.read_image(row.path, pipeline.max_pixels), how)
        except ImageError:
            return None

    for group, decoded in ordered_batches(rows, read, pipeline.batch, pipeline.workers or cores()):
        good = [(row.sku, pixels) for row, pixels in zip(group, decoded, strict=True) if pixels is not None]
        skus += [sku for sku, _ in good]
        if good:
            batch = np.stack([pixels for _, pixels in good])
            for own, encoder in zip(found, encoders, strict=True):
                own.append(encoder.encode(batch))
        progress(len(group))
    return [np.concatenate(own) for own in found], np.array(skus, np.str_)


def _nearest(asked: Vectors, views: Vectors) -> Ids:
    blocks: Iterable[Ids] = (
        (asked[start : start + BLOCK] @ views.T).argmax(1) for start in range(0, len(asked), BLOCK)
    )
    return np.concatenate(list(blocks))


def thinned(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """Return ``most`` of ``rows``, evenly spaced, or all where there are no more."""
    if len(rows) <= most:
        return rows
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, most)]
