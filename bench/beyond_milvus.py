"""A gallery in Milvus Lite against the same views in a folder: made-up look-alikes; ``beyond.py`` states the bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gallery_index
import numpy as np

from skumatch.backend import backend
from skumatch.gallery_import import Embedded
from skumatch.gallery_seam import AnyGallery
from skumatch.milvus import address, client
from skumatch.nearest import Nearest
from skumatch.segment import Views
from skumatch.spec import Ids, Spec, Vectors

HALF = (0.5, 0.5, 0.5)
BATCH, BLOCK = 64, 2000
THUMB = b"\xff\xd8" + bytes(2000)
PER_SKU = 2


def figures(work: Path, rows: int, count: int) -> dict[str, Any]:
    """Put ``rows`` views into both and ask both ``count`` crops; return agreement, seconds and queries/s."""
    vectors = gallery_index.gallery(work, rows)
    named_as = {"name": "made-up", "dim": vectors.shape[1], "layer": "none", "digest": "0" * 64}
    spec = Spec(64, HALF, HALF, "squash", 1.0, "bicubic", **named_as)
    queries = gallery_index.crops(vectors, count)
    places = {"folder": str(work / "beyond-gallery"), "milvus-lite": f"milvus+file:{work / 'beyond.db'}"}
    found: dict[str, Any] = {"rows": rows, "dim": spec.dim, "queries": count}
    answers: dict[str, Nearest] = {}
    for name, place in places.items():
        home = backend(place)
        started = time.perf_counter()
        home.take_in(Embedded(spec, lambda: blocks(vectors)))
        taken = time.perf_counter() - started
        answers[name], rate = asked(home.gallery(), queries)
        found[name] = {
            "seconds to take in": taken,
            "queries/s": rate,
            "consistency": home.info().get("consistency", "-"),
        }
    client.close(address.parse(places["milvus-lite"]))
    one, other = named(answers["folder"].views), named(answers["milvus-lite"].views)
    same = one == other
    found["same top-1"] = float(same[:, 0].mean())
    found["same top-5, place by place"] = float(same.mean())
    found["largest difference of scores"] = float(
        np.abs(answers["folder"].scores - answers["milvus-lite"].scores).max()
    )
    return found


def named(views: Ids) -> Ids:
    """Return the number of each view's SKU."""
    return views // PER_SKU


def blocks(vectors: Vectors) -> Iterator[Views]:
    """Yield all views with made-up texts."""
    for start in range(0, len(vectors), BLOCK):
        numbers = range(start, min(start + BLOCK, len(vectors)))
        skus = [f"sku-{number // PER_SKU:07d}" for number in numbers]
        sources = [f"shelf/{number:07d}.jpg" for number in numbers]
        digests = [f"{number:064x}" for number in numbers]
        rows = np.asarray(vectors[numbers.start : numbers.stop])
        yield Views(skus, sources, digests, [THUMB] * len(numbers), rows)


def asked(gallery: AnyGallery, queries: Vectors) -> tuple[Nearest, float]:
    """Return the five nearest SKUs of ``queries``, asked in batches, and queries/s after the first batch."""
    parts = [gallery.search(queries[:BATCH], 5)]
    started = time.perf_counter()
    parts += [gallery.search(queries[start : start + BATCH], 5) for start in range(BATCH, len(queries), BATCH)]
    rate = (len(queries) - BATCH) / (time.perf_counter() - started)
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "skus", "views")]
    return Nearest(columns[0], columns[1], columns[2]), rate
