"""Exact search against NumPy, with ties, removals and a restriction to some ids."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.errors import GalleryError
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids, Vectors

DIM = 8


def unit(rng: np.random.Generator, count: int, levels: int = 0) -> Vectors:
    """Return unit rows; with ``levels`` drawn from so few values that many are equal."""
    rows = rng.integers(-levels, levels + 1, (count, DIM)) + 1e-3 if levels else rng.normal(size=(count, DIM))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def brute(vectors: Vectors, ids: Ids, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Return what a search over everything gives, -1 and the lowest score where there is no more."""
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    found[:, : order.shape[1]] = ids[order]
    best[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
    return best, found


@pytest.mark.parametrize("seed", range(8))
def test_random_trials_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, queries = int(rng.integers(1, 120)), unit(rng, int(rng.choice([1, 5, 40])))
    ids, vectors = np.sort(rng.choice(10_000, count, replace=False)).astype(np.int64), unit(rng, count)
    index = ExactIndex(DIM)
    half = count // 2
    index.add(ids[:half], vectors[:half])
    index.add(ids[half:], vectors[half:])
    k = int(rng.integers(1, count + 5))
    gone = rng.choice(ids, count // 3, replace=False)
    index.remove(np.append(gone, 77_777))  # an id that is not there is ignored
    kept = ~np.isin(ids, gone)
    assert len(index) == kept.sum()
    scores, found = index.search(queries, k)
    expected_scores, expected = brute(vectors[kept], ids[kept], queries, k)
    assert np.array_equal(found, expected)
    there = expected >= 0
    assert np.allclose(scores[there], expected_scores[there], atol=1e-5)
    allowed = ids[rng.random(count) < 0.4]
    some = kept & np.isin(ids, allowed)
    if len(allowed):
        assert np.array_equal(index.search(queries, k, allowed)[1], brute(vectors[some], ids[some], queries, k)[1])


@pytest.mark.parametrize("seed", range(4))
def test_equal_scores_come_by_id(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(unit(rng, 6, levels=1), 5, axis=0)
    ids = rng.permutation(30).astype(np.int64)
    index = ExactIndex(DIM)
    index.add(ids, vectors)
    for queries in (unit(rng, 3), unit(rng, 30)):
        scores, found = index.search(queries, 30)
        assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(30), (len(queries), 1)))
        assert np.all(np.diff(scores, axis=1) <= 0)
        tied = np.diff(scores, axis=1) == 0
        assert tied.sum() >= 24 * len(queries) * 0.9
        assert np.all(np.diff(found, axis=1)[tied] > 0)


def test_only_the_lines_with_ties_are_put_in_order() -> None:
    """One query ties, the next does not; a tie may reach the places beyond the last view."""
    vectors = np.zeros((4, DIM), np.float32)  # of length 1, and their products are exact
    vectors[:, :4] = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]) - 0.5
    index = ExactIndex(DIM)
    index.add(np.array([40, 30, 20, 10]), vectors)
    slanted = vectors[:1] + np.linspace(0, 0.1, DIM, dtype=np.float32)
    queries = np.concatenate([vectors[3:], slanted, vectors[:1]])
    scores, found = index.search(queries, 6)
    assert found[0].tolist() == [10, 20, 30, 40, -1, -1] and found[2].tolist() == [40, 10, 20, 30, -1, -1]
    assert found[1].tolist() == index.search(slanted, 6)[1][0].tolist() and len(set(scores[1, :4].tolist())) == 4
    assert np.all(np.diff(scores, axis=1) <= 0)


def test_nothing_allowed_nothing_found() -> None:
    index = ExactIndex(DIM)
    vectors = unit(np.random.default_rng(0), 3)
    index.add(np.arange(3), vectors)
    assert index.search(vectors, 2, np.empty(0, np.int64))[1].tolist() == [[-1, -1]] * 3


def test_an_empty_index_answers_minus_one() -> None:
    index = ExactIndex(DIM)
    index.add(np.empty(0, np.int64), np.empty((0, DIM), np.float32))
    assert len(index) == 0
    assert index.search(unit(np.random.default_rng(0), 2), 3)[1].tolist() == [[-1] * 3] * 2


def test_wrong_shapes_are_refused() -> None:
    index = ExactIndex(DIM)
    wrong = [(np.arange(2), np.zeros((2, 7))), (np.arange(3), np.zeros((2, DIM))), (np.arange(2), np.zeros(DIM))]
    for ids, vectors in wrong:
        with pytest.raises(GalleryError, match=rf"give \(N, {DIM}\)"):
            index.add(ids, vectors.astype(np.float32))
    assert len(index) == 0
