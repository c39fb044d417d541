"""Metrics against brute force, and what the interval says about correlated queries."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.eval.metrics import accuracy, confusions, hit_ranks, per_sku, top_k


def test_ranks_and_top_k_agree_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    answers = np.stack([rng.permutation(8)[:5] for _ in range(200)]).astype(np.int64)
    truth = rng.integers(-1, 10, 200).astype(np.int64)
    ranks = hit_ranks(answers, truth)
    for line, right, rank in zip(answers.tolist(), truth.tolist(), ranks.tolist(), strict=True):
        assert rank == (line.index(right) + 1 if right in line else 0)
    for k in (1, 3, 5, 9):
        expected = [right in line[:k] for line, right in zip(answers.tolist(), truth.tolist(), strict=True)]
        assert top_k(ranks, k).tolist() == expected


def test_the_first_right_answer_counts() -> None:
    assert hit_ranks(np.array([[3, 7, 7, 7]]), np.array([7])).tolist() == [2]


def test_the_interval_holds_the_mean_and_is_seeded() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random(300) < 0.7).astype(np.float64)
    skus = rng.integers(0, 40, 300).astype(np.int64)
    found = accuracy(hits, skus)
    assert found.value == hits.mean()
    assert 0 <= found.low < found.value < found.high <= 1
    assert accuracy(hits, skus) == found
    assert accuracy(hits, skus, seed=1) != found


def test_the_interval_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        difficulty = rng.beta(7, 3, 60)  # mean 0.7; SKUs differ
        skus = np.repeat(np.arange(60), 5).astype(np.int64)
        found = accuracy((rng.random(300) < difficulty[skus]).astype(np.float64), skus)
        covered += found.low <= 0.7 <= found.high
    assert covered >= 86


def test_queries_of_one_sku_that_hang_together_widen_the_interval() -> None:
    skus = np.repeat(np.arange(20), 20).astype(np.int64)
    all_or_nothing = np.repeat(np.arange(20) % 2, 20).astype(np.float64)
    by_sku = accuracy(all_or_nothing, skus)
    by_query = accuracy(all_or_nothing, np.arange(400, dtype=np.int64))
    assert by_sku.value == by_query.value == 0.5
    assert by_sku.high - by_sku.low > 3 * (by_query.high - by_query.low)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_variation_the_interval_is_a_point(value: float) -> None:
    found = accuracy(np.full(10, value), np.arange(10, dtype=np.int64))
    assert (found.value, found.low, found.high) == (value, value, value)


def test_no_queries_have_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no queries"):
        accuracy(np.zeros(0), np.zeros(0, np.int64))


def test_per_sku_counts_and_averages() -> None:
    hits = np.array([1.0, 0.0, 1.0, 1.0])
    assert per_sku(hits, ["b", "b", "a", "b"]) == {"a": (1, 1.0), "b": (3, pytest.approx(2 / 3))}
    assert list(per_sku(hits, ["b", "b", "a", "b"])) == ["a", "b"]


def test_confusions_are_the_most_frequent_wrong_answers() -> None:
    truth = ["a", "a", "a", "b", "b", "c", "c"]
    answers = ["b", "b", "a", "c", "a", "a", "c"]
    assert confusions(truth, answers, 3) == [("a", "b", 2), ("b", "a", 1), ("b", "c", 1)]
    assert confusions(["a"], ["a"], 3) == []
