"""From views to SKUs: k distinct SKUs, each by its best view, whatever lies in between."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.errors import GalleryError
from skumatch.index.exact import ExactIndex
from skumatch.nearest import Nearest, first_k_distinct, nearest_skus
from skumatch.spec import Ids, Vectors

DIM = 6


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, DIM))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def brute(vectors: Vectors, codes: Ids, ids: Ids, query: Vectors, k: int) -> list[tuple[int, int]]:
    """Return (SKU, view) of the k nearest SKUs of one query."""
    found: dict[int, int] = {}
    for position in np.argsort(-(vectors @ query), kind="stable"):
        found.setdefault(int(codes[position]), int(ids[position]))
    return list(found.items())[:k]


class Counting(ExactIndex):
    """Remembers how much was asked for."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.asked: list[tuple[int, int]] = []

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        self.asked.append((len(queries), k))
        return super().search(queries, k, allowed)


@pytest.mark.parametrize("seed", range(12))
def test_random_trials_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, skus, k = int(rng.integers(1, 150)), int(rng.integers(1, 20)), int(rng.integers(1, 25))
    vectors, codes = unit(rng, count), rng.integers(0, skus, count).astype(np.int64)
    index, queries = ExactIndex(DIM), unit(rng, 4)
    index.add(np.arange(count), vectors)
    allowed = np.flatnonzero(rng.random(count) < 0.5) if seed % 2 else None
    ids = np.arange(count) if allowed is None else allowed
    found = nearest_skus(index, lambda wanted: codes[wanted], queries, k, allowed)
    assert found.skus.shape == (4, k)
    for line in range(4):
        expected = brute(vectors[ids], codes[ids], ids, queries[line], k)
        there = found.skus[line] >= 0
        pairs = zip(found.skus[line][there].tolist(), found.views[line][there].tolist(), strict=True)
        assert list(pairs) == expected
        assert np.all(found.views[line][~there] == -1) and np.all(np.isneginf(found.scores[line][~there]))
        assert np.allclose(found.scores[line][there], vectors[found.views[line][there]] @ queries[line], atol=1e-5)


def test_many_views_of_one_sku_are_fetched_through() -> None:
    rng = np.random.default_rng(0)
    query = unit(rng, 1)
    near = query + rng.normal(0, 0.01, (500, DIM))
    vectors = np.concatenate([near / np.linalg.norm(near, axis=1, keepdims=True), -unit(rng, 20)]).astype(np.float32)
    vectors[500:] = np.where((vectors[500:] @ query.T) > 0.5, -vectors[500:], vectors[500:])
    codes = np.concatenate([np.zeros(500, np.int64), np.arange(1, 21)])
    index = Counting(DIM)
    index.add(np.arange(520), vectors)
    easy = vectors[500:501]
    found = nearest_skus(index, lambda ids: codes[ids], np.concatenate([query, easy]), 3)
    assert [(int(s), int(v)) for s, v in zip(found.skus[0], found.views[0], strict=True)] == brute(
        vectors, codes, np.arange(520), query[0], 3
    )
    assert [k for _, k in index.asked] == [12, 48, 192, 520]
    assert index.asked[-1][0] == 1  # only the query that needed it


def test_k_larger_than_the_number_of_skus() -> None:
    index = ExactIndex(DIM)
    vectors = unit(np.random.default_rng(1), 4)
    index.add(np.arange(4), vectors)
    found = nearest_skus(index, lambda ids: ids // 2, vectors[:1], 50)
    assert sorted(found.skus[0, :2].tolist()) == [0, 1] and np.all(found.skus[0, 2:] == -1)


def test_no_queries_and_an_empty_index() -> None:
    index = ExactIndex(DIM)
    assert np.all(nearest_skus(index, lambda ids: ids, unit(np.random.default_rng(0), 2), 3).skus == -1)
    assert nearest_skus(index, lambda ids: ids, np.empty((0, DIM), np.float32), 3).skus.shape == (0, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(k: int) -> None:
    with pytest.raises(GalleryError, match=f"k is {k}"):
        nearest_skus(ExactIndex(DIM), lambda ids: ids, np.zeros((1, DIM), np.float32), k)


def test_equal_scores_are_answered_by_the_smaller_view() -> None:
    index = ExactIndex(DIM)
    vector = unit(np.random.default_rng(0), 1)
    index.add(np.array([9, 4, 6, 2]), np.repeat(vector, 4, axis=0))
    codes = np.array([0, 0, 7, 0, 8, 0, 7, 0, 0, 8])
    found = nearest_skus(index, lambda ids: codes[ids], vector, 2)
    assert (found.skus.tolist(), found.views.tolist()) == ([[7, 8]], [[2, 4]])


def test_first_k_distinct() -> None:
    codes = np.array([[3, 3, 1, 3, 2], [-1, 5, 5, -1, 6]])
    assert first_k_distinct(codes, 2).tolist() == [[True, False, True, False, False], [False, True, False, False, True]]


def test_nonsense_is_refused_where_it_is_made() -> None:
    codes = np.array([[1, 2]])
    with pytest.raises(GalleryError, match="not sorted"):
        Nearest(np.array([[0.1, 0.2]], np.float32), codes, codes)
    with pytest.raises(GalleryError, match="differ in shape"):
        Nearest(np.array([[0.1]], np.float32), codes, codes)
