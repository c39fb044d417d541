"""The order of an epoch: length, purity, balance, no early repeats."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.finetune.sampler import epoch_order
from skumatch.spec import Ids

LABELS: Ids = np.repeat(np.arange(5), [1, 2, 7, 30, 4]).astype(np.int64)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_an_epoch_has_exactly_as_many_positions_as_pictures(balance: float) -> None:
    order = epoch_order(LABELS, balance, 3, 1)
    assert order.shape == LABELS.shape
    assert order.min() >= 0
    assert order.max() < len(LABELS)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_order_depends_on_seed_and_epoch_alone(balance: float) -> None:
    once = epoch_order(LABELS, balance, 3, 1)
    np.random.default_rng().random(7)
    assert np.array_equal(once, epoch_order(LABELS.copy(), balance, 3, 1))
    assert not np.array_equal(once, epoch_order(LABELS, balance, 3, 2))
    assert not np.array_equal(once, epoch_order(LABELS, balance, 4, 1))


def test_balance_0_shows_every_picture_once() -> None:
    assert sorted(epoch_order(LABELS, 0.0, 0, 0)) == list(range(len(LABELS)))


def test_balance_1_shows_every_sku_equally_often() -> None:
    shown = np.bincount(LABELS[epoch_order(LABELS, 1.0, 0, 0)])
    assert shown.max() - shown.min() <= 1


def test_balance_between_keeps_the_order_of_sizes() -> None:
    labels = np.repeat(np.arange(2), [10, 90]).astype(np.int64)
    shown = np.bincount(labels[epoch_order(labels, 0.5, 0, 0)])
    assert shown[0] == pytest.approx(25, abs=1)  # sqrt(10) : sqrt(90) = 1 : 3


@pytest.mark.parametrize("balance", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_pictures_of_a_sku_repeat_only_after_all_were_shown(balance: float, seed: int) -> None:
    order = epoch_order(LABELS, balance, seed, 0)
    for sku in range(5):
        times = np.bincount(order[LABELS[order] == sku], minlength=len(LABELS))[sku == LABELS]
        assert times.max() - times.min() <= 1


def test_labels_may_have_gaps() -> None:
    labels = np.array([0, 0, 3, 3, 3], np.int64)
    shown = np.bincount(labels[epoch_order(labels, 1.0, 0, 0)], minlength=4)
    assert shown[1] == shown[2] == 0
    assert shown.sum() == 5
