"""Matches from judged pairs and from groups."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.catalogue import judged as module
from skumatch.catalogue.judged import Judged, matches_of, matches_of_groups


def judged(pairs: list[tuple[int, int, float]]) -> Judged:
    left, right, sure = zip(*pairs, strict=True)
    return Judged(np.array(left, np.int32), np.array(right, np.int32), np.array(sure, np.float32))


def test_itself_comes_first_then_the_surest() -> None:
    found = matches_of(4, judged([(0, 1, 0.6), (0, 2, 0.9), (1, 2, 0.6)]))
    assert [found.of(place).tolist() for place in range(4)] == [[0, 2, 1], [1, 0, 2], [2, 0, 1], [3]]


def test_no_posting_has_more_than_the_most() -> None:
    pairs = judged([(0, other, 1 - other / 200) for other in range(1, 80)])
    found = matches_of(80, pairs)
    assert found.of(0).tolist() == list(range(50))
    assert found.of(79).tolist() == [79, 0]
    assert np.array_equal(found.offsets, [0, *(50 + 2 * n for n in range(80))])


def test_a_group_matches_all_its_members() -> None:
    groups = np.array([0, 1, 0, 2, 0, 1], np.int64)
    found = matches_of_groups(groups, judged([(0, 4, 0.9), (2, 4, 0.5), (3, 5, 0.99)]))
    assert [found.of(place).tolist() for place in range(6)] == [[0, 4, 2], [1, 5], [2, 4, 0], [3], [4, 0, 2], [5, 1]]


def test_groups_without_any_known_pair() -> None:
    none = Judged(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    assert matches_of_groups(np.array([0, 0, 1], np.int64), none).of(1).tolist() == [1, 0]


def test_random_groups_match_within_and_nowhere_else() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 200)
    none = Judged(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    found = matches_of_groups(groups, none, most=200)
    for place in range(200):
        assert set(found.of(place).tolist()) == set(np.flatnonzero(groups == groups[place]).tolist())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    keys = np.unique(rng.integers(0, 90 * 90, 2000))
    keys = rng.permutation(keys[keys // 90 < keys % 90])
    pairs = Judged((keys // 90).astype(np.int32), (keys % 90).astype(np.int32), rng.random(len(keys), np.float32))
    whole = matches_of(90, pairs, 12)
    assert [len(whole.of(place)) for place in range(90)] == [
        min(12, 1 + int(((pairs.left == place) | (pairs.right == place)).sum())) for place in range(90)
    ]
    monkeypatch.setattr(module, "BLOCK", 7)
    parts = matches_of(90, pairs, 12)
    assert np.array_equal(whole.offsets, parts.offsets) and np.array_equal(whole.places, parts.places)
