"""Connections: slow, endless and unfit heads, too many of them, many requests at once, and answers that arrive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.skumatch.small_server import BOTH, Process, Start, answer_of, ended, head, post, starter, statuses


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the server with settings."""
    yield from starter(tmp_path)


@pytest.fixture(scope="module", params=[False, True], ids=["httptools", "h11"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Return a server with the settings as they are."""
    for start in starter(tmp_path_factory.mktemp("server")):
        yield start(plain=request.param)


@BOTH
def test_slow_heads_are_cut_off_and_slow_bodies_are_not(start: Start, plain: bool) -> None:
    server = start(plain=plain, header_timeout=0.5, keep_alive=60)
    dribbled, silent, later = server.connect(), server.connect(), server.connect(head("/first"))
    assert answer_of(later)[0] == 200
    body = server.connect(post("/", b"y" * 13)[:-13])
    for letter in b"GET /pathpath":  # for 1.2 s
        time.sleep(0.1)
        body.sendall(b"y")
        for connection in (dribbled, later):
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes([letter]))
    assert ended(dribbled) and ended(silent) and ended(later)
    assert answer_of(body)[2]["size"] == 13


@BOTH
def test_an_idle_connection_may_wait_for_longer_than_a_head(start: Start, plain: bool) -> None:
    server = start(plain=plain, header_timeout=0.2, keep_alive=1.0)
    connection = server.connect(head("/1"))
    assert answer_of(connection)[0] == 200
    time.sleep(0.5)
    connection.sendall(head("/2"))
    assert answer_of(connection)[0] == 200 and ended(connection)


def test_connections_over_the_limit_are_told_to_come_again(start: Start) -> None:
    server = start(connections=4)
    open_ones = [server.connect() for _ in range(4)]
    for sent in (b"", head("/"), post("/", b"z" * 3_000_000)):
        status, headers, body = answer_of(server.connect(sent))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert body == {"error": "too many connections are open", "todo": body["todo"], "request": ""}
    many = [server.connect() for _ in range(80)]
    assert sum(connection.recv(5) == b"" for connection in many) > 0  # over twice the limit: not even told
    open_ones[0].close()
    while statuses(server.connect(head("/", "Connection: close"))) != [200]:
        time.sleep(0.05)


def test_a_process_without_file_descriptors_recovers(start: Start) -> None:
    server = start(files=40)
    many = [server.connect() for _ in range(60)]
    for connection in many:
        connection.close()
    assert server.ask("/")["path"] == "/" and server.process.poll() is None


CHUNKED = head("/", "Transfer-Encoding: chunked").replace(b"GET", b"POST", 1)
UNFIT = {
    "one line": (head("/", "x: " + "a" * 40_000), 431),
    "many lines": (head("/", *["x: " + "a" * 100] * 400), 431),
    "no end": (b"GET /" + b"a" * 90_000, 431),
    "no end of a value": (b"GET / HTTP/1.1\r\nx: " + b"a" * 90_000, 431),
    "trailers": (CHUNKED + b"0\r\nx: " + b"a" * 400_000, 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "two lengths": (post("/", b"abc", "Transfer-Encoding: chunked"), 400),
    "a tunnel": (b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n", 400),
}


def test_unfit_heads_are_refused(start: Start) -> None:
    server = start()
    for what, (sent, expected) in UNFIT.items():
        status, headers, body = answer_of(server.connect(sent))
        assert status == expected and headers["connection"] == "close", what
        assert set(body) == {"error", "todo", "request"} and server.ask("/next")["path"] == "/next"


def test_an_answer_before_the_body_was_read_arrives(either: Process) -> None:
    for _ in range(5):
        connection = either.connect(post("/early", b"x" * 5_000_000))
        assert answer_of(connection)[0] == 413 and ended(connection)


def test_an_offer_to_upgrade_is_ignored(either: Process) -> None:
    """As Java's client makes it with its first request."""
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
    connection = either.connect(post("/first", b"x" * 1000, *lines))
    assert answer_of(connection)[2]["size"] == 1000
    connection.sendall(head("/second"))
    assert answer_of(connection)[2]["path"] == "/second"


def test_requests_sent_at_once_are_answered_in_order_and_garbage_after_them_last(either: Process) -> None:
    connection = either.connect(head("/0") + head("/1") + head("/2") + b"no request\r\n\r\n")
    assert statuses(connection) == [200, 200, 200, 400]


def test_thousands_of_requests_at_once_are_too_many(start: Start) -> None:
    connection = start().connect(head("/") * 5000)
    found = statuses(connection)
    assert 1 <= len(found) < 40 and found[-1] == 400


def test_trailers_are_no_headers(start: Start) -> None:
    answer = answer_of(start().connect(CHUNKED + b"2\r\nab\r\n0\r\nx-late: 1\r\n\r\n"))[2]
    assert answer["size"] == 2 and "transfer-encoding" in answer["headers"] and "x-late" not in answer["headers"]


def test_nothing_is_said_about_the_server(either: Process) -> None:
    _, headers, _ = answer_of(either.connect(head("/")))
    assert set(headers) == {"date", "content-length"}
