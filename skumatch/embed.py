"""The pipeline from pictures to vectors: decode threads feed batches to the encoder, in order, in bounded memory.

Knows nothing about galleries or labels. An unreadable picture is reported in its place and stops nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image as PILImage

from skumatch import images
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, ImageError
from skumatch.spec import Ids, Image, Pixels, Vectors

Source = Path | str | bytes | Image | PILImage.Image
S = TypeVar("S")
R = TypeVar("R")
BATCH = 32


class Progress(Protocol):
    """Told how many pictures are done; the Null object is ``no_progress``."""

    def __call__(self, done: int, /) -> None:
        """Advance by ``done`` pictures."""
        ...


def no_progress(done: int) -> None:
    """Ignore progress."""


def no_extra(source: Source) -> None:
    """Compute nothing beside the vector."""


def unchanged(image: Image) -> Image:
    """Return the picture as it is."""
    return image


def cores() -> int:
    """Return the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Embedded:
    """One batch: ``sources`` in input order, ``vectors`` float32 (M, D) of those at positions ``good`` int64 (M,),
    ``errors``, one per source, None where it was read, and ``extras``, what ``also`` returned for the good ones."""

    sources: list[Source]
    good: Ids
    vectors: Vectors
    errors: list[ImageError | None]
    extras: list[Any]


@dataclass(frozen=True)
class Pipeline:
    """How to run: ``batch`` pictures per call of the encoder, ``workers`` decode threads, the pixel limit."""

    batch: int = BATCH
    workers: int = 0
    max_pixels: int = images.DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0 or self.max_pixels < 1:
            raise ConfigError(
                f"batch {self.batch}, workers {self.workers} or max_pixels {self.max_pixels} is out of range",
                "give at least 1, 0 and 1",
            )

    def embed(
        self,
        sources: Iterable[Source],
        encoder: Encoder,
        progress: Progress = no_progress,
        also: Callable[[Any], Any] = no_extra,
        change: Callable[[Image], Image] = unchanged,
    ) -> Iterator[Embedded]:
        """Yield batches in input order. At most four batches of pictures are in memory: three ahead, one
        delivered.

        ``also`` is called with each readable source on the decode threads (for thumbnails and digests), ``change``
        with each upright (H, W, 3) picture before it is resized (for test-time views and corruptions).
        """

        def decode(source: Source) -> tuple[Pixels, Any] | ImageError:
            try:
                return images.to_pixels(change(images.image_of(source, self.max_pixels)), encoder.spec), also(source)
            except ImageError as error:
                return error

        for group, decoded in ordered_batches(sources, decode, self.batch, self.workers or cores()):
            yield _encode(group, decoded, encoder)
            progress(len(group))


def ordered_batches(
    items: Iterable[S], work: Callable[[S], R], batch: int, workers: int
) -> Iterator[tuple[list[S], list[R]]]:
    """Run ``work`` on threads and yield (items, results) in batches, in order, at most three batches ahead."""
    stream = iter(items)
    waiting: deque[tuple[S, Future[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for item in islice(stream, 3 * batch - len(waiting)):
                    waiting.append((item, pool.submit(work, item)))
                if not waiting:
                    return
                group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                yield [item for item, _ in group], [future.result() for _, future in group]
        finally:
            for _, future in waiting:
                future.cancel()


def _encode(group: list[Source], decoded: list[tuple[Pixels, Any] | ImageError], encoder: Encoder) -> Embedded:
    good = np.array([i for i, d in enumerate(decoded) if not isinstance(d, ImageError)], np.int64)
    read = [d for d in decoded if not isinstance(d, ImageError)]
    vectors = encoder.encode(np.stack([p for p, _ in read])) if read else np.empty((0, encoder.spec.dim), np.float32)
    errors = [d if isinstance(d, ImageError) else None for d in decoded]
    return Embedded(group, good, vectors, errors, [extra for _, extra in read])
