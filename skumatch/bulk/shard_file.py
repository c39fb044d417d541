"""One shard: a Parquet file that is written beside its place, and says of itself what it was made from.

It knows nothing about the folder that it lies in.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from skumatch import artefact
from skumatch.bulk.parts import Piece
from skumatch.bulk.rows import AT, ROW, THUMB, VECTOR
from skumatch.errors import GalleryError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

FOOTER = b"skumatch"
FLUSH = 2048  # rows of a row group
NAMED = 5  # unreadable pictures of which a shard remembers the names while it is written


@dataclass(frozen=True)
class Shard:
    """A finished shard. ``piece``: digest of what it was made from; ``first``: its first row's number; of its ``rows``
    so many are ``unreadable`` or readable ``without_sku``."""

    piece: str
    first: int
    rows: int
    unreadable: int
    without_sku: int


def read_shard(path: Path) -> Shard | None:
    """Return what a shard says of itself, None where there is none or it is damaged: it is then made again."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as stream:
            said = parquet.read_metadata(stream)
        found = Shard(**json.loads(said.metadata[FOOTER]))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    return found if found.rows == said.num_rows else None


class ShardFile:
    """A shard that is being written beside its place."""

    def __init__(self, path: Path, piece: Piece, first: int, schema: Any) -> None:
        from pyarrow import parquet

        self.count = 0
        self.failures: list[str] = []
        self._path, self._piece, self._first, self._schema = path, piece, first, schema
        self._unreadable = self._without_sku = 0
        self._pending: list[RecordBatch] = []
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with artefact.disk_errors(path):
            self._stream: IO[bytes] = self._temporary.open("wb")
        leaves = [name if name != VECTOR else f"{VECTOR}.list.element" for name in schema.names]
        packed = {name: "none" if name.startswith((VECTOR, THUMB)) else "zstd" for name in leaves}
        self._file = parquet.ParquetWriter(self._stream, schema, compression=packed, use_dictionary=["sku", "error"])

    def add(self, rows: RecordBatch) -> None:
        """Append rows of this piece."""
        import numpy as np
        import pyarrow as pa

        places = rows.column(AT).to_numpy()
        if not np.array_equal(places, np.arange(self.count, self.count + len(rows))):
            raise GalleryError(f"rows of {self._path.name} are missing or came twice", "report this as a bug")
        columns = {name: rows.column(name) for name in self._schema.names if name != ROW}
        columns[ROW] = pa.array(places + self._first)
        self._pending.append(pa.RecordBatch.from_pydict(columns, schema=self._schema))
        self._tally(rows)
        self.count += len(rows)
        if sum(len(batch) for batch in self._pending) >= FLUSH:
            self._flush()

    def _tally(self, rows: RecordBatch) -> None:
        import pyarrow.compute as pc

        failed = rows.column("error").is_valid()
        self._unreadable += len(rows) - rows.column("error").null_count
        self._without_sku += int(pc.sum(pc.and_(pc.invert(failed), rows.column("sku").is_null())).as_py() or 0)
        for row in rows.filter(failed).slice(0, NAMED - len(self.failures)).select(["source", "error"]).to_pylist():
            self.failures.append(f"{row['source']}: {row['error']}")

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            with artefact.disk_errors(self._path):
                self._file.write_table(pa.Table.from_batches(self._pending))
            self._pending = []

    def publish(self) -> Shard:
        """Finish the file and give it its name."""
        made = Shard(self._piece.digest, self._first, self.count, self._unreadable, self._without_sku)
        try:
            self._flush()
            with artefact.disk_errors(self._path):
                self._file.add_key_value_metadata({FOOTER: json.dumps(asdict(made)).encode()})
                self._file.close()
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._temporary.replace(self._path)
                artefact.fsync_dir(self._path.parent)
        except BaseException:
            self.drop()
            raise
        return made

    def drop(self) -> None:
        """Remove the unfinished file."""
        for closing in (self._file, self._stream):
            with contextlib.suppress(OSError):  # it is thrown away, from a full disk perhaps
                closing.close()
        self._temporary.unlink(missing_ok=True)
