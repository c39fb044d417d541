"""F1 of matched postings against a plain count, and the thresholds chosen by it."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.catalogue.judged import Judged, Matches, matches_of
from skumatch.errors import DataError
from skumatch.eval.duplicates import NONE, best_f1, by_pairs, least_threshold, score


def plainly(answers: list[set[int]], groups: list[int]) -> tuple[list[float], list[float], list[float]]:
    """The task's measure, one posting after the other."""
    f1s, precisions, recalls = [], [], []
    for answered, group in zip(answers, groups, strict=True):
        right = {other for other, its in enumerate(groups) if its == group}
        hit = len(answered & right)
        precision = hit / len(answered) if answered else 0.0
        recall = hit / len(right)
        f1s.append(2 * precision * recall / (precision + recall) if hit else 0.0)
        precisions.append(precision)
        recalls.append(recall)
    return f1s, precisions, recalls


def matches_from(answers: list[set[int]]) -> Matches:
    places = [place for answered in answers for place in sorted(answered)]
    offsets = np.cumsum([0, *(len(answered) for answered in answers)])
    return Matches(offsets.astype(np.int64), np.array(places, np.int64))


@pytest.mark.parametrize("block", range(10))
def test_f1_equals_a_plain_count_on_a_thousand_random_cases(block: int) -> None:
    rng = np.random.default_rng(block)
    for _ in range(100):
        count = int(rng.integers(1, 30))
        groups = rng.integers(0, rng.integers(1, count + 1), count).tolist()
        answers = [set(rng.choice(count, rng.integers(0, count + 1), replace=False).tolist()) for _ in range(count)]
        found = score(matches_from(answers), np.array(groups, np.int64))
        for values, wanted in zip((found.f1, found.precision, found.recall), plainly(answers, groups), strict=True):
            np.testing.assert_allclose(values, wanted, atol=1e-12)


def test_all_right_is_one_and_nothing_but_itself_is_what_it_is() -> None:
    groups = np.array([0, 0, 1], np.int64)
    right = score(matches_from([{0, 1}, {0, 1}, {2}]), groups)
    assert right.f1.tolist() == [1, 1, 1]
    alone = score(matches_from([{0}, {1}, {2}]), groups)
    np.testing.assert_allclose(alone.f1, [2 / 3, 2 / 3, 1])
    assert alone.means()["precision"].value == 1


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="3 postings with matches, 2"):
        score(matches_from([{0}, {1}, {2}]), np.array([0, 1], np.int64))


def judged(pairs: list[tuple[int, int, float]]) -> Judged:
    left, right, sure = zip(*pairs, strict=True)
    return Judged(np.array(left, np.int32), np.array(right, np.int32), np.array(sure, np.float32))


GROUPS = np.array([0, 0, 0, 1, 1, 2], np.int64)
PAIRS = judged([(0, 1, 0.9), (0, 2, 0.6), (1, 2, 0.7), (3, 4, 0.8), (2, 3, 0.5), (4, 5, 0.2)])


def test_the_best_threshold_parts_right_from_wrong() -> None:
    found = best_f1(PAIRS, GROUPS)
    assert 0.5 < found.threshold <= 0.6 + 1e-6
    assert found.f1 == found.precision == found.recall == 1


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 20, 60)
    left, right = np.triu_indices(60, 1)
    sure = (0.3 * (groups[left] == groups[right]) + 0.7 * rng.random(len(left))).astype(np.float32)
    pairs = Judged(left.astype(np.int32), right.astype(np.int32), sure)
    found = best_f1(pairs, groups)
    every = [score(by_pairs(60, pairs, float(step)), groups).f1.mean() for step in np.linspace(0, 1, 333)]
    assert found.f1 >= max(every) - 0.01
    assert found.f1 == pytest.approx(score(by_pairs(60, pairs, found.threshold), groups).f1.mean())


def test_sweeping_thresholds_equals_matching_at_each() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 4, 150)
    left, right = np.triu_indices(150, 1)
    sure = np.round(rng.random(len(left)), 2).astype(np.float32)  # ties, and more than 50 matches of a posting
    pairs = Judged(left.astype(np.int32), right.astype(np.int32), sure)
    swept = best_f1(pairs, groups)
    plain = best_f1(pairs, groups, lambda count, judged, threshold: by_pairs(count, judged, threshold))
    assert swept.threshold == plain.threshold
    assert swept.f1 == pytest.approx(plain.f1)
    assert swept.recall == pytest.approx(plain.recall)


def test_a_wanted_precision_is_reached_with_the_most_recall() -> None:
    found = least_threshold(PAIRS, GROUPS, 0.9)
    assert found.precision >= 0.9
    assert found.recall == 1
    wrong = judged([(0, 3, 0.9)])
    assert least_threshold(wrong, GROUPS, 1.0).threshold == NONE  # nothing matched is never wrong


def test_a_precision_beyond_reach_is_said() -> None:
    with pytest.raises(DataError, match=r"no threshold reaches a precision of 1\.1"):
        least_threshold(PAIRS, GROUPS, 1.1)


def test_no_pairs_leave_each_posting_alone() -> None:
    none = Judged(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    assert best_f1(none, GROUPS).threshold == NONE
    assert matches_of(6, none).places.tolist() == [0, 1, 2, 3, 4, 5]
