"""The order of an epoch: length, purity, the law of drawing, no early repeats, PK batches, shares of processes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from skumatch.errors import ConfigError
from skumatch.finetune.batches import Lookalikes, lookalike_order
from skumatch.finetune.parts import Sampling
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.sampler import epoch_order, order_for, pk_order, shard, steps_of
from skumatch.spec import Ids

LABELS: Ids = np.repeat(np.arange(5), [1, 2, 7, 30, 4]).astype(np.int64)
MANY: Ids = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(1, 41))).astype(np.int64)  # 820


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.5, 0.0])
def test_an_epoch_has_exactly_as_many_positions_as_pictures(alpha: float) -> None:
    order = epoch_order(LABELS, alpha, 3, 1)
    assert order.shape == LABELS.shape
    assert order.min() >= 0
    assert order.max() < len(LABELS)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_the_order_depends_on_seed_and_epoch_alone(alpha: float) -> None:
    once = epoch_order(LABELS, alpha, 3, 1)
    np.random.default_rng().random(7)
    assert np.array_equal(once, epoch_order(LABELS.copy(), alpha, 3, 1))
    assert not np.array_equal(once, epoch_order(LABELS, alpha, 3, 2))
    assert not np.array_equal(once, epoch_order(LABELS, alpha, 4, 1))


def test_the_order_is_what_it_always_was() -> None:
    assert epoch_order(LABELS, 0.5, 3, 1)[:12].tolist() == [42, 7, 3, 42, 9, 0, 37, 24, 1, 4, 11, 14]


def test_alpha_1_shows_every_picture_once() -> None:
    assert sorted(epoch_order(LABELS, 1.0, 0, 0)) == list(range(len(LABELS)))


def test_alpha_0_shows_every_sku_equally_often() -> None:
    shown = np.bincount(LABELS[epoch_order(LABELS, 0.0, 0, 0)])
    assert shown.max() - shown.min() <= 1


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_skus_are_drawn_in_proportion_to_a_power_of_their_size(alpha: float) -> None:
    sizes = np.array([10, 90, 400, 500])
    labels = np.repeat(np.arange(4), sizes).astype(np.int64)
    shown = np.bincount(labels[epoch_order(labels, alpha, 0, 0)])
    assert np.abs(shown - 1000 * sizes**alpha / (sizes**alpha).sum()).max() < 1


@pytest.mark.parametrize("alpha", [0.5, 0.0])
@pytest.mark.parametrize("seed", range(5))
def test_pictures_of_a_sku_repeat_only_after_all_were_shown(alpha: float, seed: int) -> None:
    for order in (epoch_order(LABELS, alpha, seed, 0), pk_order(LABELS, alpha, 8, 2, seed, 0)):
        for sku in range(5):
            times = np.bincount(order[LABELS[order] == sku], minlength=len(LABELS))[sku == LABELS]
            assert times.max() - times.min() <= 1


def test_labels_may_have_gaps() -> None:
    labels = np.array([0, 0, 3, 3, 3], np.int64)
    for order in (epoch_order(labels, 0.0, 0, 0), pk_order(labels, 0.0, 5, 2, 0, 0)):
        shown = np.bincount(labels[order], minlength=4)
        assert shown[1] == shown[2] == 0
        assert shown.sum() == 5


def test_no_pictures_are_an_empty_order() -> None:
    assert len(epoch_order(LABELS[:0], 0.5, 0, 0)) == 0


def pk_batches(alpha: float, batch: int, per_sku: int, seed: int = 0, labels: Ids = MANY) -> Ids:
    order = pk_order(labels, alpha, batch, per_sku, seed, 2)
    assert len(order) == steps_of(len(labels), batch) * batch
    return order.reshape(-1, batch)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "per_sku"), [(16, 4), (32, 2), (24, 8), (80, 2)])
def test_a_pk_batch_has_so_many_pictures_of_each_of_its_skus(alpha: float, batch: int, per_sku: int) -> None:
    for line in MANY[pk_batches(alpha, batch, per_sku)]:
        groups = line.reshape(-1, per_sku)
        assert (groups == groups[:, :1]).all()
        assert len(set(line.tolist())) == batch // per_sku


def test_what_a_pk_batch_has_over_is_one_more_sku() -> None:
    lines = MANY[pk_batches(0.5, 19, 4)]
    assert all(sorted(np.unique(line, return_counts=True)[1]) == [3, 4, 4, 4, 4] for line in lines)
    assert all(np.count_nonzero(np.diff(line)) == 4 for line in lines)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_pictures_repeat_in_a_pk_batch_only_where_the_sku_has_too_few(alpha: float) -> None:
    for line in pk_batches(alpha, 16, 4):
        for group in line.reshape(-1, 4):
            assert len(set(group.tolist())) == min(4, MANY[group[0]] + 1)  # SKU i has i + 1 pictures


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_pk_draws_skus_in_proportion_to_a_power_of_their_size(alpha: float) -> None:
    sizes = np.arange(1, 41)
    drawn = np.bincount(MANY[pk_batches(alpha, 16, 2)].reshape(-1, 2)[:, 0], minlength=40)
    assert np.abs(drawn - drawn.sum() * sizes**alpha / (sizes**alpha).sum()).max() < 1


def test_a_sku_larger_than_its_places_is_in_every_batch_and_the_others_share_the_rest() -> None:
    labels = np.repeat(np.arange(11), [900, *[10] * 10]).astype(np.int64)
    lines = labels[pk_batches(1.0, 20, 5, labels=labels)].reshape(50, 4, 5)[:, :, 0]
    assert (np.sort(lines, axis=1)[:, 0] == 0).all()
    assert (np.diff(np.sort(lines, axis=1)) > 0).all()
    assert np.bincount(lines.ravel()).tolist() == [50, *[15] * 10]


@pytest.mark.parametrize("skus", [1, 2, 3, 5])
def test_with_too_few_skus_each_is_in_a_pk_batch_before_one_comes_again(skus: int) -> None:
    labels = np.repeat(np.arange(skus), 40).astype(np.int64)
    for line in labels[pk_batches(0.5, 32, 4, labels=labels)]:
        groups = np.bincount(line, minlength=skus) // 4
        assert groups.sum() == 8
        assert groups.max() - groups.min() <= 1


def test_fewer_pictures_than_a_batch_fill_one_pk_batch() -> None:
    line = LABELS[:10][pk_batches(0.5, 16, 4, labels=LABELS[:10])]
    assert line.shape == (1, 16)
    assert set(np.bincount(line[0]).tolist()) == {4, 8}  # three SKUs for four places


def test_pk_depends_on_seed_and_epoch_alone() -> None:
    once = pk_order(MANY, 0.5, 16, 4, 3, 1)
    assert np.array_equal(once, pk_order(MANY.copy(), 0.5, 16, 4, 3, 1))
    assert not np.array_equal(once, pk_order(MANY, 0.5, 16, 4, 3, 2))
    assert not np.array_equal(once, pk_order(MANY, 0.5, 16, 4, 4, 1))


def test_every_sku_gets_its_turn_over_the_epochs_where_one_has_not_room_for_all() -> None:
    labels = np.arange(100, dtype=np.int64)  # one picture each, 25 places per epoch
    shown = [set(pk_order(labels, 0.5, 20, 4, 0, epoch).tolist()) for epoch in range(40)]
    assert {len(skus) for skus in shown} == {25}
    assert set.union(*shown) == set(range(100))


GROUPED: Ids = np.repeat(np.arange(24), 20).astype(np.int64)
PAIRS = tuple(np.array([first, first + 1], np.int64) for first in range(0, 24, 2))


def pairs_that_meet(order: Ids, batch: int) -> int:
    lines = [set(line.tolist()) for line in GROUPED[order].reshape(-1, batch)]
    return sum(int(first) in line and int(second) in line for line in lines for first, second in PAIRS)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_look_alikes_meet_in_pk_batches_that_keep_their_form(share: float) -> None:
    recipe = Recipe(batch=16, seed=5, sampler=Sampling("pk", lookalike_share=share))
    plain = order_for(GROUPED, recipe, Lookalikes(), 1)
    order = order_for(GROUPED, recipe, Lookalikes(PAIRS, share), 1)
    assert np.array_equal(plain, pk_order(GROUPED, 0.5, 16, 4, 5, 1))
    assert np.array_equal(np.bincount(GROUPED[order]), np.bincount(GROUPED[plain]))
    groups = GROUPED[order].reshape(-1, 4, 4)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(set(line.tolist())) == 4 for line in groups[:, :, 0])
    assert pairs_that_meet(order, 16) > 2.5 * pairs_that_meet(plain, 16)
    assert np.array_equal(order, order_for(GROUPED, recipe, Lookalikes(PAIRS, share), 1))


def test_a_large_look_alike_does_not_break_pk_batches() -> None:
    labels = np.repeat(np.arange(12), [400, *[9] * 11]).astype(np.int64)
    alike = Lookalikes((np.array([0, 3, 4], np.int64), np.array([7, 8], np.int64)), 1.0)
    recipe = Recipe(batch=12, sampler=Sampling("pk", 1.0, 2, 1.0))
    lines = labels[order_for(labels, recipe, alike, 0)].reshape(-1, 6, 2)[:, :, 0]
    assert all(len(set(line.tolist())) == 6 for line in lines)


def test_the_entry_composes_draw_and_look_alikes() -> None:
    recipe = Recipe(batch=16, seed=7, sampler=Sampling(alpha=0.3))
    plain = epoch_order(GROUPED, 0.3, 7, 2)
    alike = Lookalikes(PAIRS, 0.5)
    assert np.array_equal(order_for(GROUPED, recipe, Lookalikes(), 2), plain)
    order = order_for(GROUPED, recipe, alike, 2)
    assert np.array_equal(order, lookalike_order(plain, GROUPED, 16, alike, (7, 2)))
    assert not np.array_equal(order, plain)


def test_look_alikes_without_room_are_refused_before_the_first_epoch() -> None:
    with pytest.raises(ConfigError, match=r"lookalike_share is 0\.0 of a batch of 32: less than two pictures"):
        order_for(GROUPED, Recipe(sampler=Sampling(lookalike_share=0.0, refresh=True)), Lookalikes(), 0)
    with pytest.raises(ConfigError, match="of a batch of 2 SKUs: less than two SKUs"):
        order_for(GROUPED, Recipe(batch=8, sampler=Sampling("pk")), Lookalikes(PAIRS, 0.5), 0)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("draw", ["weighted", "pk"])
def test_shares_are_equal_and_together_the_full_batches(world: int, draw: str) -> None:
    recipe = Recipe(batch=16, sampler=Sampling("pk" if draw == "pk" else "weighted"))
    order = order_for(MANY, recipe, Lookalikes(), 0)
    steps = steps_of(len(MANY), 16)
    assert steps == 51
    shares = [shard(order, 16, rank, world).reshape(steps, 16 // world) for rank in range(world)]
    assert np.array_equal(np.concatenate(shares, axis=1).ravel(), order[: steps * 16])


def test_shares_of_an_epoch_that_shows_every_picture_once_are_disjoint() -> None:
    order = epoch_order(MANY, 1.0, 0, 0)
    shares = [set(shard(order, 20, rank, 4).tolist()) for rank in range(4)]
    assert [len(share) for share in shares] == [205] * 4
    assert set.union(*shares) == set(range(820))
    assert all(not first & second for first, second in pairwise(shares))


def test_an_order_shorter_than_a_batch_is_one_step() -> None:
    order = np.arange(11, dtype=np.int64)
    assert steps_of(11, 16) == 1
    assert shard(order, 16, 0, 1).tolist() == list(range(11))
    assert [shard(order, 16, rank, 2).tolist() for rank in range(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_what_cannot_be_shared_is_refused() -> None:
    order = np.arange(64, dtype=np.int64)
    with pytest.raises(ConfigError, match="a batch of 16 does not divide among 3 processes - choose a multiple of 3"):
        shard(order, 16, 0, 3)
    with pytest.raises(ConfigError, match="no process 2 of 2"):
        shard(order, 16, 2, 2)
    with pytest.raises(ConfigError, match="3 pictures for 4 processes"):
        shard(order[:3], 16, 0, 4)
