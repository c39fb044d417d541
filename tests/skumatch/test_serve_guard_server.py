"""The guard on a real server, against requests written byte by byte: smuggling, slowness, injection, rebinding."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from skumatch.serve import access
from skumatch.serve.keys import SCOPES
from tests.skumatch.guarded import HOST, Served, all_of, one_answer, served

CLOSE = b"Connection: close\r\n"
SMUGGLED = b"GET /v1/skus HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service"), max_body=1000, body_timeout=0.3) as found:
        yield found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def answers_in(data: bytes) -> int:
    return data.count(b"HTTP/1.1 ")


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/match HTTP/1.1\r\n" + HOST + b"".join(headers) + b"\r\n" + body


def test_an_honest_request_is_answered(server: Served) -> None:
    answer = server.ask(post(CLOSE, b"Content-Length: 3\r\n", body=b"abc"))
    assert status_of(answer) == 200 and b'"bytes":3' in answer
    chunked = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    answer = server.ask(post(CLOSE, b"Transfer-Encoding: chunked\r\n", body=chunked))
    assert status_of(answer) == 200 and b'"bytes":3' in answer


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 0x5\r\n",
    ],
)
def test_no_request_is_smuggled_in_a_body(server: Served, headers: bytes) -> None:
    """One refusal, and what follows in the same connection is not taken for a request."""
    answer = server.ask(post(headers, body=b"0\r\n\r\n" + SMUGGLED))
    assert status_of(answer) == 400 and answers_in(answer) == 1


def test_what_follows_a_refused_body_is_not_taken_for_a_request(server: Served) -> None:
    answer = server.ask(post(b"Content-Length: 2000\r\n", body=SMUGGLED.ljust(2000)) + SMUGGLED)
    assert status_of(answer) == 413 and answers_in(answer) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"X-Request-Id: xyz\rSet-Cookie: evil=1",
        b"X-Request-Id: xyz\nSet-Cookie : evil=1",
        b"X-Request-Id: xyz\r\n Set-Cookie: evil=1",
        b"X-Request-Id: xyz\x00",
        b"X-Request-Id: xyz%0d%0aSet-Cookie: evil=1",
    ],
)
def test_no_header_is_injected_by_a_request_id(server: Served, line: bytes) -> None:
    answer = server.ask(b"GET /v1/skus HTTP/1.1\r\n" + HOST + line + b"\r\n" + CLOSE + b"\r\n")
    assert answers_in(answer) == 1 and b"evil" not in answer and b"xyz" not in answer


def test_no_header_or_log_line_is_injected_by_an_address(server: Served) -> None:
    path = b"/fail/problem%0d%0aSet-Cookie:%20evil=1%1b%5b2J?x=%0d%0aSet-Cookie:%20evil=1"
    answer = server.ask(b"GET " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + b"X-Request-Id: address\r\n\r\n")
    assert b"evil" not in answer.partition(b"\r\n\r\n")[0].lower()
    line = access.line_of(server.record("address"))
    assert line.isprintable() and line.isascii()
    assert json.loads(line)["path"] == "/fail/problem\r\nSet-Cookie: evil=1\x1b[2J"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"Host: evil.example\r\n", 421),
        (b"Host: 127.0.0.1\r\nHost: evil.example\r\n", 400),
        (b"Host: evil.example\r\nHost: 127.0.0.1\r\n", 400),
        (b"", 400),
        (b"Host: 127.0.0.1\r\nX-Forwarded-Host: evil.example\r\n", 200),
    ],
)
def test_the_host_is_checked(server: Served, host: bytes, status: int) -> None:
    answer = server.ask(b"GET /v1/skus HTTP/1.1\r\n" + host + CLOSE + b"\r\n")
    assert status_of(answer) == status and b"evil" not in answer


def test_an_absolute_address_does_not_replace_the_host(server: Served) -> None:
    answer = server.ask(b"GET http://127.0.0.1/v1/skus HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE + b"\r\n")
    assert status_of(answer) == 421


def test_a_head_too_large_is_refused(server: Served) -> None:
    answer = server.ask(b"GET /v1/skus HTTP/1.1\r\n" + HOST + b"X-Long: " + b"x" * 40_000 + b"\r\n" + CLOSE + b"\r\n")
    assert status_of(answer) == 431


def test_pieces_over_the_limit_are_refused(server: Served) -> None:
    piece = b"258\r\n" + b"x" * 600 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(post(b"Transfer-Encoding: chunked\r\n", body=piece * 2))  # and no end
        answer = one_answer(connection)
    assert status_of(answer) == 413 and b"connection: close" in answer


@pytest.mark.parametrize("head", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_that_does_not_come_is_given_up(server: Served, head: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(post(head, body=b"5\r\nab"))
        answer = one_answer(connection)
    assert status_of(answer) == 408 and b"connection: close" in answer


def test_a_body_that_trickles_is_given_up(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(post(b"Content-Length: 500\r\n"))
        connection.settimeout(0.05)
        answer = b""
        for _ in range(400):  # each byte comes long before the limit
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
                break
    assert status_of(answer) == 408


@pytest.mark.parametrize("path", [b"match", b"swallow"])  # the second answers all the same
def test_a_client_that_leaves_is_logged_and_holds_nothing(server: Served, path: bytes) -> None:
    with server.connect() as connection:
        request = post(b"X-Request-Id: left-" + path + b"\r\n", b"Content-Length: 500\r\n", body=b"x" * 10)
        connection.sendall(request.replace(b"/match", b"/" + path))
    record = server.record(f"left-{path.decode()}")
    assert record["status"] == 499 and "error" not in record and server.guard._store.held == 0


def test_an_answer_that_broke_off_ends_without_its_end(server: Served) -> None:
    answer = server.ask(b"GET /late HTTP/1.1\r\n" + HOST + b"\r\n")
    assert status_of(answer) == 200 and b"half" in answer
    assert not answer.endswith(b"0\r\n\r\n") and b"private" not in answer


def test_a_refusal_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    """Closing with unread bytes would reset the connection, and the client would never see why."""
    with served(tmp_path) as found:
        found.keys.add("till", SCOPES)
        size = 8_000_000
        with found.connect() as connection:
            connection.sendall(post(b"X-API-Key: wrong\r\n", b"Content-Length: %d\r\n" % size))
            for _ in range(80):
                connection.sendall(b"x" * (size // 80))
            answer = all_of(connection)
    assert status_of(answer) == 401 and answers_in(answer) == 1 and b"no valid API key" in answer
