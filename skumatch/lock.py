"""One writer at a time: a lock on a store that dies with its holder, and says who that is.

The locks are the kernel's (flock), so a killed process leaves none behind: ``LOCK`` is held by one who publishes,
``PREPARING`` is shared by all who write pieces that are to be published. It knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skumatch import artefact
from skumatch.errors import LockedError

FILE = "LOCK"
SHARED = "PREPARING"
WAIT = 10.0  # seconds: a publication takes a fraction of one
_PAUSE = 0.05


@contextmanager
def writing(store: Path, what: str, wait: float | None = None) -> Iterator[None]:
    """Hold the lock of ``store`` while the block runs; ``what`` is told to whoever meets it.

    Waits up to ``wait`` seconds, ten where it is None. Raises LockedError, naming the holder and since when,
    ArtefactError when the folder cannot be written or locked.
    """
    with artefact.disk_errors(store / FILE):
        store.mkdir(parents=True, exist_ok=True)
        handle = os.open(store / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(handle, store, time.monotonic() + (WAIT if wait is None else wait))
        _sign(handle, what)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # what was written is written
                os.truncate(handle, 0)
    finally:
        os.close(handle)


@contextmanager
def preparing(store: Path) -> Iterator[None]:
    """Keep what the block writes into ``store`` from being cleared away before it is published.

    Any number of processes may prepare at a time. Raises ArtefactError when the folder cannot be written or locked.
    """
    with _shared(store) as handle:
        artefact.take_lock(handle, store / SHARED, fcntl.LOCK_SH)
        yield


@contextmanager
def idle(store: Path) -> Iterator[bool]:
    """Yield whether nobody is preparing anything, and let nobody begin while the block runs."""
    with _shared(store) as handle:
        yield artefact.take_lock(handle, store / SHARED)


@contextmanager
def _shared(store: Path) -> Iterator[int]:
    with artefact.disk_errors(store / SHARED):
        store.mkdir(parents=True, exist_ok=True)
        handle = os.open(store / SHARED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def _acquire(handle: int, store: Path, until: float) -> None:
    while not artefact.take_lock(handle, store / FILE):
        if time.monotonic() >= until:
            raise LockedError(f"{store} is being written by {_holder(store)}", "wait for it to end, then run it again")
        time.sleep(_PAUSE)


def _sign(handle: int, what: str) -> None:
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "what": what}
    with contextlib.suppress(OSError):  # a full disk must not keep anybody from pruning it
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(facts).encode(), 0)


def _holder(store: Path) -> str:
    """Return who holds the lock, for a message."""
    try:
        facts = json.loads((store / FILE).read_text())
        age = max(0, round(time.time() - float(facts["since"])))
        return f"process {int(facts['pid'])} on {facts['host']} for {age} s ({facts['what']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has only just taken the lock, or is about to leave it
