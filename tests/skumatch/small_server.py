"""A server in a process of its own, for tests. Run as a script, this file is that process: its application sleeps 50 ms
per request and says what it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skumatch.serve.settings import Settings

Start = Callable[..., "Process"]
Answer = tuple[int, dict[str, str], Any]
BOTH = pytest.mark.parametrize("plain", [False, True], ids=["httptools", "h11"])
reloads = {"begun": 0, "now": 0, "most": 0}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was asked; /early does so before the body is read, /hang after a minute."""
    if scope["type"] != "http":
        return
    size, more, early = 0, True, scope["path"] == "/early"
    while more and not early:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await asyncio.sleep(60 if scope["path"] == "/hang" else 0.05)
    names = [name.decode() for name, _ in scope["headers"]]
    body = json.dumps({"path": scope["path"], "size": size, "headers": names, "reloads": reloads}).encode()
    headers = [(b"content-length", str(len(body)).encode()), *[(b"connection", b"close")] * early]
    await send({"type": "http.response.start", "status": 413 if early else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def reload() -> None:
    reloads["begun"] += 1
    reloads["now"] += 1
    reloads["most"] = max(reloads["most"], reloads["now"])
    await asyncio.sleep(0.05)
    reloads["now"] -= 1
    raise ValueError("no model there")


def say(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


async def draining() -> None:
    raise ValueError("nor is there anything to mark")


def main(options: dict[str, Any]) -> None:
    if options.pop("plain", False):  # as where they are not installed
        sys.modules.update({"httptools": None, "uvloop": None})  # type: ignore[dict-item]
    if files := options.pop("files", 0):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    from skumatch.serve.server import run

    run(app, Settings(**options), reload, draining, ready=say)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Process:
    """The server, listening on ``port``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.log = folder / "log.txt"
        self.port = free_port()
        command = [sys.executable, __file__, json.dumps({"port": self.port, **settings})]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.connections: list[socket.socket] = []

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.connections.append(connection)
        connection.sendall(sent)
        return connection

    def ask(self, path: str) -> Any:
        with self.connect(head(path)) as connection:
            return answer_of(connection)[2]

    def refused(self) -> None:
        """Return once nothing listens any more."""
        while True:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                return
            except ConnectionError:
                continue  # where new ones cannot be turned away first


def starter(folder: Path) -> Iterator[Start]:
    """Yield a function that starts the server with settings; it ends with the test."""
    started: list[Process] = []

    def begin(**settings: Any) -> Process:
        started.append(Process(folder, **settings))
        return started[-1]

    yield begin
    for server in started:
        server.process.kill()
        server.process.communicate()
        for connection in server.connections:
            connection.close()


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: here", *lines, "", ""]).encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    return head(path, f"Content-Length: {len(body)}", *lines).replace(b"GET", b"POST", 1) + body


def answer_of(connection: socket.socket) -> Answer:
    """Read one answer: status, headers in lower case, JSON. Raises OSError where there is none."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = json.loads(response.read())
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"no answer: {error!r}") from error
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def ended(connection: socket.socket) -> bool:
    """Read to the end of the connection; return whether nothing came."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def statuses(connection: socket.socket) -> list[int]:
    """Return the statuses of all answers until the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a certificate for ``name`` that signs itself, and of its key."""
    program = shutil.which("openssl") or pytest.skip("openssl is not installed")
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command, "-out", str(paths[0]), "-keyout", str(paths[1])], check=True, capture_output=True)
    return paths


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
