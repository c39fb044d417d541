"""Pictures inside Parquet files: a column of image bytes, or of {bytes, path} as Hugging Face writes them.

It reads row group by row group, 32 rows at a time, and knows nothing about what is made of the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from skumatch.bulk import places
from skumatch.bulk.parts import Group, Picture, Piece, digest_of
from skumatch.errors import DataError, ImageError
from skumatch.readers_common import safe_text

PICTURES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "picture", "photo", "content", "data")
PATHS, NAMES = ("path", "image"), ("sku", "label")
ROWS = 32  # read at a time
BUFFER = 1 << 20  # bytes read ahead, or a whole column of a row group would be in memory


def columns_of(path: str, asked: str | None) -> tuple[str, str | None] | None:
    """Return (column of image bytes, column of SKUs or None) of a file, None where it holds no image bytes.

    ``asked`` must be a column of image bytes. Raises DataError for that and for a file that is no Parquet.
    """
    with _file(path) as file:
        schema = file.schema_arrow
        holding = [field.name for field in schema if _holds_bytes(field.type)]
        lower = {name.lower(): name for name in schema.names}
        sku = next((lower[name] for name in NAMES if name in lower), None)
    if asked is not None:
        if asked not in holding:
            there = f"those that do: {', '.join(holding)}" if holding else "no column does"
            raise DataError(f"{safe_text(path)}: column '{asked}' holds no image bytes", there)
        return asked, sku
    by_name = {name.lower(): name for name in holding}
    named = next((by_name[name] for name in PICTURES if name in by_name), None)
    if named is None and len(holding) > 1 and not _names_pictures(schema):
        what = f"{safe_text(path)} has several columns of bytes: {', '.join(holding)}"
        raise DataError(what, "name the one with pictures with --column")
    if named is None and _names_pictures(schema):
        return None  # whatever its bytes are, it is a manifest
    found = named or next(iter(holding), None)
    return None if found is None else (found, None if sku == found else sku)


def pieces_of(number: int, path: str, stamp: str, asked: str | None, shard_rows: int) -> Iterator[Piece]:
    """Yield the pieces of a file from ``number`` on: whole row groups, together at most ``shard_rows`` rows or one.

    Raises DataError for a file that is no Parquet or holds no image bytes.
    """
    columns = columns_of(path, asked)
    if columns is None:
        raise DataError(f"{safe_text(path)} has no column of image bytes", "take it out, or name a manifest's columns")
    waiting: list[Group] = []
    for group in _groups(path, *columns):
        if waiting and sum(one.rows for one in waiting) + group.rows > shard_rows:
            yield _piece(number, waiting, stamp)
            number, waiting = number + 1, []
        waiting.append(group)
    if waiting:
        yield _piece(number, waiting, stamp)


def rows_of(path: str) -> int:
    """Return the number of rows of a file. Raises DataError."""
    with _file(path) as file:
        return int(file.metadata.num_rows)


def _groups(path: str, column: str, sku: str | None) -> list[Group]:
    with _file(path) as file:
        counts = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
    both = enumerate(zip(accumulate(counts, initial=0), counts, strict=False))
    return [Group(path, column, sku, at, first, rows) for at, (first, rows) in both if rows]


def _piece(number: int, groups: list[Group], stamp: str) -> Piece:
    first = groups[0].first
    facts = [word for one in groups for word in (one.path, one.column, one.sku, one.group, one.rows)]
    starts = tuple(one.first - first for one in groups)
    rows = sum(one.rows for one in groups)
    return Piece(number, digest_of(stamp, *facts), rows, tuple(groups), starts)


def group_pictures(part: Group) -> Iterator[Picture]:
    """Yield the pictures of a row group; each is called ``FILE#ROW``, rows counted from 0.

    Where the file is broken, the rows that are left say so. Raises DataError when it cannot be opened or a network
    fails.
    """
    import pyarrow as pa

    shown, done = safe_text(part.path), 0
    columns = [part.column] + ([part.sku] if part.sku else [])
    with _file(part.path) as file:
        try:
            for batch in file.iter_batches(ROWS, row_groups=[part.group], columns=columns):
                skus = batch.column(part.sku).to_pylist() if part.sku else [None] * len(batch)
                for cell, sku in zip(batch.column(part.column).to_pylist(), skus, strict=True):
                    yield Picture(f"{shown}#{part.first + done}", _text(sku), _data(cell))
                    done += 1
        except (pa.ArrowException, OSError) as error:
            why = ImageError(f"the file is broken here ({_first_line(error)})", "write it anew")
            for row in range(part.first + done, part.first + part.rows):
                yield Picture(f"{shown}#{row}", None, why)


@contextmanager
def _file(path: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    with places.opened(path) as stream:
        try:
            file = parquet.ParquetFile(stream, buffer_size=BUFFER)
        except (pa.ArrowException, OSError) as error:
            what = f"{safe_text(path)} is not a readable Parquet file ({_first_line(error)})"
            raise DataError(what, "write it anew, or take it out") from error
        with file:
            yield file


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _names_pictures(schema: Any) -> bool:
    import pyarrow as pa

    return any(field.name.lower() in PATHS and pa.types.is_string(field.type) for field in schema)


def _data(cell: Any) -> bytes | ImageError:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else ImageError("no image bytes in this row", "write them into the file")


def _text(sku: Any) -> str | None:
    return safe_text(str(sku)).strip() or None if isinstance(sku, (str, int)) else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
