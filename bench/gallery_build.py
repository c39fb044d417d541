"""A whole gallery folder of made-up look-alikes: built in one process, opened and searched in another, both watched.

It has all that a real one has: SKU names, sources, digests, thumbnails, titles and brands, 2 views per SKU on average.
Vectors are made as they are needed, so no file of them lies beside the gallery. Thumbnails are ``THUMB`` bytes each, an
assumption: those of real packs take 3 to 15 kB. Memory is as Linux counts it: "anonymous" is a process's own; what else
is resident are pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gallery_index
import numpy as np
from common import kept
from gallery_index import BATCH, BRAND, DIM, FAMILY, PIECE, ROUNDS, Clock

from skumatch import lock
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import create, write_segment
from skumatch.gallery_index import build_index, exact_over
from skumatch.index.choose import scored
from skumatch.index.matmul import exact_index
from skumatch.segment import THUMBS, VECTORS, Views
from skumatch.sku_table import TITLE, LayerBuilder
from skumatch.spec import Spec, Vectors

HALF = (0.5, 0.5, 0.5)
SPEC = Spec(64, HALF, HALF, "squash", 1.0, "bicubic", name="made-up", dim=DIM, layer="none", digest="0" * 64)
SEGMENT = 42 * PIECE  # views per segment: 252,000
THUMB = b"\xff\xd8" + bytes(1998)
QUERIES = 640
SECONDS = 0.05  # between two looks at a process's memory
FOLDERS = {"indexes": "index", "tables": "facts"}
FILES = {VECTORS: "vectors", THUMBS: "thumbnails"}


def measured(work: Path, rows: int, kind: str, queries: int = QUERIES) -> dict[str, Any]:
    """Build a gallery of ``rows`` views with an index of ``kind``, open and search it; return seconds, bytes, recall.

    The gallery stays in ``work`` until ``discard``.
    """
    store = stored(work, rows, kind)
    searched = watched("search", store, "--queries", str(queries))
    building = json.loads(notes(work, rows).read_text())
    return {"rows": rows, "dim": DIM, "kind": kind, "disk bytes": disk(store), "build": building, "search": searched}


def stored(work: Path, rows: int, kind: str) -> Path:
    """Return the folder of the gallery, which is built in another process where it is not there yet."""
    store = work / f"gallery-{rows}"
    if not (store / "CURRENT").exists():
        notes(work, rows).unlink(missing_ok=True)
    kept(notes(work, rows), lambda: watched("build", store, "--rows", str(rows), "--kind", kind))
    return store


def notes(work: Path, rows: int) -> Path:
    """Return the file that keeps what building gave."""
    return work / f"gallery-{rows}.json"


def discard(work: Path, rows: int) -> None:
    """Remove the gallery and what is kept of its building."""
    notes(work, rows).unlink(missing_ok=True)
    shutil.rmtree(work / f"gallery-{rows}", ignore_errors=True)


def watched(job: str, store: Path, *words: str) -> dict[str, Any]:
    """Run ``build`` or ``search`` in a process of its own; return what it prints, and its anonymous peak in bytes."""
    command = [sys.executable, str(Path(__file__).resolve()), job, "--store", str(store), *words]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory("RssAnon", process.pid))
            time.sleep(SECONDS)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{job} of {store.name} ended with {process.returncode}")
    return {**json.loads(output), "peak anonymous bytes": peak}


def memory(kind: str, pid: int | None = None) -> int:
    """Return bytes of a process's memory (Linux): RssAnon, RssFile, VmHWM (the most that was resident ever).

    Not ru_maxrss, in which a new process finds what its parent had; 0 for one that has ended.
    """
    lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), 0)


def disk(store: Path) -> dict[str, int]:
    """Return the bytes on disk by part; "rows" are SKU names, sources, digests and all manifests."""
    found = dict.fromkeys(("vectors", "rows", "thumbnails", "facts", "index"), 0)
    for path in store.rglob("*"):
        if path.is_file():
            folder = path.relative_to(store).parts[0]
            found[FOLDERS.get(folder) or FILES.get(path.name, "rows")] += path.stat().st_size
    return found


def build(store: Path, rows: int, kind: str) -> dict[str, Any]:
    """Write a gallery and its index; return the seconds of each part, without those of making vectors up."""
    shutil.rmtree(store, ignore_errors=True)
    clock, facts = Clock(), LayerBuilder()
    with lock.preparing(store):
        with clock.part("rows"):
            segments = [
                write_segment(store, DIM, views(start, min(rows, start + SEGMENT), facts, clock))
                for start in range(0, rows, SEGMENT)
            ]
        with clock.part("publishing"):
            gallery = create(store, SPEC, segments, facts.layer())
    del facts
    clock.less("rows", "made up")
    with clock.part("index"):
        done = build_index(gallery, kind)
    tuned = None if done.figures is None else done.figures.to_json()
    seconds = {"seconds": clock.wall, "core seconds": clock.cores}
    return {"skus": len(gallery.skus), **seconds, "tuned": tuned, "peak bytes": memory("VmHWM")}


def views(first: int, last: int, facts: LayerBuilder, clock: Clock) -> Iterator[Views]:
    """Yield the views of one segment, which begins with a piece, and note titles and brands of their SKUs."""
    for start in range(first, last, PIECE):
        piece, count = start // PIECE, min(last - start, PIECE)
        with clock.part("made up"):
            vectors = gallery_index.look_alikes(count, DIM, gallery_index.piece_rng(piece))
        numbers = gallery_index.sku_numbers(count, gallery_index.piece_rng(piece))
        for number in range(int(numbers[-1]) + 1):
            facts.note(code(piece, number), described(piece, number))
        skus = [code(piece, number) for number in numbers.tolist()]
        sources = [f"shelf/{number:07d}.jpg" for number in range(start, start + count)]
        digests = [f"{number:064x}" for number in range(start, start + count)]
        yield Views(skus, sources, digests, [THUMB] * count, vectors)


def code(piece: int, number: int) -> str:
    """Return what a SKU is called: 13 digits, like a GTIN."""
    return f"{piece:07d}{number:06d}"


def described(piece: int, number: int) -> dict[str, str]:
    """Return the facts of a SKU."""
    family = number // FAMILY
    brand = f"brand {piece:05d}-{family // BRAND}"
    return {TITLE: f"{brand.capitalize()} juice {family:03d}, flavour {number % FAMILY}, 1 l", "brand": brand}


def search(store: Path, count: int) -> dict[str, Any]:
    """Open the gallery and search it; return rates, recall, and the anonymous memory that each stage added."""
    load_libraries()
    clock, stages = Clock(), [memory("RssAnon")]
    with clock.part("open"):
        gallery = open_gallery(store)
    stages.append(memory("RssAnon"))
    queries = asked(gallery, count)
    with clock.part("first answer"):
        gallery.search(queries[:1], 5)
    index = paced(lambda batch: gallery.index.search(batch, 5), queries)
    stages.append(memory("RssAnon"))
    with clock.part("first name"):
        named(gallery, queries[:1])
    whole = paced(lambda batch: named(gallery, batch), queries)
    stages.append(memory("RssAnon"))
    found: dict[str, Any] = {
        "queries/s": {"index": index[0], "gallery": whole[0]},
        "core seconds/query": {"index": index[1], "gallery": whole[1]},
        "one by one/s": paced(lambda query: named(gallery, query), queries[:BATCH], 1)[0],
        "anonymous bytes": dict(zip(("opened", "index", "facts"), np.diff(stages).tolist(), strict=True)),
        "libraries bytes": stages[0],
        "mapped bytes": memory("RssFile"),
    }
    return {**found, **quality(gallery, queries), "seconds": clock.wall, "verified in s": verified(store)}


def load_libraries() -> None:
    """Import what a search imports and start its threads, so that they count as no part of a gallery."""
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    axes = np.eye(DIM, dtype=np.float32)
    gallery_index.filled(exact_index(DIM), axes).search(axes[:1], 5)


def asked(gallery: Gallery, count: int) -> Vectors:
    """Return up to ``count`` queries of seeded views."""
    rng = np.random.default_rng(gallery_index.SEED)
    chosen = rng.choice(gallery.ids, min(count, len(gallery)), replace=False)
    return gallery_index.noised(gallery.vectors_of(np.sort(chosen)), rng)


def paced(job: gallery_index.Job, queries: Vectors, batch: int = BATCH) -> tuple[float, float]:
    """Return the median of queries/s over some rounds, and of core-seconds per query; a round before them warms up."""
    rates, cores = [], []
    for _ in range(ROUNDS + 1):
        begun, used = time.perf_counter(), time.process_time()
        for start in range(0, len(queries), batch):
            job(queries[start : start + batch])
        rates.append(len(queries) / (time.perf_counter() - begun))
        cores.append((time.process_time() - used) / len(queries))
    return statistics.median(rates[1:]), statistics.median(cores[1:])


def named(gallery: Gallery, queries: Vectors) -> list[tuple[str, str]]:
    """Return names and titles of the five nearest SKUs of each query, one query after the other."""
    codes = gallery.search(queries, 5).skus.ravel().tolist()
    return [(gallery.skus[code], gallery.title(code)) for code in codes if code >= 0]


def quality(gallery: Gallery, queries: Vectors) -> dict[str, float]:
    """Return recall@1 and top-5 overlap against comparing every view."""
    recall, overlap = scored(gallery.index.search(queries, 5)[0], exact_over(gallery).search(queries, 5)[0])
    return {"recall@1": float(recall.mean()), "overlap@5": float(overlap.mean())}


def verified(store: Path) -> float:
    """Return the seconds that opening takes where every byte is hashed."""
    begun = time.perf_counter()
    open_gallery(store, full=True)
    return time.perf_counter() - begun


def main() -> None:
    """Build or search, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("build", "search"))
    parser.add_argument("--store", type=Path, required=True, help="the gallery's folder; build makes it anew")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kind", choices=("exact", "hnsw", "ivf-rabitq"), default="ivf-rabitq")
    parser.add_argument("--queries", type=int, default=QUERIES)
    options = parser.parse_args()
    if options.job == "build":
        found = build(options.store, options.rows, options.kind)
    else:
        found = search(options.store, options.queries)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
