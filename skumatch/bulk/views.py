"""What ``skumatch embed`` wrote, read for a gallery: its encoder, and its rows as reference views.

It knows nothing about what becomes of the views.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch import artefact
from skumatch.bulk.rows import THUMB, VECTOR
from skumatch.bulk.shards import DONE, FORMAT, JOB, shard_name
from skumatch.errors import ArtefactError, GalleryError, ModelError
from skumatch.segment import Views
from skumatch.spec import Spec

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BLOCK = 4096  # rows at a time
AGAIN = "run the same `skumatch embed` again, with --restart where a shard is damaged"


@dataclass(frozen=True)
class LeftOut:
    """Rows that are no reference views: pictures that could not be read, and readable ones without a SKU."""

    unreadable: int
    without_sku: int


def is_embedded(folder: Path) -> bool:
    """Return whether ``folder`` is one that ``skumatch embed`` writes or wrote."""
    return (folder / JOB).is_file()


def embedded_spec(folder: Path) -> Spec:
    """Return the encoder of a finished folder after checking the digest of every file in it.

    Raises GalleryError when it is unfinished, damaged or something else.
    """
    _checked(folder)
    try:
        return Spec.from_json(json.loads((folder / JOB).read_text(encoding="utf-8"))["spec"])
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        raise GalleryError(f"{folder / JOB} is corrupt", AGAIN) from None


def left_out(folder: Path) -> LeftOut:
    """Return how many rows ``embedded_views`` leaves out. Raises GalleryError as ``embedded_spec``."""
    said = _checked(folder)
    return LeftOut(int(said["unreadable"]), int(said["without_sku"]))


def embedded_views(folder: Path) -> Iterator[Views]:
    """Yield the readable rows with a SKU, in order, up to 4,096 at a time; thumbnails are b"" where there are none.

    Raises GalleryError as ``embedded_spec``.
    """
    from pyarrow import parquet

    dim = embedded_spec(folder).dim
    for number in range(int(_document(folder)["shards"])):
        with (folder / shard_name(number)).open("rb") as stream, parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches(BLOCK):
                views = _views(batch, dim)
                if len(views):
                    yield views


def _views(batch: RecordBatch, dim: int) -> Views:
    import pyarrow.compute as pc

    kept = batch.filter(pc.and_(batch.column("sku").is_valid(), batch.column("error").is_null()))
    texts = [kept.column(name).to_pylist() for name in ("sku", "source", "sha256")]
    thumbs = kept.column(THUMB).to_pylist() if THUMB in kept.schema.names else [b""] * len(kept)
    vectors = kept.column(VECTOR).flatten().to_numpy().reshape(-1, dim)
    blobs = [thumb or b"" for thumb in thumbs]
    return Views(texts[0], texts[1], texts[2], blobs, np.array(vectors, np.float32))


def _checked(folder: Path) -> dict[str, Any]:
    said = _document(folder)
    try:
        named = {JOB, *(shard_name(number) for number in range(int(said["shards"])))}
        if set(said["files"]) != named:
            raise GalleryError(f"{folder / DONE} is corrupt", AGAIN)
        for name, facts in said["files"].items():
            artefact.verify_file(folder / name, int(facts["bytes"]), str(facts["sha256"]))
    except ArtefactError as error:
        raise GalleryError(error.what, AGAIN) from error
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GalleryError(f"{folder / DONE} is corrupt", AGAIN) from None
    return said


def _document(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"{folder} is not finished" if is_embedded(folder) else f"{folder} was not written by `skumatch embed`"
        raise GalleryError(what, AGAIN) from None
    except (OSError, ValueError):
        raise GalleryError(f"{folder / DONE} is corrupt", AGAIN) from None
    if not isinstance(said, dict) or said.get("format") != FORMAT or not {"shards", "files"} <= set(said):
        raise GalleryError(f"{folder / DONE} was written by another version, or is corrupt", AGAIN)
    return said
