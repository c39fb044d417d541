"""A result file that an interrupted run can go on with: CSV and JSON lines, cut back to the last whole crop.

Beside the unfinished file ``.NAME.part`` lies ``.NAME.part.json``: how many crops it holds, up to which byte, and what
it was made with. Both vanish when the file is complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from skumatch import artefact
from skumatch.errors import ArtefactError, ConfigError
from skumatch.results import CsvWriter, JsonWriter, Record, ResultFile

EVERY = 1000  # crops between two notes of how far the file is


class ResumableFile(ResultFile):
    """A ResultFile that keeps what it has when the block ends with an exception; each ``write`` is one crop.

    ``identity``: what must be the same when going on (model with calibration and search, gallery, filters, k, crops).
    """

    def __init__(self, path: Path, identity: Mapping[str, str], resume: bool = False) -> None:
        """Raises ConfigError for a wrong suffix, and with ``resume`` when there is nothing that fits to go on with."""
        super().__init__(path)
        self.identity = dict(identity)
        self.done = 0
        self._part = path.with_name(f".{path.name}.part")
        self._mark = path.with_name(f".{path.name}.part.json")
        self._last = ""
        self._bytes = 0
        if resume:
            self._read_mark()

    def _read_mark(self) -> None:
        anew = "leave out --resume to start anew"
        try:
            found = json.loads(self._mark.read_text())
            same = found["identity"] == self.identity
            self.done, self._last, self._bytes = int(found["done"]), str(found["last"]), int(found["bytes"])
        except FileNotFoundError:
            raise ConfigError(f"there is no interrupted match of {self.path}", anew) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._mark} is corrupt", anew) from error
        if not same:
            said = "model (or its calibration or search), gallery, filters, k or crops"
            raise ConfigError(f"{said} differ from the interrupted match of {self.path}", anew)
        if not self._part.is_file() or self._part.stat().st_size < self._bytes:
            raise ConfigError(f"{self._part} is shorter than noted", anew)

    def rest(self, crops: Iterator[Path]) -> Iterator[Path]:
        """Yield the crops that are not in the file yet. Raises ConfigError when the earlier ones have changed."""
        for position, crop in enumerate(crops, start=1):
            if position == self._skip and str(crop) != self._last:
                raise ConfigError(f"crop {position} is not {self._last} any more", "leave out --resume to start anew")
            if position > self._skip:
                yield crop

    def __enter__(self) -> ResumableFile:
        self._skip = self.done
        if not self.done:
            super().__enter__()
            return self
        with artefact.disk_errors(self.path):
            with self._part.open("r+b") as stream:
                stream.truncate(self._bytes)
            self._stream = self._part.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        csv = self.path.suffix == ".csv"
        self._writer = CsvWriter(self._stream, header=False) if csv else JsonWriter(self._stream)
        return self

    def write(self, rows: Sequence[Record]) -> None:
        """Append the records of one crop. Raises ArtefactError when the disk refuses."""
        super().write(rows)
        self.done += 1
        self._last = rows[0]["crop"]
        if self._stream is not None and self.done % EVERY == 0:
            self._note()

    def _note(self) -> None:
        """Write down how far the file is."""
        with artefact.disk_errors(self.path):
            self._writer.flush()
            size = self._part.stat().st_size
        facts = {"identity": self.identity, "done": self.done, "last": self._last, "bytes": size}
        artefact.write_file(self._mark, json.dumps(facts).encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._stream is None or not self.done:
            super().__exit__(kind, error, trace)
            self._mark.unlink(missing_ok=True)
            return
        with contextlib.suppress(ArtefactError):  # on a full disk the earlier note still holds
            self._note()
        with contextlib.suppress(OSError):
            self._stream.close()
