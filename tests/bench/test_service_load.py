"""The load generator of the service's benchmark: what it counts is what happened on the wire."""

from __future__ import annotations

import importlib
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
client: Any = importlib.import_module("service_client")
load: Any = importlib.import_module("service_load")
mutants: Any = importlib.import_module("service_mutants")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


@contextmanager
def answering(answer: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """Listen; ``answer`` gets a connection and its number once a whole request is there, as often as one comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection, number), daemon=True).start()
                number += 1

        def talk(connection: socket.socket, number: int) -> None:
            with connection, connection.makefile("rb") as stream:
                while True:
                    length = 0
                    while (line := stream.readline()).strip():
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    if not line:
                        return
                    stream.read(length)
                    answer(connection, number)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def one(port: int, times: int = 1) -> list[Any]:
    """Ask ``times`` on one client and return the answers."""
    selector = selectors.DefaultSelector()
    asking, found = client.Client(port, selector), []
    for number in range(times):
        asking.ask(client.request("/v1/match", b"x" * 300_000), number, 0.0)
        while asking.busy:
            found += [answer for _, _, _, answer in client.events(selector, 5.0)]
    asking.close()
    selector.close()
    return found


def test_an_answer_in_pieces_is_one_answer() -> None:
    def slowly(connection: socket.socket, number: int) -> None:
        for place in range(len(OK)):
            connection.send(OK[place : place + 1])

    with answering(slowly) as port:
        assert [(answer.status, answer.body, answer.closing) for answer in one(port, 3)] == [(200, b"{}", False)] * 3


def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    with answering(lambda connection, number: connection.sendall(LAST)) as port:
        assert [(answer.status, answer.closing) for answer in one(port, 3)] == [(200, True)] * 3


@pytest.mark.parametrize(("sent", "how"), [(b"", "new"), (OK[:-1], "cut"), (OK[:20], "cut")])
def test_a_request_that_is_not_answered_is_lost(sent: bytes, how: str) -> None:
    def break_off(connection: socket.socket, number: int) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_RDWR)

    with answering(break_off) as port:
        (answer,) = one(port)
    assert answer.status == 0 and answer.body.split()[0].decode() == how


def test_a_loss_on_a_connection_that_had_answered_is_told_apart() -> None:
    asked = 0

    def once(connection: socket.socket, number: int) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            connection.sendall(OK)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    with answering(once) as port:
        first, second = one(port, 2)
    assert first.status == 200 and second.body.startswith(b"reused")


def test_a_closed_loop_counts_every_answer() -> None:
    answered = threading.Semaphore(0)
    count = 0

    def sometimes_busy(connection: socket.socket, number: int) -> None:
        nonlocal count
        count += 1  # the one thread of its connection is the only client's
        connection.sendall(BUSY if count % 3 == 0 else OK)
        answered.release()

    tally = load.Tally()
    with answering(sometimes_busy) as port:
        load.closed_loop(port, [client.request("/", b"a")], 1, 0.3, tally)
    assert sum(tally.statuses.values()) == count and tally.statuses["503"] == count // 3
    assert len(tally.seconds) == count - count // 3 and tally.failures[0] == "503 busy"


def test_a_closed_loop_ends_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tally = load.Tally()
    load.closed_loop(port, [client.request("/", b"a")], 4, 30.0, tally)
    assert {status: count for status, count in tally.statuses.items() if count} == {"refused ConnectionRefusedError": 4}


def test_an_open_loop_asks_as_often_as_planned_also_when_answers_are_late() -> None:
    gate = threading.Event()

    def late(connection: socket.socket, number: int) -> None:
        gate.wait(0.2)
        connection.sendall(OK)

    counts = []
    for _ in range(2):
        tally = load.Tally()
        with answering(late) as port:
            load.open_loop(port, [client.request("/", b"a")], 100.0, 0.5, 7, tally)
        counts.append(tally.statuses["200"])
        assert min(tally.seconds) >= 0.2 and tally.statuses["never answered"] == 0
    assert counts[0] == counts[1] > 20


def test_turns_go_round() -> None:
    turn = load.iter_turns(3)
    assert [turn() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_mutants_are_sent_once_each_with_their_names() -> None:
    asked = list(mutants.requests(0, 100))
    names = [name for some, _ in asked for name in some]
    assert names == [name for name, _ in mutants.mutants(0, 100)]
    for some, data in asked:
        assert (len(some) > 1) == (b"multipart/form-data" in data.split(b"\r\n\r\n")[0])
        assert len(some) == 1 or all(f'filename="{name}"'.encode() in data for name in some)


def said(names: list[str], skus: list[str | None]) -> Any:
    results = [
        {
            "name": name,
            "decision": "review" if sku else "error",
            "matches": [{"sku": sku}] if sku else [],
            "error": None if sku else "corrupt",
        }
        for name, sku in zip(names, skus, strict=True)
    ]
    return client.Answer(200, load.json.dumps({"results": results}).encode())


GOOD, BAD = "000009-valid-sku-3-png.jpg", "000001-cut-png.jpg"
REFUSED = b'{"error": "corrupt", "todo": "replace it", "request": "1"}'


@pytest.mark.parametrize(
    ("names", "answer", "wrong"),
    [
        ([GOOD, BAD], said([GOOD, BAD], ["sku-3", None]), 0),
        ([GOOD, BAD], said([GOOD, BAD], ["sku-3", "sku-1"]), 0),
        ([GOOD, BAD], said([GOOD, BAD], ["sku-2", None]), 1),
        ([GOOD, BAD], said([BAD, GOOD], ["sku-3", None]), 2),
        ([GOOD, BAD], said([GOOD], ["sku-3"]), 1),
        ([GOOD], said([GOOD], [None]), 1),
        ([BAD], client.Answer(422, REFUSED), 0),
        ([BAD], client.Answer(422, b"<html>"), 1),
        ([GOOD], client.Answer(422, REFUSED), 1),
        ([BAD], client.Answer(500, REFUSED), 1),
        ([BAD], client.Answer(0, b"cut closed"), 1),
    ],
)
def test_answers_to_mutants_are_judged(names: list[str], answer: Any, wrong: int) -> None:
    judge = mutants.Judge()
    judge.look(names, answer)
    assert len(judge.wrong) == wrong, judge.wrong
    assert (judge.pictures, sum(judge.statuses.values())) == (len(names), 1)
