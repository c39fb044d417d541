"""The folder that a big job writes, shard by shard, and how far it is.

    embed.json              what is embedded, with which encoder and options: written first
    shard-000000.parquet    a piece: one row per picture (see ``rows``), in the order of the source
    done.json               counts, and the digest of every file: written last

A shard is written beside its place, fsynced and renamed: it is there whole or not at all. It carries the digest of
the piece that it was made from. This module knows nothing about sources or encoders.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch import artefact
from skumatch.bulk.parts import Piece
from skumatch.bulk.rows import PIECE, shard_schema
from skumatch.bulk.shard_file import NAMED, Shard, ShardFile, read_shard
from skumatch.errors import GalleryError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

JOB, DONE, FORMAT = "embed.json", "done.json", 1
_SHARD = re.compile(r"shard-(\d{6,})\.parquet")
_TEMPORARY = re.compile(r"\.(shard-\d{6,}\.parquet|embed\.json|done\.json)\.\d+\.tmp")
ANEW = "embed into another --out, or with --restart, which removes what is there"


def shard_name(number: int) -> str:
    """Return the file name of shard ``number``."""
    return f"shard-{number:06d}.parquet"


def begin(out: Path, job: Mapping[str, Any], restart: bool) -> None:
    """Make ``out`` ready for ``job``: new, or the same that was interrupted; whoever calls holds its lock.

    Raises GalleryError for a folder that holds something else, naming what differs.
    """
    said = None if restart else _read_job(out)
    if said is None:
        _clear(out, restart)
        artefact.write_file(out / JOB, (json.dumps(dict(job), indent=1, sort_keys=True) + "\n").encode())
        return
    for name, key in (("format", "format"), ("model", "spec"), ("source", "source"), ("options", "options")):
        if said.get(key) != json.loads(json.dumps(job[key])):
            raise GalleryError(f"{out} was embedded with another {name}", ANEW)
    for path in _temporary(out):
        path.unlink()


def _read_job(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / JOB).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise GalleryError(f"{out / JOB} is corrupt", ANEW) from None
    return found if isinstance(found, dict) else {}


def _clear(out: Path, restart: bool) -> None:
    """Remove what an earlier job wrote, and nothing else. Raises GalleryError for a folder with other things in it."""
    ours = [path for path in out.iterdir() if _SHARD.fullmatch(path.name) or path.name in (JOB, DONE)]
    if ours and not restart:
        raise GalleryError(f"{out} holds shards but no {JOB}", ANEW)
    temporary = _temporary(out)
    strange = [path.name for path in out.iterdir() if path not in ours and path not in temporary]
    if any(name != "LOCK" for name in strange) and not ours:
        raise GalleryError(f"{out} holds other things", "name a new or empty folder with --out")
    with artefact.disk_errors(out):
        for path in (*sorted(ours, key=lambda path: path.name != DONE), *temporary):  # what says that it is whole first
            path.unlink()


def _temporary(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if _TEMPORARY.fullmatch(path.name)]


def numbers(out: Path) -> list[int]:
    """Return the numbers of the shards that are there."""
    found = (_SHARD.fullmatch(path.name) for path in out.iterdir())
    return sorted(int(one[1]) for one in found if one)


class Shards:
    """Writes the pieces that are not there yet: rows come in order, and a shard is published when its last is there."""

    def __init__(self, out: Path, dim: int, thumbs: bool) -> None:
        self.out = out
        self.thumbs = thumbs
        self.failures: list[str] = []
        self._schema = shard_schema(dim, thumbs)
        self._made: dict[int, Shard] = {}
        self._waiting: deque[Piece] = deque()
        self._counted = (0, 0)  # (shard, its first row) up to which rows are counted
        self._open: ShardFile | None = None

    def found(self, piece: Piece) -> Shard | None:
        """Return the shard of ``piece`` where it is there; else None, and its rows are expected, in turn.

        Raises GalleryError where it was made from something else.
        """
        path = self.out / shard_name(piece.number)
        there = read_shard(path) if path.exists() else None
        if there is None:
            (self.out / DONE).unlink(missing_ok=True)
            self._waiting.append(replace(piece, parts=(), starts=()))  # of a million files their number is enough
            return None
        if there.piece != piece.digest:
            raise GalleryError(f"the source has changed since {path} was made", ANEW)
        self._made[piece.number] = there
        return there

    def add(self, rows: RecordBatch) -> None:
        """Take rows as they travel, of any pieces in order. Raises GalleryError where one is missing or comes twice."""
        while len(rows):
            number = rows.column(PIECE)[0].as_py()
            while not self._waiting or self._waiting[0].number != number:
                self._finish(number)
            shard = self._opened()
            same = rows.column(PIECE).to_numpy() == number
            some = len(rows) if same.all() else int(same.argmin())
            shard.add(rows.slice(0, some))
            rows = rows.slice(some)
            if shard.count == self._waiting[0].rows:
                self._finish(number)

    def _opened(self) -> ShardFile:
        if self._open is None:
            piece = self._waiting[0]
            self._open = ShardFile(self.out / shard_name(piece.number), piece, self._first(piece.number), self._schema)
        return self._open

    def _first(self, number: int) -> int:
        shard, first = self._counted
        while shard < number:
            first += self._made[shard].rows
            shard += 1
        self._counted = (shard, first)
        return first

    def _finish(self, number: int) -> None:
        """Publish the shard whose rows came last. Raises GalleryError where rows of it are missing."""
        if not self._waiting or self._waiting[0].number > number:
            raise GalleryError(f"rows of piece {number} came out of turn", "report this as a bug")
        shard = self._opened()
        piece = self._waiting[0]
        if piece.rows is not None and shard.count != piece.rows:
            shard.drop()
            what = f"{shard.count} of {piece.rows} rows of {shard_name(piece.number)} came"
            raise GalleryError(what, "report this as a bug")
        self._made[piece.number] = shard.publish()
        self.failures += shard.failures[: NAMED - len(self.failures)]
        self._waiting.popleft()
        self._open = None

    def close(self) -> None:
        """Forget the shard that is not finished."""
        if self._open is not None:
            self._open.drop()
            self._open = None

    def seal(self) -> dict[str, int]:
        """Publish what is left and say that the folder is whole; return the counts.

        Raises GalleryError when there are shards that no piece stands for.
        """
        while self._waiting:
            self._finish(self._waiting[0].number)
        shards = [self._made[number] for number in range(len(self._made))]
        if numbers(self.out) != list(range(len(shards))):
            raise GalleryError(f"the source has fewer pictures than when {self.out} was begun", ANEW)
        for shard, first in zip(shards, accumulate((shard.rows for shard in shards), initial=0), strict=False):
            if shard.first != first:
                raise GalleryError(f"the shards in {self.out} do not follow each other", ANEW)
        counts = {
            "pictures": sum(shard.rows for shard in shards),
            "unreadable": sum(shard.unreadable for shard in shards),
            "without_sku": sum(shard.without_sku for shard in shards),
            "shards": len(shards),
        }
        if counts["pictures"]:
            self._say_done(counts)
        return counts

    def _say_done(self, counts: dict[str, int]) -> None:
        if (self.out / DONE).exists():
            return
        files = {}
        for name in (JOB, *(shard_name(number) for number in range(counts["shards"]))):
            path = self.out / name
            files[name] = {"bytes": path.stat().st_size, "sha256": artefact.file_digest(path)}
        document = {"kind": "embedded", "format": FORMAT, **counts, "files": files}
        artefact.write_file(self.out / DONE, (json.dumps(document, indent=1) + "\n").encode())
