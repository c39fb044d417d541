"""From a picture's bytes to its answer: decoded on threads, encoded and searched in micro-batches.

It knows nothing about HTTP. What it takes on is bounded: a picture too many is refused at once, one whose deadline
passed is not worked on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch import images
from skumatch.embed import cores
from skumatch.encoder import Encoder
from skumatch.errors import ImageError
from skumatch.match import Match, Matcher
from skumatch.serve.batching import Batcher, Told
from skumatch.serve.loaded import Loaded
from skumatch.serve.metrics import Metrics
from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings
from skumatch.spec import Pixels, Vectors


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent: its file ``name`` ("" where it has none) and its bytes, or why they did not come."""

    name: str
    data: bytes
    error: ImageError | None = None


@dataclass(frozen=True)
class Found:
    """What became of a picture: its ``vector``, float32 (D,), and its nearest SKUs where they were asked for."""

    vector: NDArray[np.float32]
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Job:
    """A decoded picture, (3, S, S) uint8, for ``encoder``; ``matcher`` finds its ``k`` SKUs, None: its vector is all
    that is asked for."""

    pixels: Pixels
    encoder: Encoder
    matcher: Matcher | None
    k: int


class Engine:
    """Decode threads, and one thread that encodes and searches."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.inside = 0  # pictures taken on and not answered yet
        self._pace = 0.0  # seconds per picture, lately
        self._pool = ThreadPoolExecutor(settings.workers or cores(), "skumatch-decode")
        self.batcher: Batcher[Job, Found] = Batcher(
            self._work, lambda job: id(job.encoder), settings.batch, settings.delay, self._told
        )
        metrics.watch_queue(lambda: self.inside)

    async def match(
        self, loaded: Loaded, pictures: Sequence[Picture], k: int, where: Mapping[str, str]
    ) -> list[Found | ImageError]:
        """Return each picture's ``k`` nearest SKUs among those that are as ``where`` says, or why it cannot be read.

        Raises Problem when the queue is full, GalleryError when no SKU is as ``where`` says.
        """
        matcher = loaded.known(where)
        if matcher is None:
            matcher = await asyncio.get_running_loop().run_in_executor(None, loaded.among, dict(where))
        return await self._all(pictures, loaded.matcher.encoder, matcher, k)

    async def embed(self, loaded: Loaded, pictures: Sequence[Picture]) -> list[Found | ImageError]:
        """Return each picture's vector, or why it cannot be read. Raises Problem."""
        return await self._all(pictures, loaded.matcher.encoder, None, 1)

    async def _all(
        self, pictures: Sequence[Picture], encoder: Encoder, matcher: Matcher | None, k: int
    ) -> list[Found | ImageError]:
        self._admit(len(pictures))
        try:
            if len(pictures) == 1:
                return [await self._one(pictures[0], encoder, matcher, k)]
            return await asyncio.gather(*(self._one(picture, encoder, matcher, k) for picture in pictures))
        finally:
            self.inside -= len(pictures)

    def _admit(self, count: int) -> None:
        if self.inside + count > self.settings.queue:
            self.metrics.refused.labels("queue").inc()
            wait = self.inside * self._pace
            raise Problem(503, f"{self.inside} pictures are being worked on", "come again", max(1.0, wait))
        self.inside += count

    async def _one(self, picture: Picture, encoder: Encoder, matcher: Matcher | None, k: int) -> Found | ImageError:
        if picture.error is not None:
            return picture.error
        loop = asyncio.get_running_loop()
        self.batcher.coming += 1
        try:
            pixels = await loop.run_in_executor(self._pool, self._decoded, picture.data, encoder)
        except ImageError as error:
            return error
        finally:
            self.batcher.coming -= 1
        return await self.batcher.submit(Job(pixels, encoder, matcher, k))

    def _decoded(self, data: bytes, encoder: Encoder) -> Pixels:
        begun = time.perf_counter()
        try:
            return images.load_pixels(data, encoder.spec, self.settings.max_pixels)
        finally:
            self.metrics.stages.labels("decode").observe(time.perf_counter() - begun)

    def _work(self, jobs: Sequence[Job]) -> list[Found]:
        """Answer jobs of one encoder; runs on the engine's thread."""
        begun = time.perf_counter()
        vectors = jobs[0].encoder.encode(np.stack([job.pixels for job in jobs]))
        encoded = time.perf_counter()
        found = [Found(vector) for vector in vectors]
        for matcher in {id(job.matcher): job.matcher for job in jobs if job.matcher is not None}.values():
            self._search(matcher, jobs, vectors, found)
        self.metrics.stages.labels("encode").observe(encoded - begun)
        self.metrics.stages.labels("search").observe(time.perf_counter() - encoded)
        return found

    def _search(self, matcher: Matcher, jobs: Sequence[Job], vectors: Vectors, found: list[Found]) -> None:
        """Put the answers of the jobs of ``matcher`` in their places."""
        lines = [line for line, job in enumerate(jobs) if job.matcher is matcher]
        answers = matcher.answers(vectors[lines], max(jobs[line].k for line in lines))
        for line, answer in zip(lines, answers, strict=True):
            found[line] = Found(vectors[line], answer[: jobs[line].k])

    def _told(self, told: Told) -> None:
        self.metrics.batch(told)
        if told.size:
            pace = told.worked / told.size
            self._pace = pace if not self._pace else 0.9 * self._pace + 0.1 * pace

    def start(self) -> None:
        """Begin to work; call it on the event loop."""
        self.batcher.start()

    def close(self) -> None:
        """Finish what was taken on and end the threads."""
        self.batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
