"""Listening sockets, with TLS or without: bound, accepted from with a limit, and closed without losing a connection.

Knows nothing about HTTP except one answer: that there are too many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from skumatch.errors import ConfigError
from skumatch.serve.problems import Problem
from skumatch.serve.protocol import answer, let_read
from skumatch.serve.settings import Settings

BACKLOG = 1024
BURST = 64  # connections accepted before the loop does something else
EXTRA = 64  # connections beyond the limit that are told so; more are closed without a word
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # "localhost" often has an IPv6 address where there is no IPv6
AGAIN = 0.5  # seconds until accepting is tried again when the process has no file descriptors left
SO_ATTACH_FILTER = 26  # Linux, socket(7)
INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, where to go if so, if not, value
NO_SYN = b"".join(
    INSTRUCTION.pack(*one)
    for one in (
        (0x30, 0, 0, 13),  # load the byte of a TCP header that holds its flags
        (0x45, 0, 1, 0x02),  # SYN: a new connection is asked for
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # let everything else pass
    )
)
FULL = Problem(503, "too many connections are open", "close idle connections, or come again later", 1.0)


class Door:
    """Accepts connections and gives each to a protocol of ``make``; those over ``settings.connections`` get a 503.

    ``count`` returns how many of these protocols have an open connection. With ``tls`` a handshake counts as a
    connection, and ends after ``settings.header_timeout`` seconds.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        settings: Settings,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.sockets = sockets
        self.opening: set[asyncio.Task[object]] = set()
        self.refusing: set[Refuser] = set()
        self._make = make
        self._count = count
        self._limit = settings.connections
        self._tls = tls
        self._patience = settings.header_timeout if tls else None
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to accept."""
        for sock in self.sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def take_no_more(self) -> None:
        """Let the system ignore who asks for a connection from now on; those that are being made are still accepted.

        The system makes connections on its own until a socket is closed, and resets those that wait to be accepted
        then. Only Linux can do this; elsewhere what is made between the last look and the end is lost.
        """
        if sys.platform == "linux":
            program = ctypes.create_string_buffer(NO_SYN, len(NO_SYN))
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    filled = struct.pack("HP", len(NO_SYN) // INSTRUCTION.size, ctypes.addressof(program))
                    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filled)

    def close(self) -> None:
        """Accept every connection that waits, then stop listening."""
        for sock in self.sockets:
            while self._accept(sock):
                pass
        self.shut()

    def shut(self) -> None:
        """Close the listening sockets at once."""
        for sock in self.sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()

    def _accept(self, sock: socket.socket) -> bool:
        """Accept what waits, BURST at most; return whether more may wait."""
        for _ in range(BURST):
            try:
                connection, _address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:
                continue  # the client is gone already
            except OSError:  # no file descriptors: the socket would be reported as ready again and again
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(AGAIN, self._accept_again, sock)
                return False
            connection.setblocking(False)
            self._admit(connection)
        return True

    def _accept_again(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _admit(self, connection: socket.socket) -> None:
        there = self._count() + len(self.opening)
        if there + len(self.refusing) >= self._limit + EXTRA:
            connection.close()
            return
        make = self._make if there < self._limit else lambda: Refuser(self.refusing)
        opened = self._loop.connect_accepted_socket(
            make, connection, ssl=self._tls, ssl_handshake_timeout=self._patience
        )
        task: asyncio.Task[object] = self._loop.create_task(opened)
        self.opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self.opening.discard(task)
        if not task.cancelled():
            task.exception()  # a handshake that failed is the client's affair; unasked, asyncio would log it


class Refuser(asyncio.Protocol):
    """Answers a connection over the limit with 503, before any request, and closes it."""

    def __init__(self, all_of_them: set[Refuser]) -> None:
        self._all = all_of_them

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._all.add(self)
        writable = cast(asyncio.Transport, transport)
        writable.write(answer(FULL))
        let_read(writable)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)


def bind(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets, one for each address of ``host``. Raises ConfigError with the address."""
    todo = "stop what listens there, or give another --host or --port"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}", "give an address of this machine") from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(listening(family, address))
        except OSError as error:
            failed = error
            if error.errno not in ABSENT:
                break
    if failed is not None and (not sockets or failed.errno not in ABSENT):
        for sock in sockets:
            sock.close()
        raise ConfigError(f"cannot listen on {at(host, port)}: {os.strerror(failed.errno or 0)}", todo) from failed
    return sockets


def listening(family: int, address: Any) -> socket.socket:
    """Return a socket of ``family`` that listens at ``address``. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two processes share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def at(host: str, port: int) -> str:
    """Return host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the context of the certificate and key of the settings, None without. Raises ConfigError."""
    if not settings.tls_cert:
        return None
    for path in (settings.tls_cert, settings.tls_key):
        if not Path(path).is_file():
            raise ConfigError(f"{path} is not there", "give PEM files as tls_cert and tls_key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")  # never ask the terminal
    except OSError as error:
        what = f"{settings.tls_cert} and {settings.tls_key} do not serve TLS: {error}"
        raise ConfigError(what, "give a PEM certificate and its PEM key without a password") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def url_of(sock: socket.socket, tls: bool) -> str:
    """Return the URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{at(host, port)}"
