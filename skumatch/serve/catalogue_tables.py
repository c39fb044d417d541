"""The SQLite file of the review of groups: its tables, and how what ``skumatch dedupe`` wrote comes into them, once.

From then on the file has all that a review shows but the pictures. It knows nothing about decisions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from skumatch import artefact
from skumatch.catalogue import output
from skumatch.catalogue.cards import Reason
from skumatch.catalogue.output import Listed
from skumatch.errors import ConfigError, DataError
from skumatch.readers_common import safe_text, shown
from skumatch.serve.catalogue_pairs import telling
from skumatch.serve.review_tables import Database

FORMAT = 1
CHUNK = 10_000  # rows written at a time

_meta = sa.MetaData()
run = sa.Table("run", _meta, sa.Column("digest", sa.String(64), primary_key=True))  # of groups.csv
groups = sa.Table(
    "groups",
    _meta,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("rank", sa.Integer, nullable=False),  # 1: the least sure of all
    sa.Column("least", sa.Float, nullable=False),  # confidence of the posting that is least sure to belong to it
    sa.Column("size", sa.Integer, nullable=False),  # 0: it became part of another
    sa.Column("version", sa.Integer, nullable=False),  # number of the last decision that touched it, 0: none
    sa.Column("decided", sa.Text),  # accept, split, merge; by whom and when
    sa.Column("who", sa.Text),
    sa.Column("at", sa.Text),
)
postings = sa.Table(
    "postings",
    _meta,
    sa.Column("posting", sa.Text, primary_key=True),
    sa.Column("group", sa.Text, nullable=False, index=True),
    sa.Column("image", sa.LargeBinary, nullable=False),  # a path as the disk has it; empty: none
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("confidence", sa.Float, nullable=False),
)
pairs = sa.Table(
    "pairs",
    _meta,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("left", sa.Text, nullable=False, index=True),
    sa.Column("right", sa.Text, nullable=False, index=True),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)
decisions = sa.Table(
    "decisions",
    _meta,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), unique=True, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("said", sa.Text, nullable=False),  # as it is exported
    sa.Column("before", sa.Text, nullable=False),  # the groups that it was about, as they were
    sa.Column("withdrawn", sa.Integer),  # number of the undo
    sqlite_autoincrement=True,
)
touched = sa.Table(  # the groups that a decision named or made
    "touched",
    _meta,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sqlite_with_rowid=False,
)
sa.Index("waiting", groups.c.decided, groups.c.rank)


def open_groups(path: Path, out: Path) -> Database:
    """Open the file ``path`` over the results in ``out``, which are read into it where it is new.

    Raises DataError for a folder that is none or a table that names a posting twice; ConfigError for a file about other
    results; ArtefactError as ``Database`` does, or for pairs that cannot be read.
    """
    output.read_facts(out)
    table = out / output.GROUPS
    if not table.is_file():
        raise DataError(f"{shown(table)} is not there", "give the folder that `skumatch dedupe` wrote")
    digest = artefact.file_digest(table)
    database = Database(path, _meta, FORMAT)
    try:
        with database.writing() as connection:
            known = connection.execute(sa.select(run.c.digest)).scalar_one_or_none()
            if known is None:
                _fill(connection, out)
                connection.execute(sa.insert(run).values(digest=digest))
            elif known != digest:
                todo = "export its decisions, then move it away, or give the folder that it is about"
                raise ConfigError(f"{path} holds decisions about other groups than {shown(out)} has", todo)
    except BaseException:
        database.close()
        raise
    return database


def _fill(connection: sa.Connection, out: Path) -> None:
    path = out / output.GROUPS
    read = _insert(connection, postings, (_row(path, one) for one in output.read_groups(path)))
    there = connection.execute(sa.select(sa.func.count()).select_from(postings)).scalar_one()
    if there != read:
        what = f"{shown(path)} names {read - there:,} of its postings twice"
        raise DataError(what, "write it anew with `skumatch dedupe`")
    p = postings.c
    least = sa.func.min(p.confidence)
    order = sa.func.row_number().over(order_by=(least, p.group))
    found = sa.select(p.group, order, least, sa.func.count(), sa.literal(0)).group_by(p.group)
    connection.execute(sa.insert(groups).from_select(["name", "rank", "least", "size", "version"], found))
    _insert(connection, pairs, map(_pair, _telling(connection, out / output.PAIRS)))


def _telling(connection: sa.Connection, path: Path) -> Iterator[Reason]:
    """Yield the pairs worth showing; none where the results were reviewed before, and have no table of pairs."""
    if not path.exists():
        return
    asked = sa.select(postings.c.posting, groups.c.rank).join(groups, groups.c.name == postings.c.group)
    rows = connection.execute(asked).all()
    yield from telling(path, [row[0] for row in rows], np.array([row[1] for row in rows], np.int32))


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert ``rows``, those that are there already left out; return how many there were."""
    count, left = 0, iter(rows)
    while chunk := [dict(row) for row in islice(left, CHUNK)]:
        connection.execute(sa.insert(table).prefix_with("OR IGNORE"), chunk)
        count += len(chunk)
    return count


def _row(path: Path, one: Listed) -> dict[str, Any]:
    if one.posting != safe_text(one.posting) or one.group != safe_text(one.group):
        what = f"{shown(path)} names '{safe_text(one.posting)}' or its group by bytes that are not UTF-8"
        raise DataError(what, "save the catalogue as UTF-8")
    names = {"posting": one.posting, "group": one.group, "image": os.fsencode(one.image)}
    return {**names, "title": safe_text(one.title), "confidence": one.confidence}


def _pair(reason: Reason) -> dict[str, Any]:
    ends = {"left": reason.left, "right": reason.right, "probability": reason.probability}
    facts = {**ends, "scores": dict(reason.scores), "contradict": reason.contradict, "agree": reason.agree}
    return {**ends, "facts": json.dumps(facts)}
