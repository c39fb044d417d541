"""How far an interrupted import or rebuild is: segments that are written already, and what comes next.

A job is known by what must be the same when it goes on; its note is one JSON file in the gallery's ``pending``. It
knows nothing about pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.errors import ArtefactError
from skumatch.segment import MANIFEST

_COUNTS = ("done", "unreadable", "known", "from_thumbs")


@dataclass
class Job:
    """An import or rebuild. ``segments``: (name, rows) of those sealed; ``done``: inputs that they account for;
    ``failures``: unreadable inputs, as text (of very many not all), ``unreadable``: how many; ``known``: inputs that
    were there already, ``from_thumbs``: views embedded from their thumbnails."""

    folder: Path
    identity: Mapping[str, str]
    segments: list[tuple[str, int]] = field(default_factory=list)
    done: int = 0
    failures: list[str] = field(default_factory=list)
    unreadable: int = 0
    known: int = 0
    from_thumbs: int = 0

    @property
    def file(self) -> Path:
        """Where the note lies."""
        text = json.dumps(dict(self.identity), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    @property
    def written(self) -> int:
        """How many views are in its segments."""
        return sum(rows for _, rows in self.segments)

    def save(self) -> None:
        """Write down how far it is. Raises ArtefactError when the disk refuses."""
        facts = {
            "identity": dict(self.identity),
            "segments": [list(entry) for entry in self.segments],
            "done": self.done,
            "failures": self.failures,
            "unreadable": self.unreadable,
            "known": self.known,
            "from_thumbs": self.from_thumbs,
        }
        with artefact.disk_errors(self.file):
            self.folder.mkdir(parents=True, exist_ok=True)
        artefact.write_file(self.file, json.dumps(facts).encode())

    def finish(self) -> None:
        """Forget the job: its segments are published."""
        self.file.unlink(missing_ok=True)


def open_job(folder: Path, identity: Mapping[str, str], segments: Path) -> Job:
    """Return the job of this ``identity``, gone on with where it has a note in ``folder`` and its segments are still
    there in ``segments``; else a new one."""
    job = Job(folder, identity)
    found = _read(job.file)
    if found is None or found["identity"] != dict(identity):
        return job
    try:
        for name, _ in found["segments"]:
            artefact.read_manifest(segments / name, MANIFEST)
    except ArtefactError:  # cleared away, or damaged: what was done is done again
        return job
    return Job(folder, **found)


def pieces_of_jobs(folder: Path) -> set[str]:
    """Return the segments that unfinished jobs have written."""
    notes = [_read(path) for path in sorted(folder.glob("[!.]*.json"))]
    return {name for note in notes if note is not None for name, _ in note["segments"]}


def _read(path: Path) -> dict[str, Any] | None:
    """Return a job's note, None where there is none or it is no such note: the job then begins anew."""
    try:
        note = json.loads(path.read_text())
        segments = [(str(name), int(rows)) for name, rows in note["segments"]]
        counts = {name: int(note[name]) for name in _COUNTS}
        failures = [str(failure) for failure in note["failures"]]
        return {"identity": note["identity"], "segments": segments, "failures": failures, **counts}
    except (OSError, ValueError, KeyError, TypeError):
        return None
