"""The SQLite file of the review loop: its tables, and how it is opened.

What was committed is in the write-ahead log, and that on the disk: it survives a kill. It knows nothing about verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from skumatch import artefact
from skumatch.errors import ArtefactError, LockedError

FORMAT = 2
PATIENCE = 10.0  # seconds that another process may hold the file
WRITES = {"skumatch_writes": True}

_format = sa.Table("format", sa.MetaData(), sa.Column("version", sa.Integer, primary_key=True))
_meta = sa.MetaData()
crops = sa.Table(
    "crops",
    _meta,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), unique=True, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),  # of the file that is kept
    sa.Column("kept", sa.Float, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("session", sa.Text),  # who looks at it, until when
    sa.Column("until", sa.Float),
    sa.Column("verdict", sa.Text),
    sa.Column("sku", sa.Text),
    sa.Column("who", sa.Text),
    sa.Column("judged", sa.Float),
    sa.Column("state", sa.Text),  # of the change to the gallery: begun, done, undoing
    sa.Column("change", sa.Text),
    sa.Column("crop", sa.LargeBinary, nullable=False),  # last: what comes before is read without it
    sqlite_autoincrement=True,  # no number is given twice
)
_c = crops.c
# All that limits and claims ask for: crops are not read.
sa.Index("room", _c.verdict, _c.number, _c.kept, _c.judged, _c.bytes, _c.until, _c.session)
sa.Index("same", _c.sha256, _c.number)
sa.Index("open_changes", _c.state, sqlite_where=_c.state.in_(("begun", "undoing")))
answered = sa.Table(
    "answered",
    _meta,
    sa.Column("day", sa.String(10), primary_key=True),  # UTC, as 2026-03-01
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("decision", sa.Text, primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True),  # of the best score
    sa.Column("count", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
judged = sa.Table(
    "judged",
    _meta,
    sa.Column("day", sa.String(10), primary_key=True),  # on which the crop came
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("decision", sa.Text, primary_key=True),
    sa.Column("verdict", sa.Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)


class Database:
    """The file ``path`` (mode 0600); any number of threads and processes may use it.

    ``tables``: those that it has, the review loop's unless others are given; ``version``: of their format. Raises
    ArtefactError for a file that is damaged, full or of another format, LockedError.
    """

    def __init__(self, path: Path, tables: sa.MetaData = _meta, version: int = FORMAT) -> None:
        self.path = path
        self._tables, self._version = tables, version
        with artefact.disk_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        url = sa.URL.create("sqlite", database=str(path))
        self._engine = sa.create_engine(url, connect_args={"timeout": PATIENCE}, max_overflow=-1)
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)
        with self.writing() as connection:
            self._make(connection)
        artefact.fsync_dir(path.parent)

    def _make(self, connection: sa.Connection) -> None:
        _format.create(connection, checkfirst=True)
        found = connection.execute(sa.select(_format.c.version)).scalar_one_or_none()
        if found not in (None, self._version):
            raise ArtefactError(f"{self.path} was written by another version", "use that, or move the file away")
        self._tables.create_all(connection)
        connection.execute(sa.insert(_format).prefix_with("OR IGNORE").values(version=self._version))

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection that reads."""
        with self._trouble(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction of its own: what it changes is durable when the block ends, or nothing."""
        with self._trouble(), self._engine.connect().execution_options(**WRITES) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

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


def add(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the counts of ``rows`` to those of ``table``, row by row of its key."""
    if not rows:
        return
    new = insert(table)
    more = {"count": table.c.count + new.excluded.count}
    asked = new.on_conflict_do_update(index_elements=list(table.primary_key), set_=more)
    connection.execute(asked, list(rows))


def _begin(connection: sa.Connection) -> None:
    """Begin a transaction; in one that writes, what it reads stays true until it has written."""
    writes = connection.get_execution_options().keys() & WRITES.keys()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare(connection: Any, _: object) -> None:
    """Set up a new connection: writers do not stop readers, and what is committed is on the disk."""
    connection.isolation_level = None  # transactions begin where we say
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
