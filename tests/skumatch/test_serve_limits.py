"""What one client may ask for: the size of a head and a body, seconds, requests per second, wrong keys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from skumatch.serve import head, limits
from skumatch.serve.guard import WRONG_KEYS
from skumatch.serve.keys import SCOPES
from skumatch.serve.limits import Body, Buckets, Store
from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings
from tests.skumatch.guarded import client_of, guarded


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    guard, _, records = guarded(tmp_path, max_body=1000)
    client = client_of(guard)
    assert client.post("/v1/match", content=b"x" * 1000).json()["bytes"] == 1000
    for path in ("/v1/match", "/v1/swallow", "/nowhere"):
        answer = client.post(path, content=b"x" * 1001)
        assert answer.status_code == 413 and "larger than 1,000 bytes" in answer.json()["error"]
        assert answer.headers["connection"] == "close"
    answer = client.post("/v1/match", content=(b"x" * 300 for _ in range(4)))  # no Content-Length
    assert answer.status_code == 413
    assert client.post("/v1/swallow", content=(b"x" * 300 for _ in range(4))).status_code == 413
    assert guard._store.held == 0 and len(records) == 6


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "5"), ("content-length", "5")],
        [("content-length", "5"), ("content-length", "6")],
        [("content-length", "5"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "chunked"), ("transfer-encoding", "identity")],
        [("content-length", "+5")],
        [("content-length", "5, 5")],
        [("content-length", "-1")],
        [("content-length", "9" * 30)],
    ],
)
def test_a_length_that_two_servers_could_read_differently_is_refused(headers: list[tuple[str, str]]) -> None:
    """Whatever the server in front of the guard lets through (real ones: test_serve_guard_server.py)."""
    scope = {"headers": [(name.encode(), value.encode()) for name, value in headers]}
    with pytest.raises(Problem) as caught:
        head.declared(head.headers_of(scope))
    assert caught.value.status == 400


def test_a_doubtful_length_is_refused_by_the_guard_itself(tmp_path: Path) -> None:
    answer = client_of(guarded(tmp_path)[0]).post(
        "/v1/match", headers=[("Content-Length", "5"), ("Content-Length", "6")], content=b"12345"
    )
    assert answer.status_code == 400 and "given twice" in answer.json()["error"]


def test_a_head_too_large_is_refused(tmp_path: Path) -> None:
    client = client_of(guarded(tmp_path)[0])
    assert client.get("/v1/skus", headers={"X-Long": "x" * 40_000}).status_code == 431
    assert client.get("/v1/skus?" + "x" * 40_000).status_code == 431
    assert client.get("/v1/skus", headers={f"X-{number}": "1" for number in range(120)}).status_code == 431
    assert client.get("/v1/skus", headers={"X-Long": "x" * 8000}).status_code == 200


def messages(*parts: bytes, wait: float = 0.0) -> Any:
    """Return an ASGI receive that gives ``parts``, ``wait`` seconds apart."""
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left[-1]["more_body"] = False

    async def receive() -> Message:
        await asyncio.sleep(wait)
        return left.pop(0) if left else {"type": "http.disconnect"}

    return receive


def test_all_bodies_together_are_bounded() -> None:
    async def play() -> None:
        store = Store(1000)
        first, second, third = (Body(messages(b"x" * 400, b"y" * 200), Settings(), store) for _ in range(3))
        for body in (first, second):
            await body.receive()
        assert store.held == 800
        with pytest.raises(Problem) as caught:
            await third.receive()
        assert (caught.value.status, caught.value.retry_after, store.held) == (503, 1.0, 800)
        with pytest.raises(Problem):  # still, for whoever asks again
            await third.receive()
        await first.receive()
        assert first.done and store.held == 1000
        first.release()
        first.release()
        await second.receive()
        assert store.held == 600
        second.release()
        assert store.held == 0

    asyncio.run(play())


def test_only_waiting_for_the_client_counts_as_slow() -> None:
    async def play() -> None:
        patient = Body(messages(b"x", b"y"), Settings(body_timeout=0.2), Store(1000))
        await patient.receive()
        await asyncio.sleep(0.3)  # the service is busy
        assert (await patient.receive())["body"] == b"y"
        trickling = Body(messages(*[b"x"] * 50, wait=0.02), Settings(body_timeout=0.2), Store(1000))
        with pytest.raises(Problem) as caught:
            for _ in range(50):
                await trickling.receive()
        assert caught.value.status == 408

    asyncio.run(play())


class Clock:
    """Seconds, moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_at_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(2.0, 4.0, clock)
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0.5, 0.5]
    assert buckets.take("b") == 0
    clock.now = 0.25
    assert buckets.take("a") == 0.25
    clock.now = 0.5
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
    clock.now = 1000
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]  # no more than the burst is saved


def test_a_table_of_buckets_is_bounded_and_forgets_the_oldest() -> None:
    buckets = Buckets(1.0, 1.0, Clock())
    for number in range(3 * limits.COUNTED):
        buckets.take(str(number))
        assert buckets.take("busy") == (1.0 if number else 0)
    assert len(buckets) == limits.COUNTED


def test_requests_are_counted_by_key(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path, rate=0.001)
    one, two = ({"X-API-Key": keys.add(name, SCOPES)} for name in ("one", "two"))
    client = client_of(guard)
    assert [client.get("/v1/skus", headers=one).status_code for _ in range(3)] == [200, 429, 429]
    answer = client_of(guard, "10.0.0.9").get("/v1/skus", headers=one)
    assert answer.status_code == 429 and 900 <= int(answer.headers["retry-after"]) <= 1000
    assert client.get("/v1/skus", headers=two).status_code == 200
    assert client.get("/v1/skus").status_code == 401
    assert client.get("/healthz").status_code == 200


def test_requests_without_keys_are_counted_by_address(tmp_path: Path) -> None:
    guard, _, _ = guarded(tmp_path, rate=0.001)
    asked = [
        "127.0.0.1",
        "127.0.0.1",
        "127.0.0.2",
        "2001:db8::1",
        "2001:db8::2:1",
        "2001:db8:0:1::1",
        "::ffff:127.0.0.2",
    ]
    found = [client_of(guard, address).get("/v1/skus").status_code for address in asked]
    assert found == [200, 429, 200, 200, 429, 200, 429]


def test_guessing_keys_is_slowed_and_locks_nobody_out(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path)
    guard._wrong = Buckets(WRONG_KEYS / 60, WRONG_KEYS, Clock())
    right = {"X-API-Key": keys.add("till", SCOPES)}
    client, wrong = client_of(guard), {"X-API-Key": "skm_00000000_" + "0" * 64}
    found = [client.get("/v1/skus", headers=wrong).status_code for _ in range(WRONG_KEYS + 2)]
    assert found == [401] * WRONG_KEYS + [429] * 2
    assert int(client.get("/v1/skus", headers=wrong).headers["retry-after"]) == 3
    assert client.get("/v1/skus", headers=right).status_code == 200
    assert client.get("/v1/skus").status_code == 401  # none is no guess
    assert client_of(guard, "10.0.0.9").get("/v1/skus", headers=wrong).status_code == 401
