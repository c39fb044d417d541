"""A process that forks one child per task; the child changes a gallery and dies in the middle, as told.

Run as a script it takes tasks as lines of JSON, and answers each by a line. Everything is imported before the fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY
WITH_TORCH = ("import", "rebuild")
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree")


@dataclass(frozen=True)
class Ended:
    """How a child ended: ``killed`` by SIGKILL; ``done``: its call had returned; ``error``: what it raised, or "".

    ``events``: file-system events counted, ``seconds``: how long the call took; both only where it was not killed.
    """

    killed: bool
    done: bool
    error: str
    events: int
    seconds: float


class Worker:
    """The process, started; use as a context manager."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:  # closes its pipes: it ends by itself, and is waited for
            pass

    def run(self, store: Path, operation: str, at: int = 0, after: float = -1.0) -> Ended:
        """Perform ``operation`` on ``store``; be killed before file-system event number ``at`` (from 1), or ``after``
        so many seconds."""
        self._tell({"store": str(store), "operation": operation, "at": at, "after": after})
        return Ended(**self._answer())

    def limited(self, store: Path, operation: str, largest: int) -> Ended:
        """Perform ``operation`` where the system lets no file grow beyond ``largest`` bytes."""
        self._tell({"store": str(store), "operation": operation, "largest": largest})
        return Ended(**self._answer())

    def begin(self, store: Path, operation: str) -> int:
        """Open ``store`` and wait; return the child's process id. ``end`` lets it go on."""
        self._tell({"store": str(store), "operation": operation, "wait": True})
        return int(self._answer()["pid"])

    def end(self) -> Ended:
        """Let the child that ``begin`` started perform its operation."""
        self._tell({})
        return Ended(**self._answer())

    def _tell(self, task: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


class _Counter:
    """Counts what is about to be done to the files of ``store``, and kills its own process before number ``at``."""

    def __init__(self, store: str, at: int) -> None:
        self.store = store
        self.at = at
        self.seen = 0
        self.active = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or not (event in EVENTS or (event == "open" and (arguments[2] or 0) & WRITING)):
            return
        if isinstance(arguments[0], int) or not self._in_store(os.fspath(arguments[0])):
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _in_store(self, path: str) -> bool:
        """Return whether the path leads there; rmtree's are relative."""
        return path.startswith(self.store) or not Path(path).is_absolute()


def _child(task: dict[str, Any], go: int, said: int) -> None:
    """Open, wait for a byte from ``go``, perform the operation and write to ``said`` how it went."""
    from skumatch.errors import SkumatchError
    from tests.skumatch.crash_operations import OPERATIONS

    counter = _Counter(task["store"], int(task.get("at", 0)))
    call = OPERATIONS[task["operation"]].begin(Path(task["store"]))
    os.write(said, b"r")
    os.read(go, 1)
    if "largest" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest"], resource.RLIM_INFINITY))
    started, error = time.perf_counter(), ""
    counter.active = True
    try:
        call()
    except SkumatchError as refused:
        error = f"{type(refused).__name__}: {refused}"
    except BaseException as surfaced:
        error = f"not for a user: {surfaced!r}"
    counter.active = False
    os.write(said, json.dumps([error, counter.seen, time.perf_counter() - started]).encode())
    os.read(go, 1)  # until it is killed, or the pipe is closed


def _run(task: dict[str, Any]) -> dict[str, Any]:
    go, let_go = os.pipe()
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        os.close(let_go)
        try:
            _child(task, go, said)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(go)
    os.close(said)
    os.read(heard, 1)
    if task.get("wait"):
        _say({"pid": child})
        sys.stdin.readline()
    os.write(let_go, b"g")
    if task.get("after", -1.0) >= 0:
        time.sleep(task["after"])
        os.kill(child, signal.SIGKILL)
    text = _read(heard)
    os.close(let_go)
    status = os.waitpid(child, 0)[1]
    os.close(heard)
    error, events, seconds = json.loads(text) if text else ("", 0, 0.0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"killed": killed, "done": bool(text) and not error, "error": error, "events": events, "seconds": seconds}


def _read(heard: int) -> bytes:
    """Return what the child said: all of it comes in one piece, or nothing where it died before."""
    return os.read(heard, 65_536)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer tasks until there are no more."""
    import faiss  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    import tests.skumatch.crash_operations  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        if task["operation"] in WITH_TORCH:  # it takes seconds: once, not in every child
            import torch  # noqa: F401
        _say(_run(task))


if __name__ == "__main__":
    main()
