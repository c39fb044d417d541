"""Exact search against NumPy, with ties, removals and a restriction to some ids."""

from __future__ import annotations

from pathlib import Path

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
    assert np.all(scores[:, 1:] <= scores[:, :-1]) and np.all(np.isneginf(scores[:, 4:]))


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


@pytest.mark.parametrize("seed", range(10))
def test_many_blocks_with_removals_and_returns_against_numpy(seed: int) -> None:
    """Small blocks are gathered, big ones kept; ids come in any order, go, and come back with another vector."""
    rng = np.random.default_rng(seed)
    index, there = ExactIndex(DIM), dict[int, Vectors]()
    for _ in range(int(rng.integers(2, 30))):
        free = np.setdiff1d(np.arange(9000), list(there))
        ids = rng.permutation(rng.choice(free, int(rng.choice([1, 3, 200, 300])), replace=False))
        vectors = unit(rng, len(ids))
        index.add(ids, vectors)
        there.update(zip(ids.tolist(), vectors, strict=True))
        gone = rng.choice(list(there), int(rng.integers(0, len(there) // 2 + 1)), replace=False)
        index.remove(gone)
        for view in gone.tolist():
            del there[view]
    assert len(index) == len(there)
    ids, queries, k = np.array(sorted(there), np.int64), unit(rng, 33), int(rng.choice([1, 5, 400]))
    vectors = np.stack([there[view] for view in ids.tolist()])
    scores, found = index.search(queries, k)
    expected_scores, expected = brute(vectors, ids, queries, k)
    assert np.array_equal(found, expected) and np.allclose(scores, expected_scores, atol=1e-5)
    allowed = rng.permutation(np.append(ids[rng.random(len(ids)) < rng.choice([0.01, 0.3, 0.9])], 77_777))
    some = np.isin(ids, allowed)
    assert np.array_equal(index.search(queries, k, allowed)[1], brute(vectors[some], ids[some], queries, k)[1])


def test_the_nearest_of_a_block_are_all_removed() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 9000)
    query = vectors[:1]
    order = np.argsort(-(vectors @ query[0]), kind="stable").astype(np.int64)
    index = ExactIndex(DIM)
    index.add(np.arange(9000), vectors)
    index.remove(order[:4000])
    easy = -query  # this query's nearest are there
    for queries in (query, np.concatenate([query, easy]), np.repeat(query, 40, axis=0)):
        assert index.search(queries, 3)[1][0].tolist() == order[4000:4003].tolist()
    assert index.search(np.concatenate([query, easy]), 2)[1][1].tolist() == order[:-3:-1].tolist()
    index.remove(order[4000:8999])
    assert index.search(query, 2)[1].tolist() == [[order[8999], -1]]
    index.remove(order)
    assert len(index) == 0 and index.search(query, 2)[1].tolist() == [[-1, -1]]


def test_vectors_are_not_copied(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0), 1000)
    vectors.tofile(tmp_path / "vectors.f32")
    on_disk = np.memmap(tmp_path / "vectors.f32", np.float32, "r", shape=(1000, DIM))
    for given in (vectors, on_disk):
        index = ExactIndex(DIM)
        index.add(np.arange(1000), given)
        assert all(np.shares_memory(block.rows, given) for block in index._blocks)
        assert index.search(vectors[:5], 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]


def test_other_layouts_are_converted() -> None:
    vectors = unit(np.random.default_rng(0), 600)
    index = ExactIndex(DIM)
    index.add(np.arange(300), np.asfortranarray(vectors[:300]))
    index.add(np.arange(300, 600)[::-1], vectors[300:][::-1])
    assert np.array_equal(index.search(vectors, 1)[1].ravel(), np.arange(600))


def test_single_additions_end_up_in_few_blocks() -> None:
    rng = np.random.default_rng(0)
    vectors, index = unit(rng, 5000), ExactIndex(DIM)
    for view in range(5000):
        index.add(np.array([view]), vectors[view : view + 1])
    assert len(list(index._blocks)) == 2 and len(index) == 5000
    assert np.array_equal(index.search(vectors, 1)[1].ravel(), np.arange(5000))


@pytest.mark.parametrize("ids", [[7], [7, 600], [5000, 5000], [300]])
@pytest.mark.parametrize("more", [0, 300])
def test_an_id_that_is_there_is_refused(ids: list[int], more: int) -> None:
    rng = np.random.default_rng(0)
    index = ExactIndex(DIM)
    index.add(np.arange(300), unit(rng, 300))
    index.add(np.array([300, 600]), unit(rng, 2))
    given = np.array([*ids, *range(1000, 1000 + more)])
    with pytest.raises(GalleryError, match="id"):
        index.add(given, unit(rng, len(given)))
    assert len(index) == 302
    index.remove(np.array(ids))
    if len(set(ids)) == len(ids):
        index.add(given, unit(rng, len(given)))
        assert len(index) == 302 + more


def test_one_query_gets_what_many_get() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 6000), unit(rng, 30)
    index = ExactIndex(DIM)
    index.add(np.arange(6000), vectors)
    scores, found = index.search(queries, 7)
    for line in range(30):
        alone = index.search(queries[line : line + 1], 7)
        assert np.array_equal(alone[1][0], found[line]) and np.allclose(alone[0][0], scores[line], atol=1e-6)


def test_many_blocks_and_a_long_answer_are_merged() -> None:
    rng = np.random.default_rng(0)
    index, vectors = ExactIndex(DIM), unit(rng, 6000)
    for start in range(0, 6000, 300):
        index.add(np.arange(start, start + 300), vectors[start : start + 300])
    for k in (1, 299, 3000, 7000):
        assert np.array_equal(index.search(vectors[:3], k)[1], brute(vectors, np.arange(6000), vectors[:3], k)[1])


def test_no_queries_no_answers() -> None:
    index = ExactIndex(DIM)
    index.add(np.arange(400), unit(np.random.default_rng(0), 400))
    for allowed in (None, np.arange(3)):
        scores, found = index.search(np.empty((0, DIM), np.float32), 3, allowed)
        assert scores.shape == found.shape == (0, 3)
