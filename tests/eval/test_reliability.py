"""Reliability bins, calibration error and Brier score: by hand, under ties, and on data whose calibration is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from skumatch.eval.reliability import Equal, brier, ece, reliability

EQUALS: tuple[Equal, Equal] = ("mass", "width")


def test_equal_mass_by_hand() -> None:
    probability = np.array([0.9, 0.2, 0.8, 0.1])
    right = np.array([True, False, False, True])
    low, high = reliability(probability, right, bins=2)
    assert (low.low, low.high, low.count, low.accuracy) == (0.1, 0.2, 2, 0.5)
    assert (high.low, high.high, high.count, high.accuracy) == (0.8, 0.9, 2, 0.5)
    assert (low.probability, high.probability) == pytest.approx((0.15, 0.85))
    assert ece(probability, right, bins=2) == pytest.approx(0.35)
    assert brier(probability, right) == pytest.approx((0.01 + 0.04 + 0.64 + 0.81) / 4)


@pytest.mark.parametrize("equal", EQUALS)
def test_bins_share_out_all_queries_in_order(equal: Equal) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, bins = int(rng.integers(1, 200)), int(rng.integers(1, 20))
        probability = np.round(rng.random(n), 1 + seed % 3)
        right = rng.random(n) < probability
        found = reliability(probability, right, bins, equal)
        assert 1 <= len(found) <= bins
        assert sum(b.count for b in found) == n
        assert sum(b.count * b.accuracy for b in found) == pytest.approx(right.sum())
        assert sum(b.count * b.probability for b in found) == pytest.approx(probability.sum())
        for one, following in pairwise(found):
            assert one.high < following.low  # equal probabilities never part
        for b in found:
            assert b.low - 1e-12 <= b.probability <= b.high + 1e-12
            assert b.count == ((probability >= b.low) & (probability <= b.high)).sum()


def test_equal_mass_bins_have_equal_mass_without_ties() -> None:
    rng = np.random.default_rng(0)
    found = reliability(rng.random(1000) ** 0.05, rng.random(1000) < 0.5)  # nearly all close to 1
    assert [b.count for b in found] == [100] * 10


def test_equal_widths_reach_both_ends() -> None:
    probability = np.array([0.0, 0.1, 0.5, 0.99, 1.0])
    found = reliability(probability, np.ones(5, bool), 10, "width")
    assert [(b.low, b.high) for b in found] == [(0.0, 0.0), (0.1, 0.1), (0.5, 0.5), (0.99, 1.0)]


def test_ties_make_bins_fewer_not_arbitrary() -> None:
    probability = np.full(50, 0.7)
    right = np.arange(50) < 30
    (only,) = reliability(probability, right)
    assert (only.count, only.accuracy) == (50, 0.6)
    assert ece(probability, right) == pytest.approx(0.1)


@pytest.mark.parametrize("equal", EQUALS)
def test_the_order_of_queries_does_not_matter(equal: Equal) -> None:
    rng = np.random.default_rng(4)
    probability = np.round(rng.random(300), 2)
    right = rng.random(300) < 0.5
    order = rng.permutation(300)
    assert ece(probability[order], right[order], equal=equal) == pytest.approx(ece(probability, right, equal=equal))


@pytest.mark.parametrize("equal", EQUALS)
def test_honest_probabilities_have_little_error_and_boasts_have_much(equal: Equal) -> None:
    rng = np.random.default_rng(5)
    probability = rng.beta(4, 2, 20_000)
    right = rng.random(20_000) < probability
    boast = probability**0.5
    assert ece(probability, right, equal=equal) < 0.02
    assert ece(boast, right, equal=equal) == pytest.approx((boast - probability).mean(), abs=0.02)
    assert (boast - probability).mean() > 0.1
    assert brier(probability, right) < brier(boast, right)


def test_the_ends_of_both_measures() -> None:
    right = np.array([True, False, True])
    sure, opposite = right.astype(np.float64), (~right).astype(np.float64)
    assert (brier(sure, right), brier(opposite, right)) == (0, 1)
    assert (ece(sure, right), ece(opposite, right)) == (0, 1)
    assert brier(np.full(3, 0.5), right) == 0.25


def test_nonsense_is_refused() -> None:
    for measure in (reliability, ece, brier):
        with pytest.raises(ValueError, match="no queries"):
            measure(np.zeros(0), np.zeros(0, bool))
        with pytest.raises(ValueError, match="2 probabilities but 1 answers"):
            measure(np.zeros(2), np.zeros(1, bool))
        for bad in (-0.1, 1.1, np.nan):
            with pytest.raises(ValueError, match="not between 0 and 1"):
                measure(np.array([bad]), np.ones(1, bool))
    with pytest.raises(ValueError, match="0 bins"):
        reliability(np.zeros(2), np.zeros(2, bool), 0)
