"""The gallery from 100,000 to 3.5 million views: speed against the matrix product, recall, memory, instant updates.

    python bench/gallery.py [--quick] [--work DIR] --json OUT

Made-up look-alikes with fixed seeds (``gallery_index.py`` says how); no photos and no weights are needed. The largest
rung writes 9 GB into --work.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gallery_index
import numpy as np
from common import Result, arguments, kept

from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create, remove_views, write_segment
from skumatch.gallery_index import build_index
from skumatch.segment import NewView, Views
from skumatch.spec import Spec, Vectors

HALF = (0.5, 0.5, 0.5)
CHANGED = 1000  # views added and removed
TIMES = 5
SEGMENT = 250_000  # views per segment of the gallery that is changed
THUMB = b"\xff\xd8" + bytes(2000)


def main() -> None:
    """Run all rungs, print the bars and write JSON."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        rows = (5000, 5000, 5000) if options.quick else (100_000, 1_000_000, 3_500_000)
        rungs = work / ("quick" if options.quick else "rungs")
        small = kept(rungs / "small.json", lambda: gallery_index.small(work, rows[0]))
        large = kept(rungs / "large.json", lambda: gallery_index.large(work, rows[1]))
        million = kept(rungs / "million.json", lambda: gallery_index.resident(work, rows[1]))
        change = kept(rungs / "updates.json", lambda: updates(work, rows[1]))
        most = kept(rungs / "most.json", lambda: gallery_index.resident(work, rows[2]))
    result.figures = {"100k": small, "1M": large, "1M memory": million, "updates": change, "3.5M": most}
    state_bars(result)
    result.write(options.json)


def state_bars(result: Result) -> None:
    """Compare the figures with what is asked for."""
    small, large, million, change, most = result.figures.values()
    rates = small["queries/s"]
    result.bar("100k: exact, of the bf16 matrix product", rates["exact"] / rates["gemm bf16"], 0.5, "least")
    result.bar("100k: exact, of the fp32 matrix product", rates["exact"] / rates["gemm fp32"], 0.5, "least")
    best = max(
        ("ivf-rabitq", "hnsw"), key=lambda kind: (small[kind]["recall@1"] >= 0.99, rates[kind])
    )  # the faster of those that answer well enough
    result.bar(f"100k: {best}, times exact", rates[best] / rates["exact"], 3, "least")
    result.bar(f"100k: {best}, recall@1", small[best]["recall@1"], 0.99, "least")
    result.bar(f"100k: {best}, top-5 overlap", small[best]["overlap@5"], 0.98, "least")
    result.bar("1M: ivf-rabitq, times exact", large["times exact"], 10, "least")
    result.bar("1M: recall@1", large["recall@1"], 0.99, "least")
    result.bar("1M: resident MB", million["resident bytes"] / 1e6, 700, "most")
    result.bar("3.5M: resident MB", most["resident bytes"] / 1e6, 3000, "most")
    result.bar("3.5M: recall@1", most["recall@1"], 0.99, "least")
    result.bar("1M: 1,000 added views are found after s, the slowest", max(change["added s"]), 2, "most")
    result.bar("1M: 1,000 removed views are gone after s, the slowest", max(change["removed s"]), 2, "most")
    result.bar("1M: added views that were not found", change["lost"], 0, "most")
    result.bar("1M: removed views that were returned", change["returned"], 0, "most")


def updates(work: Path, rows: int) -> dict[str, Any]:
    """Add and remove views of an indexed gallery in turn; return seconds until a reader elsewhere sees it."""
    store = work / f"gallery-{rows}"
    gallery = indexed(store, gallery_index.gallery(work, rows))
    reader = open_gallery(store)  # another opened gallery, as another process has it
    reader.search(np.ones((1, gallery_index.DIM), np.float32) / gallery_index.DIM**0.5, 5)
    found: dict[str, Any] = {"rows": rows, "added s": [], "removed s": [], "lost": 0, "returned": 0}
    for number in range(TIMES):
        views = new_views(number)
        vectors = np.stack([view.vector for view in views])
        started = time.perf_counter()
        gallery = add_views(gallery, views)
        reader = reader.refreshed()
        ids = reader.index.search(vectors[:1], 1)[1]
        found["added s"].append(time.perf_counter() - started)
        new = gallery.ids[-CHANGED:]
        found["lost"] += int(np.sum(reader.index.search(vectors, 1)[1][:, 0] != new)) + int(ids[0, 0] != new[0])
        started = time.perf_counter()
        gallery = remove_views(gallery, new.tolist())
        reader = reader.refreshed()
        reader.index.search(vectors[:1], 1)
        found["removed s"].append(time.perf_counter() - started)
        found["returned"] += int(np.isin(reader.index.search(vectors, 5)[1], new).sum())
    found["index"] = gallery.published.state.index is not None
    shutil.rmtree(store)
    return found


def indexed(store: Path, vectors: Vectors) -> Gallery:
    """Publish a gallery of ``vectors`` with an ivf-rabitq index."""
    shutil.rmtree(store, ignore_errors=True)
    spec = Spec(
        64, HALF, HALF, "squash", 1.0, "bicubic", name="made-up", dim=vectors.shape[1], layer="none", digest="0" * 64
    )
    starts = range(0, len(vectors), SEGMENT)
    segments = [write_segment(store, spec.dim, blocks(vectors, start)) for start in starts]
    return build_index(create(store, spec, segments), "ivf-rabitq").gallery


def blocks(vectors: Vectors, first: int) -> Iterator[Views]:
    """Yield the views of one segment."""
    end = min(len(vectors), first + SEGMENT)
    for start in range(first, end, 4096):
        numbers = range(start, min(end, start + 4096))
        skus = [f"sku-{number // 2:07d}" for number in numbers]
        sources = [f"shelf/{number:07d}.jpg" for number in numbers]
        digests = [f"{number:064x}" for number in numbers]
        rows = np.asarray(vectors[numbers.start : numbers.stop])
        yield Views(skus, sources, digests, [THUMB] * len(numbers), rows)


def new_views(seed: int) -> list[NewView]:
    """Return made-up views of new SKUs."""
    vectors = gallery_index.look_alikes(CHANGED, gallery_index.DIM, np.random.default_rng((99, seed)))
    return [
        NewView(f"new-{seed}-{number}", "", f"{seed:08x}{number:056x}", THUMB, vector)
        for number, vector in enumerate(vectors)
    ]


if __name__ == "__main__":
    main()
