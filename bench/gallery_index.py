"""Speed and recall of the gallery's indexes on made-up look-alikes; ``bench/gallery.py`` states the bars.

Vectors come in families of look-alike SKUs (cosine .85 to .97 within a family, families of one brand at .36), with 1 to
3 views per SKU at a cosine of about .9. Queries are views with noise, at a cosine of .75 to .85 with their own view.
Rates are medians of rounds in which all candidates take turns, in batches of 64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from skumatch.index import Index
from skumatch.index.approximate import build, open_approximate
from skumatch.index.choose import noisy, scored, tuned
from skumatch.index.exact import ExactIndex
from skumatch.index.matmul import exact_index
from skumatch.index.parts import Parts
from skumatch.index.plan import ApproximateKind, Plan
from skumatch.spec import Ids, Vectors

DIM = 512
Job = Callable[[Vectors], object]  # takes a batch of queries

BATCH = 64
ROUNDS = 5
PIECE = 6000  # rows made at a time
FAMILY, BRAND = 12, 50  # SKUs per family, families per brand
SEED = 7


class Clock:
    """Seconds on the wall and of all cores, by the part of the work."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cores: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what the body takes to ``name``."""
        begun, used = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - begun
        self.cores[name] = self.cores.get(name, 0) + time.process_time() - used

    def less(self, name: str, inner: str) -> None:
        """Take what ``inner`` took, which ran within ``name``, out of both."""
        for seconds in (self.wall, self.cores):
            seconds[name] -= seconds.pop(inner)


def gallery(work: Path, rows: int, dim: int = DIM) -> Vectors:
    """Return float32 (rows, dim) look-alikes as a memory map of a file in ``work``, made where it is not there yet."""
    path = work / f"look-alikes-{rows}x{dim}.f32"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        made = np.memmap(partial, np.float32, "w+", shape=(rows, dim))
        for number, start in enumerate(range(0, rows, PIECE)):
            made[start : start + PIECE] = look_alikes(min(PIECE, rows - start), dim, piece_rng(number))
        made.flush()
        partial.rename(path)
    return np.memmap(path, np.float32, "r", shape=(rows, dim))


def piece_rng(number: int) -> np.random.Generator:
    """Return what piece ``number`` of a gallery is drawn with."""
    return np.random.default_rng((SEED, number))


def sku_numbers(rows: int, rng: np.random.Generator) -> Ids:
    """Return the SKU of each view of a piece, int64 (rows,): 1 to 3 views each. The first that is drawn of ``rng``."""
    return np.repeat(np.arange(rows), rng.integers(1, 4, rows))[:rows]


def look_alikes(rows: int, dim: int, rng: np.random.Generator) -> Vectors:
    """Return float32 (rows, dim) views: brand, family, SKU and view each around the one before."""
    sku = sku_numbers(rows, rng)
    family = np.arange(sku[-1] + 1) // FAMILY
    brand = np.arange(family[-1] + 1) // BRAND
    centres = rng.standard_normal((brand[-1] + 1, dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    families = noisy(centres[brand], 0.6, rng)
    likeness = np.sqrt(rng.uniform(0.85, 0.97, len(families))).astype(np.float32)
    skus = np.empty((len(family), dim), np.float32)
    for value in np.unique(likeness):
        some = likeness[family] == value
        skus[some] = noisy(families[family[some]], float(value), rng)
    return noisy(skus[sku], 0.9**0.5, rng)


def crops(vectors: Vectors, count: int, seed: int = SEED) -> Vectors:
    """Return float32 (count, D) queries: views with noise, at a cosine of .75 to .85 with their own."""
    rng = np.random.default_rng(seed)
    return noised(np.asarray(vectors[np.sort(rng.choice(len(vectors), count, replace=False))]), rng)


def noised(own: Vectors, rng: np.random.Generator) -> Vectors:
    """Return a query for each of the views ``own`` (N, D), at a cosine of .75 to .85 with it."""
    parts = [noisy(own[i : i + 1], float(rng.uniform(0.75, 0.85)), rng) for i in range(len(own))]
    return np.concatenate(parts)


def blocks_of(vectors: Vectors) -> Callable[[], Iterator[tuple[Ids, Vectors]]]:
    """Return what ``build`` reads the vectors from."""
    return lambda: iter([(np.arange(len(vectors)), vectors)])


def filled(index: Index, vectors: Vectors) -> Index:
    """Return ``index`` with all vectors under their row numbers."""
    index.add(np.arange(len(vectors)), vectors)
    return index


def approximate(work: Path, kind: ApproximateKind, vectors: Vectors) -> tuple[Path, dict[str, Any]]:
    """Build, tune and save an index; return its folder and what building and tuning gave. Kept from run to run."""
    folder = work / f"{kind}-{len(vectors)}x{vectors.shape[1]}"
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        index = build(Plan(kind, len(vectors), vectors.shape[1]), blocks_of(vectors))
        seconds = time.perf_counter() - started
        index, figures = tuned(index, filled(ExactIndex(index.dim), vectors), lambda ids: vectors[ids])
        index.save(folder)
        made = {"facts": index.facts, "build seconds": seconds, "tuned": figures.to_json()}
        (folder / "facts.json").write_text(json.dumps(made))
    return folder, json.loads((folder / "facts.json").read_text())


def opened(folder: Path, vectors: Vectors) -> Parts:
    """Return a saved index as it is searched: scored again from the vectors."""
    facts = json.loads((folder / "facts.json").read_text())["facts"]
    return Parts(open_approximate(folder, facts), ExactIndex(vectors.shape[1]), lambda ids: vectors[ids])


def answers(index: Index, queries: Vectors) -> Vectors:
    """Return the five best cosines (N, 5)."""
    return np.concatenate([index.search(queries[i : i + BATCH], 5)[0] for i in range(0, len(queries), BATCH)])


def quality(index: Index, queries: Vectors, right: Vectors) -> dict[str, float]:
    """Return recall@1 and top-5 overlap against the right cosines (N, 5)."""
    recall, overlap = scored(answers(index, queries), right)
    return {"recall@1": float(recall.mean()), "overlap@5": float(overlap.mean())}


def searching(index: Index) -> Job:
    """Return the job of asking ``index`` for five views."""
    return lambda batch: index.search(batch, 5)


def singly(job: Job) -> Job:
    """Return ``job`` with its queries one by one, eight of them for a batch."""
    return lambda batch: [job(batch[i : i + 1]) for i in range(8)]


def turns(jobs: Mapping[str, tuple[Job, int]], queries: Vectors) -> dict[str, float]:
    """Return each job's median queries/s; with a job stands how many batches it gets per round."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(ROUNDS + 1):
        for name, (job, batches) in jobs.items():
            chosen = [queries[i * BATCH % len(queries) :][:BATCH] for i in range(batches)]
            started = time.perf_counter()
            for batch in chosen:
                job(batch)
            if number:  # the first round warms up
                taken[name].append(sum(map(len, chosen)) / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def small(work: Path, rows: int = 100_000, count: int = 2000) -> dict[str, Any]:
    """Compare exact search, both approximate kinds and the bare matrix products; return queries/s, recall, overlap."""
    import torch

    vectors = gallery(work, rows)
    queries = crops(vectors, count)
    exact = filled(exact_index(DIM), vectors)
    right = answers(filled(ExactIndex(DIM), vectors), queries)
    full = torch.from_numpy(np.array(vectors))
    half = full.bfloat16()
    jobs: dict[str, tuple[Job, int]] = {
        "gemm fp32": (lambda batch: torch.from_numpy(batch) @ full.T, 4),
        "gemm bf16": (lambda batch: torch.from_numpy(batch).bfloat16() @ half.T, 4),
        "exact": (searching(exact), 4),
    }
    found: dict[str, Any] = {"rows": rows, "dim": DIM, "exact is": type(exact).__name__}
    found["exact"] = quality(exact, queries, right)
    kinds: tuple[ApproximateKind, ...] = ("ivf-rabitq", "hnsw")
    for kind in kinds:
        folder, made = approximate(work, kind, vectors)
        index = opened(folder, vectors)
        found[kind] = {**made, **quality(index, queries, right), "index bytes": size(folder)}
        jobs[kind] = searching(index), 16
    found["queries/s"] = turns(jobs, queries)
    alone = turns({name: (singly(job), 1) for name, (job, _) in jobs.items()}, queries)
    found["single queries/s"] = {name: rate * 8 / BATCH for name, rate in alone.items()}
    return found


def large(work: Path, rows: int = 1_000_000, count: int = 1000) -> dict[str, Any]:
    """Compare ivf-rabitq with exact search; return queries/s of both, recall, overlap and the memory it takes."""
    vectors = gallery(work, rows)
    queries = crops(vectors, count)
    exact = filled(exact_index(DIM), vectors)
    folder, made = approximate(work, "ivf-rabitq", vectors)
    index = opened(folder, vectors)
    rates = turns({"exact": (searching(exact), 2), "ivf-rabitq": (searching(index), 16)}, queries)
    found = {"rows": rows, "dim": DIM, **made, **quality(index, queries, answers(exact, queries)), "queries/s": rates}
    return {**found, "times exact": rates["ivf-rabitq"] / rates["exact"], "index bytes": size(folder)}


def size(folder: Path) -> int:
    """Return the bytes of a saved index."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Measure one size, or all, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes, kept")
    parser.add_argument("--quick", action="store_true", help="5,000 rows")
    parser.add_argument("--rows", type=int, help="compare with exact search at this size")
    parser.add_argument("--count", type=int, default=300, help="queries")
    options = parser.parse_args()
    if options.rows:
        found = large(options.work, options.rows, options.count)
    elif options.quick:
        found = {"small": small(options.work, 5000, 300), "large": large(options.work, 5000, 300)}
    else:
        found = {"small": small(options.work), "large": large(options.work)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
