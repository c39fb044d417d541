"""What an approximate index is built as, and what it is trained on. Knows nothing about searching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from skumatch.errors import DeviceError, GalleryError
from skumatch.index.exact import faiss_module
from skumatch.spec import Ids, Vectors

ApproximateKind = Literal["hnsw", "ivf-rabitq"]
VectorBlocks = Callable[[], Iterator[tuple[Ids, Vectors]]]  # each call starts anew: ids (M,), unit rows (M, D)

PER_LIST = (40, 64)  # rows of the training sample per list: faiss calls fewer too few
SAMPLE_BYTES = 1 << 30
ROUNDS = 10  # of k-means
LINKING = 128  # candidates for a row's links; with faiss's 40, families of look-alikes are cut off (recall .93, not 1)


@dataclass(frozen=True)
class Plan:
    """What to build: ``rows`` vectors of ``dim``; ``device`` ("cpu", "cuda", "cuda:N") finds the lists' centres.

    Raises GalleryError for an unknown kind or no rows.
    """

    kind: ApproximateKind
    rows: int
    dim: int
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.kind not in get_args(ApproximateKind):
            raise GalleryError(f"unknown index kind '{self.kind}'", f"choose {' or '.join(get_args(ApproximateKind))}")
        if self.rows < 1:
            raise GalleryError("there is nothing to index", "add views first")

    @property
    def lists(self) -> int:
        """The number of lists: twice the root of the rows, but not so many that the sample is too small for them."""
        return max(1, min(round(2 * math.sqrt(self.rows)), self.rows // PER_LIST[0]))

    @property
    def sample(self) -> int:
        """The rows to train on, at most 1 GiB of them where that is enough."""
        few, many = (per * self.lists for per in PER_LIST)
        return min(self.rows, max(few, min(many, SAMPLE_BYTES // (4 * self.dim))))

    @property
    def factory(self) -> str:
        """What faiss calls it."""
        return "HNSW32_SQ8" if self.kind == "hnsw" else f"IVF{self.lists},RaBitQfs,Refine(SQ8)"


def train(index: Any, plan: Plan, blocks: VectorBlocks) -> None:
    """Train faiss's ``index`` on a sample of ``blocks``. Raises DeviceError for a GPU that is not there."""
    if plan.kind == "hnsw":
        index.hnsw.efConstruction = LINKING
        index.train(drawn(plan, blocks))
        return
    lists = faiss_module().extract_index_ivf(index)
    lists.cp.seed, lists.cp.niter = plan.seed, ROUNDS
    lists.cp.min_points_per_centroid, lists.cp.max_points_per_centroid = 1, PER_LIST[1]
    gpu = _on_gpu(plan) if plan.device.startswith("cuda") else None
    lists.clustering_index = gpu  # faiss does not own it: it must outlive the training, and no longer be named after
    index.train(drawn(plan, blocks))
    lists.clustering_index = None


def _on_gpu(plan: Plan) -> Any:
    """Return what finds the nearest centres on the GPU."""
    faiss, number = faiss_module(), int(plan.device.partition(":")[2] or 0)
    if not hasattr(faiss, "StandardGpuResources") or number >= faiss.get_num_gpus():
        raise DeviceError(f"faiss sees no GPU {number}", "choose --device cpu")
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, faiss.IndexFlatL2(plan.dim))


def drawn(plan: Plan, blocks: VectorBlocks) -> Vectors:
    """Return ``plan.sample`` rows of ``blocks``, drawn with ``plan.seed``."""
    places = np.sort(np.random.default_rng(plan.seed).choice(plan.rows, plan.sample, replace=False))
    sample = np.empty((plan.sample, plan.dim), np.float32)
    seen = done = 0
    for _, rows in blocks():
        here = places[done : np.searchsorted(places, seen + len(rows))] - seen
        sample[done : done + len(here)] = rows[here]
        seen, done = seen + len(rows), done + len(here)
    return sample[:done]
