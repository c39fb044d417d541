"""Micro-batches: what requests bring one by one is worked on together, on one thread, as soon as that is free.

While a batch is worked on the next one gathers, so batches are as large as the load makes them. It knows nothing about
pictures or models.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")
Done = list[tuple["asyncio.Future[R]", R | BaseException]]


@dataclass(frozen=True)
class Told:
    """What became of one batch: ``size``, seconds that each job ``waited``, seconds ``worked``, jobs nobody waits for
    any more (``dropped``)."""

    size: int
    waited: list[float]
    worked: float
    dropped: int


class Batcher(Generic[J, R]):
    """Runs ``work`` on up to ``size`` jobs at a time; jobs of one batch share a ``kind``.

    Where more jobs are said to be ``coming``, a batch that is not full waits for them, for at most ``delay`` seconds.
    """

    def __init__(
        self,
        work: Callable[[Sequence[J]], Sequence[R]],
        kind: Callable[[J], Hashable],
        size: int,
        delay: float = 0.0,
        tell: Callable[[Told], None] | None = None,
    ) -> None:
        self.work = work
        self.kind = kind
        self.size = size
        self.delay = delay
        self.tell = tell
        self.coming = 0  # changed on the event loop alone
        self._loop: asyncio.AbstractEventLoop
        self._waiting: deque[tuple[J, asyncio.Future[R], float]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="skumatch-engine", daemon=True)

    def start(self) -> None:
        """Begin to work; call it on the event loop that submits."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def __len__(self) -> int:
        """Return the number of jobs that wait."""
        return len(self._waiting)

    def submit(self, job: J) -> asyncio.Future[R]:
        """Give a job; await the future for what ``work`` made of it. One that is cancelled is left out."""
        future: asyncio.Future[R] = self._loop.create_future()
        with self._changed:
            self._waiting.append((job, future, time.perf_counter()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the thread once all that waits is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[tuple[J, asyncio.Future[R], float]]:
        """Wait for jobs and return the next batch, nothing once it is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            until = time.perf_counter() + self.delay
            while self.coming and len(self._waiting) < self.size and not self._closing:
                left = until - time.perf_counter()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch: list[tuple[J, asyncio.Future[R], float]] = []
            while self._waiting and len(batch) < self.size:
                if batch and self.kind(self._waiting[0][0]) != self.kind(batch[0][0]):
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _answer(self, batch: list[tuple[J, asyncio.Future[R], float]]) -> None:
        begun = time.perf_counter()
        wanted = [(job, future, since) for job, future, since in batch if not future.cancelled()]
        done: Done[R] = []
        if wanted:
            try:
                found = self.work([job for job, _, _ in wanted])
                done = [(future, one) for (_, future, _), one in zip(wanted, found, strict=True)]
            except BaseException as error:  # the thread lives on; who waits is told
                done = [(future, error) for _, future, _ in wanted]
        if self.tell is not None:
            waited = [begun - since for _, _, since in wanted]
            self.tell(Told(len(wanted), waited, time.perf_counter() - begun, len(batch) - len(wanted)))
        if done:
            self._loop.call_soon_threadsafe(_deliver, done)


def _deliver(done: Done[R]) -> None:
    for future, result in done:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
