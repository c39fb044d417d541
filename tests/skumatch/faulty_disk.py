"""A disk that fails when it is told to: strace makes chosen system calls of a running worker fail, or its last.

The calls that touch the store are listed by a first, undisturbed run; each can then be made to fail by its number.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.skumatch.crash_worker import Ended, Worker

CALLS = "openat,flock,mkdir,write,pwrite64,writev,ftruncate,fsync,rename,unlink,unlinkat,rmdir"
PATIENCE = 20.0  # seconds until strace must have taken hold
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")


@dataclass(frozen=True)
class Fault:
    """The ``number``-th (from 1) call of ``call`` fails with ``error``, or where that is "SIGKILL" is not made any
    more; ``what`` the call was, for a message."""

    call: str
    number: int
    error: str
    what: str


class CannotTrace(Exception):
    """strace is not there, or may not trace."""


def run_under(worker: Worker, store: Path, operation: str, log: Path, fault: Fault | None = None) -> Ended:
    """Perform ``operation`` on ``store`` under strace, which writes its calls into ``log``. Raises CannotTrace."""
    child = worker.begin(store, operation)
    how = ["-e", f"trace={CALLS}"]
    if fault is not None:
        kind = "signal" if fault.error == "SIGKILL" else "error"
        how += ["-e", f"inject={fault.call}:{kind}={fault.error}:when={fault.number}"]
    command = ["strace", "-f", "-y", "-o", str(log), *how, "-p", str(child)]
    tracer = _started(command, child)
    ended = worker.end()
    if tracer is None:
        raise CannotTrace("strace is not installed, or this process may not trace another")
    tracer.communicate(timeout=PATIENCE)
    return ended


def _started(command: list[str], child: int) -> subprocess.Popen[str] | None:
    """Start strace and wait until it has taken hold of ``child``; None where it cannot."""
    try:
        tracer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError:
        return None
    deadline = time.monotonic() + PATIENCE
    while tracer.poll() is None and time.monotonic() < deadline:
        if "TracerPid:\t0\n" not in Path(f"/proc/{child}/status").read_text():
            return tracer
        time.sleep(0.005)
    tracer.kill()
    tracer.communicate()
    return None


def calls_in(log: Path, store: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (call, its number, its arguments) of what the process itself did to files of ``store``."""
    seen: Counter[str] = Counter()
    first = ""
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        thread, call, arguments = found.groups()
        first = first or thread
        if thread == first:
            seen[call] += 1
            if str(store) in arguments:
                yield call, seen[call], arguments
