"""Killing what changes a gallery, and looking at what is left: the old version or the new one, whole, and nothing else.

A trial copies a prepared store, has an operation killed in it and then asks: does every version open with all bytes
checked; is the current one the old or the new one in everything; is what was acknowledged there; does the next
operation succeed; does a prune leave no junk? An error is no answer: it is reported as an inconsistency.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skumatch import artefact, lock
from skumatch.errors import SkumatchError
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views
from skumatch.gallery_state import INDEXES, PENDING, SEGMENTS, TABLES, read_version
from skumatch.gallery_versions import prune, verify
from skumatch.jobs import pieces_of_jobs
from tests.skumatch.crash_operations import OPERATIONS, Past, prepare
from tests.skumatch.crash_worker import Ended, Worker
from tests.skumatch.gallery_oracle import World, difference, views_of

HOUR = 3600.0
LATE = 1.3  # times its usual duration, up to when an operation is killed: some are killed when they are done


@dataclass(frozen=True)
class Kill:
    """When to kill: before file-system event ``at``, or, where that is 0, ``after`` so many seconds."""

    operation: str
    at: int
    after: float


@dataclass(frozen=True)
class Verdict:
    """What a kill left: ``state`` "old", "new" or "inconsistent", with what was wrong in ``why``; ``lost``: it was
    acknowledged (``done``) and is not there; ``killed``: whether the process was killed at all."""

    kill: Kill
    state: str
    lost: bool
    done: bool
    killed: bool
    why: str = ""


class Bench:
    """A folder with a prepared store, and a warm worker; use as a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.past = prepare(root)
        self.worker = Worker()
        self._trials = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.worker.__exit__(None, None, None)

    def past_of(self, operation: str) -> Past:
        """Return what is there before ``operation``."""
        return Past(None, {}, self.past.pictures) if OPERATIONS[operation].first else self.past

    def copy(self, operation: str) -> Path:
        """Return a new store as it is before ``operation``."""
        self._trials += 1
        store = self.root / f"trial-{self._trials}"
        if self.past_of(operation).store is not None:
            shutil.copytree(self.past.store or self.root, store)
        return store

    def kills(self, trials: int, seed: int = 0) -> Iterator[Kill]:
        """Yield ``trials`` kills: half of them evenly over all events of all operations, half at random moments."""
        rng, names = random.Random(seed), list(OPERATIONS)
        usual = {name: self.usual(name) for name in names}
        events = [Kill(name, at, -1.0) for name in names for at in range(1, usual[name].events + 1)]
        half = trials // 2
        offset = rng.random()
        yield from (events[int((place + offset) * len(events) / half)] for place in range(half))
        for number in range(trials - half):
            name = names[number % len(names)]
            yield Kill(name, 0, rng.uniform(0, LATE * usual[name].seconds))

    def usual(self, operation: str) -> Ended:
        """Return how ``operation`` ends when nobody kills it."""
        store = self.copy(operation)
        ended = self.worker.run(store, operation)
        shutil.rmtree(store)
        if ended.error:
            raise RuntimeError(f"{operation}: {ended.error}")
        return ended

    def trial(self, kill: Kill) -> Verdict:
        """Run one trial."""
        store = self.copy(kill.operation)
        ended = self.worker.run(store, kill.operation, kill.at, kill.after)
        try:
            state, why = judge(store, self.past_of(kill.operation), kill.operation)
        except (SkumatchError, OSError) as error:
            state, why = "inconsistent", repr(error)
        if ended.error:
            state, why = "inconsistent", ended.error
        shutil.rmtree(store)
        return Verdict(kill, state, ended.done and state == "old", ended.done, ended.killed, why)


def judge(store: Path, past: Past, operation: str) -> tuple[str, str]:
    """Return ("old" | "new" | "inconsistent", what is wrong) of a store in which ``operation`` was cut off.

    Raises what opening, the next operation or a prune raise.
    """
    how, new = OPERATIONS[operation], OPERATIONS[operation].then(past)
    if artefact.current(store) is None:
        if past.store is not None:
            return "inconsistent", "CURRENT is gone"
        state, world = "old", new  # of nothing
    else:
        gallery = verify(store, everything=True)[artefact.versions(store).index(_current_name(store))]
        moved = gallery.version != past.version if operation != "prune" else len(artefact.versions(store)) == 1
        state, world = ("new", new) if moved else ("old", past.world)
        wrong = difference(gallery, world)
        if wrong:
            return "inconsistent", f"{gallery.version} ({state}): {wrong}"
    if state == "old" or how.again:
        world = world if state == "new" else how.then(_renumbered(past, store))
        how.begin(store)()
        wrong = difference(open_gallery(store), world)
        if wrong:
            return "inconsistent", f"done again: {wrong}"
    wrong = goes_on(store, world)
    return ("inconsistent", wrong) if wrong else (state, "")


def _renumbered(past: Past, store: Path) -> Past:
    """Return the past with the ids as given away that a version uses which was written but never became current."""
    if past.store is None:
        return past
    used = max(read_version(store / name).state.next_id for name in artefact.versions(store))
    return replace(past, worlds={**past.worlds, past.version: replace(past.world, used=used)})


def _current_name(store: Path) -> str:
    folder = artefact.current(store)
    return folder.name if folder else ""


def goes_on(store: Path, world: World) -> str:
    """Add to the store, prune it and return what is wrong then, "" for nothing. An hour passes before the prune."""
    gallery = add_views(open_gallery(store), more := views_of(["sku-7", "sku-12"], 800, world.seed))
    first = gallery.published.state.next_id - len(more)
    if first < world.used:
        return f"id {first} was given away before"
    world = replace(world, used=first).added(more)
    for path in store.rglob(".*"):
        os.utime(path, (path.stat().st_mtime - HOUR,) * 2)
    prune(store, keep=1)
    gallery = open_gallery(store, full=True)
    junk = left_over(gallery)
    return f"junk: {junk}" if junk else difference(gallery, world)


def left_over(gallery: Gallery) -> list[str]:
    """Return what lies in the store of ``gallery`` though neither its version nor an unfinished job needs it."""
    store, state = gallery.store, gallery.published.state
    needed = {"CURRENT", lock.FILE, lock.SHARED, gallery.version, SEGMENTS, TABLES, INDEXES, PENDING, *state.pieces()}
    needed |= {f"{SEGMENTS}/{name}" for name in pieces_of_jobs(store / PENDING)}
    needed |= {f"{PENDING}/{path.name}" for path in (store / PENDING).glob("[!.]*.json")}
    there: list[Path] = [*store.iterdir()]
    for home in (SEGMENTS, TABLES, INDEXES, PENDING):
        there += (store / home).glob("*") if (store / home).is_dir() else []
    return sorted({path.relative_to(store).as_posix() for path in there} - needed)


def table(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """Return the counts per operation: trials, old, new, inconsistent, lost."""
    rows: list[dict[str, object]] = []
    for name in OPERATIONS:
        own = [verdict for verdict in verdicts if verdict.kill.operation == name]
        states = [verdict.state for verdict in own]
        counts = {state: states.count(state) for state in ("old", "new", "inconsistent")}
        lost = sum(verdict.lost for verdict in own)
        rows.append({"operation": name, "trials": sum(verdict.killed for verdict in own), **counts, "lost": lost})
    return rows
