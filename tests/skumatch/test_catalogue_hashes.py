"""Neighbours by perceptual hash against comparing all with all."""

from __future__ import annotations

import numpy as np

from skumatch.catalogue.hashes import NEAR, alike, nearest_by_hash


def test_neighbours_are_those_of_comparing_all() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 150, np.uint64)
    near = base ^ (np.uint64(1) << rng.integers(0, 64, 150, np.uint64))
    far = near ^ np.uint64(0b1111)
    hashes = np.concatenate([base, near, far])
    found = nearest_by_hash(hashes, np.ones(450, bool), 5)
    for place in range(450):
        bits = np.bitwise_count(hashes ^ hashes[place]).astype(int)
        wanted = {other for other in np.flatnonzero(bits <= NEAR).tolist() if other != place}
        assert set(found.places[place][found.places[place] >= 0].tolist()) == wanted
        scores = found.scores[place][: len(wanted)]
        assert (np.diff(scores) <= 0).all()


def test_absent_hashes_have_no_neighbours() -> None:
    present = np.array([True, False, True, True])
    found = nearest_by_hash(np.array([7, 7, 7, 2**63], np.uint64), present, 3)
    assert found.places.tolist() == [[2, -1, -1], [-1, -1, -1], [0, -1, -1], [-1, -1, -1]]


def test_none_and_one_are_no_trouble() -> None:
    for count in (0, 1):
        assert nearest_by_hash(np.zeros(count, np.uint64), np.ones(count, bool), 2).places.shape == (count, 2)
        assert (nearest_by_hash(np.zeros(3, np.uint64), np.zeros(3, bool), 2).places < 0).all()


def test_a_hash_that_thousands_share_costs_no_square() -> None:
    found = nearest_by_hash(np.zeros(5000, np.uint64), np.ones(5000, bool), 50)
    assert (found.places[:, 0] >= 0).all()
    assert (found.scores[:, 0] == 1).all()


def test_the_score_is_the_share_of_equal_bits() -> None:
    hashes = np.array([0, 0b11, 2**64 - 1], np.uint64)
    assert alike(hashes, np.array([0, 0]), np.array([1, 2])).tolist() == [62 / 64, 0]
