"""Match results as CSV, JSON lines or Parquet, streamed to a temporary file that takes its name when complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from skumatch import artefact
from skumatch.csv_cells import safe_cell
from skumatch.errors import ConfigError
from skumatch.match import CropMatches
from skumatch.readers import safe_text

COLUMNS = ("crop", "rank", "sku", "score", "view", "decision", "probability", "error")
SUFFIXES = (".csv", ".jsonl", ".parquet")
Record = dict[str, Any]


def records(found: CropMatches) -> list[Record]:
    """Return one record per answer; for an unreadable crop a single one with its error and decision "error"."""
    crop = os.fspath(found.crop) if isinstance(found.crop, (str, Path)) else "<image>"
    if not found.matches:
        error = found.error.what if found.error else "no SKU in the gallery"
        return [_record(crop, None, "", None, "", "error", None, error)]
    return [_record(crop, m.rank, m.sku, m.score, m.source, m.decision, m.probability, "") for m in found.matches]


def _record(*values: Any) -> Record:
    return dict(zip(COLUMNS, values, strict=True))


class Writer(Protocol):
    """Takes records in order."""

    def write(self, rows: Sequence[Record]) -> None:
        """Append ``rows``."""
        ...

    def flush(self) -> None:
        """Hand what is complete to the operating system."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


class CsvWriter:
    """Comma-separated lines under a header; undecodable bytes in paths come out as they were, formulas as text."""

    def __init__(self, stream: IO[str], header: bool = True) -> None:
        self.stream = stream
        self.table = csv.writer(stream, lineterminator="\n")
        if header:
            self.table.writerow(COLUMNS)

    def write(self, rows: Sequence[Record]) -> None:
        """Append ``rows``; scores and probabilities with six decimals, nothing for what is absent."""
        for row in rows:
            self.table.writerow([_cell(row[column]) for column in COLUMNS])

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Flush; the stream belongs to the caller."""
        self.stream.flush()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return safe_cell(value)
    return f"{value:.6f}" if isinstance(value, float) else value


class JsonWriter:
    """One JSON object per line."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, rows: Sequence[Record]) -> None:
        """Append ``rows``."""
        self.stream.writelines(json.dumps(row) + "\n" for row in rows)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Flush; the stream belongs to the caller."""
        self.stream.flush()


class ParquetWriter:
    """A Parquet file in row groups of about 50,000 records; undecodable bytes are escaped (Parquet is UTF-8)."""

    GROUP = 50_000

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {"rank": pa.int32(), "score": pa.float32(), "probability": pa.float32()}
        self._pa = pa
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
        self._file = pq.ParquetWriter(path, self._schema)
        self._waiting: list[Record] = []

    def write(self, rows: Sequence[Record]) -> None:
        """Append ``rows``."""
        self._waiting += [{**row, "crop": safe_text(row["crop"])} for row in rows]
        if len(self._waiting) >= self.GROUP:
            self.flush()

    def close(self) -> None:
        """Write the last group and the footer."""
        self.flush()
        self._file.close()

    def flush(self) -> None:
        """Write the waiting records as a row group."""
        if self._waiting:
            self._file.write_table(self._pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []


class ResultFile:
    """Context manager over a result file: complete under its name, or absent and an older one untouched."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a suffix other than .csv, .jsonl and .parquet."""
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"{path} does not end in {', '.join(SUFFIXES)}", "name the format by the suffix")
        self.path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._stream: IO[str] | None = None
        self._writer: Writer

    def __enter__(self) -> ResultFile:
        with artefact.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.suffix == ".parquet":
                self._writer = ParquetWriter(self._part)
            else:
                kind = CsvWriter if self.path.suffix == ".csv" else JsonWriter
                self._stream = self._part.open("w", encoding="utf-8", errors="surrogateescape", newline="")
                self._writer = kind(self._stream)
        return self

    def write(self, rows: Sequence[Record]) -> None:
        """Append ``rows``. Raises ArtefactError when the disk refuses."""
        with artefact.disk_errors(self.path):
            self._writer.write(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with artefact.disk_errors(self.path):
                try:
                    self._writer.close()
                finally:
                    if self._stream is not None:
                        self._stream.close()
                if kind is None:
                    self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
