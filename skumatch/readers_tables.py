"""Rows of a CSV, TSV or Parquet file as text, each with the number to name in a message.

It knows nothing about what the columns mean.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from skumatch.csv_cells import plain_cell
from skumatch.errors import DataError, nearest
from skumatch.readers_common import safe_text, shown

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
Record = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """Column names and a one-pass stream of (line or row number, cells); every record has one cell per column."""

    path: Path
    unit: str  # what the numbers count: "line" of a text file, "row" of a Parquet file
    columns: list[str]
    records: Iterator[Record]

    def column(self, *names: str) -> int:
        """Return the position of the first of ``names`` that is a column, in any letter case. Raises DataError."""
        at = self.find(*names)
        if at is None:
            wanted = " or ".join(f"'{name}'" for name in names)
            near = nearest(names[0], self.columns) or nearest(names[-1], self.columns)
            hint = f"; nearest: {near}" if near else ""
            raise DataError(
                f"{self.where(1) if self.unit == 'line' else shown(self.path)} has no column {wanted}",
                f"name one so; its columns are: {', '.join(self.columns) or 'none'}{hint}",
            )
        return at

    def find(self, *names: str) -> int | None:
        """Return the position of the first of ``names`` that is a column, in any letter case, else None."""
        lower = [column.lower() for column in self.columns]
        return next((lower.index(name) for name in names if name in lower), None)

    def where(self, number: int) -> str:
        """Return file and line for a message."""
        return f"{shown(self.path)}, {self.unit} {number},"


def read_table(path: Path) -> Table:
    """Open a manifest by its suffix: ``.parquet``, ``.tsv`` (tabs), else CSV with commas, semicolons or tabs.

    Text is UTF-8 with or without a byte order mark; other bytes survive as surrogates. Text that stands behind an
    apostrophe lest a spreadsheet runs it comes without (see ``csv_cells``). Raises DataError, here or while
    iterating, for a file that cannot be read, an empty file, a column named twice or a line with too many or few cells.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    records = _text_records(path)
    first = next(records, None)
    if first is None:
        raise DataError(f"{shown(path)} is empty", "its first line must name the columns, for example path,sku,split")
    columns = _checked_columns(path, first[1])
    return Table(path, "line", columns, _same_length(path, columns, records))


def _text_records(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, delimiter=_delimiter(path, stream))
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [plain_cell(cell) if cell[:1] == "'" else cell for cell in cells]
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}", "check the path and its permissions") from error
    except csv.Error as error:
        raise DataError(
            f"{shown(path)} is not a CSV file: {error}", "check for a quote that is opened and never closed"
        ) from error


def _delimiter(path: Path, stream: TextIO) -> str:
    header = stream.readline()
    stream.seek(0)
    if "\0" in header:
        raise DataError(f"{shown(path)} is not UTF-8 text (UTF-16?)", "save it as CSV UTF-8")
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def _same_length(path: Path, columns: Sequence[str], records: Iterator[Record]) -> Iterator[Record]:
    width = len(columns)
    for number, cells in records:
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if len(cells) != width:
            raise DataError(
                f"{shown(path)}, line {number}, has {len(cells)} cells where the header has {width}",
                "put quotes around a cell that holds the separator, and keep empty cells",
            )
        yield number, cells


def _checked_columns(path: Path, cells: Sequence[str]) -> list[str]:
    columns = [safe_text(cell.strip()) for cell in cells]
    twice = next((c for i, c in enumerate(columns) if c and c in columns[:i]), None)
    if twice is not None:
        raise DataError(f"{shown(path)} names the column '{twice}' twice", "rename or remove one of them")
    return columns


def _read_parquet(path: Path) -> Table:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        fields = [field.name for field in file.schema_arrow if _is_plain(arrow.types, field.type)]
    except (OSError, arrow.ArrowException) as error:
        raise DataError(
            f"{shown(path)} is not a readable Parquet file: {_first_line(error)}", "write it anew"
        ) from error
    columns = _checked_columns(path, fields)
    return Table(path, "row", columns, _parquet_records(path, file, fields, arrow.ArrowException))


def _is_plain(types: Any, kind: Any) -> bool:
    # Lists, structs and bytes (pictures kept inside the file) cannot be filtered on and would fill the memory.
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _parquet_records(path: Path, file: Any, fields: list[str], arrow_error: type[Exception]) -> Iterator[Record]:
    number = 0
    try:
        with file:
            for batch in file.iter_batches(batch_size=8192, columns=fields):
                columns = [batch.column(i).to_pylist() for i in range(len(fields))]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, ["" if cell is None else str(cell) for cell in cells]
    except (OSError, arrow_error) as error:
        raise DataError(
            f"{shown(path)} breaks off after row {number}: {_first_line(error)}", "write the file anew"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
