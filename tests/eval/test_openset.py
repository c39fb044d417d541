"""Open-set measures against brute force over pairs and thresholds, with ties, infinities and empty sides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.eval.openset import auroc, coverage_accuracy, fpr_at_tpr, oscr, thin

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def cases() -> Iterator[tuple[Floats, Flags, Floats]]:
    """Yield known scores, whether they are right, and unknown scores: from no ties to nothing but ties."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        steps = (1, 2, 5, 1000)[seed % 4]
        n, m = rng.integers(1, 40, 2)
        known = np.round(rng.normal(0.5, 1, n) * steps) / steps * (seed % 8 > 0)
        unknown = np.round(rng.normal(0, 1, m) * steps) / steps * (seed % 8 > 0)
        yield known, rng.random(n) < rng.choice([0, 0.3, 0.8, 1]), unknown


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    for known, _, unknown in cases():
        pairs = (known[:, None] > unknown) + 0.5 * (known[:, None] == unknown)
        assert auroc(known, unknown) == pytest.approx(pairs.mean(), abs=1e-12)
        assert auroc(known, unknown) + auroc(unknown, known) == pytest.approx(1)


def test_auroc_depends_on_the_order_of_scores_alone() -> None:
    for known, _, unknown in cases():
        assert auroc(np.exp(known), np.exp(unknown)) == auroc(known, unknown)


def test_fpr_at_tpr_is_the_best_threshold_that_keeps_enough() -> None:
    for known, _, unknown in cases():
        for tpr in (0.5, 0.95, 1.0):
            enough = [t for t in np.unique(known) if (known >= t).mean() >= tpr]
            assert fpr_at_tpr(known, unknown, tpr) == (unknown >= max(enough)).mean()


def test_fpr_at_95_of_100_leaves_out_the_five_lowest() -> None:
    assert fpr_at_tpr(np.arange(100.0), np.array([4.0, 5.0, 6.0, 200.0])) == 0.75


def test_oscr_is_what_each_threshold_gives() -> None:
    for known, right, unknown in cases():
        found = oscr(known, right, unknown)
        assert (np.diff(found.threshold) < 0).all()
        for i, threshold in enumerate(found.threshold):
            assert found.false_positive[i] == (unknown >= threshold).mean()
            assert found.correct[i] == ((known >= threshold) & right).mean()
        assert (found.false_positive[-1], found.correct[-1]) == (1, pytest.approx(right.mean()))
        x, y = (np.concatenate([[0.0], part]) for part in (found.false_positive, found.correct))
        assert found.area == pytest.approx(np.trapezoid(y, x), abs=1e-12)


def test_oscr_is_accuracy_times_how_well_right_answers_outrank_unknowns() -> None:
    for known, right, unknown in cases():
        area = oscr(known, right, unknown).area
        assert area == pytest.approx(right.mean() * auroc(known[right], unknown) if right.any() else 0)
        assert oscr(known, np.ones(len(known), bool), unknown).area == auroc(known, unknown)


def test_coverage_and_accuracy_are_what_each_threshold_gives() -> None:
    for confidence, right, _ in cases():
        found = coverage_accuracy(confidence, right)
        assert (np.diff(found.threshold) < 0).all() and found.coverage[-1] == 1
        for i, threshold in enumerate(found.threshold):
            accepted = confidence >= threshold
            assert found.coverage[i] == accepted.mean()
            assert found.accuracy[i] == pytest.approx(right[accepted].mean())
        risks = [1 - right[confidence >= c].mean() for c in confidence]
        assert found.area == pytest.approx(np.mean(risks), abs=1e-12)


def test_a_constant_confidence_is_one_point() -> None:
    found = coverage_accuracy(np.zeros(4), np.array([True, True, True, False]))
    assert (found.coverage.tolist(), found.accuracy.tolist(), found.area) == ([1.0], [0.75], 0.25)


def test_a_confidence_that_knows_beats_one_that_does_not() -> None:
    right = np.arange(100) < 80
    knows, inverted = right.astype(np.float64), (~right).astype(np.float64)
    areas = [coverage_accuracy(c, right).area for c in (knows, np.ones(100), inverted)]
    assert areas == pytest.approx([0.2 * 0.2, 0.2, 0.2 + 0.8 * 0.2]) and areas == sorted(areas)


def test_the_order_of_queries_does_not_matter() -> None:
    rng = np.random.default_rng(9)
    for known, right, unknown in cases():
        order = rng.permutation(len(known))
        for one, other in (
            (coverage_accuracy(known, right), coverage_accuracy(known[order], right[order])),
            (oscr(known, right, unknown), oscr(known[order], right[order], unknown[::-1])),
        ):
            assert one.area == pytest.approx(other.area, abs=1e-15)
            assert one.threshold.tolist() == other.threshold.tolist()


def test_infinite_scores_are_scores() -> None:
    known, unknown = np.array([np.inf, 1.0, -np.inf]), np.array([0.0, -np.inf])
    assert auroc(known, unknown) == pytest.approx((1 + 1 + 1 + 1 + 0 + 0.5) / 6)
    assert fpr_at_tpr(known, unknown, 1.0) == 1
    assert coverage_accuracy(known, np.array([True, True, False])).accuracy.tolist() == pytest.approx([1, 1, 2 / 3])


def test_a_thin_curve_keeps_ends_area_and_order() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.random(5000), rng.random(5000) < 0.8
    answered, accepted = coverage_accuracy(confidence, right), oscr(confidence, right, rng.random(100))
    for full, few in ((answered, thin(answered, 50)), (accepted, thin(accepted, 50))):
        assert type(few) is type(full) and len(few.threshold) == 50
        assert few.area == full.area
        assert (few.threshold[0], few.threshold[-1]) == (full.threshold[0], full.threshold[-1])
        assert set(few.threshold) <= set(full.threshold) and (np.diff(few.threshold) < 0).all()
    short = coverage_accuracy(confidence[:7], right[:7])
    assert thin(short).accuracy.tolist() == short.accuracy.tolist()


def test_a_thin_curve_still_pairs_its_points() -> None:
    rng = np.random.default_rng(1)
    confidence, right = rng.random(3000), rng.random(3000) < 0.5
    few = thin(coverage_accuracy(confidence, right), 20)
    for coverage, accuracy, threshold in zip(few.coverage, few.accuracy, few.threshold, strict=True):
        assert coverage == (confidence >= threshold).mean()
        assert accuracy == pytest.approx(right[confidence >= threshold].mean())


SOME, NONE, BAD = np.ones(2), np.zeros(0), np.array([1.0, np.nan])
FLAGS = np.ones(2, bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: auroc(NONE, SOME), "no scores"),
        (lambda: auroc(SOME, NONE), "no scores"),
        (lambda: auroc(BAD, SOME), "NaN"),
        (lambda: fpr_at_tpr(SOME, BAD), "NaN"),
        (lambda: fpr_at_tpr(SOME, SOME, 0), r"0 is not in \(0, 1\]"),
        (lambda: fpr_at_tpr(SOME, SOME, 1.1), "1.1 is not in"),
        (lambda: oscr(NONE, NONE.astype(bool), SOME), "no scores"),
        (lambda: oscr(SOME, FLAGS[:1], SOME), "2 scores but 1 answers"),
        (lambda: coverage_accuracy(NONE, NONE.astype(bool)), "no scores"),
        (lambda: coverage_accuracy(SOME, FLAGS[:1]), "2 scores but 1 answers"),
    ],
)
def test_nonsense_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_a_hundred_thousand_queries_take_well_under_a_second_each() -> None:
    rng = np.random.default_rng(0)
    known, right, unknown = rng.random(100_000), rng.random(100_000) < 0.5, rng.random(100_000)
    started = time.perf_counter()
    auroc(known, unknown), fpr_at_tpr(known, unknown), oscr(known, right, unknown), coverage_accuracy(known, right)
    assert time.perf_counter() - started < 4
