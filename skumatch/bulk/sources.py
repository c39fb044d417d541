"""What a big job reads: from what a user names to pieces, in the same order each time, a few at a time.

A source is a folder of pictures, tar archives or Parquet files, a manifest (a table that names pictures), one such
file, or a pattern (``part-{000000..000099}.tar``, ``photos/*.jpg``); all of it local or behind a URL. It lists files
and reads tables, but opens no picture.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal

from skumatch.bulk import parquet, tar
from skumatch.bulk.parts import Piece, Tar, digest_of, files_piece
from skumatch.bulk.places import (
    Found,
    absolute,
    base_name,
    exists,
    is_folder,
    is_url,
    joined,
    listed,
    matching,
    stamp_of,
)
from skumatch.bulk.places import opened as opened_place
from skumatch.errors import ConfigError, DataError
from skumatch.readers_common import is_picture, safe_text
from skumatch.readers_tables import Table, read_table

SHARD_ROWS = 8192
Kind = Literal["pictures", "tar", "parquet", "manifest"]
_PLURAL = {"pictures": "pictures", "tar": "tar archives", "parquet": "Parquet files"}
_READABLE = "give pictures (.jpg, .jpeg, .png, .webp), .tar archives, .parquet files, or a .csv or .tsv manifest"
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 10_000_000  # names that one pattern may spell out
Item = tuple[str, str | None, str | None]  # path, SKU, stamp


@dataclass(frozen=True)
class BulkOptions:
    """How a source is cut and read. ``shard_rows``: pictures per shard; ``column``: the Parquet column of image bytes;
    ``sku_from``: "folder" makes the name of a picture's folder its SKU; ``thumbs``: keep a JPEG of long side 256;
    ``restart``: remove what an earlier job has written first."""

    shard_rows: int = SHARD_ROWS
    column: str | None = None
    sku_from: str = ""
    thumbs: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"{self.shard_rows} rows per shard are out of range", "give at least 1")
        if self.sku_from not in ("", "folder"):
            raise ConfigError(f"unknown --sku-from '{self.sku_from}'", "choose folder, or leave it out")


@dataclass(frozen=True)
class Plan:
    """A source that can be read: ``pieces`` yields them anew, in the same order, each time; ``count`` says how many
    pictures there are where that takes no reading of them, else None."""

    source: str
    kind: Kind
    pieces: Callable[[], Iterator[Piece]]
    count: Callable[[], int | None]


def plan_of(source: str, options: BulkOptions) -> Plan:
    """Return how ``source`` is read. Raises DataError for nothing readable or a mixture, here or when it comes to it,
    ConfigError for an option that it does not go with."""
    path = absolute(source)
    if path.lower().endswith((".csv", ".tsv")) or _is_manifest(path, options):
        kind: Kind = "manifest"
        plan = Plan(path, kind, lambda: _manifest_pieces(path, options), lambda: _manifest_count(path))
    else:
        files = _files_of(path, source)
        first = next(files(), None)
        if first is None:
            raise DataError(f"nothing to embed in {safe_text(source)}", _READABLE)
        kind = _kind(first.path) or "pictures"
        plan = Plan(path, kind, lambda: _pieces(kind, files(), options), lambda: _count(kind, path, files))
    if options.column is not None and kind != "parquet":
        raise ConfigError("--column goes with Parquet files of image bytes alone", "leave it out")
    if options.sku_from and kind != "pictures":
        raise ConfigError("--sku-from folder goes with folders of pictures alone", "leave it out")
    return plan


def _is_manifest(path: str, options: BulkOptions) -> bool:
    """Return whether ``path`` is a Parquet file that names pictures in place of holding them."""
    if not path.lower().endswith(".parquet") or _has_magic(path) or options.column is not None:
        return False
    return exists(path) and not is_folder(path) and parquet.columns_of(path, None) is None


def _kind(path: str) -> Kind | None:
    """Return what a file is by its name, None for what is not read."""
    name = base_name(path).lower()
    if name.startswith("."):
        return None
    if name.endswith(tar.SUFFIXES):
        return "tar"
    return "parquet" if name.endswith(".parquet") else "pictures" if is_picture(name) else None


def _files_of(path: str, source: str) -> Callable[[], Iterator[Found]]:
    """Return what lists the files of a source, of one kind. Raises DataError where there is nothing of that name."""
    if _has_magic(path) and (is_url(path) or not exists(path)):
        return lambda: _alike(_readable(Found(name) for one in _spelt(path) for name in _matches(one)), source)
    if is_folder(path):
        return lambda: _alike(_walk(path), source)
    if not exists(path):
        raise DataError(f"{safe_text(source)} does not exist", "check the path or address")
    if _kind(path) is None:
        raise DataError(f"{safe_text(source)} is nothing that can be embedded", _READABLE)
    return lambda: iter([Found(path)])


def _walk(folder: str) -> Iterator[Found]:
    """Yield what can be read below ``folder``: its own files in name order, then its folders' in name order."""
    folders, files = listed(folder)
    yield from list(_alike(_readable(files), folder))  # a mixture in one folder is found before any work
    for inner in folders:
        yield from _walk(inner)


def _readable(files: Iterable[Found]) -> Iterator[Found]:
    return (file for file in files if _kind(file.path) is not None)


def _alike(files: Iterator[Found], source: str) -> Iterator[Found]:
    """Yield the files. Raises DataError at the first of another kind."""
    first: Kind | None = None
    for file in files:
        kind = _kind(file.path)
        first = first or kind
        if kind != first:
            what = f"{safe_text(source)} holds both {_PLURAL[str(first)]} and {_PLURAL[str(kind)]}"
            raise DataError(what, "name one of them, with a pattern such as 'DIR/*.tar'")
        yield file


def _has_magic(path: str) -> bool:
    return any(sign in path for sign in "*?[{")


def _matches(pattern: str) -> list[str]:
    return matching(pattern) if any(sign in pattern for sign in "*?[") else [pattern]


def _spelt(pattern: str) -> Iterator[str]:
    """Yield what the braces of ``pattern`` stand for: ``{000..099}`` and ``{a,b}``, as shells have it."""
    found = _BRACE.search(pattern)
    if found is None:
        yield pattern
        return
    head, tail = pattern[: found.start()], pattern[found.end() :]
    numbers = _RANGE.fullmatch(found[1])
    if numbers is None and "," not in found[1]:  # braces that stand for themselves
        yield from (f"{head}{{{found[1]}}}{rest}" for rest in _spelt(tail))
        return
    for middle in _numbers(*numbers.groups()) if numbers else found[1].split(","):
        yield from (f"{head}{middle}{rest}" for rest in _spelt(tail))


def _numbers(first: str, last: str) -> Iterator[str]:
    if int(last) - int(first) > _MOST:
        raise DataError(f"{{{first}..{last}}} stands for too many names", f"name at most {_MOST:,}")
    return (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))


def _pieces(kind: Kind, files: Iterator[Found], options: BulkOptions) -> Iterator[Piece]:
    if kind == "pictures":
        yield from _cut(((file.path, _sku_of(file.path, options), file.stamp) for file in files), options.shard_rows)
        return
    number = 0
    for file in files:
        stamp = file.stamp or stamp_of(file.path)
        if kind == "tar":
            made: Iterable[Piece] = [Piece(number, digest_of(file.path, stamp), None, (Tar(file.path),), (0,))]
        else:
            made = parquet.pieces_of(number, file.path, stamp, options.column, options.shard_rows)
        for piece in made:
            yield piece
            number += 1


def _sku_of(path: str, options: BulkOptions) -> str | None:
    if options.sku_from != "folder":
        return None
    return safe_text(base_name(path.rpartition("/")[0])) or None


def _cut(items: Iterator[Item], shard_rows: int) -> Iterator[Piece]:
    for number in count():
        some = list(islice(items, shard_rows))
        if not some:
            return
        stamps = [_stamp(path) if stamp is None else stamp for path, _, stamp in some]
        yield files_piece(number, ((path, sku) for path, sku, _ in some), stamps)


def _stamp(path: str) -> str:
    """Return the stamp of a picture, missing ones too; asking a store for each takes too long."""
    try:
        return "" if is_url(path) else stamp_of(path)
    except DataError:
        return "missing"


def _count(kind: Kind, path: str, files: Callable[[], Iterator[Found]]) -> int | None:
    if is_url(path) or kind == "tar":
        return None
    return sum(1 for _ in files()) if kind == "pictures" else sum(parquet.rows_of(one.path) for one in files())


def _manifest_pieces(path: str, options: BulkOptions) -> Iterator[Piece]:
    with _table(path) as table:
        yield from _cut(_named(path, table), options.shard_rows)


def _named(path: str, table: Table) -> Iterator[Item]:
    picture, sku = table.column(*parquet.PATHS), table.find(*parquet.NAMES)
    base = path.rpartition("/")[0]
    for number, cells in table.records:
        name = cells[picture]
        if not name.strip() or "\0" in name:
            raise DataError(f"{table.where(number)} has no usable path", "give the picture's path, or remove the line")
        text = "" if sku is None else safe_text(cells[sku].strip())
        yield joined(base, name), text or None, None


def _manifest_count(path: str) -> int | None:
    if is_url(path):
        return None
    with _table(path) as table:
        return sum(1 for _ in table.records)


@contextmanager
def _table(path: str) -> Iterator[Table]:
    """Open a manifest; a remote one is copied to this machine while it is read."""
    if not is_url(path):
        yield read_table(Path(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(os.fspath(base_name(path))).name
        with opened_place(path) as stream, copy.open("wb") as there:
            shutil.copyfileobj(stream, there)
        yield read_table(copy)


def first_of(plan: Plan) -> Iterator[Piece]:
    """Yield the pieces of ``plan``. Raises DataError where there is none."""
    pieces = plan.pieces()
    first = next(pieces, None)
    if first is None:
        raise DataError(f"nothing to embed in {safe_text(plan.source)}", _READABLE)
    return chain([first], pieces)
