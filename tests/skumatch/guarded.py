"""A small app behind the guard, in the test process or on a real server, and requests written byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from skumatch.errors import GalleryError
from skumatch.serve.guard import Guard, require
from skumatch.serve.keys import Keys
from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings

HOST = b"Host: 127.0.0.1\r\n"
PICTURE = b"x" * 100


async def match(request: Request) -> Response:
    """Return who asks and how many bytes came."""
    principal = require(request, "match")
    return JSONResponse({"who": principal.name, "bytes": len(await request.body()), "id": request.state.request_id})


async def skus(request: Request) -> Response:
    return JSONResponse({"who": require(request, "read").name})


async def views(request: Request) -> Response:
    return JSONResponse({"who": require(request, "write").name})


async def health(request: Request) -> Response:
    return PlainTextResponse("yes")


async def swallow(request: Request) -> Response:
    """Call whatever happens while the body is read a bad request, as frameworks do."""
    try:
        await request.body()
    except Exception:
        return JSONResponse({"detail": "bad request"}, 400)
    return JSONResponse({})


async def late(request: Request) -> Response:
    """Fail when half of the answer is sent."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.sleep(0.05)
        raise RuntimeError("private words")

    return StreamingResponse(parts())


async def own_headers(request: Request) -> Response:
    headers = {"Cache-Control": "max-age=60", "Content-Security-Policy": "default-src *", "X-Frame": "kept"}
    return PlainTextResponse("picture", headers=headers)


async def fail(request: Request) -> Response:
    kinds: dict[str, Exception] = {
        "bug": RuntimeError("private words"),
        "problem": Problem(409, "it changed", "ask again", 2.4),
        "gallery": GalleryError("no SKU x", "see `skumatch gallery list`"),
    }
    raise kinds[request.path_params["kind"]]


ROUTES = [
    Route("/v1/match", match, methods=["POST"]),
    Route("/v1/skus", skus),
    Route("/v1/views", views, methods=["POST"]),
    Route("/v1/swallow", swallow, methods=["POST"]),
    Route("/late", late),
    Route("/own-headers", own_headers),
    Route("/fail/{kind}", fail),
    Route("/healthz", health),
    Route("/readyz", health, methods=["GET", "POST"]),
]
Records = list[dict[str, Any]]


def guarded(tmp_path: Path, **settings: Any) -> tuple[Guard, Keys, Records]:
    """Return the app behind a guard, its keys (none yet) and what the access log was told."""
    keys, records = Keys(tmp_path / "keys.json"), Records()
    return Guard(Starlette(routes=ROUTES), Settings(**settings), keys, records.append), keys, records


def client_of(guard: Guard, address: str = "127.0.0.1") -> TestClient:
    """Return a client at ``address`` that asks ``guard`` by its own name."""
    return TestClient(guard, base_url="http://127.0.0.1", client=(address, 5000))


class Served:
    """A guarded app on a real server at ``port``; ``log`` gets the facts of each request."""

    def __init__(self, guard: Guard, keys: Keys, port: int, log: Queue[dict[str, Any]]) -> None:
        self.guard = guard
        self.keys = keys
        self.port = port
        self.log = log

    def record(self, request: str) -> dict[str, Any]:
        """Return what the access log was told of the request with this id, as soon as it was."""
        while (facts := self.log.get(timeout=20))["request"] != request:
            pass
        return facts

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, data: bytes) -> bytes:
        """Send ``data`` and return all that comes until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return all_of(connection)


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def one_answer(connection: socket.socket) -> bytes:
    """Return one answer with a Content-Length, whether or not the connection stays open."""
    with connection.makefile("rb") as stream:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            assert line, head
            head += line
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return head + stream.read(length)


@contextmanager
def served(tmp_path: Path, **settings: Any) -> Iterator[Served]:
    """Run a guarded app on uvicorn, on a port of 127.0.0.1, while the block runs."""
    guard, keys, _ = guarded(tmp_path, **settings)
    log: Queue[dict[str, Any]] = Queue()
    guard._log = log.put
    config = uvicorn.Config(guard, "127.0.0.1", 0, http="httptools", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        yield Served(guard, keys, server.servers[0].sockets[0].getsockname()[1], log)
    finally:
        server.should_exit = True
        thread.join()
