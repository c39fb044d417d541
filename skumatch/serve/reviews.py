"""Crops that the service was unsure of, kept until a person has said what they show, in an SQLite file.

A verdict that was acknowledged survives a kill: it is in the write-ahead log, and that on the disk. It knows nothing
about HTTP, nor what a verdict does to a gallery.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from skumatch import artefact
from skumatch.errors import ArtefactError, LockedError
from skumatch.images import thumbnail
from skumatch.readers_common import safe_text
from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings

FORMAT = 1
AS_SENT = 1_000_000  # bytes up to which a crop is kept as it came
SIDE = 1024  # pixels of the long side of a JPEG kept instead
DAY = 86_400.0
PATIENCE = 10.0  # seconds that another process may hold the file
CUT = 256  # rows looked at, at a time, for room
Verdict = Literal["accept", "correct", "new", "reject"]

_meta = sa.MetaData()
_format = sa.Table("format", _meta, sa.Column("version", sa.Integer, primary_key=True))
_crops = sa.Table(
    "crops",
    _meta,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), unique=True, nullable=False),
    sa.Column("kept", sa.Float, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text),
    sa.Column("sku", sa.Text),
    sa.Column("who", sa.Text),
    sa.Column("judged", sa.Float),
    sa.Column("crop", sa.LargeBinary, nullable=False),  # last: what comes before is read without it
    sqlite_autoincrement=True,  # no number is given twice
)
_c = _crops.c
sa.Index("room", _c.verdict, _c.number, _c.kept, _c.judged, _c.bytes)  # all that limits ask for: crops are not read
_told = [column for column in _c if column is not _c.crop]


@dataclass(frozen=True)
class Review:
    """A crop that was kept, and what was said of it. ``number``: ascending as they came. ``kept``, ``judged``: seconds
    since 1970. ``facts``: what ``keep`` was given. ``verdict`` and the three after it are None until there is one."""

    number: int
    id: str
    kept: float
    bytes: int
    facts: dict[str, Any]
    verdict: Verdict | None
    sku: str | None
    who: str | None
    judged: float | None


class Reviews:
    """The crops in the file ``path`` (mode 0600); any number of threads may use it.

    At most ``review_limit`` crops of ``review_megabytes`` together are kept, each for ``review_days`` after it came, or
    after its verdict. Where room is needed the oldest without a verdict go first; a verdict never goes for room.
    Raises ArtefactError for a file that is damaged, full or of another format, LockedError.
    """

    def __init__(self, path: Path, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self.settings = settings
        self._now = now
        with artefact.disk_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        url = sa.URL.create("sqlite", database=str(path))
        self._engine = sa.create_engine(url, connect_args={"timeout": PATIENCE}, max_overflow=-1)
        sa.event.listen(self._engine, "connect", _prepare)
        with self._trouble():
            self._begin()
        artefact.fsync_dir(path.parent)

    def _begin(self) -> None:
        with self._engine.begin() as connection:
            _format.create(connection, checkfirst=True)
            found = connection.execute(sa.select(_format.c.version)).scalar_one_or_none()
            if found not in (None, FORMAT):
                raise ArtefactError(f"{self.path} was written by another version", "use that, or move the file away")
            _crops.create(connection, checkfirst=True)
            connection.execute(sa.insert(_format).prefix_with("OR IGNORE").values(version=FORMAT))

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def keep(self, crop: bytes, facts: Mapping[str, Any]) -> str | None:
        """Keep a picture's file and ``facts`` (JSON) about it; return its id, None where there is no room.

        More than 1 MB is kept as a JPEG of at most 1,024 px. Raises ImageError where that cannot be made.
        """
        if len(crop) > AS_SENT:
            crop = thumbnail(crop, SIDE, self.settings.max_pixels)
        new = uuid.uuid4().hex
        row = {"id": new, "kept": self._now(), "bytes": len(crop), "facts": _text(facts), "crop": crop}
        with self._trouble(), self._engine.begin() as connection:
            connection.execute(sa.insert(_crops).values(row))
            self._make_room(connection)
            return new if connection.execute(sa.select(_c.number).where(_c.id == new)).first() else None

    def _make_room(self, connection: sa.Connection) -> None:
        """Drop what is too old, then the oldest without a verdict until the limits hold."""
        old = sa.select(_c.number).where(sa.not_(self._fresh()))  # found by the index alone
        connection.execute(sa.delete(_crops).where(_c.number.in_(old)))
        count, size = connection.execute(sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_c.bytes), 0))).one()
        count -= self.settings.review_limit
        size -= int(self.settings.review_megabytes * 1e6)
        waiting = sa.select(_c.number, _c.bytes).where(_c.verdict.is_(None)).order_by(_c.number).limit(CUT)
        while count > 0 or size > 0:
            oldest = connection.execute(waiting).all()
            if not oldest:
                return
            for number, taken in oldest:
                if count > 0 or size > 0:
                    connection.execute(sa.delete(_crops).where(_c.number == number))
                    count, size = count - 1, size - taken

    def _fresh(self) -> sa.ColumnElement[bool]:
        """Return the condition that a crop is not too old."""
        return sa.func.coalesce(_c.judged, _c.kept) >= self._now() - self.settings.review_days * DAY

    def pending(self, limit: int, after: int = 0) -> list[Review]:
        """Return up to ``limit`` crops without a verdict whose number is above ``after``, oldest first."""
        asked = sa.select(*_told).where(_c.verdict.is_(None), _c.number > after, self._fresh())
        return self._read(asked.order_by(_c.number).limit(limit))

    def waiting(self) -> int:
        """Return how many crops have no verdict."""
        with self._trouble(), self._engine.connect() as connection:
            asked = sa.select(sa.func.count()).where(_c.verdict.is_(None), self._fresh())
            return int(connection.execute(asked).scalar_one())

    def verdicts(self) -> Iterator[Review]:
        """Yield the crops with a verdict, in the order in which they came."""
        last = 0
        while True:
            asked = sa.select(*_told).where(_c.verdict.is_not(None), _c.number > last, self._fresh())
            found = self._read(asked.order_by(_c.number).limit(CUT))
            if not found:
                return
            yield from found
            last = found[-1].number

    def get(self, crop: str) -> Review:
        """Return a crop by id. Raises Problem 404."""
        found = self._read(sa.select(*_told).where(_c.id == crop, self._fresh()))
        if not found:
            raise _unknown(crop)
        return found[0]

    def crop(self, crop: str) -> bytes:
        """Return a crop's picture file: JPEG, PNG or WebP. Raises Problem 404."""
        with self._trouble(), self._engine.connect() as connection:
            found = connection.execute(sa.select(_c.crop).where(_c.id == crop, self._fresh())).scalar_one_or_none()
        if found is None:
            raise _unknown(crop)
        return bytes(found)

    def verdict(self, crop: str, verdict: Verdict, sku: str, who: str) -> Review:
        """Keep what ``who`` said of a crop, and return it; on return it is durable.

        accept: the best candidate is right (``sku``: that or ""); correct: it is ``sku``; new: it is in no gallery yet
        (``sku``: a name for it, or ""); reject: it shows no product, ``sku`` is "". Raises Problem: 404; 409 where
        there is a verdict; 422 where ``sku`` does not fit.
        """
        sku = _fitting(self.get(crop), verdict, sku)
        said = {"verdict": verdict, "sku": sku or None, "who": who, "judged": self._now()}
        with self._trouble(), self._engine.begin() as connection:
            asked = sa.update(_crops).where(_c.id == crop, _c.verdict.is_(None)).values(said)
            done = connection.execute(asked).rowcount  # one statement: of two people one is the first
        found = self.get(crop)
        if not done:
            raise Problem(409, f"{crop} has the verdict {found.verdict} by {found.who}", "take the next one")
        return found

    def _read(self, asked: sa.Select[Any]) -> list[Review]:
        with self._trouble(), self._engine.connect() as connection:
            rows = connection.execute(asked).mappings().all()
        return [Review(**{**row, "facts": json.loads(row["facts"])}) for row in rows]

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Turn what SQLite says into words for the user."""
        try:
            yield
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error)
            if isinstance(error, OperationalError) and "locked" in said:
                raise LockedError(f"{self.path} is held by another process", "try again") from error
            raise ArtefactError(f"{self.path} cannot be used ({said})", "check the disk, or move it away") from error


def _prepare(connection: Any, _: object) -> None:
    """Set up a new connection: writers do not stop readers, and what is committed is on the disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _text(facts: Mapping[str, Any]) -> str:
    """Return ``facts`` as JSON, a name that is no Unicode text made one."""
    return json.dumps({name: safe_text(fact) if isinstance(fact, str) else fact for name, fact in facts.items()})


def _fitting(review: Review, verdict: Verdict, sku: str) -> str:
    """Return the SKU that a verdict is about, "" for none. Raises Problem 422."""
    candidates = cast(list[dict[str, Any]], review.facts.get("candidates", []))
    best = candidates[0]["sku"] if candidates else ""
    if verdict == "accept":
        if not best or sku not in ("", best):
            raise Problem(422, f"the best candidate is '{best}', not '{sku}'", "say correct, and which SKU it is")
        return str(best)
    if verdict == "correct" and not sku:
        raise Problem(422, "correct needs a SKU", "say which it is")
    if verdict == "reject" and sku:
        raise Problem(422, "reject takes no SKU", "say correct where it is one")
    return sku


def _unknown(crop: str) -> Problem:
    return Problem(404, f"no crop is kept under {crop}", "see GET /v1/review")
