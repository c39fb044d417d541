"""Training pictures: which rows train and which validate, and canvases decoded ahead on threads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skumatch import images
from skumatch.dataset import Dataset, Row
from skumatch.embed import ordered_batches
from skumatch.errors import DataError, ImageError
from skumatch.finetune.augment import DRAWS, Draws, draws, jpeg_quality
from skumatch.finetune.batches import nth
from skumatch.finetune.cache import PictureCache
from skumatch.finetune.parts import Augment
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.studio import on_shelf, through_jpeg
from skumatch.spec import Ids, Image

Decoded = tuple[NDArray[np.uint8], float, Draws]  # canvas (3, R, R), width / height, draws (68,)

T = TypeVar("T")
SET_ASIDE = 0.1  # share of the training pictures that validates where the data has no val split


@dataclass(frozen=True)
class Split:
    """What a fine-tune sees: rows to train on, gallery and queries to validate with, the SKUs that are not trained on
    at all, and gallery and queries of those.

    ``gallery`` holds pictures that are trained on; ``queries`` and all ``unseen`` rows are not.
    """

    train: tuple[Row, ...]
    gallery: tuple[Row, ...]
    queries: tuple[Row, ...]
    held_out: tuple[str, ...] = ()
    unseen_gallery: tuple[Row, ...] = ()
    unseen_queries: tuple[Row, ...] = ()

    @property
    def skus(self) -> list[str]:
        """Distinct SKUs of the training rows, sorted; a SKU's label is its place here."""
        return sorted({row.sku for row in self.train})


def split_rows(dataset: Dataset, recipe: Recipe) -> Split:
    """Divide ``dataset`` into training and validation; the split ``test`` is never touched.

    Without a split ``val``, a tenth of the training pictures (of SKUs with at least four, keyed by seed and path) is
    held out. ``recipe.hold_out`` of the SKUs appear nowhere. Raises DataError when there are fewer than two SKUs to
    train on.
    """
    source = list(dataset.split("train" if "train" in dataset.splits else dataset.gallery_split))
    if "val" in dataset.splits:
        views, queries = source, list(dataset.split("val"))
    else:
        aside = _set_aside(source, recipe.seed)
        queries = [row for row in source if row.path in aside]
        views = [row for row in source if row.path not in aside]
    unseen = held_out_skus(sorted({row.sku for row in source}), recipe.hold_out, recipe.seed)
    train = [row for row in views if row.sku not in unseen]
    known = {row.sku for row in train}
    if len(known) < 2:
        raise DataError(f"{dataset.root} has {len(known)} SKUs to train on", "give pictures of at least two SKUs")
    others = [row for row in views if row.sku in unseen]
    return Split(
        tuple(train),
        tuple(_some_views(train, recipe.val_views, recipe.seed)),
        tuple(_sample([row for row in queries if row.sku in known], recipe.val_queries, recipe.seed)),
        tuple(sorted(unseen)),
        tuple(_some_views(others, recipe.val_views, recipe.seed)),
        tuple(_sample([row for row in queries if row.sku in unseen], recipe.val_queries, recipe.seed)),
    )


def held_out_skus(skus: Sequence[str], share: float, seed: int) -> set[str]:
    """Return ``share`` of the SKUs (rounded), ranked by a hash of seed and SKU, so that a new SKU moves few others."""
    ranked = sorted(skus, key=lambda sku: hashlib.blake2b(f"{seed}|{sku}".encode("utf-8", "surrogateescape")).digest())
    return set(ranked[: round(share * len(ranked))])


def _key(row: Row, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}|{row.sku}|{row.path.name}".encode("utf-8", "surrogateescape")).digest()


def _by_sku(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.sku, []).append(row)
    return found


def _set_aside(rows: Sequence[Row], seed: int) -> set[Path]:
    held: set[Path] = set()
    for members in _by_sku(rows).values():
        if len(members) >= 4:
            count = max(1, round(len(members) * SET_ASIDE))
            held.update(row.path for row in sorted(members, key=lambda row: _key(row, seed))[:count])
    return held


def _some_views(rows: Sequence[Row], views: int, seed: int) -> list[Row]:
    return [
        row
        for _, members in sorted(_by_sku(rows).items())
        for row in sorted(members, key=lambda row: _key(row, seed + 1))[:views]
    ]


def _sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: _key(row, seed + 2))[:count]


@dataclass(frozen=True)
class Shown:
    """Places of training rows in the order in which they are shown, int64 (N,), and for how manieth time in the epoch
    each is, from 0, int64 (N,)."""

    places: Ids
    times: Ids

    @classmethod
    def of(cls, order: Ids) -> Shown:
        """Return the pictures of a whole epoch's ``order``."""
        return cls(order, nth(order))


@dataclass
class Canvases:
    """Streams training pictures as square uint8 canvases; unreadable ones are left out and remembered."""

    rows: tuple[Row, ...]
    labels: Ids
    recipe: Recipe
    workers: int
    max_pixels: int = images.DEFAULT_MAX_PIXELS
    failures: dict[Path, ImageError] = field(default_factory=dict)
    cache: PictureCache | None = None
    pinned: bool = False  # in memory that a GPU copies from by itself

    def batches(self, shown: Shown, epoch: int, size: int, batch: int, start: int = 0) -> Iterator[Batch | None]:
        """Yield batches of ``batch`` of the pictures ``shown`` in ``epoch``, from batch ``start`` on, at ``size`` px.

        A picture that is shown several times in an epoch is changed in another way each time. None stands for a batch
        with fewer than two readable pictures: batch statistics need two.
        """

        def work(one: tuple[np.int64, np.int64]) -> Decoded | ImageError:
            return self._decode(int(one[0]), int(one[1]), epoch, size)

        rest = zip(shown.places[start * batch :], shown.times[start * batch :], strict=True)
        for places, decoded in ordered_batches(rest, work, batch, self.workers):
            good = [(int(p), d) for (p, _), d in zip(places, decoded, strict=True) if not isinstance(d, ImageError)]
            yield self._batch(good) if len(good) > 1 else None

    def fill(self, places: Ids) -> None:
        """Read into the cache what it lacks of the pictures at ``places``, int64 (N,)."""

        def read(place: np.int64) -> None:
            try:
                self._picture(int(place))
            except ImageError as error:
                self.failures.setdefault(self.rows[place].path, error)

        if self.cache is not None:
            for _ in ordered_batches(self.cache.missing(places), read, 64, self.workers):
                pass

    def one(self, place: int, epoch: int, size: int) -> Batch | None:
        """Return a batch of the one picture at ``place`` as ``epoch`` shows it; None when it cannot be read."""
        found = self._decode(place, 0, epoch, size)
        return None if isinstance(found, ImageError) else self._batch([(place, found)])

    def _batch(self, good: list[tuple[int, Decoded]]) -> Batch:
        places = np.array([place for place, _ in good], np.int64)
        batch = Batch(
            torch.from_numpy(np.stack([d[0] for _, d in good])),
            torch.tensor([d[1] for _, d in good], dtype=torch.float64),
            torch.from_numpy(np.stack([d[2] for _, d in good]).reshape(-1, DRAWS)),
            torch.from_numpy(self.labels[places]),
            torch.from_numpy(places),
        )
        return batch.pin() if self.pinned else batch

    def _decode(self, place: int, time: int, epoch: int, size: int) -> Decoded | ImageError:
        """Return the canvas, its aspect and its draws of the ``time``-th showing of a picture in ``epoch``."""
        how, row = self.recipe.augment, self.rows[place]
        draw = draws(self.recipe.seed, epoch, np.array([place]), time)[0]
        try:
            plain, aspect = self._picture(place)
            image = on_shelf(plain, draw, how, lambda where: self._other(row.sku, where))
            return _canvas(image, canvas_side(size, how), jpeg_quality(draw, how)), aspect, draw
        except ImageError as error:
            self.failures.setdefault(row.path, error)
            return error

    def _picture(self, place: int) -> tuple[Image, float]:
        """Return a training picture and its aspect, from its file or from the cache. Raises ImageError."""
        kept = None if self.cache is None else self.cache.get(place)
        if kept is not None:
            return kept
        image = images.read_image(self.rows[place].path, self.max_pixels)
        aspect = image.shape[1] / image.shape[0]
        if self.cache is None:
            return image, aspect
        square = _canvas(image, self.cache.side, None).transpose(1, 2, 0)
        self.cache.put(place, square, aspect)
        return square, aspect

    def _other(self, sku: str, where: float) -> Image | None:
        """Return the picture at ``where``, 0..1, of the training rows; None when it shows the same SKU or is broken."""
        place = int(where * len(self.rows))
        if self.rows[place].sku == sku:
            return None
        try:
            return self._picture(place)[0]
        except ImageError:
            return None


def canvas_side(size: int, how: Augment) -> int:
    """Return the side of the canvases that crops of ``size`` pixels are cut from.

    The warp samples without antialiasing: a crop of average area must lie on the canvas in its final resolution.
    """
    return round(size / math.sqrt((1 + how.min_scale) / 2))


@dataclass(frozen=True)
class Batch:
    """Canvases uint8 (N, 3, R, R), aspects float64 (N,), draws float64 (N, 68), labels int64 (N,) and the places of the
    training rows that they show, int64 (N,)."""

    canvases: Tensor
    aspects: Tensor
    draws: Tensor
    labels: Tensor
    places: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))

    def pin(self) -> Batch:
        """Return the batch in page-locked memory."""
        return Batch(*(t.pin_memory() for t in vars(self).values()))


def ahead(batches: Iterator[T]) -> Generator[T, None, None]:
    """Yield ``batches``, each made on a thread of its own while the one before is used.

    An iterator that is dropped waits for nothing: see ``embed.ordered_batches``.
    """
    done = object()
    thread, wait = ThreadPoolExecutor(1), True
    try:
        coming = thread.submit(next, batches, done)
        while (batch := coming.result()) is not done:
            coming = thread.submit(next, batches, done)
            yield cast(T, batch)
    except GeneratorExit:
        wait = False
        raise
    finally:
        thread.shutdown(wait=wait, cancel_futures=True)


def _canvas(image: NDArray[np.uint8], side: int, quality: int | None) -> NDArray[np.uint8]:
    """Squash (H, W, 3) to a square canvas, with antialiasing, and pass it through JPEG where asked."""
    from skumatch.spec import Preprocess

    how = Preprocess(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", 1.0, "bilinear")
    canvas = images.to_pixels(image, how)
    return canvas if quality is None else through_jpeg(canvas.transpose(1, 2, 0), quality).transpose(2, 0, 1)
