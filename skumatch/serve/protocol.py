"""One connection: uvicorn's protocol, and beside it a limit on heads, an end to slow ones, and goodbyes that arrive.

uvicorn answers requests; this knows how long a head may take and be, when a connection may be closed without losing
a request, and that an answer given before the whole request was read still has to reach the client. It knows nothing
about bodies (``guard.py`` limits them), listening sockets (``listen.py``) or signals (``server.py``).
"""

from __future__ import annotations

import asyncio
import json
import select
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from skumatch.serve.problems import Problem, body, headers

HEAD = 32_768  # bytes of a request's line and headers
LINGER = 2.0  # seconds in which a client may read an answer that came before its request was complete
CLOSE = (b"connection", b"close")


class Polite:
    """A transport whose ``close`` lets the client read the answer to a request that was not read to its end.

    A socket closed with unread bytes resets the connection, and the client loses an answer on its way (RFC 9112,
    section 9.6). Here the sending side is closed, what still comes is thrown away, and after LINGER seconds it ends.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Careful) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self._protocol.unfinished:
            self.linger()
        elif not self._closing:
            self._transport.close()

    def linger(self) -> None:
        """Send what is written and the end; read on, for LINGER seconds at most, until the client ends too."""
        if not self.is_closing():
            self._closing = True
            let_read(self._transport)


class Careful(asyncio.Protocol):
    """What both of uvicorn's protocols get: a limit on the time of a head, and closing without losing requests.

    ``patience``: seconds from the opening of the connection, or the first byte of a later request, until a head is
    complete. ``spoke``: when the client was last heard, on the loop's clock.
    """

    patience: float = 10.0
    loop: asyncio.AbstractEventLoop
    cycle: Any
    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.spoke = self.loop.time()
        self.broken: Problem | None = None
        self._partial = False
        self._timer: asyncio.TimerHandle | None = None
        polite: Any = Polite(cast(asyncio.Transport, transport), self)
        super().connection_made(polite)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def unfinished(self) -> bool:
        """Whether the body of the last request is still on its way."""
        return self.cycle is not None and bool(self.cycle.more_body)

    def data_received(self, data: bytes) -> None:
        self.spoke = self.loop.time()
        if self.broken is not None or self.transport.is_closing():
            return  # thrown away
        if not self.busy:
            self._expect_head()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._head_is_here()
        self._partial = not self.busy

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience, self._too_slow)

    def _head_is_here(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.busy:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is not HTTP."""
        self.refuse(Problem(400, "the request is not valid HTTP/1.1", "send a request as RFC 9112 has it"))

    def _unsupported_upgrade_warning(self) -> None:
        """An offer to speak another protocol is ignored, as it may be; uvicorn would log each."""

    def refuse(self, problem: Problem) -> None:
        """Answer ``problem`` after the requests that came before, and close; nothing more is parsed."""
        self.broken = problem
        self._head_is_here()
        if not self.busy:
            self._say(problem)
        elif self.unfinished:  # it is the body that cannot be read on
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or getattr(self, "pipeline", None):
                self.transport.abort()
            else:
                self._say(problem)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self.broken is not None and not self.busy:
            self._say(self.broken)

    def _say(self, problem: Problem) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer(problem))
            self.transport.linger()

    def timeout_keep_alive_handler(self) -> None:
        """Called by uvicorn when the connection was idle for long: unless the next request is here, unread."""
        if not unread(self.transport):
            super().timeout_keep_alive_handler()  # type: ignore[misc]

    def say_goodbye(self) -> None:
        """Let the answers to the requests at hand announce that the connection closes, where none has begun."""
        waiting = [cycle for cycle, _ in getattr(self, "pipeline", ())]
        for cycle in waiting or [self.cycle]:
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = [*cycle.default_headers, CLOSE]

    def retire(self, quiet: float) -> None:
        """Close the connection if it is between requests, silent for ``quiet`` seconds, and all it sent was read."""
        if self.busy or self._partial or self.transport.is_closing():
            return
        if self.loop.time() - self.spoke >= quiet and not unread(self.transport):
            self.transport.close()


class ByH11(Careful, H11Protocol):
    """The protocol in pure Python; h11 limits heads itself (``h11_max_incomplete_event_size``)."""


def fastest() -> type[Careful]:
    """Return the protocol on httptools, or on h11 where httptools is not installed."""
    try:
        from skumatch.serve.httptools_protocol import ByHttptools
    except ImportError:
        return ByH11
    return ByHttptools


def answer(problem: Problem) -> bytes:
    """Return the whole of an answer that closes its connection."""
    content = json.dumps(body(problem, "")).encode()
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers(problem).items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + content


def let_read(transport: asyncio.Transport) -> None:
    """Close the sending side (TLS has none of its own) and end the connection in LINGER seconds at the latest."""
    if transport.can_write_eof():
        transport.write_eof()
    transport.resume_reading()
    asyncio.get_running_loop().call_later(LINGER, transport.abort)


def unread(transport: Any) -> bool:
    """Whether the system holds bytes of the connection, or its end, that the loop has not read yet."""
    number = transport.get_extra_info("socket").fileno()
    if number < 0 or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
