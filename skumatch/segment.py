"""Immutable pieces of a gallery: vectors, rows and thumbnails of some reference views, written once.

A segment is a sealed folder named after its content. It knows nothing about versions, tombstones or search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch import artefact, images
from skumatch.errors import ArtefactError, ImageError
from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from pyarrow import Table

MANIFEST = "segment.json"
VECTORS = "vectors.f32"
ROWS = "rows.parquet"
THUMBS = "thumbs.bin"
THUMB_SIDE = 256


@dataclass(frozen=True)
class ViewRow:
    """One reference view: gallery-wide id, SKU, where it came from, and the SHA-256 of its file."""

    id: int
    sku: str
    source: str
    sha256: str


def segment_name(folder: Path) -> str:
    """Return the name of a sealed segment: the start of its manifest's digest, and so of all its content."""
    return artefact.file_digest(folder / MANIFEST)[:20]


def describe(source: Path | bytes, max_pixels: int = images.DEFAULT_MAX_PIXELS) -> tuple[str, bytes]:
    """Return (SHA-256 of the file's bytes, JPEG thumbnail of long side 256). Raises ImageError."""
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = source.read_bytes()
        except OSError as error:
            raise ImageError(f"{source} cannot be read ({error.strerror})", "check the file") from error
    return hashlib.sha256(data).hexdigest(), images.thumbnail(data, THUMB_SIDE, max_pixels)


class SegmentWriter:
    """Streams a segment into an existing empty folder; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        self._schema = pa.schema(
            [
                ("id", pa.int64()),
                ("sku", pa.string()),
                ("source", pa.string()),
                ("sha256", pa.string()),
                ("thumb_start", pa.int64()),
                ("thumb_bytes", pa.int32()),
            ]
        )
        self.folder = folder
        self.count = 0
        with ExitStack() as files:  # closes all of them even where closing one fails on a full disk
            self._vectors = files.enter_context((folder / VECTORS).open("wb"))
            self._thumbs = files.enter_context((folder / THUMBS).open("wb"))
            self._rows = files.enter_context(pq.ParquetWriter(folder / ROWS, self._schema))
            self._files = files.pop_all()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, rows: Sequence[ViewRow], vectors: Vectors, thumbs: Sequence[bytes]) -> None:
        """Append N views: rows, float32 (N, D) unit vectors and JPEG bytes."""
        if not rows:
            return
        starts = [self._thumbs.tell()]
        for thumb in thumbs:
            starts.append(starts[-1] + self._thumbs.write(thumb))
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        columns = [
            [row.id for row in rows],
            [row.sku for row in rows],
            [row.source for row in rows],
            [row.sha256 for row in rows],
            starts[:-1],
            [len(thumb) for thumb in thumbs],
        ]
        self._rows.write_table(self._pa.table(columns, schema=self._schema))
        self.count += len(rows)

    def close(self, dim: int) -> None:
        """Finish the files and seal the folder."""
        self._files.close()
        artefact.seal(self.folder, MANIFEST, {"kind": "segment", "format": 1, "rows": self.count, "dim": dim})


class Segment:
    """A sealed segment, opened for reading."""

    def __init__(self, folder: Path, full: bool = False) -> None:
        """Check digests (all bytes again when ``full``) and read the rows. Raises ArtefactError naming the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder = folder
        facts = artefact.read_manifest(folder, MANIFEST, full)
        if segment_name(folder) != folder.name:
            raise ArtefactError(f"{folder} holds another segment", "restore it from a copy")
        try:
            self.rows: Table = pq.read_table(folder / ROWS).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise ArtefactError(f"{folder / ROWS} is corrupt", "restore it from a copy") from error
        shape = (int(facts["rows"]), int(facts["dim"]))
        if self.rows.num_rows != shape[0] or (folder / VECTORS).stat().st_size != shape[0] * shape[1] * 4:
            raise ArtefactError(f"{folder} holds fewer rows than its manifest says", "restore it from a copy")
        self.vectors: Vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=shape)
        self.ids: Ids = self.rows["id"].to_numpy()
        self._columns = {name: self.rows[name].chunk(0) for name in self.rows.column_names}

    def row(self, position: int) -> ViewRow:
        """Return the view at ``position``."""
        facts = self._facts(position)
        return ViewRow(facts["id"], facts["sku"], facts["source"], facts["sha256"])

    def thumb(self, position: int) -> bytes:
        """Return the JPEG thumbnail of the view at ``position``."""
        facts = self._facts(position)
        with (self.folder / THUMBS).open("rb") as stream:
            stream.seek(facts["thumb_start"])
            return stream.read(facts["thumb_bytes"])

    def _facts(self, position: int) -> dict[str, Any]:
        return {name: column[position].as_py() for name, column in self._columns.items()}
