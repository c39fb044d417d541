"""Crops that the service was unsure of, kept until a person has said what they show.

A verdict that was acknowledged survives a kill. It knows nothing about HTTP, nor what a verdict does to a gallery.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import sqlalchemy as sa

from skumatch.images import thumbnail
from skumatch.readers_common import safe_text
from skumatch.serve import review_tables
from skumatch.serve.problems import Problem
from skumatch.serve.review_tables import Database
from skumatch.serve.review_tables import crops as _crops
from skumatch.serve.settings import Settings

FILE = "reviews.db"
AS_SENT = 1_000_000  # bytes up to which a crop is kept as it came
SIDE = 1024  # pixels of the long side of a JPEG kept instead
DAY = 86_400.0
CUT = 256  # rows looked at, at a time, for room
Verdict = Literal["accept", "correct", "new", "reject"]
State = Literal["begun", "done", "undoing"]

_c = _crops.c
_told = [column for column in _c if column is not _c.crop]
_FREE = {"session": None, "until": None}
_OPEN = {"verdict": None, "sku": None, "who": None, "judged": None, "state": None, "change": None}


@dataclass(frozen=True)
class Review:
    """A crop that was kept, and what was said of it. ``number``: ascending as they came. ``kept``, ``until``,
    ``judged``: seconds since 1970. ``facts``: what ``keep`` was given. ``session`` looks at it ``until`` then.
    ``verdict`` and the three after it are None until there is one. ``state``, ``change``: of what the verdict did to
    the gallery, None where it does nothing."""

    number: int
    id: str
    sha256: str
    kept: float
    bytes: int
    decision: str
    facts: dict[str, Any]
    session: str | None
    until: float | None
    verdict: Verdict | None
    sku: str | None
    who: str | None
    judged: float | None
    state: State | None
    change: dict[str, Any] | None


class Reviews:
    """The crops in the file ``path``; any number of threads may use it.

    At most ``review_limit`` crops of ``review_megabytes`` together are kept, each for ``review_days`` after it came, or
    after its verdict. Where room is needed the oldest without a verdict go first; a verdict never goes for room.
    Raises as ``Database``.
    """

    def __init__(self, path: Path, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self.settings = settings
        self.database = Database(path)
        self._now = now

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def keep(self, crop: bytes, decision: str, facts: Mapping[str, Any]) -> str | None:
        """Keep a picture's file and ``facts`` (JSON) about it; return its id, None where there is no room.

        A picture that waits already is not kept twice. More than 1 MB is kept as a JPEG of at most 1,024 px. Raises
        ImageError where that cannot be made.
        """
        if len(crop) > AS_SENT:
            crop = thumbnail(crop, SIDE, self.settings.max_pixels)
        new, digest = uuid.uuid4().hex, hashlib.sha256(crop).hexdigest()
        row = {"id": new, "sha256": digest, "kept": self._now(), "bytes": len(crop), "decision": decision}
        with self.database.writing() as connection:
            waits = sa.select(_c.id).where(_c.sha256 == digest, _c.verdict.is_(None), self._fresh())
            same = connection.execute(waits).scalars().first()
            if same is not None:
                return str(same)
            connection.execute(sa.insert(_crops).values(**row, facts=_text(facts), crop=crop))
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

    def _free(self, session: str) -> sa.ColumnElement[bool]:
        """Return the condition that nobody but ``session`` looks at a crop."""
        return sa.or_(_c.until.is_(None), _c.until < self._now(), _c.session == session)

    def pending(self, limit: int, after: int = 0) -> list[Review]:
        """Return up to ``limit`` crops without a verdict whose number is above ``after``, oldest first."""
        asked = sa.select(*_told).where(_c.verdict.is_(None), _c.number > after, self._fresh())
        return self._read(asked.order_by(_c.number).limit(limit))

    def claim(self, session: str, limit: int, first: str = "", without: Sequence[str] = ()) -> list[Review]:
        """Return up to ``limit`` crops without a verdict for ``session`` alone for ``review_claim`` seconds from now:
        the crop ``first``, where nobody else has it, those that it has already, then others, oldest first.

        The crops ``without`` are given back if it has them.
        """
        with self.database.writing() as connection:
            wanted, left = self._numbers(connection, [first]), self._numbers(connection, without)
            connection.execute(sa.update(_crops).where(_c.number.in_(left), _c.session == session).values(_FREE))
            free = sa.select(_c.number).where(_c.verdict.is_(None), self._fresh(), self._free(session))
            own = sa.and_(_c.session == session, _c.until >= self._now())
            rank = sa.case((_c.number.in_(wanted), 0), (own, 1), else_=2)
            asked = free.where(_c.number.not_in(left)).order_by(rank, _c.number).limit(limit)
            numbers = connection.execute(asked).scalars().all()
            held = {"session": session, "until": self._now() + self.settings.review_claim}
            connection.execute(sa.update(_crops).where(_c.number.in_(numbers)).values(held))
            told = sa.select(*_told).where(_c.number.in_(numbers))
            first_first = sa.case((_c.number.in_(wanted), 0), else_=1)
            return [_review(row) for row in connection.execute(told.order_by(first_first, _c.number)).mappings()]

    def _numbers(self, connection: sa.Connection, crops: Sequence[str]) -> Sequence[int]:
        return connection.execute(sa.select(_c.number).where(_c.id.in_(crops))).scalars().all()

    def release(self, session: str) -> int:
        """Give back what ``session`` has claimed and not judged; return how many crops."""
        with self.database.writing() as connection:
            asked = sa.update(_crops).where(_c.session == session, _c.verdict.is_(None)).values(_FREE)
            return int(connection.execute(asked).rowcount)

    def waiting(self) -> int:
        """Return how many crops have no verdict."""
        with self.database.reading() as connection:
            asked = sa.select(sa.func.count()).where(_c.verdict.is_(None), self._fresh())
            return int(connection.execute(asked).scalar_one())

    def judged(self, limit: int) -> list[Review]:
        """Return up to ``limit`` crops with a verdict, the latest verdict first."""
        asked = sa.select(*_told).where(_c.verdict.is_not(None), self._fresh())
        return self._read(asked.order_by(_c.judged.desc(), _c.number.desc()).limit(limit))

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

    def unfinished(self) -> list[Review]:
        """Return the crops whose change of the gallery was begun or is being undone."""
        return self._read(sa.select(*_told).where(_c.state.in_(("begun", "undoing"))).order_by(_c.number))

    def twin(self, review: Review) -> Review | None:
        """Return another crop of the same bytes that was found to show the same SKU and changed the gallery."""
        same = (_c.sha256 == review.sha256, _c.sku == review.sku, _c.state == "done", _c.id != review.id)
        return next(iter(self._read(sa.select(*_told).where(*same).order_by(_c.number).limit(1))), None)

    def get(self, crop: str) -> Review:
        """Return a crop by id. Raises Problem 404."""
        found = self._read(sa.select(*_told).where(_c.id == crop, self._fresh()))
        if not found:
            raise _unknown(crop)
        return found[0]

    def crop(self, crop: str) -> bytes:
        """Return a crop's picture file: JPEG, PNG or WebP. Raises Problem 404."""
        with self.database.reading() as connection:
            found = connection.execute(sa.select(_c.crop).where(_c.id == crop, self._fresh())).scalar_one_or_none()
        if found is None:
            raise _unknown(crop)
        return bytes(found)

    def verdict(
        self, crop: str, verdict: Verdict, sku: str, who: str, session: str = "", change: dict[str, Any] | None = None
    ) -> Review:
        """Keep what ``who`` said of a crop, and return it; on return it is durable.

        accept: the best candidate is right (``sku``: that or ""); correct: it is ``sku``; new: it is in no gallery yet
        (``sku``: a name for it, or ""); reject: it shows no product, ``sku`` is "". ``change``: what is about to be
        done to the gallery; ``settle`` says that it was done. Raises Problem: 404; 409 where there is a verdict or
        another session looks at it; 422 where ``sku`` does not fit.
        """
        before = self.get(crop)
        verdict, sku = fitting(before, verdict, sku)
        said = {"verdict": verdict, "sku": sku or None, "who": who, "judged": self._now(), **_FREE}
        if change is not None:
            said |= {"state": "begun", "change": json.dumps(change)}
        with self.database.writing() as connection:
            asked = sa.update(_crops).where(_c.id == crop, _c.verdict.is_(None), self._free(session)).values(said)
            done = connection.execute(asked).rowcount  # one statement: of two people one is the first
            if done:
                _count(connection, before, verdict, 1)
        found = self.get(crop)
        if not done and found.verdict is None:
            raise Problem(409, f"somebody else looks at {crop}", "take the next one")
        if not done:
            raise Problem(409, f"{crop} has the verdict {found.verdict} by {found.who}", "take the next one")
        return found

    def settle(self, crop: str, state: State, change: dict[str, Any]) -> Review:
        """Note how far the change of the gallery is that a verdict asked for."""
        with self.database.writing() as connection:
            asked = sa.update(_crops).where(_c.id == crop).values(state=state, change=json.dumps(change))
            connection.execute(asked)
        return self.get(crop)

    def reopen(self, crop: str, session: str = "") -> Review:
        """Take a verdict back: the crop waits again, and ``session``, if any, looks at it.

        Raises Problem 404, 409 where there is no verdict.
        """
        before = self.get(crop)
        held = {"session": session, "until": self._now() + self.settings.review_claim} if session else _FREE
        with self.database.writing() as connection:
            asked = sa.update(_crops).where(_c.id == crop, _c.verdict.is_not(None)).values({**_OPEN, **held})
            if not connection.execute(asked).rowcount or before.verdict is None:
                raise Problem(409, f"{crop} has no verdict", "see GET /v1/review")
            _count(connection, before, before.verdict, -1)
        return self.get(crop)

    def _read(self, asked: sa.Select[Any]) -> list[Review]:
        with self.database.reading() as connection:
            return [_review(row) for row in connection.execute(asked).mappings()]


def fitting(review: Review, verdict: Verdict, sku: str) -> tuple[Verdict, str]:
    """Return a verdict and the SKU that it is about, "" for none; correct with the best candidate is accept.

    Raises Problem 422.
    """
    candidates = cast(list[dict[str, Any]], review.facts.get("candidates", []))
    best = candidates[0]["sku"] if candidates else ""
    if verdict == "accept":
        if not best or sku not in ("", best):
            raise Problem(422, f"the best candidate is '{best}', not '{sku}'", "say correct, and which SKU it is")
        return verdict, str(best)
    if verdict == "correct" and not sku:
        raise Problem(422, "correct needs a SKU", "say which it is")
    if verdict == "correct" and sku == best:
        return "accept", sku
    if verdict == "reject" and sku:
        raise Problem(422, "reject takes no SKU", "say correct where it is one")
    return verdict, sku


def _count(connection: sa.Connection, review: Review, verdict: Verdict, more: int) -> None:
    """Note a verdict among those of the day on which the crop came, or take it back."""
    row = {
        "day": day_of(review.kept),
        "model": str(review.facts.get("model", "")),
        "decision": review.decision,
        "verdict": verdict,
        "count": more,
    }
    review_tables.add(connection, review_tables.judged, [row])


def day_of(seconds: float) -> str:
    """Return the UTC day of a time, as 2026-03-01."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _review(row: Mapping[Any, Any]) -> Review:
    change = None if row["change"] is None else json.loads(row["change"])
    return Review(**{**row, "facts": json.loads(row["facts"]), "change": change})


def _text(facts: Mapping[str, Any]) -> str:
    """Return ``facts`` as JSON, a name that is no Unicode text made one."""
    return json.dumps({name: safe_text(fact) if isinstance(fact, str) else fact for name, fact in facts.items()})


def _unknown(crop: str) -> Problem:
    return Problem(404, f"no crop is kept under {crop}", "see GET /v1/review")
