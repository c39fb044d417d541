"""What one decision does to the file of the review of groups: reading what it is about, writing what becomes of it.

Everything happens in the caller's transaction. It knows nothing about what a decision means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from skumatch.catalogue.decisions import Decision
from skumatch.serve.catalogue_tables import decisions, groups, postings, touched
from skumatch.serve.problems import Problem

_g, _p, _d = groups.c, postings.c, decisions.c


def seen(connection: sa.Connection, name: str, version: int) -> dict[str, Any]:
    """Return the row of a group. Raises Problem 404; 409 unless it is there in ``version``."""
    row = connection.execute(sa.select(groups).where(_g.name == name)).mappings().first()
    if row is None:
        raise Problem(404, f"there is no group {name}", "see GET /v1/catalogue/groups")
    if row["version"] != version or row["size"] == 0:
        by = f" by {row['who']}" if row["who"] else ""
        raise Problem(409, f"{name} was changed{by} meanwhile", "look at it again, or take the next one")
    return dict(row)


def members(connection: sa.Connection, name: str) -> list[str]:
    asked = sa.select(_p.posting).where(_p.group == name).order_by(_p.confidence.desc(), _p.posting)
    return [str(posting) for posting in connection.execute(asked).scalars()]


def derived(connection: sa.Connection, name: str) -> list[str]:
    """Return the names NAME-... that are, or were, in use: a name once given is not given again."""
    asked = sa.select(_g.name).where(_g.name >= f"{name}-", _g.name < f"{name}.")  # "." comes after "-"
    return [str(found) for found in connection.execute(asked).scalars()]


def log(connection: sa.Connection, decision: Decision, before: list[dict[str, Any]]) -> int:
    """Write a decision down; return its number."""
    row = {"id": decision.id, "kind": decision.decision, "said": json.dumps(decision.json())}
    done = connection.execute(sa.insert(decisions).values(**row, before=json.dumps(before)))
    return int(done.inserted_primary_key[0]) if done.inserted_primary_key else 0


def touch(connection: sa.Connection, names: Mapping[str, object], number: int) -> None:
    connection.execute(sa.insert(touched), [{"name": name, "number": number} for name in names])


def later(number: int) -> sa.Select[Any]:
    """Return what asks for the id of the last decision that stands and touched what the decision ``number`` did."""
    own = sa.select(touched.c.name).where(touched.c.number == number)
    asked = sa.select(_d.id).join(touched, touched.c.number == _d.number)
    asked = asked.where(touched.c.name.in_(own), _d.number > number, _d.withdrawn.is_(None))
    return asked.order_by(_d.number.desc()).limit(1)


def write(connection: sa.Connection, after: Mapping[str, Sequence[str]], row: Mapping[str, Any]) -> None:
    """Make the groups have the members ``after``, and all else of ``row``; one without members is gone."""
    moved = [{"own": posting, "to": name} for name, members in after.items() for posting in members]
    asked = sa.update(postings).where(_p.posting == sa.bindparam("own")).values({"group": sa.bindparam("to")})
    connection.execute(asked, moved)
    for name, members in after.items():
        least = sa.select(sa.func.coalesce(sa.func.min(_p.confidence), row["least"])).where(_p.group == name)
        values = {**row, "name": name, "size": len(members), "least": connection.execute(least).scalar_one()}
        connection.execute(sa.insert(groups).prefix_with("OR REPLACE").values(values))


def restore(connection: sa.Connection, undone: int, before: Sequence[dict[str, Any]], number: int) -> None:
    """Make the groups that a decision touched what they were ``before``; those that it made are no more."""
    made = sa.select(touched.c.name).where(touched.c.number == undone)
    connection.execute(sa.delete(groups).where(_g.name.in_(made)))
    for row in before:
        members = row.pop("members")
        write(connection, {row["name"]: members}, {**row, "version": number})
