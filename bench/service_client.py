"""A client of the service that costs little: raw sockets that do not wait, requests prepared as bytes, one thread.

It knows of an answer only its status and its length.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PATIENCE = 60.0  # seconds until a connection must be there
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """An answer, or, with status 0, the loss of a connection, of which ``body`` says how."""

    status: int
    body: bytes
    closing: bool = False


def request(target: str, body: bytes, kind: str = "application/octet-stream", method: str = "POST") -> bytes:
    """Return the bytes of a request of this machine's service."""
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def form(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return the body and content type of a form with a file part for each (name, bytes)."""
    edge = b"a-line-that-no-picture-holds-7f3a"
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n'
        % (edge, name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--%s--\r\n" % edge, f"multipart/form-data; boundary={edge.decode()}"


class Client:
    """One connection, kept alive; at most one request is under way."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.port = port
        self.selector = selector
        self.sock: socket.socket | None = None
        self.which, self.since, self.used = -1, 0.0, 0
        self._out = memoryview(b"")
        self._in = bytearray()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self.which >= 0

    def ask(self, data: bytes, which: int, since: float) -> None:
        """Send a request; ``which`` and ``since`` are for the caller. Raises OSError where nobody listens."""
        if self.sock is None:
            self.sock, self.used = socket.create_connection(("127.0.0.1", self.port), PATIENCE), 0
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setblocking(False)
            self.selector.register(self.sock, selectors.EVENT_READ, self)
        self.which, self.since = which, since
        self.used += 1
        self._out = memoryview(data)
        self._send()

    def ready(self, events: int) -> Answer | None:
        """Go on sending or receiving; return the answer once it is whole, or the loss of the connection."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            if not events & selectors.EVENT_READ:
                return None
            assert self.sock is not None
            some = self.sock.recv(262_144)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._lost(type(error).__name__)
        if not some:
            return self._lost("closed")
        self._in += some
        return self._answer()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self.sock is not None:
            self.selector.unregister(self.sock)
            self.sock.close()
        self.sock, self.which = None, -1
        self._in.clear()

    def _send(self) -> None:
        assert self.sock is not None
        try:
            self._out = self._out[self.sock.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._out = memoryview(b"")  # an answer may stand in the buffer all the same: reading tells
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self.selector.get_key(self.sock).events != events:
            self.selector.modify(self.sock, events, self)

    def _lost(self, how: str) -> Answer:
        state = "idle" if not self.busy else "cut" if self._in else "reused" if self.used > 1 else "new"
        self.close()
        return Answer(0, f"{state} {how}".encode(), True)

    def _answer(self) -> Answer | None:
        end = self._in.find(HEAD_END)
        if end < 0:
            return None
        head = bytes(self._in[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._in) < end + 4 + length:
            return None
        answer = Answer(int(head[9:12]), bytes(self._in[end + 4 : end + 4 + length]), b"\r\nconnection: close" in head)
        del self._in[: end + 4 + length]
        self.which = -1
        if answer.closing:
            self.close()
        return answer


def events(selector: selectors.BaseSelector, seconds: float) -> Iterator[tuple[Client, int, float, Answer]]:
    """Wait up to ``seconds`` and yield what came: the client, its request's number, since when, and the answer."""
    for key, mask in selector.select(max(0.0, seconds)):
        client: Client = key.data
        which, since = client.which, client.since
        answer = client.ready(mask)
        if answer is not None:
            yield client, which, since, answer
