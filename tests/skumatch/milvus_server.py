"""A real Milvus Lite server in a process of its own, and what stands in front of one that misbehaves.

``Proxy`` moves bytes and can be told to refuse, hang, reset, answer late or with garbage, or to do so at the k-th
request. ``Gate`` moves gRPC calls and can refuse those that a rule names, as a Milvus with users does.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

How = Literal["pass", "refuse", "hang", "reset", "late", "garbage"]
Refusal = Callable[[str, dict[str, str]], tuple[str, str] | bytes | None]
SERVE = """
import sys
from milvus_lite.adapter.grpc.server import start_server_in_thread
server, db, port = start_server_in_thread(sys.argv[1], port=int(sys.argv[2]))
print(port, flush=True)
sys.stdin.read()
server.stop(grace=0)
db.close()
"""
PREFACE = 24  # bytes with which an HTTP/2 client begins
LATE = 3.0  # seconds by which an answer comes late
GARBAGE = b"\x00\xff not what you asked for\r\n" * 9


@contextlib.contextmanager
def milvus_server(folder: Path, port: int = 0) -> Iterator[int]:
    """Run a server over ``folder`` and yield its port; it ends with the block, or with this process."""
    command = [sys.executable, "-c", SERVE, str(folder), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class Headers:
    """Counts the HEADERS frames in one direction of an HTTP/2 connection: towards the server, its requests."""

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._head = b""

    def count(self, data: bytes) -> int:
        """Return how many begin in ``data``, the next bytes that came."""
        found = 0
        while data:
            if self._skip:
                passed = min(self._skip, len(data))
                self._skip, data = self._skip - passed, data[passed:]
                continue
            missing = 9 - len(self._head)
            self._head, data = self._head + data[:missing], data[missing:]
            if len(self._head) == 9:
                found += self._head[3] == 1
                self._skip, self._head = int.from_bytes(self._head[:3], "big"), b""
        return found


@dataclass(eq=False)
class Wire:
    """A connection through the proxy. ``dead``: what comes is swallowed, whatever the proxy does later. ``last``: it
    ends when the next answer begins."""

    client: socket.socket
    server: socket.socket
    dead: bool = False
    last: bool = False

    def close(self, reset: bool = False) -> None:
        """Close both ends; ``reset``: with a TCP RST."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # ends the waiting in recv, which keeps the socket open; for RDWR a FIN would be sent first
                end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            end.close()


@dataclass
class Proxy:
    """A TCP proxy on this machine in front of port ``target``. ``requests``: how many have come."""

    target: int
    how: How = "pass"
    delay: float = 0.0
    requests: int = 0
    struck: bool = False  # the trouble that ``at`` planned has come
    _plan: tuple[int, How, bool] | None = None
    _bytes: int | None = None
    _back: float | None = None
    _listener: socket.socket = field(init=False)
    _held: socket.socket = field(init=False)  # keeps the port
    _wires: set[Wire] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Proxy:
        self.port = 0
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.be("refuse")
        self._held.close()

    def be(self, how: How, delay: float = 0.0) -> None:
        """Behave so from now on, towards the connections that there are, too."""
        with self._lock:
            was, self.how, self.delay = self.how, how, delay
            if how in ("refuse", "reset", "garbage"):
                self._drop(how)
            for wire in self._wires:
                wire.dead = wire.dead or how == "hang"
            if how == "refuse" and was != "refuse":
                with contextlib.suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)  # ends the waiting in accept, which holds the port
                self._listener.close()
                self._held = self._bound()  # nobody listens here, and nobody else can begin to
            elif how != "refuse" and was == "refuse":
                self._held.close()
                self._listen()

    def at(self, request: int, how: How, answered: bool = False, back: float | None = None) -> None:
        """Behave so from the ``request``-th request on, counted from now: it does not arrive or, ``answered``, its
        answer does not. ``back``: seconds after which all is well again."""
        with self._lock:
            self.requests, self.struck, self._back = 0, False, back
            self._plan = (request, how, answered)

    def after_bytes(self, count: int) -> None:
        """Refuse, after so many further bytes of requests."""
        with self._lock:
            self.struck, self._bytes = False, count

    def calm(self) -> None:
        """Forget what was planned, and pass everything."""
        with self._lock:
            self._plan, self._bytes = None, None
            self.be("pass")

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", self.port))
        except OSError:
            bound.close()
            raise
        self.port = bound.getsockname()[1]
        return bound

    def _listen(self) -> None:
        self._listener = self._held = self._bound()
        self._listener.listen(32)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        try:
            wire = Wire(client, socket.create_connection(("127.0.0.1", self.target)), dead=self.how == "hang")
        except OSError:
            client.close()
            return
        self._wires.add(wire)
        if self.how in ("refuse", "reset", "garbage"):
            self._drop(self.how)
            return
        for source, sink, skip in ((wire.client, wire.server, PREFACE), (wire.server, wire.client, 0)):
            threading.Thread(target=self._move, args=(wire, source, sink, Headers(skip)), daemon=True).start()

    def _drop(self, how: How) -> None:
        for wire in self._wires:
            if how == "garbage":
                with contextlib.suppress(OSError):
                    wire.client.sendall(GARBAGE)
            wire.close(reset=how == "reset")
        self._wires.clear()

    def _move(self, wire: Wire, source: socket.socket, sink: socket.socket, headers: Headers) -> None:
        try:
            while data := source.recv(1 << 16):
                if sink is wire.client and self.delay:
                    time.sleep(self.delay)
                with self._lock:
                    if sink is wire.server and self._bytes is not None and len(data) > self._bytes:
                        sink.sendall(data[: self._bytes])
                        self._strike("refuse")
                    elif self._passes(wire, sink is wire.server, headers.count(data), len(data)):
                        sink.sendall(data)
        except OSError:
            pass
        with self._lock:
            if not wire.dead:  # one that hangs is not ended either
                wire.close()
                self._wires.discard(wire)

    def _passes(self, wire: Wire, request: bool, begun: int, size: int) -> bool:
        """Return whether what came goes on; trouble that was planned for it begins."""
        if request:
            self.requests += begun
            if self._plan is not None and begun and self.requests >= self._plan[0]:
                wire.last = self._plan[2]
                if not wire.last:
                    self._strike(self._plan[1])
            if self._bytes is not None:
                self._bytes -= size
        elif wire.last and begun and self._plan is not None:
            self._strike(self._plan[1])
        return not wire.dead and wire in self._wires

    def _strike(self, how: How) -> None:
        self._plan, self._bytes, self.struck = None, None, True
        self.be(how, LATE if how == "late" else 0.0)
        if self._back is not None:
            threading.Timer(self._back, self.calm).start()


class Gate:
    """A gRPC server that passes calls on to port ``target``, but for those that ``refusal`` (of a method's name and the
    call's metadata) answers itself: with a status code and details, or with a message."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.refusal: Refusal = lambda method, metadata: None

    def __enter__(self) -> Gate:
        from concurrent.futures import ThreadPoolExecutor

        import grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.target}")
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()
        self._channel.close()

    def service(self, details: Any) -> Any:
        """Return what handles a call, as grpc.GenericRpcHandler does."""
        import grpc

        return grpc.unary_unary_rpc_method_handler(lambda sent, context: self._answer(details, sent, context))

    def _answer(self, details: Any, sent: bytes, context: Any) -> bytes:
        import grpc

        metadata = {str(key): str(value) for key, value in details.invocation_metadata}
        refused = self.refusal(details.method.rsplit("/", 1)[1], metadata)
        if isinstance(refused, bytes):
            return refused
        if refused is not None:
            context.abort(getattr(grpc.StatusCode, refused[0]), refused[1])
        answer: bytes = self._channel.unary_unary(details.method)(sent, timeout=context.time_remaining())
        return answer
