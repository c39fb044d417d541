"""How fast the measures are: 40,000 queries against 350,000 reference views of 512 numbers, as RP2K has them.

The floor is the matrix product of both sides. Its rate on this machine is measured in the same run, and the search is
stated as a share of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

QUERIES, VIEWS, SKUS, DIM = 40_000, 350_000, 2_388, 512
QUICK = 20  # times smaller on both sides
SPREAD = 2.5  # of the views around their SKU, relative to the SKU's own vector


def measure(quick: bool, seed: int = 0) -> dict[str, Any]:
    """Return GEMM rate, search rate, seconds of search and of everything, and resident memory beyond the inputs."""
    import psutil

    from skumatch.eval import retrieval
    from skumatch.eval.report import detail, summary

    part = QUICK if quick else 1
    gallery, queries = _views(VIEWS // part, seed, 0), _views(QUERIES // part, seed, 1)
    gemm = _gemm_rate()
    process = psutil.Process()
    before = process.memory_info().rss
    watched = _Watched(retrieval, process)
    started = time.perf_counter()
    with watched:
        answers = retrieval.retrieve(gallery, queries, 10)
        figures = {**summary([answers], 5), **detail(answers)}
    seconds = time.perf_counter() - started
    flop = 2 * len(gallery) * len(queries) * DIM
    return {
        "queries": len(queries),
        "views": len(gallery),
        "top1": figures["topk"]["1"],
        "map_at_r": figures["map_at_r"],
        "gemm_gflops": gemm,
        "search_gflops": watched.flop / watched.seconds / 1e9,
        "search_share_of_gemm": watched.flop / watched.seconds / 1e9 / gemm,
        "extra_searches": watched.flop / flop - 1,
        "search_seconds": watched.seconds,
        "seconds": seconds,
        "resident_gb_beyond_inputs": (watched.peak - before) / 1e9,
    }


def _views(count: int, seed: int, side: int) -> Any:
    """Return labelled views: a random unit vector per SKU, and views around it."""
    from skumatch.dataset import Row
    from skumatch.eval.views import Views

    centres = np.random.default_rng(seed).normal(size=(SKUS, DIM)).astype(np.float32)
    rng = np.random.default_rng((seed, side))
    codes = rng.integers(SKUS, size=count)
    vectors = np.empty((count, DIM), np.float32)
    for start in range(0, count, 10_000):
        rows = codes[start : start + 10_000]
        found = centres[rows] + SPREAD * rng.normal(size=(len(rows), DIM)).astype(np.float32)
        vectors[start : start + 10_000] = found / np.linalg.norm(found, axis=1, keepdims=True)
    split = ("train", "test")[side]
    return Views(tuple(Row(Path(f"{split}/{i}.jpg"), f"sku-{code:04}", split) for i, code in enumerate(codes)), vectors)


def _gemm_rate() -> float:
    """Return the best rate of large fp32 matrix products into memory that is there already, in GFLOPS."""
    import torch

    best = 0.0
    for rows, columns in ((4096, 1024), (4096, 4096), (2048, 16_384)):
        a, b, out = torch.randn(rows, DIM), torch.randn(columns, DIM), torch.empty(rows, columns)
        for _ in range(8):
            started = time.perf_counter()
            torch.mm(a, b.T, out=out)
            best = max(best, 2 * rows * columns * DIM / (time.perf_counter() - started) / 1e9)
    return best


class _Watched:
    """Counts the seconds and operations of every index search, and the largest resident memory."""

    def __init__(self, module: Any, process: Any) -> None:
        self.module, self.process = module, process
        self.seconds, self.flop, self.peak = 0.0, 0, 0
        self.plain = module.ExactIndex

    def __enter__(self) -> _Watched:
        import threading

        watch = self

        class Index(self.plain):  # type: ignore[misc, name-defined]
            def search(self, queries: Any, k: int, allowed: Any = None) -> Any:
                started = time.perf_counter()
                found = super().search(queries, k, allowed)
                watch.seconds += time.perf_counter() - started
                watch.flop += 2 * len(queries) * len(self) * self.dim
                return found

        self.module.ExactIndex = Index
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.stop.wait(0.05):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.module.ExactIndex = self.plain
