"""Exact search by matrix products of reduced precision: float16 on a GPU, bfloat16 on a CPU that has it.

The products only propose candidates; these are compared again in float32, and a bound on what rounding can have hidden
proves that nothing better was left out, or more are fetched. It knows nothing about files.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from skumatch.errors import DeviceError
from skumatch.index import Index
from skumatch.index.blocks import PIECE, Block
from skumatch.index.exact import ExactIndex, faiss_module, nearest_rows
from skumatch.machine import read_cpu
from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from torch import Tensor

BF16 = ("avx512_bf16", "amx_bf16")  # without them torch emulates bfloat16, more slowly than float32
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative, of one number
CANDIDATES = 32  # more than k, at first
ROWS = 65_536  # rows multiplied at a time
QUERIES = 1024  # queries at a time
GROUP = 64  # scores of which the largest is taken first: far quicker than sorting all of them
WORTH = 16  # times the candidates: in fewer rows all are compared in float32


@dataclass(frozen=True)
class Reduced:
    """Rows (M, D) in reduced precision, the longest difference that made to a row, and the longest row."""

    rows: Tensor
    error: float
    length: float


class MatmulIndex(ExactIndex):
    """An ExactIndex that finds candidates by products of reduced precision on ``device`` ("cpu", "cuda", "cuda:N").

    Answers are the ExactIndex's but for equal scores. Takes 2 bytes per number beside the vectors themselves. Raises
    DeviceError for a GPU that is not there, and where its memory does not suffice.
    """

    def __init__(self, dim: int, device: str = "cpu") -> None:
        super().__init__(dim)
        import torch

        self._torch = torch
        gpu = device.startswith("cuda")
        count = torch.cuda.device_count() if gpu and torch.cuda.is_available() else 0
        if gpu and int(device.partition(":")[2] or 0) >= count:
            raise DeviceError(f"device {device} is not there ({count} GPUs)", "choose --device cpu")
        self.device = device
        self._type = torch.float16 if gpu else torch.bfloat16
        self._rounding = ROUNDING[str(self._type).removeprefix("torch.")]
        self._reduced: WeakKeyDictionary[Block, Reduced] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 (N, D) unit rows under (N,) new ids. Raises GalleryError as ExactIndex does, and DeviceError."""
        block = self._blocks.add(ids, vectors)
        if block is not None:
            self._of(block)

    def _of(self, block: Block) -> Reduced:
        """Return a block's rows in reduced precision, made when first asked for."""
        with self._lock:
            if block not in self._reduced:
                try:
                    self._reduced[block] = self._reduce(block.rows)
                except self._torch.OutOfMemoryError:
                    raise DeviceError(
                        f"{self.device} has no room for {len(block.ids)} vectors of {self.dim}",
                        "choose --device cpu, or an approximate index",
                    ) from None
            return self._reduced[block]

    def _reduce(self, rows: Vectors) -> Reduced:
        """Copy rows (M, D) to the device, piece by piece."""
        copied = self._torch.empty(rows.shape, dtype=self._type, device=self.device)
        error = length = 0.0
        step = max(1, PIECE // (4 * self.dim))
        for start in range(0, len(rows), step):
            piece = self._torch.from_numpy(np.array(rows[start : start + step]))
            short = piece.to(self._type)
            copied[start : start + step] = short.to(self.device)
            error = max(error, float((piece - short.float()).norm(dim=1).max()))
            length = max(length, float(piece.norm(dim=1).max()))
        return Reduced(copied, error, length)

    def _nearest(self, queries: Vectors, block: Block, k: int) -> tuple[Vectors, Ids]:
        """Return scores and positions of the nearest rows of a block, proven in rounds of more and more candidates."""
        fetch, lines = k + max(k, CANDIDATES), np.arange(len(queries))
        scores = np.empty((len(queries), min(k, len(block.ids))), np.float32)
        found = np.empty(scores.shape, np.int64)
        while len(lines) and fetch * WORTH < len(block.ids):
            proven = [np.empty(0, bool)]
            for start in range(0, len(lines), QUERIES):
                part = lines[start : start + QUERIES]
                scores[part], found[part], sure = self._proposed(queries[part], block, k, fetch)
                proven.append(sure)
            lines, fetch = lines[~np.concatenate(proven)], 4 * fetch
        if len(lines):
            scores[lines], found[lines] = nearest_rows(queries[lines], block.rows, k)
        return scores, found

    def _proposed(self, queries: Vectors, block: Block, k: int, fetch: int) -> tuple[Vectors, Ids, Ids]:
        """Return the k best (N, k) of ``fetch`` candidates, and whether (N,) no other row can be among the k best.

        For a row v beyond the candidates and a query q, with v' and q' as they were multiplied, Cauchy-Schwarz gives
        qv - q'v' = (q - q')v + q'(v - v') <= |q - q'||v| + |q'||v - v'|, to which the product's own rounding adds.
        """
        reduced = self._of(block)
        exact = self._torch.from_numpy(queries)
        short = exact.to(self._type)
        last, places = self._candidates(short.to(self.device), reduced, fetch)
        lost = (exact - short.float()).norm(dim=1).numpy() * reduced.length
        lost += short.float().norm(dim=1).numpy() * reduced.error
        again = self._again(queries, block.rows, places)
        order = np.argsort(-again, axis=1, kind="stable")[:, :k]
        scores, found = np.take_along_axis(again, order, 1), np.take_along_axis(places, order, 1)
        return scores, found, scores[:, -1] >= last + lost + self._noise(last) + 1e-6  # float32 rounds as well

    def _noise(self, last: Vectors) -> Vectors:
        """Return how far the product of reduced numbers can lie below the true one, for products of ``last`` (N,)."""
        if self._type == self._torch.bfloat16:  # summed in float32 and rounded once
            return np.float32(1.01 * self._rounding) * np.abs(last)
        # a GPU may add up partial sums in float16, and these can be larger than their sum
        return np.full_like(last, self._rounding * (1 + self.dim / 256))

    def _again(self, queries: Vectors, rows: Vectors, places: Ids) -> Vectors:
        """Return the products float32 (N, F) of each query with the rows at its ``places``."""
        scores = np.empty(places.shape, np.float32)
        step = max(1, PIECE // (4 * self.dim * places.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            scores[part] = np.einsum("nd,nfd->nf", queries[part], rows[places[part]], optimize=True)
        return scores

    def _candidates(self, queries: Tensor, reduced: Reduced, fetch: int) -> tuple[Vectors, Ids]:
        """Return the smallest product (N,) among each query's ``fetch`` candidates, and their positions (N, fetch)."""
        values, places = [], []
        for start in range(0, len(reduced.rows), ROWS):
            products = queries @ reduced.rows[start : start + ROWS].T
            value, place = self._top(products, min(fetch, products.shape[1]))
            values.append(value)
            places.append(place + start)
        top, which = self._torch.cat(values, 1).topk(fetch, dim=1)
        chosen = self._torch.cat(places, 1).gather(1, which)
        return top[:, -1].float().cpu().numpy(), chosen.cpu().numpy()

    def _top(self, products: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the ``count`` largest of (N, M) and their columns: they lie in the groups with the largest maxima."""
        whole = products.shape[1] // GROUP * GROUP
        if whole <= 2 * GROUP * count:
            top: tuple[Tensor, Tensor] = products.topk(count, dim=1)
            return top[0], top[1]
        groups = products[:, :whole].reshape(len(products), -1, GROUP).amax(2).topk(count, dim=1).indices
        within = self._torch.arange(GROUP, device=products.device)
        rest = self._torch.arange(whole, products.shape[1], device=products.device)
        columns = self._torch.cat([(groups[:, :, None] * GROUP + within).flatten(1), rest.expand(len(groups), -1)], 1)
        value, which = products.gather(1, columns).topk(count, dim=1)
        return value, columns.gather(1, which)


def exact_index(dim: int, device: str = "auto") -> Index:
    """Return the quickest exact Index on ``device``: "auto" (a GPU that torch sees, else the CPU), "cpu", "cuda[:N]".

    Raises DeviceError for a GPU that is not there.
    """
    chosen = ("cuda" if sees_gpu() else "cpu") if device == "auto" else device
    if chosen != "cpu" or any(name in read_cpu().features for name in BF16):
        return MatmulIndex(dim, chosen)
    return ExactIndex(dim)


def free_bytes(device: str) -> int:
    """Return the bytes of memory that are free on the GPU ``device``, "cuda" or "cuda:N"."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def sees_gpu() -> bool:
    """Return whether torch sees a GPU, without loading torch where faiss sees none."""
    faiss = faiss_module()
    if "torch" not in sys.modules and not (hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus()):
        return False
    import torch

    return torch.cuda.is_available()
