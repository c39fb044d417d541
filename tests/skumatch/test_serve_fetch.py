"""Fetching by URL: what is reached is what was checked, and limits hold. See test_serve_urls.py for what is not."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.errors import ImageError
from skumatch.serve.fetch import Fetcher, Place, open_connection, parse, trust
from skumatch.serve.settings import Settings
from tests.skumatch.small_server import certificate

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PUBLIC = "93.184.216.34"


async def resolve(host: str, port: int) -> list[str]:
    return [PUBLIC]


async def never(address: str, port: int, place: Place) -> Streams:
    raise AssertionError(f"connected to {address}")


def fetched(
    serve: Serve, url: str = "http://example.com/a.jpg", tls: ssl.SSLContext | None = None, **more: Any
) -> bytes:
    """Return what a fetcher gets from a server of this test that stands at the address of example.com."""

    async def both() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]

        async def connect(address: str, asked: int, place: Place) -> Streams:
            assert address == PUBLIC and asked in (80, 443)
            return await open_connection("127.0.0.1", port, place)

        fetcher = Fetcher(Settings(**{"max_body": 100_000, "deadline": 5, **more}), resolve, connect)
        try:
            return await fetcher.get(url)
        finally:
            server.close()
            fetcher.close()

    return asyncio.run(both())


def answering(*pieces: bytes, endless: bytes = b"", pause: float = 0.0, heads: list[bytes] | None = None) -> Serve:
    """Return a server that answers ``pieces``, then ``endless`` without end, ``pause`` seconds between."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head)
            for piece in pieces:
                writer.write(piece)
            while endless:
                writer.write(endless)
                await writer.drain()
                await asyncio.sleep(pause)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return serve


def head(*lines: str, status: str = "200 OK", kind: str = "image/jpeg") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lines, "", ""]).encode()


def test_a_picture_comes_with_a_request_that_says_little() -> None:
    heads: list[bytes] = []
    got = fetched(
        answering(head("Content-Length: 4"), b"\xff\xd8", b"\xff\xd9", heads=heads), "http://example.com/a?b=1#c"
    )
    assert got == b"\xff\xd8\xff\xd9"
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /a?b=1 HTTP/1.1" and "Host: example.com" in lines and "Accept-Encoding: identity" in lines
    assert not any(line.lower().startswith(("cookie", "authorization", "referer")) for line in lines)


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/WEBP", "application/octet-stream", "binary/octet-stream"])
def test_kinds_and_ways_in_which_a_picture_comes(kind: str) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert fetched(answering(head("Transfer-Encoding: chunked", kind=kind), chunks)) == b"abcde"
    assert (
        fetched(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n", head("Connection: close", kind=kind), b"abc")) == b"abc"
    )


REFUSED = {
    "redirects": answering(head("Location: http://127.0.0.1/", "Content-Length: 0", status="302 Found")),
    "answered 404": answering(head("Content-Length: 0", status="404 Not Found")),
    "answered 206": answering(head("Content-Length: 1", status="206 Partial Content"), b"a"),
    "not call it an image": answering(head("Content-Length: 1", kind="text/html"), b"a"),
    "compressed": answering(head("Content-Encoding: gzip"), gzip.compress(b"0" * 1_000_000)),
    "over 100000 bytes": answering(head("Content-Length: 100001"), b"a" * 100_001),
    "RemoteProtocolError": answering(head("Content-Length: 5"), b"a"),
    "cannot be fetched": answering(b"SSH-2.0-OpenSSH\r\n\r\n"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_answers_that_are_no_picture(why: str) -> None:
    with pytest.raises(ImageError, match=f"^http://example.com/a.jpg: .*{why}"):
        fetched(REFUSED[why], "http://example.com/a.jpg?token=secret")


def test_bodies_and_heads_without_end() -> None:
    for begin in (head(), head("Transfer-Encoding: chunked")):
        piece = b"10000\r\n" + b"a" * 65536 + b"\r\n" if b"chunked" in begin else b"a" * 65536
        with pytest.raises(ImageError, match="over 100000 bytes"):
            fetched(answering(begin, endless=piece))
    with pytest.raises(ImageError, match="RemoteProtocolError"):
        fetched(answering(b"HTTP/1.1 200 OK\r\n", endless=b"X: " + b"a" * 1000))
    with pytest.raises(ImageError, match=r"not fetched within 0\.3 s"):
        fetched(answering(head(), endless=b"a", pause=0.05), deadline=0.3)
    with pytest.raises(ImageError, match=r"not fetched within 0\.3 s"):
        fetched(answering(endless=b"HTTP/1.1 102 Processing\r\n\r\n", pause=0.02), deadline=0.3)


def test_a_limit_of_the_caller_holds() -> None:
    async def get(limit: int) -> bytes:
        server = await asyncio.start_server(answering(head("Content-Length: 4"), b"abcd"), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fetcher = Fetcher(Settings(), resolve, lambda address, _, place: open_connection("127.0.0.1", port, place))
        try:
            return await fetcher.get("http://example.com/", limit)
        finally:
            server.close()

    assert asyncio.run(get(4)) == b"abcd"
    with pytest.raises(ImageError, match="over 3 bytes"):
        asyncio.run(get(3))


def test_a_name_that_changes_its_address_is_asked_once() -> None:
    """The second answer, which the connection would be made to, is never asked for."""
    asked, connected = [], []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return [PUBLIC if len(asked) == 1 else "127.0.0.1"]

    async def connect(address: str, port: int, place: Place) -> Streams:
        connected.append(address)
        raise ConnectionRefusedError

    with pytest.raises(ImageError, match=r"cannot be fetched \(ConnectionRefusedError\)"):
        asyncio.run(Fetcher(Settings(), rebinding, connect).get("http://rebind.example.com/"))
    assert asked == ["rebind.example.com"] and connected == [PUBLIC]


def test_the_next_address_is_tried_and_names_are_no_addresses() -> None:
    connected = []

    async def several(host: str, port: int) -> list[str]:
        return [PUBLIC, "8.8.8.8", PUBLIC, "1.1.1.1", "9.9.9.9"]

    async def connect(address: str, port: int, place: Place) -> Streams:
        connected.append(address)
        raise OSError("no route")

    with pytest.raises(ImageError, match="OSError"):
        asyncio.run(Fetcher(Settings(), several, connect).get("http://example.com/"))
    assert connected == [PUBLIC, "8.8.8.8", "1.1.1.1"]
    with pytest.raises(ValueError, match="localhost"):
        asyncio.run(open_connection("localhost", 80, parse("http://example.com/")))


def test_the_systems_resolver_is_asked_and_slow_names_end_in_time() -> None:
    fetcher = Fetcher(Settings())
    with pytest.raises(ImageError, match="not known or not public"):
        asyncio.run(fetcher.get("http://localhost/"))
    fetcher.close()

    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(ImageError, match=r"not fetched within 0\.1 s"):
        asyncio.run(Fetcher(Settings(deadline=0.1), slow, never).get("http://example.com/"))


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetched(answering(head("Content-Length: 1"), b"a")) == b"a"


def test_tls_is_verified_against_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, why in (("example.com", ""), ("other.example.com", "SSLCertVerificationError")):
        pem, key = certificate(tmp_path, name)
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(pem, key)
        serve = answering(head("Content-Length: 4"), b"abcd")
        for trusted in (False, True):
            monkeypatch.setenv("SSL_CERT_FILE", str(pem if trusted else tmp_path / "none.pem"))
            trust.cache_clear()
            if trusted and not why:
                assert fetched(serve, "https://example.com/a.jpg", serving) == b"abcd"
            else:
                with pytest.raises(ImageError, match="SSLCertVerificationError"):
                    fetched(serve, "https://example.com/a.jpg", serving)
    trust.cache_clear()
