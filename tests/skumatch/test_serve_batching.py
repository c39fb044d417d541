"""Micro-batches on one thread: order, sizes, waiting for what is coming, errors, cancellation, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from skumatch.serve.batching import Batcher, Told


class Work:
    """Doubles numbers; ``gate`` holds the thread until it is opened."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.begun.set()
        self.gate.wait(10)
        if 13 in jobs:
            raise ValueError("13")
        return [2 * job for job in jobs]


def made(work: Work, size: int = 4, delay: float = 0.0, told: list[Told] | None = None) -> Batcher[int, int]:
    tell = told.append if told is not None else None
    batcher: Batcher[int, int] = Batcher(work, lambda job: job >= 100, size, delay, tell)
    batcher.start()
    return batcher


async def held(work: Work, batcher: Batcher[int, int]) -> asyncio.Future[int]:
    """Keep the thread busy with a first job; what is submitted next gathers behind it."""
    work.gate.clear()
    first = batcher.submit(0)
    while not work.begun.is_set():
        await asyncio.sleep(0.001)
    return first


def test_each_gets_its_own_answer_and_batches_grow_with_the_load() -> None:
    work = Work()
    told: list[Told] = []

    async def run() -> list[int]:
        batcher = made(work, told=told)
        first = await held(work, batcher)
        rest = [batcher.submit(job) for job in range(1, 10)]
        assert len(batcher) == 9
        work.gate.set()
        found = [await first, *await asyncio.gather(*rest)]
        batcher.close()
        return found

    assert asyncio.run(run()) == [2 * job for job in range(10)]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [one.size for one in told] == [1, 4, 4, 1] and not any(one.dropped for one in told)
    assert all(len(one.waited) == one.size and min(one.waited) >= 0 and one.worked >= 0 for one in told)


def test_one_batch_is_of_one_kind() -> None:
    work = Work()

    async def run() -> None:
        batcher = made(work)
        first = await held(work, batcher)
        rest = [batcher.submit(job) for job in (1, 2, 100, 101, 3)]
        work.gate.set()
        assert [await first, *await asyncio.gather(*rest)] == [0, 2, 4, 200, 202, 6]
        batcher.close()

    asyncio.run(run())
    assert work.batches == [[0], [1, 2], [100, 101], [3]]


def test_a_batch_waits_for_what_is_coming_but_not_for_ever() -> None:
    work = Work()

    async def run() -> None:
        batcher = made(work, size=3, delay=30.0)
        batcher.coming = 3
        jobs = [batcher.submit(1), batcher.submit(2)]
        await asyncio.sleep(0.05)
        assert not work.batches  # two of three are there
        jobs.append(batcher.submit(3))
        assert await asyncio.gather(*jobs) == [2, 4, 6]
        batcher.coming = 0
        assert await batcher.submit(4) == 8  # nothing is coming: at once
        batcher.delay, batcher.coming = 0.01, 5
        assert await batcher.submit(5) == 10  # they do not come
        batcher.close()

    asyncio.run(run())
    assert work.batches == [[1, 2, 3], [4], [5]]


def test_an_error_goes_to_those_of_the_batch_and_the_thread_lives_on() -> None:
    work = Work()

    async def run() -> None:
        batcher = made(work)
        first = await held(work, batcher)
        both = [batcher.submit(13), batcher.submit(1)]
        work.gate.set()
        await first
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [str(one) for one in found] == ["13", "13"] and all(isinstance(one, ValueError) for one in found)
        assert batcher.alive and await batcher.submit(2) == 4
        batcher.close()
        assert not batcher.alive

    asyncio.run(run())


def test_what_nobody_waits_for_is_not_worked_on() -> None:
    work = Work()
    told: list[Told] = []

    async def run() -> None:
        batcher = made(work, told=told)
        first = await held(work, batcher)
        gone, kept = batcher.submit(1), batcher.submit(2)
        gone.cancel()
        work.gate.set()
        assert (await first, await kept) == (0, 4)
        with pytest.raises(asyncio.CancelledError):
            await gone
        last = batcher.submit(3)
        last.cancel()
        batcher.close()

    asyncio.run(run())
    assert work.batches[:2] == [[0], [2]] and sum(one.dropped for one in told) >= 1


def test_closing_finishes_what_waits() -> None:
    work = Work()

    async def run() -> None:
        batcher = made(work)
        first = await held(work, batcher)
        rest = [batcher.submit(job) for job in range(1, 7)]
        work.gate.set()
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)
        assert [await first, *await asyncio.gather(*rest)] == [2 * job for job in range(7)]

    asyncio.run(run())


def test_closing_what_never_began_is_fine() -> None:
    batcher: Batcher[int, int] = Batcher(Work(), lambda job: 0, 4)
    batcher.close()
    assert not batcher.alive
