"""What a worker of a big job does: decode a part of the source, or hold a model and turn pixels into vectors.

Both take and give tables. What must stop the job travels as a row too: a cluster would wrap it in errors of its own,
or start a worker again and again. They know nothing about the cluster that calls them, nor about shards.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skumatch import errors
from skumatch.bulk.parts import Picture, described, from_text, read_ahead, reason_of
from skumatch.bulk.rows import PIECE, VECTOR, Fact, fact_columns, vector_column
from skumatch.encoder import Encoder, open_encoder, open_engine
from skumatch.errors import DeviceError, ImageError, SkumatchError, SpecMismatch
from skumatch.spec import Ids, Spec, Vectors

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table

    from skumatch.towers.build import ModelSource

BLOCK = 64  # pictures that a decoding task hands on at a time
PIXELS, PART, START, STOP = "pixels", "part", "start", "stop"
SAME = "install the same skumatch, with its extras, on every machine"
Read = tuple[Fact, bytes | None]  # what is known of a picture, and its pixels, None where it cannot be read


@dataclass(frozen=True)
class Opening:
    """How to open a model, here or on a worker."""

    model: Path | str | ModelSource
    device: str = "auto"
    runtime: str = "auto"
    precision: str | None = "fp32"

    def open(self) -> Encoder:
        """Open it. Raises what ``open_engine`` raises."""
        if isinstance(self.model, (str, Path)):
            return open_engine(self.model, self.device, self.runtime, self.precision)
        return open_encoder(self.model, self.device, self.precision or "fp32")


def decoded(batch: Table, spec: Spec, thumbs: bool, max_pixels: int) -> Iterator[Table]:
    """Yield the pictures of the parts in ``batch``, a block at a time: rows as they travel, pixels for vectors."""
    for row in batch.to_pylist():
        found: list[Read] = []
        place = row[START]
        try:
            for picture, data in read_ahead(from_text(row[PART]).pictures()):
                found.append(_read((row[PIECE], place), picture, data, (spec, thumbs, max_pixels)))
                place += 1
                if len(found) == BLOCK:
                    yield _block(found, spec, thumbs)
                    found = []
        except SkumatchError as error:
            found = [(Fact(row[PIECE], place, "", None), None)]
            yield _block(found, spec, thumbs, error)
            return
        if found:
            yield _block(found, spec, thumbs)


def _read(place: tuple[int, int], picture: Picture, data: bytes | ImageError, how: tuple[Spec, bool, int]) -> Read:
    from skumatch.images import load_pixels

    spec, thumbs, max_pixels = how
    try:
        if isinstance(data, ImageError):
            raise data
        pixels = load_pixels(data, spec, max_pixels)
        sha256, thumb = described(data, thumbs, max_pixels)
        return Fact(*place, picture.source, picture.sku, sha256, None, thumb), pixels.tobytes()
    except ImageError as error:
        return Fact(*place, picture.source, picture.sku, error=reason_of(error, picture.source)), None


def _block(found: list[Read], spec: Spec, thumbs: bool, stop: SkumatchError | None = None) -> Table:
    import pyarrow as pa

    pixels = pa.array([one for _, one in found], pa.binary(3 * spec.size**2))
    stops = pa.array([None if stop is None else _told(stop)] * len(found), pa.string())
    return pa.table({**fact_columns([fact for fact, _ in found], thumbs), PIXELS: pixels, STOP: stops})


class Embedder:
    """Opens the model once and turns pixels into vectors."""

    def __init__(self, opening: Opening, spec: Spec, batch: int) -> None:
        self.spec = spec
        self.batch = batch
        self.opened: Encoder | SkumatchError
        try:
            self.opened = _opened(opening, spec)
        except SkumatchError as error:
            self.opened = error
        except ImportError as error:
            self.opened = DeviceError(f"{socket.gethostname()} lacks a package ({error})", SAME)

    def __call__(self, rows: Table) -> Table:
        """Return ``rows`` with vectors in the place of pixels."""
        import pyarrow as pa

        if isinstance(self.opened, SkumatchError):
            stops = pa.array([_told(self.opened)] * len(rows))
            rows = rows.drop_columns([PIXELS, STOP]).append_column(STOP, stops)
            none = vector_column(np.empty(0, np.int64), np.empty((0, self.spec.dim), np.float32), len(rows))
            return rows.append_column(VECTOR, none)
        good, vectors = self._vectors(rows, self.opened)
        return rows.drop_columns([PIXELS]).append_column(VECTOR, vector_column(good, vectors, len(rows)))

    def _vectors(self, rows: Table, encoder: Encoder) -> tuple[Ids, Vectors]:
        column = rows.column(PIXELS)
        good = np.flatnonzero(column.is_valid().to_numpy())
        raw = column.drop_null().combine_chunks()
        width = raw.type.byte_width
        pixels = np.frombuffer(raw.buffers()[1], np.uint8, len(raw) * width, raw.offset * width)
        pixels = pixels.reshape(-1, 3, self.spec.size, self.spec.size)
        parts = [encoder.encode(pixels[at : at + self.batch]) for at in range(0, len(pixels), self.batch)]
        return good, np.concatenate(parts) if parts else np.empty((0, self.spec.dim), np.float32)


def _opened(opening: Opening, spec: Spec) -> Encoder:
    encoder = opening.open()
    if encoder.spec.digest != spec.digest:
        what = f"the model {opening.model} on {socket.gethostname()} is not the one that was opened here"
        raise SpecMismatch(what, "let all machines see the same model folder")
    return encoder


def _told(error: SkumatchError) -> str:
    return json.dumps([type(error).__name__, error.what, error.todo])


def checked(rows: RecordBatch) -> RecordBatch:
    """Return what a worker gave as rows that travel. Raises what must stop the job."""
    stops = rows.column(STOP).drop_null()
    if len(stops):
        name, what, todo = json.loads(stops[0].as_py())
        raise getattr(errors, name, SkumatchError)(what, todo)
    return rows.drop_columns([STOP])
