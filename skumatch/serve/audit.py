"""The audit log: who changed what, one line of JSON per change, on disk before the change is answered.

Lines are only ever added. The file may be renamed while the service runs: the next line begins a new one. It knows
nothing about what the facts mean.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.errors import ArtefactError
from skumatch.serve.access import line_of, now

FILE = "audit.jsonl"
_HOW = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Audit:
    """The audit log in the file ``path``, which only its owner may read; safe to use from several threads and
    processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **facts: Any) -> None:
        """Add a line with the time and ``facts``; it is durable when this returns.

        Raises ArtefactError where the disk refuses; part of the line may then be there, and the next begins anew.
        """
        data = line_of({"time": now(), **facts}).encode() + b"\n"
        try:
            with artefact.disk_errors(self.path):
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(data)
        except OSError as error:
            what = f"the audit log {self.path} cannot be written ({error.strerror})"
            raise ArtefactError(what, "check the disk") from error

    def _write(self, data: bytes) -> None:
        new = not self.path.exists()
        handle = os.open(self.path, _HOW, 0o600)
        try:
            artefact.take_lock(handle, self.path, fcntl.LOCK_EX)
            self._append(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            artefact.fsync_dir(self.path.parent)

    def _append(self, handle: int, data: bytes) -> None:
        """Write ``data`` at the end; after half a line, left by a crash or a full disk, on a new line."""
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = os.write(handle, data)
        if written < len(data):
            raise ArtefactError(f"no space left while writing {self.path}", "free some space and ask again")
