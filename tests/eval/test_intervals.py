"""Intervals by SKU, paired comparisons, and what they say about queries that hang together."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.eval import intervals
from skumatch.eval.intervals import bootstrap, mcnemar, paired
from skumatch.eval.metrics import macro
from skumatch.spec import Ids

Floats = NDArray[np.float64]


def some_hits(seed: int = 1) -> tuple[Floats, Ids]:
    rng = np.random.default_rng(seed)
    hits = (rng.random(300) < 0.7).astype(np.float64)
    return hits, rng.integers(0, 40, 300).astype(np.int64)


def test_the_interval_holds_the_mean_and_is_seeded() -> None:
    hits, skus = some_hits()
    found = bootstrap(hits, skus)
    assert found.value == hits.mean()
    assert 0 <= found.low < found.value < found.high <= 1
    assert bootstrap(hits, skus) == found
    assert bootstrap(hits, skus, seed=1) != found


def test_recorded_intervals_stay_what_they_were() -> None:
    found = bootstrap(*some_hits())
    assert (found.value, found.low, found.high) == pytest.approx((0.71, 0.6514582228619044, 0.768294924677188))


def test_the_draws_do_not_depend_on_the_memory_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, skus = some_hits()
    found = bootstrap(hits, skus, resamples=333)
    monkeypatch.setattr(intervals, "BLOCK", 40 * 7)
    assert bootstrap(hits, skus, resamples=333) == found


def test_codes_are_names_only() -> None:
    hits, skus = some_hits()
    assert bootstrap(hits, skus * 1000 + 7) == bootstrap(hits, skus)


def test_the_macro_interval_is_about_the_macro_mean() -> None:
    hits, skus = some_hits()
    skus[:150] = 0  # one SKU with half of the queries
    found = bootstrap(hits, skus, macro=True)
    assert found.value == macro(hits, skus)
    assert found.low < found.value < found.high
    one_each = np.arange(300, dtype=np.int64)
    assert bootstrap(hits, one_each, macro=True) == bootstrap(hits, one_each)


@pytest.mark.parametrize("by_sku", [False, True])
def test_the_interval_covers_the_truth_about_19_times_in_20(by_sku: bool) -> None:
    rng = np.random.default_rng(2)
    covered = 0
    skus = np.repeat(np.arange(60), 5).astype(np.int64)
    for _ in range(100):
        difficulty = rng.beta(7, 3, 60)  # mean 0.7; SKUs differ
        found = bootstrap((rng.random(300) < difficulty[skus]).astype(np.float64), skus, macro=by_sku)
        covered += found.low <= 0.7 <= found.high
    assert 86 <= covered <= 99


def test_queries_of_one_sku_that_hang_together_widen_the_interval() -> None:
    skus = np.repeat(np.arange(20), 20).astype(np.int64)
    all_or_nothing = np.repeat(np.arange(20) % 2, 20).astype(np.float64)
    by_sku = bootstrap(all_or_nothing, skus)
    by_query = bootstrap(all_or_nothing, np.arange(400, dtype=np.int64))
    assert by_sku.value == by_query.value == 0.5
    assert by_sku.high - by_sku.low > 3 * (by_query.high - by_query.low)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_variation_the_interval_is_a_point(value: float) -> None:
    found = bootstrap(np.full(10, value), np.arange(10, dtype=np.int64))
    assert (found.value, found.low, found.high) == (value, value, value)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="no queries"):
        bootstrap(np.zeros(0), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="3 values but 2 SKU codes"):
        bootstrap(np.zeros(3), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="not finite"):
        bootstrap(np.array([1.0, np.nan]), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="2 values of A but 3 of B"):
        paired(np.zeros(2), np.zeros(3), np.zeros(3, np.int64))


def test_a_model_against_itself_shows_no_difference() -> None:
    hits, skus = some_hits()
    found = paired(hits, hits, skus)
    assert (found.difference, found.low, found.high, found.gained, found.lost, found.p) == (0, 0, 0, 0, 0, 1)
    assert found.verdict == "no difference shown"


def test_a_clear_gain_is_shown_and_turns_round() -> None:
    hits, skus = some_hits()
    better = hits.copy()
    better[np.flatnonzero(hits == 0)[::3]] = 1
    up, down = paired(hits, better, skus), paired(better, hits, skus)
    assert up.verdict == "B is better" and down.verdict == "A is better"
    assert up.difference == pytest.approx(better.mean() - hits.mean()) == -down.difference
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))
    assert (up.gained, up.lost) == (down.lost, down.gained) == (29, 0)
    assert up.p == down.p == mcnemar(29, 0)
    assert paired(hits, better, skus) == up


def test_many_queries_of_few_skus_show_nothing() -> None:
    """McNemar alone would be sure: 100 queries gained, none lost."""
    skus = np.repeat(np.arange(50), 20).astype(np.int64)
    before = np.zeros(1000)
    for moved, verdict in ((5, "no difference shown"), (6, "B is better")):
        found = paired(before, (skus < moved).astype(np.float64), skus)
        assert found.gained == 20 * moved and found.p < 1e-20
        assert found.low > 0
        assert found.verdict == verdict


def test_an_interval_that_excludes_0_is_not_enough_against_mcnemar() -> None:
    skus = np.arange(400, dtype=np.int64)
    found = paired(((skus >= 9) & (skus < 11)).astype(np.float64), (skus < 9).astype(np.float64), skus)
    assert (found.gained, found.lost) == (9, 2)
    assert found.low > 0 and found.p == pytest.approx(0.0654296875)
    assert found.verdict == "no difference shown"


def test_whole_skus_that_flip_by_chance_are_rarely_taken_for_progress() -> None:
    """All queries of a SKU gained or lost together: McNemar alone is wrong most of the time, the verdict is not."""
    rng = np.random.default_rng(5)
    skus = np.repeat(np.arange(40), 15).astype(np.int64)
    fooled = alone = 0
    for _ in range(100):
        flips = rng.choice([-1, 0, 1], 40, p=[0.2, 0.6, 0.2])
        a, b = (flips < 0).astype(np.float64), (flips > 0).astype(np.float64)
        found = paired(a[skus], b[skus], skus, resamples=500)
        fooled += found.verdict != "no difference shown"
        alone += found.p < 0.05
    assert fooled <= 10
    assert alone > 40


def test_values_between_0_and_1_are_compared_by_sign() -> None:
    units = np.arange(10, dtype=np.int64)
    found = paired(np.full(10, 0.5), np.linspace(0.6, 0.9, 10), units)
    assert (found.gained, found.lost, found.p) == (10, 0, mcnemar(10, 0))
    assert found.verdict == "B is better"


def exact(gained: int, lost: int) -> float:
    """Return the p-value in whole numbers."""
    n, most = gained + lost, max(gained, lost)
    term, tail = math.comb(n, most), 0
    for i in range(most, n + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (8, 2, 0.109375), (9, 1, 0.021484375), (3, 3, 1.0)],
)
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(p, rel=1e-14)


def test_mcnemar_agrees_with_exact_fractions() -> None:
    for gained in range(25):
        for lost in range(25):
            assert mcnemar(gained, lost) == pytest.approx(exact(gained, lost), rel=1e-13)
    for gained, lost in ((1000, 900), (0, 900), (2501, 2500), (4000, 3500), (9000, 8900)):
        assert mcnemar(gained, lost) == pytest.approx(exact(gained, lost), rel=1e-11)


def test_mcnemar_of_millions_is_quick_and_right() -> None:
    started = time.perf_counter()
    for gained, lost in ((1_000_000, 999_000), (1_000_000, 996_000), (1_000_000, 1_000_000)):
        normal = math.erfc(max(0, gained - lost - 1) / math.sqrt(2 * (gained + lost)))  # continuity corrected
        assert mcnemar(gained, lost) == pytest.approx(normal, rel=1e-3)
    assert mcnemar(1_000_000, 0) == 0.0
    assert time.perf_counter() - started < 2


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar(3, -1)
