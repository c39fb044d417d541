"""The order of an epoch: length, purity, balance, no early repeats, look-alikes in one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skumatch.embed import Pipeline
from skumatch.errors import ConfigError, DataError
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.run import Job, finetune, recorded_lookalikes, unfinished
from skumatch.finetune.sampler import Lookalikes, epoch_order, load_lookalikes, lookalike_order
from skumatch.model import open_bundle
from skumatch.readers import open_dataset
from skumatch.spec import Ids
from skumatch.towers.build import ModelSource

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
RECIPE = Recipe(epochs=1, head_epochs=0, batch=6, embedding=16, scale_from=1.0)
LABELS: Ids = np.repeat(np.arange(5), [1, 2, 7, 30, 4]).astype(np.int64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


GROUPED: Ids = np.repeat(np.arange(12), 20).astype(np.int64)  # 240 pictures
GROUPS = (np.array([0, 1, 2], np.int64), np.array([5, 7], np.int64))
BATCH = 16


def rearranged(balance: float = 0.5, seed: int = 3, epoch: int = 1, share: float = 0.5) -> Ids:
    order = epoch_order(GROUPED, balance, seed, epoch)
    return lookalike_order(order, GROUPED, BATCH, Lookalikes(GROUPS, share), (seed, epoch))


def batches(order: Ids) -> Ids:
    return GROUPED[order[: len(order) // BATCH * BATCH]].reshape(-1, BATCH)


def test_the_order_without_look_alikes_is_what_it_always_was() -> None:
    assert epoch_order(LABELS, 0.5, 3, 1)[:12].tolist() == [42, 7, 3, 42, 9, 0, 37, 24, 1, 4, 11, 14]
    order = epoch_order(GROUPED, 0.5, 3, 1)
    assert lookalike_order(order, GROUPED, BATCH, Lookalikes(), (3, 1)) is order


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_look_alike_batches_show_the_same_pictures_as_often(balance: float) -> None:
    labels = np.repeat(np.arange(12), np.arange(5, 29, 2)).astype(np.int64)  # 192 pictures and 10 beyond
    labels = np.concatenate([labels, labels[:10]])
    order = epoch_order(labels, balance, 0, 0)
    changed = lookalike_order(order, labels, BATCH, Lookalikes(GROUPS, 0.5), (0, 0))
    full = len(labels) // BATCH * BATCH
    assert full < len(labels)
    assert not np.array_equal(changed, order)
    assert np.array_equal(np.sort(changed[:full]), np.sort(order[:full]))
    assert np.array_equal(changed[full:], order[full:])


def test_a_batchs_share_is_filled_from_one_group_after_the_other() -> None:
    shown = batches(rearranged(balance=0.0))
    group = np.full(12, -1)
    group[[0, 1, 2]], group[[5, 7]] = 0, 1
    filled = [line for line in group[shown[:, :8]] if (line >= 0).all()]
    assert len(filled) == 100 // 8
    assert sum(len(set(line.tolist())) == 1 for line in filled) >= len(filled) - 1  # one line may hold the end of one
    skus = [set(line.tolist()) for line in shown[:, :8] if (group[line] >= 0).all()]
    assert all(len(found) >= 2 for found in skus)


def test_look_alikes_meet_more_often_than_by_chance() -> None:
    def meetings(order: Ids) -> int:
        return sum(int((line == 5).sum() * (line == 7).sum()) for line in batches(order))

    plain = sum(meetings(epoch_order(GROUPED, 0.0, seed, 0)) for seed in range(20))
    grouped = sum(meetings(rearranged(0.0, seed, 0)) for seed in range(20))
    assert grouped > 2 * plain


def test_look_alike_batches_depend_on_seed_and_epoch_alone() -> None:
    assert np.array_equal(rearranged(), rearranged())
    assert not np.array_equal(rearranged(), rearranged(epoch=2))
    assert not np.array_equal(rearranged(), rearranged(seed=4))


def test_groups_larger_than_the_share_fill_it_everywhere() -> None:
    everyone = Lookalikes((np.arange(12, dtype=np.int64),), 1.0)
    order = lookalike_order(epoch_order(GROUPED, 0.0, 0, 0), GROUPED, BATCH, everyone, (0, 0))
    assert sorted(order) == list(range(240))
    assert all(len(set(line.tolist())) >= 10 for line in batches(order))  # evenly mixed


def listed(folder: Path, text: str) -> Path:
    path = folder / "lookalikes.csv"
    path.write_text(f"group,sku,other\n{text}")
    return path


def test_a_list_becomes_labels_and_unknown_skus_are_counted(tmp_path: Path) -> None:
    path = listed(tmp_path, "1,d,b\n2,a,gone\n3,c,a2\n3,c,lost\n")
    alike = load_lookalikes(path, ["a", "a2", "b", "c", "d"], Recipe(lookalike_share=0.25))
    assert [members.tolist() for members in alike.groups] == [[2, 4], [1, 3]]
    assert alike.unknown == ("gone", "lost")
    assert alike.share == 0.25


def test_a_list_of_other_skus_or_too_small_a_share_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, "1,x,y\n")
    with pytest.raises(DataError, match=r"lookalikes\.csv groups no two SKUs that are trained on"):
        load_lookalikes(path, ["a", "x"], Recipe())
    with pytest.raises(ConfigError, match="less than two pictures"):
        load_lookalikes(path, ["x", "y"], Recipe(lookalike_share=0.01))


def test_a_fine_tune_with_look_alikes_resumes_with_the_same_list_alone(patterns: Path, tmp_path: Path) -> None:
    path = listed(tmp_path, "1,sku-0,sku-3\n2,sku-1,sku-9\n2,sku-1,sku-2\n")
    job = Job(open_dataset(patterns), TINY, RECIPE, tmp_path / "out", "cpu", Pipeline(workers=1), lookalikes=path)
    assert finetune(job, should_stop=lambda: True).interrupted
    run = unfinished(job.out)
    assert recorded_lookalikes(run) == path
    with pytest.raises(DataError, match="look-alikes changed"):
        finetune(replace(job, lookalikes=None), resume=True)
    resumed = finetune(job, resume=True)
    facts = open_bundle(resumed.folder).document["lookalikes"]
    assert facts == {"groups": 2, "unknown_skus": 1}
    whole = finetune(replace(job, out=tmp_path / "whole"))
    plain = finetune(replace(job, out=tmp_path / "plain", lookalikes=None))
    assert resumed.spec.digest == whole.spec.digest != plain.spec.digest


def test_a_run_recorded_before_a_recipe_key_existed_resumes(patterns: Path, tmp_path: Path) -> None:
    job = Job(open_dataset(patterns), TINY, RECIPE, tmp_path / "out", "cpu", Pipeline(workers=1))
    assert finetune(job, should_stop=lambda: True).interrupted
    record = unfinished(job.out) / "run.json"
    start = json.loads(record.read_text())
    del start["recipe"]["lookalike_share"]
    record.write_text(json.dumps(start))
    assert recorded_lookalikes(record.parent) is None
    assert not finetune(job, resume=True).interrupted
