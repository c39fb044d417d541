"""Candidates by products of reduced precision, proven to be the exact answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skumatch.errors import DeviceError, GalleryError
from skumatch.index.exact import ExactIndex
from skumatch.index.matmul import BF16, ROUNDING, MatmulIndex, exact_index
from skumatch.machine import read_cpu
from skumatch.spec import Ids, Vectors

DIM = 24


def unit(rng: np.random.Generator, count: int, spread: float = 0.0, dim: int = DIM) -> Vectors:
    """Return unit rows; with ``spread`` so near to one another that bfloat16 cannot tell them apart."""
    rows = rng.normal(size=(count, dim))
    if spread:
        rows = np.ones(dim) + spread * rows
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


class Counting(MatmulIndex):
    """Remembers how many candidates were fetched for how many queries."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.rounds: list[tuple[int, int]] = []

    def _candidates(self, queries: torch.Tensor, reduced: object, fetch: int) -> tuple[Vectors, Ids]:
        self.rounds.append((len(queries), fetch))
        return super()._candidates(queries, reduced, fetch)  # type: ignore[arg-type]


def same(index: MatmulIndex, exact: ExactIndex, queries: Vectors, k: int, allowed: Ids | None = None) -> None:
    """Compare the answers: the same scores but for rounding, and ids whose exact scores these are."""
    scores, found = index.search(queries, k, allowed)
    expected, ids = exact.search(queries, k, allowed)
    assert scores.shape == expected.shape == (len(queries), k) and scores.dtype == np.float32
    assert np.array_equal(found < 0, ids < 0)
    there = ids >= 0
    assert np.allclose(scores[there], expected[there], atol=2e-6)
    clear = np.ones(ids.shape, bool)  # neither neighbour is as good
    clear[:, :-1] = expected[:, :-1] > expected[:, 1:] + 1e-5
    clear[:, 1:] &= clear[:, :-1]
    clear[:, -1] = False
    assert np.array_equal(found[clear & there], ids[clear & there])


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.02])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_answers_are_the_exact_ones(spread: float, k: int) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 6000, spread), unit(rng, 21, spread)
    index, exact = MatmulIndex(DIM), ExactIndex(DIM)
    for start, end in ((0, 5000), (5000, 5003), (5003, 6000)):
        index.add(np.arange(start, end), vectors[start:end])
        exact.add(np.arange(start, end), vectors[start:end])
    same(index, exact, queries, k)
    gone = rng.choice(6000, 1500, replace=False)
    index.remove(gone)
    exact.remove(gone)
    same(index, exact, queries, k)
    same(index, exact, queries, k, rng.choice(6000, 4500, replace=False))
    same(index, exact, queries, k, rng.choice(6000, 40, replace=False))
    assert len(index) == len(exact) == 4500


def test_what_rounding_hides_is_fetched_later() -> None:
    """The nearest lie closer together than bfloat16 can tell: the first round proves nothing for that query alone."""
    rng = np.random.default_rng(0)
    vectors = unit(rng, 20_000)
    query = unit(rng, 1)
    near = query + 1e-3 * rng.normal(size=(300, DIM))
    vectors[:300] = near / np.linalg.norm(near, axis=1, keepdims=True)
    index, exact = Counting(DIM), ExactIndex(DIM)
    for each in (index, exact):
        each.add(np.arange(20_000), vectors)
    same(index, exact, np.concatenate([query, vectors[15_000:15_001]]), 3)
    assert index.rounds[0] == (2, 35) and [lines for lines, _ in index.rounds[1:]] == [1] * (len(index.rounds) - 1)
    assert len(index.rounds) > 1


@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_bound_holds(kind: torch.dtype, trial: int) -> None:
    """No product may be farther from the true one than the bound allows."""
    rng = np.random.default_rng(trial)
    dim = int(rng.choice([8, 100, 512]))
    vectors, queries = unit(rng, 3000, float(rng.choice([0, 0.2])), dim), unit(rng, 40, 0.2, dim)
    index = MatmulIndex(dim)
    index._type, index._rounding = kind, ROUNDING[str(kind).removeprefix("torch.")]
    index.add(np.arange(3000), vectors)
    reduced = index._of(next(iter(index._blocks)))
    short = torch.from_numpy(queries).to(kind)
    products = (short @ reduced.rows.T).float().numpy()
    lost = np.linalg.norm(queries - short.float().numpy(), axis=1) * reduced.length
    lost += np.linalg.norm(short.float().numpy(), axis=1) * reduced.error
    true = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    for line in range(40):
        allowance = lost[line] + index._noise(products[line]) + 1e-6
        assert np.all(true[line] <= products[line] + allowance)
    assert lost.max() < 2 * index._rounding  # and it is of use


def test_the_largest_are_found_by_groups() -> None:
    rng = np.random.default_rng(0)
    index = MatmulIndex(DIM)
    products = torch.from_numpy(rng.normal(size=(5, 20_037)).astype(np.float32))
    products[0, 20_030] = 100  # behind the last whole group
    products[1, 640:704] = 100 + torch.arange(64)  # all in one group
    for count in (1, 40, 200):
        values, columns = index._top(products, count)
        expected = products.topk(count, dim=1)
        assert torch.equal(values, expected.values) and torch.equal(products.gather(1, columns), values)


def test_errors_are_the_exact_indexs() -> None:
    index = MatmulIndex(DIM)
    index.add(np.arange(3), unit(np.random.default_rng(0), 3))
    with pytest.raises(GalleryError, match="there already"):
        index.add(np.arange(1), unit(np.random.default_rng(0), 1))
    assert index.search(unit(np.random.default_rng(0), 2), 5)[1][:, 3:].tolist() == [[-1, -1]] * 2


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="cuda:999 is not there"):
        exact_index(DIM, "cuda:999")


def test_the_cpu_gets_what_its_instructions_are_good_for(tmp_path: Path) -> None:
    reduced = any(name in read_cpu().features for name in BF16)
    assert type(exact_index(DIM, "cpu")) is (MatmulIndex if reduced else ExactIndex)
    auto = exact_index(DIM)
    if torch.cuda.is_available():
        assert isinstance(auto, MatmulIndex) and auto.device == "cuda"
    else:
        assert type(auto) is type(exact_index(DIM, "cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [24, 512, 2560])
def test_on_a_gpu(dim: int) -> None:
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 100_000, dim=dim), unit(rng, 64, dim=dim)
    index, exact = MatmulIndex(dim, "cuda:0"), ExactIndex(dim)
    for each in (index, exact):
        each.add(np.arange(70_000), vectors[:70_000])
        each.add(np.arange(70_000, 100_000), vectors[70_000:])
        each.remove(np.arange(0, 100_000, 7))
    for k in (1, 10, 2000):
        same(index, exact, queries, k)
    same(index, exact, queries, 10, np.arange(0, 100_000, 3))


@pytest.mark.gpu
def test_a_gpu_without_room_says_so() -> None:
    free = torch.cuda.mem_get_info()[0]
    taken = torch.empty(max(0, free - (256 << 20)), dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceError, match="has no room"):
        MatmulIndex(512, "cuda").add(np.arange(500_000), np.zeros((500_000, 512), np.float32))
    del taken
