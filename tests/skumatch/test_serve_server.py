"""The server: what it accepted is answered when it ends, reloads do not pile up, and bad addresses are named."""

from __future__ import annotations

import random
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skumatch.errors import ConfigError
from skumatch.serve.listen import bind, tls_of
from skumatch.serve.settings import Settings
from tests.skumatch.small_server import (
    BOTH,
    Process,
    Start,
    answer_of,
    certificate,
    ended,
    head,
    post,
    starter,
    statuses,
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the server with settings."""
    yield from starter(tmp_path)


def client(server: Process, keep: bool, seed: int, sent: list[int], lost: list[str]) -> None:
    """Ask until connections are refused; every request that was sent has an answer, or is ``lost``."""
    rng, connection = random.Random(seed), None
    while True:
        try:
            connection = connection or server.connect()
        except ConnectionRefusedError:
            return
        sent.append(seed)
        try:
            connection.sendall(head(f"/{seed}"))
            _, headers, body = answer_of(connection)
            assert body["path"] == f"/{seed}"
        except OSError as error:
            lost.append(repr(error))
            headers = {"connection": "close"}
        if not keep or headers.get("connection") == "close":
            connection.close()
            connection = None
        time.sleep(rng.uniform(0, 0.03))


def under_load(server: Process, seconds: float) -> tuple[int, list[str]]:
    """End ``server`` after ``seconds`` of load by 16 lasting clients and 8 that connect anew; return what was sent."""
    sent: list[int] = []
    lost: list[str] = []
    threads = [threading.Thread(target=client, args=(server, who < 16, who, sent, lost)) for who in range(24)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    return len(sent), lost


@BOTH
def test_every_accepted_request_is_answered_at_the_end(start: Start, plain: bool) -> None:
    server = start(plain=plain, drain=0.2)
    sent, lost = under_load(server, 0.3)
    assert lost == [] and sent > 50
    assert server.process.wait(30) == 0
    assert "nor is there anything to mark" in server.log.read_text()  # and the end went on


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_every_accepted_request_is_answered_many_times(start: Start, seed: int) -> None:
    server = start(plain=seed % 3 == 2, drain=(0.0, 0.5)[seed % 2])
    sent, lost = under_load(server, random.Random(seed).uniform(0.2, 2))
    assert lost == [] and sent > 50 and server.process.wait(30) == 0


@BOTH
def test_what_was_begun_is_finished(start: Start, plain: bool) -> None:
    server = start(plain=plain, drain=0, keep_alive=60, header_timeout=60)
    half = server.connect(head("/half")[:9])
    body = server.connect(post("/body", b"x" * 9)[:-4])
    idle = server.connect(head("/idle"))
    assert answer_of(idle)[0] == 200
    server.process.send_signal(signal.SIGTERM)
    server.refused()
    half.sendall(head("/half")[9:])
    body.sendall(b"xxxx")
    for connection, path in ((half, "/half"), (body, "/body")):
        status, headers, answer = answer_of(connection)
        assert (status, headers["connection"], answer["path"]) == (200, "close", path)
    assert ended(idle) and server.process.wait(30) == 0


def test_a_request_that_never_ends_is_given_up(start: Start) -> None:
    server = start(drain=0, grace=0.3)
    connection = server.connect(head("/hang"))
    server.process.send_signal(signal.SIGINT)
    assert ended(connection) and server.process.wait(30) == 0
    assert "1 requests were not answered in 0.3 s" in server.log.read_text()


def test_a_second_interrupt_ends_at_once(start: Start) -> None:
    server = start(drain=60, grace=60)
    connection = server.connect(head("/hang"))
    server.ask("/there")
    for _ in range(2):
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert ended(connection) and server.process.wait(30) == -signal.SIGINT
    assert "KeyboardInterrupt" in server.log.read_text()


def test_a_storm_of_reloads_is_one_running_and_one_waiting(start: Start) -> None:
    server = start()
    for _ in range(300):
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    before = server.ask("/")["reloads"]
    assert before["most"] == 1 and 1 < before["begun"] < 100
    while server.ask("/")["reloads"]["now"]:
        pass
    begun = server.ask("/")["reloads"]["begun"]
    server.process.send_signal(signal.SIGHUP)
    while server.ask("/")["reloads"]["begun"] == begun:
        pass
    assert server.log.read_text().count("ValueError: no model there") >= begun


def test_an_address_that_cannot_be_listened_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on \[2001:db8::1\]:80"):
        bind("2001:db8::1", 80)
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.name\.invalid"):
        bind("no.such.name.invalid", 80)


def test_unfit_tls_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    for name in ("absent.pem", "key.pem"):
        with pytest.raises(ConfigError, match=name):
            tls_of(Settings(tls_cert=str(tmp_path / name), tls_key=str(tmp_path / "key.pem")))


def test_tls_is_served_to_who_trusts_the_certificate(start: Start, tmp_path: Path) -> None:
    pem, key = certificate(tmp_path, "here.test")
    server = start(tls_cert=str(pem), tls_key=str(key), header_timeout=0.5, drain=0)
    assert server.url == f"https://127.0.0.1:{server.port}"
    trust = ssl.create_default_context(cafile=pem)
    with trust.wrap_socket(server.connect(), server_hostname="here.test") as connection:
        connection.sendall(head("/safe"))
        assert answer_of(connection)[2]["path"] == "/safe" and connection.selected_alpn_protocol() is None
    silent, plain = server.connect(), server.connect(head("/plain"))
    assert ended(silent) and statuses(plain) == []  # a handshake has as long as a head
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0 and server.log.read_text().count("Traceback") == 1  # of ``draining``
