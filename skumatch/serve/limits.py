"""How much one client may ask for: requests per second, and the bytes and the seconds of a body.

Knows nothing about keys or routes; who is counted is a string.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Message, Receive

from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings

HELD = 256_000_000  # bytes of bodies that all requests together may hold
COUNTED = 4096  # clients that a table of buckets remembers


class Buckets:
    """Token buckets: each client may spend ``burst`` at once and ``rate`` per second after that.

    The clients seen longest ago are forgotten beyond COUNTED, which gives them a full bucket again.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, client: str) -> float:
        """Spend one token of ``client``; return 0.0, or the seconds until there is one."""
        now = self._clock()
        level, then = self._levels.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._levels[client] = (level if wait else level - 1, now)
        while len(self._levels) > COUNTED:
            self._levels.popitem(last=False)
        return wait


class Store:
    """The bytes of bodies that all requests hold at this moment, and how many they may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class Body:
    """The body of one request on its way in: its bytes are counted, and the time that the client lets us wait for them.

    ``done``: it is all here. ``gone``: the client is. ``problem``: why it was refused; reading on raises it again.
    """

    def __init__(self, receive: Receive, settings: Settings, store: Store) -> None:
        self._receive = receive
        self._limit = settings.max_body
        self._seconds = settings.body_timeout
        self._patience = settings.body_timeout
        self._store = store
        self._size = 0
        self.done = False
        self.gone = False
        self.problem: Problem | None = None

    async def receive(self) -> Message:
        """Return the next ASGI message. Raises Problem: 408 too slow, 413 too large, 503 too much held already."""
        if self.problem:
            raise self.problem
        if self.done:
            return await self._receive()
        message = await self._patiently()
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self.done = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        return message

    async def discard(self, seconds: float) -> None:
        """Throw away what still comes, for ``seconds`` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.done and not self.gone:
                    message = await self._receive()
                    self.gone = message["type"] == "http.disconnect"
                    self.done = not message.get("more_body", False)

    def release(self) -> None:
        """Give back what was counted: the request is over."""
        self._store.held -= self._size
        self._size = 0

    async def _patiently(self) -> Message:
        """Wait for a message; only such waiting is the client's slowness, not what the service does between."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._patience)):
                return await self._receive()
        except TimeoutError:
            what = f"the body was not complete after {self._seconds:g} s"
            raise self._refused(Problem(408, what, "send it faster, or less of it")) from None
        finally:
            self._patience -= time.monotonic() - begun

    def _count(self, size: int) -> None:
        self._size += size
        self._store.held += size
        if self._size > self._limit:
            raise self._refused(too_large(self._limit))
        if self._store.held > self._store.limit:
            raise self._refused(Problem(503, "too many bodies are held at this moment", "try again later", 1.0))

    def _refused(self, problem: Problem) -> Problem:
        self.problem = problem
        self.release()
        return problem


def too_large(limit: int) -> Problem:
    """Return what is said of a body over ``limit`` bytes."""
    return Problem(413, f"the body is larger than {limit:,} bytes", "send fewer or smaller pictures")
