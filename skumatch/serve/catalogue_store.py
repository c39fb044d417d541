"""The review of groups: which wait, the least sure first, what people decided, and what became of the groups.

What was decided is what ``skumatch.catalogue.decisions`` would make of the export, decision by decision; one that was
acknowledged survives a kill. It knows nothing about HTTP.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa

from skumatch.catalogue.cards import Reason
from skumatch.catalogue.decisions import Decision, replay
from skumatch.serve import catalogue_changes as changes
from skumatch.serve.catalogue_tables import decisions, groups, open_groups, pairs, postings
from skumatch.serve.problems import Problem

FILE: Final = "groups.db"
STRONGEST: Final = 3  # pairs of a group that are told, and the weakest
SUGGESTED: Final = 3  # groups that another may be merged with
CUT: Final = 256  # rows read at a time
Kind = Literal["accept", "split", "merge"]
KINDS: Final[tuple[Kind, ...]] = ("accept", "split", "merge")

_g, _p, _d = groups.c, postings.c, decisions.c
_WAITS = sa.and_(_g.decided.is_(None), _g.size > 1)


@dataclass(frozen=True)
class Group:
    """A group: ``rank`` 1 was the least sure of all; ``least``: the confidence of its least sure posting, 0..1.
    ``version``: of its last change; 0: none. ``decided``, ``who``, ``at``: None until a person decided."""

    name: str
    rank: int
    least: float
    size: int
    version: int
    decided: Kind | None
    who: str | None
    at: str | None


@dataclass(frozen=True)
class Posting:
    """A posting of a group; ``pictured``: whether it names a picture."""

    posting: str
    title: str
    confidence: float
    pictured: bool


@dataclass(frozen=True)
class Taken:
    """A decision that was taken, and whether it was ``withdrawn``."""

    decision: Decision
    withdrawn: bool


@dataclass(frozen=True)
class Wanted:
    """A decision to take: the groups with the versions that the person saw, the one that gives its name first; the
    ``parts`` of a split; ``id``: a UUID as hex, "" for any. Asked twice with one id, it is taken once."""

    kind: Kind
    versions: Mapping[str, int]
    parts: Sequence[Sequence[str]] = ()
    id: str = ""


class GroupReviews:
    """The groups of the results in ``out``, reviewed in the file ``path``; any number of threads may use it.

    Raises as ``open_groups``.
    """

    def __init__(self, path: Path, out: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self.database = open_groups(path, out)
        self._now = now

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def waiting(self, limit: int, after: int = 0) -> list[Group]:
        """Return up to ``limit`` groups without a decision whose rank is above ``after``, the least sure first."""
        return self._groups(sa.select(groups).where(_WAITS, _g.rank > after).order_by(_g.rank).limit(limit))

    def decided(self, limit: int) -> list[Group]:
        """Return up to ``limit`` groups that a person accepted or made, the latest first."""
        asked = sa.select(groups).where(_g.decided.is_not(None), _g.size > 0)
        return self._groups(asked.order_by(_g.version.desc(), _g.name).limit(limit))

    def counts(self) -> dict[str, int]:
        """Return how many groups there are, how many wait, and how many decisions of each kind stand."""
        by_kind = sa.select(_d.kind, sa.func.count()).where(_d.withdrawn.is_(None)).group_by(_d.kind)
        with self.database.reading() as connection:
            several = sa.func.count().filter(_g.size > 1)
            found, waits = connection.execute(sa.select(several, sa.func.count().filter(_WAITS))).one()
            kinds = {str(kind): int(count) for kind, count in connection.execute(by_kind)}
        return {"groups": int(found), "waiting": int(waits), **{kind: kinds.get(kind, 0) for kind in KINDS}}

    def group(self, name: str) -> Group:
        """Return a group by name. Raises Problem 404."""
        found = self._groups(sa.select(groups).where(_g.name == name, _g.size > 0))
        if not found:
            raise Problem(404, f"there is no group {name}", "see GET /v1/catalogue/groups")
        return found[0]

    def postings(self, name: str) -> list[Posting]:
        """Return the postings of a group, the surest first; none where there is no such group."""
        asked = sa.select(_p.posting, _p.title, _p.confidence, sa.func.length(_p.image) > 0)
        with self.database.reading() as connection:
            rows = connection.execute(asked.where(_p.group == name).order_by(_p.confidence.desc(), _p.posting)).all()
        return [Posting(str(row[0]), str(row[1]), float(row[2]), bool(row[3])) for row in rows]

    def reasons(self, name: str) -> list[Reason]:
        """Return the pairs that tell why the postings of a group are one: the three most probable, and the least."""
        inside = _named(pairs.c.left, name) & _named(pairs.c.right, name)
        asked = sa.select(pairs.c.facts).where(inside).order_by(pairs.c.probability.desc(), pairs.c.number)
        with self.database.reading() as connection:
            found = [Reason(**json.loads(row)) for row in connection.execute(asked).scalars()]
        return found if len(found) <= STRONGEST else [*found[:STRONGEST], found[-1]]

    def suggested(self, name: str) -> list[tuple[Group, Reason]]:
        """Return up to three other groups that may be the same product, with the most probable pair of each."""
        found: dict[str, Reason] = {}
        with self.database.reading() as connection:
            rows = [row for side in (0, 1) for row in connection.execute(_across(name, side))]
        for _, other, facts in sorted(rows, key=lambda row: (-row[0], row[1])):
            found.setdefault(str(other), Reason(**json.loads(facts)))
        return [(self.group(other), found[other]) for other in list(found)[:SUGGESTED]]

    def picture(self, posting: str) -> Path:
        """Return where the picture of a posting lies. Raises Problem 404 for a posting of no group, or without one."""
        with self.database.reading() as connection:
            found = connection.execute(sa.select(_p.image).where(_p.posting == posting)).scalar_one_or_none()
        if not found:
            raise Problem(404, "no posting of a group has this id and a picture", "see GET /v1/catalogue/groups")
        return Path(os.fsdecode(found))

    def latest(self, limit: int) -> list[Taken]:
        """Return up to ``limit`` decisions, the latest first; not what withdrew them."""
        asked = sa.select(_d.said, _d.withdrawn).where(_d.kind != "undo").order_by(_d.number.desc()).limit(limit)
        with self.database.reading() as connection:
            return [_taken(said, withdrawn) for said, withdrawn in connection.execute(asked)]

    def export(self) -> Iterator[bytes]:
        """Yield all decisions as lines of JSON, in the order in which they were taken."""
        last = 0
        while True:
            asked = sa.select(_d.number, _d.said).where(_d.number > last).order_by(_d.number).limit(CUT)
            with self.database.reading() as connection:
                rows = connection.execute(asked).all()
            if not rows:
                return
            yield "".join(f"{row.said}\n" for row in rows).encode()
            last = rows[-1].number

    def decide(self, wanted: Wanted, who: str) -> Taken:
        """Take a decision and return it; on return it is durable.

        Raises Problem: 404 for a group that never was; 409 where one changed since the person saw it, or the id is
        taken; 422 for several groups unless to merge, or parts unless of a split. Raises DataError for parts that are
        no partition, or fewer than two groups to merge.
        """
        if (wanted.kind != "merge" and len(wanted.versions) != 1) or (wanted.kind != "split" and wanted.parts):
            raise Problem(422, f"{wanted.kind} takes something else", "one group, or several to merge; parts to split")
        with self.database.writing() as connection:
            same = connection.execute(sa.select(_d.said, _d.withdrawn).where(_d.id == wanted.id)).first()
            if same is not None:
                return _again(_taken(same.said, same.withdrawn), wanted)
            before = [changes.seen(connection, name, version) for name, version in wanted.versions.items()]
            members = {one["name"]: changes.members(connection, one["name"]) for one in before}
            decision = self._decision(wanted, members, who)
            number = changes.log(connection, decision, [{**one, "members": members[one["name"]]} for one in before])
            others = [name for name in changes.derived(connection, decision.groups[0]) if name not in members]
            after = replay({**members, **dict.fromkeys(others, ())}, [decision]).groups
            changed = {name: after.get(name, []) for name in {**members, **after} if name not in others}
            changes.write(connection, changed, {**before[0], **_by(decision), "version": number})
            changes.touch(connection, changed, number)
        return Taken(decision, False)

    def _decision(self, wanted: Wanted, members: Mapping[str, Sequence[str]], who: str) -> Decision:
        told = tuple(posting for of in members.values() for posting in of)
        parts = tuple(tuple(part) for part in wanted.parts)
        own = wanted.id or uuid.uuid4().hex
        return Decision(wanted.kind, tuple(members), told, parts, id=own, who=who, at=self._time())

    def undo(self, decision: str, who: str) -> Taken:
        """Withdraw a decision: its groups are as they were before, and wait again if they did. Durable on return.

        Raises Problem 404; 409 where it was withdrawn already, or a later one is about one of its groups.
        """
        with self.database.writing() as connection:
            row = connection.execute(sa.select(decisions).where(_d.id == decision, _d.kind != "undo")).first()
            if row is None:
                raise Problem(404, f"there is no decision {decision}", "see GET /v1/catalogue/decisions")
            if row.withdrawn is not None:
                raise Problem(409, "this decision was withdrawn already", "see GET /v1/catalogue/decisions")
            if later := connection.execute(changes.later(row.number)).scalar():
                raise Problem(409, f"a later decision, {later}, is about one of its groups", "undo that one first")
            taken = Decision("undo", undo=decision, id=uuid.uuid4().hex, who=who, at=self._time())
            number = changes.log(connection, taken, [])
            connection.execute(sa.update(decisions).where(_d.id == decision).values(withdrawn=number))
            changes.restore(connection, row.number, json.loads(row.before), number)
        return _taken(row.said, number)

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _groups(self, asked: sa.Select[Any]) -> list[Group]:
        with self.database.reading() as connection:
            return [Group(**row) for row in connection.execute(asked).mappings()]


def _named(end: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
    """Return the condition that one end of a pair is in a group."""
    return end.in_(sa.select(_p.posting).where(_p.group == name))


def _across(name: str, side: int) -> sa.Select[Any]:
    """Return what asks for the pairs of which the left (0) or right (1) end alone is in a group: probability, the other
    group, facts."""
    own, other = (pairs.c.left, pairs.c.right)[:: 1 - 2 * side]
    asked = sa.select(pairs.c.probability, _p.group, pairs.c.facts).join(postings, _p.posting == other)
    return asked.where(_named(own, name), _p.group != name)


def _by(decision: Decision) -> dict[str, str]:
    return {"decided": decision.decision, "who": decision.who, "at": decision.at}


def _taken(said: str, withdrawn: int | None) -> Taken:
    return Taken(Decision.of(json.loads(said)), withdrawn is not None)


def _again(taken: Taken, wanted: Wanted) -> Taken:
    """Return a decision that was taken under the same id before. Raises Problem 409 where it was another."""
    one = taken.decision
    parts = tuple(tuple(part) for part in wanted.parts)
    if (one.decision, one.groups, one.parts) != (wanted.kind, tuple(wanted.versions), parts):
        raise Problem(409, f"another decision has the id {one.id}", "give a new id")
    return taken
