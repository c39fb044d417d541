"""Immutable pieces of a gallery: vectors, rows and thumbnails of some reference views, written once.

    segments/<digest>/segment.json    number of rows, width, digests of the files below
                      vectors.f32     little-endian float32, one unit row per view
                      codes.i32       per view the place of its SKU in skus.arrow
                      skus.arrow      names of the SKUs, each once
                      rows.arrow      source, SHA-256 of the file, place of the thumbnail; blocks of 4,096 rows
                      thumbs.bin      JPEG thumbnails, one after the other
                      ids.i64         ids of the views; absent where a version numbers them in a row

A segment is named after its content. It knows nothing about versions, tombstones or search.
"""

from __future__ import annotations

import hashlib
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skumatch import arrow, artefact, images
from skumatch.errors import ArtefactError, GalleryError, ImageError
from skumatch.readers_common import safe_text
from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch

MANIFEST = "segment.json"
VECTORS, CODES, SKUS, ROWS, THUMBS, IDS = (
    "vectors.f32",
    "codes.i32",
    "skus.arrow",
    "rows.arrow",
    "thumbs.bin",
    "ids.i64",
)
FORMAT = 2
THUMB_SIDE = 256
BLOCK = 4096  # rows in a batch of rows.arrow
LENGTH_OFF = 0.01  # how far the length of a vector may be from 1
COPY = "restore it from a copy"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class ViewRow:
    """One reference view: gallery-wide id, SKU, where it came from, and the SHA-256 of its file ("" if unknown)."""

    id: int
    sku: str
    source: str
    sha256: str


@dataclass(frozen=True)
class NewView:
    """A view to be added: SKU, where it came from, SHA-256 of its file, JPEG thumbnail, unit vector (D,)."""

    sku: str
    source: str
    sha256: str
    thumb: bytes
    vector: Vectors


@dataclass(frozen=True)
class Views:
    """N views by column: ``vectors`` float32 (N, D), ``thumbs`` JPEG bytes; ``ids`` int64 (N,) where they have them
    already."""

    skus: list[str]
    sources: list[str]
    sha256: list[str]
    thumbs: list[bytes]
    vectors: Vectors
    ids: Ids | None = None

    def __len__(self) -> int:
        return len(self.skus)


def columns(views: Sequence[NewView], dim: int) -> Views:
    """Return ``views`` by column.

    Raises GalleryError for a vector that is not finite, of unit length and ``dim``, for text that is not Unicode and
    for a SHA-256 that is none.
    """
    for view in views:
        _require_fit(view, dim)
    rows = np.stack([view.vector for view in views]) if views else np.empty((0, dim), np.float32)
    return Views(
        [view.sku for view in views],
        [view.source for view in views],
        [view.sha256 for view in views],
        [view.thumb for view in views],
        rows.astype(np.float32, copy=False),
    )


def _require_fit(view: NewView, dim: int) -> None:
    """Raise GalleryError for a view that cannot be stored, or not be found again."""
    named = safe_text(view.source or view.sku)
    vector = np.asarray(view.vector)
    off = abs(float(np.linalg.norm(vector)) - 1) if vector.shape == (dim,) else np.inf
    if not off <= LENGTH_OFF:
        raise GalleryError(
            f"the vector of {named} is not one of unit length and {dim} numbers",
            "scale it to length 1, and use the encoder that the gallery was built with",
        )
    if any(safe_text(text) != text for text in (view.sku, view.source)):
        raise GalleryError(f"the SKU or source of {named} holds bytes that are not UTF-8", "rename it")
    if view.sha256 and not _SHA256.fullmatch(view.sha256):
        raise GalleryError(f"the SHA-256 of {named} is not 64 hex digits", "leave it empty where it is not known")


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
    """Streams a segment into an existing empty folder; use as a context manager.

    ``with_ids``: every batch of views brings its ids.
    """

    def __init__(self, folder: Path, dim: int, with_ids: bool = False) -> None:
        self.folder = folder
        self.dim = dim
        self.with_ids = with_ids
        self.count = 0
        self._code_of: dict[str, int] = {}
        self._pending: list[tuple[Any, ...]] = []
        with ExitStack() as files:  # closes all of them even where closing one fails on a full disk
            names = (VECTORS, CODES, THUMBS, *((IDS,) if with_ids else ()))
            self._raw = {name: files.enter_context((folder / name).open("wb")) for name in names}
            self._rows = files.enter_context(_arrow_writer(folder / ROWS, _row_schema()))
            self._files = files.pop_all()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, views: Views) -> None:
        """Append views. Raises GalleryError when ids are missing or not wanted, or vectors have another width."""
        if not len(views):
            return
        if views.vectors.shape != (len(views), self.dim) or (views.ids is not None) != self.with_ids:
            raise GalleryError(f"vectors are {views.vectors.shape}, ids {views.ids}", "report this as a bug")
        start = self._raw[THUMBS].tell()
        self._raw[THUMBS].write(b"".join(views.thumbs))
        self._raw[VECTORS].write(np.ascontiguousarray(views.vectors, "<f4").tobytes())
        codes = [self._code_of.setdefault(sku, len(self._code_of)) for sku in views.skus]
        self._raw[CODES].write(np.array(codes, "<i4").tobytes())
        if views.ids is not None:
            self._raw[IDS].write(np.ascontiguousarray(views.ids, "<i8").tobytes())
        lengths = [len(thumb) for thumb in views.thumbs]
        starts = (start + np.concatenate([[0], np.cumsum(lengths)[:-1]])).tolist()
        digests = [bytes.fromhex(digest) or None for digest in views.sha256]
        self._pending += zip(views.sources, digests, starts, lengths, strict=True)
        self._flush(BLOCK)
        self.count += len(views)

    def _flush(self, least: int) -> None:
        """Write waiting rows in blocks; all but the last block of a file have the same length."""
        import pyarrow as pa

        while self._pending and len(self._pending) >= least:
            block, self._pending = self._pending[:BLOCK], self._pending[BLOCK:]
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*block, strict=True), _row_schema(), strict=True)
            ]
            self._rows.write_batch(pa.record_batch(arrays, schema=_row_schema()))

    def close(self) -> None:
        """Finish the files and seal the folder."""
        import pyarrow as pa

        self._flush(1)
        self._files.close()
        schema = pa.schema([("sku", pa.string())])
        with _arrow_writer(self.folder / SKUS, schema) as names:
            names.write_batch(pa.record_batch([pa.array(list(self._code_of), pa.string())], schema=schema))
        artefact.seal(self.folder, MANIFEST, {"kind": "segment", "format": FORMAT, "rows": self.count, "dim": self.dim})


class Segment:
    """A sealed segment, opened for reading; vectors and rows stay on disk, mapped into memory."""

    def __init__(self, folder: Path, full: bool = False) -> None:
        """Check digests (all bytes again when ``full``) and open the files. Raises ArtefactError naming the file."""
        self.folder = folder
        facts = artefact.read_manifest(folder, MANIFEST, full)
        if segment_name(folder) != folder.name:
            raise ArtefactError(f"{folder} holds another segment", COPY)
        if facts.get("format") != FORMAT:
            raise GalleryError(f"{folder} was written by another version", "build the gallery again")
        self.rows, self.dim = int(facts["rows"]), int(facts["dim"])
        self.vectors: Vectors = np.memmap(self._sized(VECTORS, 4 * self.dim), "<f4", "r", shape=(self.rows, self.dim))
        self.codes: NDArray[np.int32] = np.fromfile(self._sized(CODES, 4), "<i4")
        self.own_ids: Ids | None = np.fromfile(self._sized(IDS, 8), "<i8") if IDS in facts["files"] else None
        # all files are open from the start, so that the segment stays readable after a prune
        self._thumbs = os.open(folder / THUMBS, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._thumbs)
        self._arrow = {name: arrow.mapped(folder / name) for name in (SKUS, ROWS)}

    def _sized(self, name: str, width: int) -> Path:
        path = self.folder / name
        if path.stat().st_size != self.rows * width:
            raise ArtefactError(f"{path} holds another number of rows than {MANIFEST} says", COPY)
        return path

    @cached_property
    def names(self) -> Array:
        """Names of the SKUs, an Arrow array of strings."""
        return self._blocks(SKUS)[0].column(0)

    @cached_property
    def _row_blocks(self) -> list[RecordBatch]:
        blocks = self._blocks(ROWS)
        if sum(len(block) for block in blocks) != self.rows or any(len(block) != BLOCK for block in blocks[:-1]):
            raise ArtefactError(f"{self.folder / ROWS} holds another number of rows than {MANIFEST} says", COPY)
        return blocks

    def _blocks(self, name: str) -> list[RecordBatch]:
        import pyarrow as pa

        try:
            reader = pa.ipc.open_file(self._arrow[name])
            return [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise ArtefactError(f"{self.folder / name} is corrupt", COPY) from error

    def sku(self, position: int) -> str:
        """Return the SKU of the view at ``position``."""
        return str(self.names[int(self.codes[position])].as_py())

    def source(self, position: int) -> str:
        """Return where the view at ``position`` came from."""
        return str(self._cell("source", position))

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of the file of the view at ``position``, "" if unknown."""
        return (self._cell("sha256", position) or b"").hex()

    def thumb(self, position: int) -> bytes:
        """Return the JPEG thumbnail of the view at ``position``."""
        return os.pread(self._thumbs, self._cell("thumb_bytes", position), self._cell("thumb_start", position))

    def _cell(self, name: str, position: int) -> Any:
        return self._row_blocks[position // BLOCK].column(name)[position % BLOCK].as_py()

    def sha_words(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each view's SHA-256 as a number, 0 where it is unknown."""
        found = np.zeros(self.rows, np.uint64)
        for number, block in enumerate(self._row_blocks):
            digests = block.column("sha256").fill_null(bytes(32))
            raw = np.frombuffer(digests.buffers()[1], np.uint8).reshape(-1, 32)
            raw = raw[digests.offset : digests.offset + len(digests)]
            start = number * BLOCK
            found[start : start + len(raw)] = np.ascontiguousarray(raw[:, :8]).view("<u8")[:, 0]
        return found

    def read(self, positions: NDArray[np.int64], ids: Ids) -> Iterator[Views]:
        """Yield the views at ``positions`` under ``ids``, as they are stored, up to 4,096 at a time."""
        for start in range(0, len(positions), BLOCK):
            some = positions[start : start + BLOCK]
            places = some.tolist()
            yield Views(
                [self.sku(place) for place in places],
                [self.source(place) for place in places],
                [self.sha256(place) for place in places],
                [self.thumb(place) for place in places],
                np.asarray(self.vectors[some]),
                ids[start : start + BLOCK],
            )


def _row_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("source", pa.string()),
            ("sha256", pa.binary(32)),
            ("thumb_start", pa.int64()),
            ("thumb_bytes", pa.int32()),
        ]
    )


@contextmanager
def _arrow_writer(path: Path, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    with path.open("wb") as stream, pa.ipc.new_file(stream, schema) as writer:  # Arrow takes no name but in UTF-8
        yield writer
