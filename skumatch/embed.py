"""The pipeline from pictures to vectors: decode threads feed batches to the encoder, in order, in bounded memory.

Knows nothing about galleries or labels. An unreadable picture is reported in its place and stops nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import Image as PILImage

from skumatch import images
from skumatch.encoder import Encoder, beginning, pixels_on
from skumatch.errors import ConfigError, ImageError
from skumatch.images import Jpeg
from skumatch.machine import usable_cores
from skumatch.spec import Ids, Image, Pixels, Vectors

if TYPE_CHECKING:
    from skumatch.runtime.nvjpeg import JpegDecoder

Source = Path | str | bytes | Image | PILImage.Image
S = TypeVar("S")
R = TypeVar("R")
Read = tuple[Pixels | Jpeg, Any] | ImageError  # a picture and what ``also`` gave, or why there is none
BATCH = 32
DECODE = ("auto", "cpu", "gpu")
LARGEST = 4_000_000  # bytes of a JPEG that may wait for a GPU; a larger one is decoded on the thread that read it


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
    """Return the CPU cores this process may use: of its affinity and its container's quota the smaller."""
    return usable_cores()


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
    """How to run: ``batch`` pictures per call of the encoder, ``workers`` decode threads, the pixel limit.

    ``decode``: "cpu"; "gpu": JPEGs on the GPU that encodes them; "auto": there where it decodes as the host does.
    """

    batch: int = BATCH
    workers: int = 0
    max_pixels: int = images.DEFAULT_MAX_PIXELS
    decode: str = "auto"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0 or self.max_pixels < 1:
            raise ConfigError(
                f"batch {self.batch}, workers {self.workers} or max_pixels {self.max_pixels} is out of range",
                "give at least 1, 0 and 1",
            )
        if self.decode not in DECODE:
            raise ConfigError(f"unknown decode '{self.decode}'", f"choose {', '.join(DECODE)}")

    def embed(
        self,
        sources: Iterable[Source],
        encoder: Encoder,
        progress: Progress = no_progress,
        also: Callable[[Any], Any] = no_extra,
        change: Callable[[Image], Image] = unchanged,
    ) -> Iterator[Embedded]:
        """Yield batches in input order. At most four batches of pictures are in memory: three ahead, one delivered;
        with an encoder that begins a batch before the last one is done, a fifth.

        ``also`` is called with each readable source on the decode threads (for thumbnails and digests; where a GPU
        decodes, a JPEG that proves corrupt may be among them), ``change`` with each upright (H, W, 3) picture before it
        is resized (for test-time views and corruptions), which is therefore decoded on the host. Raises DeviceError
        where JPEGs were to be decoded on the GPU and cannot.
        """
        decoder = self._decoder(encoder) if change is unchanged else None

        def read(source: Source) -> Read:
            try:
                picture = (images.image_of if decoder is None else images.image_or_jpeg)(source, self.max_pixels)
                if isinstance(picture, Jpeg):
                    if len(picture.data) <= LARGEST:
                        return picture, also(source)
                    picture = picture.image()
                return images.to_pixels(change(picture), encoder.spec), also(source)
            except ImageError as error:
                return ImageError(error.what, error.todo)  # without the traceback, which holds the file's bytes

        batches = ordered_batches(sources, read, self.batch, self.workers or cores())
        begun = (_begun(group, found, encoder, decoder) for group, found in batches)
        for batch in _finished(begun, ahead=0 if beginning(encoder) is None else 1):
            yield batch
            progress(len(batch.sources))

    def _decoder(self, encoder: Encoder) -> JpegDecoder | None:
        """Return what decodes JPEGs in the place of the host, None where that is the host's work."""
        if self.decode == "cpu" or (self.decode == "auto" and not pixels_on(encoder)):
            return None  # without importing torch
        from skumatch.runtime.nvjpeg import decoder_for

        return decoder_for(self.decode, pixels_on(encoder))


def ordered_batches(
    items: Iterable[S], work: Callable[[S], R], batch: int, workers: int
) -> Generator[tuple[list[S], list[R]], None, None]:
    """Run ``work`` on threads and yield (items, results) in batches, in order, at most three batches ahead.

    The threads step back for the caller's: an engine on the same cores, whose threads wait for one another, loses more
    by a core that is taken from it than the work gains.

    An error, of ``work`` or of ``items``, comes through when no thread works any more. An iterator that is closed or
    dropped cancels what has not begun and waits for nothing: the garbage collector may drop it on one of these very
    threads, or in the midst of starting another.
    """
    stream = iter(items)
    waiting: deque[tuple[S, Future[R]]] = deque()
    pool, wait = ThreadPoolExecutor(workers), True
    try:
        while True:
            for item in islice(stream, 3 * batch - len(waiting)):
                waiting.append((item, pool.submit(work, item)))
            if not waiting:
                return
            group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            yield [item for item, _ in group], [future.result() for _, future in group]
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def _finished(begun: Iterable[Callable[[], Embedded]], ahead: int) -> Iterator[Embedded]:
    """Yield the results in order, each once ``ahead`` more have begun."""
    waiting: deque[Callable[[], Embedded]] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def _begun(
    group: list[Source], found: Sequence[Read], encoder: Encoder, decoder: JpegDecoder | None
) -> Callable[[], Embedded]:
    """Give a batch to the encoder; return what waits for its vectors."""
    rows: list[Any] = [one if isinstance(one, ImageError) else one[0] for one in found]
    if decoder is not None:
        rows = decoder.decoded(rows, encoder.spec)
    good = [place for place, row in enumerate(rows) if not isinstance(row, ImageError)]
    vectors = _vectors([rows[place] for place in good], encoder, decoder)
    errors = [row if isinstance(row, ImageError) else None for row in rows]
    extras = [found[place][1] for place in good]  # type: ignore[index]  # no error where the row is none
    return lambda: Embedded(group, np.array(good, np.int64), vectors(), errors, extras)


def _vectors(rows: list[Any], encoder: Encoder, decoder: JpegDecoder | None) -> Callable[[], Vectors]:
    if not rows:
        return lambda: np.empty((0, encoder.spec.dim), np.float32)
    on_host = decoder is None or all(isinstance(row, np.ndarray) for row in rows)
    pixels: Any = np.stack(rows) if on_host else decoder.batch(rows)  # type: ignore[union-attr]
    begin = beginning(encoder)
    if begin is not None:
        return begin(pixels)
    vectors = encoder.encode(pixels)
    return lambda: vectors
