"""A disk that is full or fails at any single call: one error that names the path, and the old version whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skumatch.errors import ArtefactError
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_views
from skumatch.gallery_versions import prune
from skumatch.segment import NewView
from tests.skumatch.crash_trials import Bench, judge
from tests.skumatch.faulty_disk import CannotTrace, Fault, calls_in, run_under
from tests.skumatch.gallery_oracle import HashEncoder, World, difference, views_of

OPEN_FILES, LOCKS = "EMFILE", "EOPNOTSUPP"  # too many files are open; the file system has no locks
EVERY = 4  # of the many calls that are alike, one in so many is made to fail


@pytest.mark.parametrize(
    ("operation", "largest"),
    [("add", 0), ("add", 2000), ("remove", 0), ("remove", 800), ("compact", 1300), ("index", 100), ("rollback", 0)],
)
def test_a_file_that_cannot_grow_leaves_the_old_version(operation: str, largest: int, bench: Bench) -> None:
    """The system refuses what goes beyond ``largest`` bytes, whoever writes: Python, Arrow or faiss."""
    store = bench.copy(operation)
    ended = bench.worker.limited(store, operation, largest)
    assert ended.error.startswith("ArtefactError: ") and str(store) in ended.error and not ended.done
    assert judge(store, bench.past, operation) == ("old", "")


def test_a_full_disk_can_be_pruned(bench: Bench) -> None:
    store = bench.copy("prune")
    assert bench.worker.limited(store, "prune", 0).done
    assert judge(store, bench.past, "prune") == ("new", "")


def test_a_disk_filled_to_the_brim(tiny_disk: Path) -> None:
    """Additions until one is refused: all that were acknowledged are there, and room can be made."""
    store, views = tiny_disk / "gallery", views_of(["a", "b", "c"], 0)
    gallery = create_from(store, HashEncoder().spec, views)
    world, refusal = World({}, {}, 0).added(views), ""
    for step in range(100):
        new = views_of(["d"], 10 + step)[0]
        large = NewView(new.sku, new.source, new.sha256, new.thumb + bytes(30_000), new.vector)
        try:
            gallery = add_views(gallery, [large])
        except ArtefactError as error:
            refusal = str(error)
            break
        world = world.added([large])
    assert f"no space left while writing {store}" in refusal and 2 < len(world.views) < 60
    assert not difference(open_gallery(store, full=True), world)
    prune(store, keep=1)
    assert not difference(remove_views(gallery, [0, 1]), world.without([0, 1]))
    assert not list(store.rglob(".*"))


def calls_of(bench: Bench, operation: str, log: Path) -> list[tuple[str, int, str]]:
    """Return the calls of an undisturbed run; skip where that cannot be watched."""
    store = bench.copy(operation)
    try:
        assert run_under(bench.worker, store, operation, log).done
    except CannotTrace as reason:
        pytest.skip(str(reason))
    return list(calls_in(log, store))


def chosen(calls: list[tuple[str, int, str]], operation: str) -> Iterator[Fault]:
    """Yield the faults to try: every call that names something, and some of the many writes and reads."""
    for place, (call, number, what) in enumerate(calls):
        reads = call == "openat" and "O_CREAT" not in what
        if (reads or call == "write") and operation != "remove" and place % EVERY:
            continue
        yield Fault(call, number, error_of(call, reads, place), what)


def error_of(call: str, reads: bool, place: int) -> str:
    """Return the error that a call may really meet, now this, now that."""
    if call == "flock":
        return LOCKS
    if call == "openat" and place % 3 == 0:
        return OPEN_FILES
    return "EIO" if reads or place % 2 else "ENOSPC"


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["remove", "add", "compact"])
def test_any_call_that_fails_leaves_the_old_version(operation: str, bench: Bench, tmp_path: Path) -> None:
    """An error after the new pointer was put in place is reported too, though the new version is there then, whole:
    what failed is to make that durable."""
    log, past, refused = tmp_path / "calls", bench.past, 0
    for fault in chosen(calls_of(bench, operation, log), operation):
        store = bench.copy(operation)
        ended = run_under(bench.worker, store, operation, log, fault)
        assert "INJECTED" in log.read_text(), fault
        state, why = judge(store, past, operation)
        assert not why, (fault, why)
        if ended.error:
            refused += 1
            assert ended.error.startswith("ArtefactError: ") and str(store) in ended.error, (fault, ended.error)
            assert ("cannot be locked" in ended.error) == (fault.call == "flock"), (fault, ended.error)
        assert state == ("old" if ended.error and f"{store}/CURRENT" not in ended.error else state), (fault, ended)
        assert state == "new" or ended.error, fault
    assert refused > 20


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["remove", "facts", "prune"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new(operation: str, bench: Bench, tmp_path: Path) -> None:
    """Also between two calls of which Python knows nothing: Arrow's and those of the lock."""
    log, states = tmp_path / "calls", []
    for fault in chosen(calls_of(bench, operation, log), operation):
        store = bench.copy(operation)
        killed = Fault(fault.call, fault.number, "SIGKILL", fault.what)
        assert run_under(bench.worker, store, operation, log, killed).killed, killed
        state, why = judge(store, bench.past, operation)
        assert not why, (killed, why)
        states.append(state)
    assert states == sorted(states, key=["old", "new"].index) and set(states) == {"old", "new"}
