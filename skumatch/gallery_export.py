"""A gallery in a form that any language reads: the vectors as raw numbers, and which SKU each row shows as JSON.

    vectors.f32      little-endian float32, N rows of D numbers
    views.json       "model" (its digest: refuse a network with another), "dim", "views", "sha256" of vectors.f32,
                     "skus" (name and title each), "rows" (per row of vectors.f32 the place of its SKU in "skus"),
                     "tables" (SHA-256 of the files below)
    views.parquet    per row of vectors.f32: id, sku, source, sha256
    skus.parquet     per SKU: sku, and all that is known of it

The first two are what an app needs to answer crops; with the others `skumatch gallery import` makes a gallery of it
again. Pictures, thumbnails and history stay in the gallery.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from skumatch import artefact
from skumatch.gallery_seam import AnyGallery

VECTORS = "vectors.f32"
VIEWS = "views.json"
ROWS = "views.parquet"
FACTS = "skus.parquet"
FORMAT = 1
BLOCK = 4096  # views at a time


def export_gallery(gallery: AnyGallery, folder: Path) -> None:
    """Write the four files of all views, in the order of their ids, into ``folder``.

    The vectors are those that the gallery keeps, a guarded model's in full. What has these names is replaced, the JSON
    last. Raises ArtefactError when the disk refuses.
    """
    with artefact.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    digest = _write_vectors(gallery, folder / VECTORS)
    _write_tables(gallery, folder)
    spec = gallery.spec
    document = {
        "format": FORMAT,
        "model": {"name": spec.name, "layer": spec.layer, "digest": spec.digest},
        "spec": spec.to_json(),
        "dim": spec.dim,
        "views": len(gallery),
        "sha256": digest,
        "skus": [{"sku": sku, "title": gallery.title(code)} for code, sku in enumerate(gallery.skus)],
        "rows": gallery.codes(gallery.ids).tolist(),
        "tables": {name: artefact.file_digest(folder / name) for name in (ROWS, FACTS)},
    }
    artefact.write_file(folder / VIEWS, (json.dumps(document, ensure_ascii=False) + "\n").encode())


def _write_tables(gallery: AnyGallery, folder: Path) -> None:
    """Write what is known of the views and of their SKUs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with artefact.disk_errors(folder):
        texts = [(name, pa.string()) for name in ("sku", "source", "sha256")]
        with pq.ParquetWriter(folder / ROWS, pa.schema([("id", pa.int64()), *texts])) as writer:
            for start in range(0, len(gallery.ids), BLOCK):
                views = [asdict(view) for view in gallery.views_of(gallery.ids[start : start + BLOCK])]
                writer.write_table(pa.Table.from_pylist(views, writer.schema))
        pq.write_table(gallery.facts.known(), folder / FACTS)


def _write_vectors(gallery: AnyGallery, path: Path) -> str:
    """Write the rows block by block and return the file's SHA-256."""
    sha256 = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with artefact.disk_errors(path):
        try:
            with temporary.open("wb") as stream:
                for start in range(0, len(gallery.ids), BLOCK):
                    rows = gallery.vectors_of(gallery.ids[start : start + BLOCK])
                    data = np.ascontiguousarray(rows, "<f4").tobytes()
                    sha256.update(data)
                    stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return sha256.hexdigest()
