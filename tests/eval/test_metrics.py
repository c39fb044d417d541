"""Measures per query and per SKU against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.eval.metrics import (
    average_precision_at_r,
    confusions,
    hit_ranks,
    macro,
    per_sku,
    reciprocal_ranks,
    sku_means,
    top_k,
)


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


def test_padding_is_not_the_answer_to_a_query_without_a_gallery_view() -> None:
    assert hit_ranks(np.array([[4, -1], [4, -1]]), np.array([-1, 4])).tolist() == [0, 1]
    assert hit_ranks(np.zeros((2, 0), np.int64), np.array([0, 1])).tolist() == [0, 0]


def test_reciprocal_ranks_of_no_hit_are_0() -> None:
    assert reciprocal_ranks(np.array([1, 0, 4])).tolist() == [1.0, 0.0, 0.25]


def test_average_precision_at_r_by_hand() -> None:
    relevant = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = average_precision_at_r(relevant, np.array([3, 2, 1, 2, 2]))
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 3, (1 / 2) / 2, 0, 1, 0])  # a hit beyond rank R is no help


def test_average_precision_without_a_view_is_undefined() -> None:
    found = average_precision_at_r(np.zeros((2, 3), bool), np.array([0, 1]))
    assert np.isnan(found[0]) and found[1] == 0
    assert average_precision_at_r(np.zeros((0, 0), bool), np.zeros(0, np.int64)).shape == (0,)


def test_a_list_that_was_cut_has_no_average_precision() -> None:
    with pytest.raises(ValueError, match="2 ranks, but a SKU has 3 views"):
        average_precision_at_r(np.ones((1, 2), bool), np.array([3]))
    with pytest.raises(ValueError, match="more relevant views"):
        average_precision_at_r(np.ones((1, 2), bool), np.array([1]))


def test_average_precision_rewards_a_view_that_moves_up() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        relevant = rng.random((1, 10)) < 0.4
        total = relevant.sum(axis=1).astype(np.int64)
        places = [i for i in range(1, 10) if relevant[0, i] and not relevant[0, i - 1] and i <= total[0]]
        better = relevant.copy()
        for place in places[:1]:
            better[0, [place - 1, place]] = better[0, [place, place - 1]]
            assert average_precision_at_r(better, total)[0] > average_precision_at_r(relevant, total)[0]
        assert 0 <= np.nan_to_num(average_precision_at_r(relevant, total)[0]) <= 1


def test_macro_gives_each_sku_one_voice() -> None:
    values, skus = np.array([1.0, 1.0, 1.0, 0.0]), np.array([9, 9, 9, 2])
    assert macro(values, skus) == 0.5
    assert sku_means(values, skus).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="no queries"):
        macro(np.zeros(0), np.zeros(0, np.int64))


def test_per_sku_counts_and_averages() -> None:
    hits = np.array([1.0, 0.0, 1.0, 1.0])
    assert per_sku(hits, ["b", "b", "a", "b"]) == {"a": (1, 1.0), "b": (3, pytest.approx(2 / 3))}
    assert list(per_sku(hits, ["b", "b", "a", "b"])) == ["a", "b"]


def test_confusions_are_the_most_frequent_wrong_answers() -> None:
    truth = ["a", "a", "a", "b", "b", "c", "c"]
    answers = ["b", "b", "a", "c", "a", "a", "c"]
    assert confusions(truth, answers, 3) == [("a", "b", 2), ("b", "a", 1), ("b", "c", 1)]
    assert confusions(["a"], ["a"], 3) == []
