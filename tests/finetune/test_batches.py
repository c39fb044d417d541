"""Which SKUs meet: look-alikes from a list and from the embedding, and the centres that outlive a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from skumatch.embed import Pipeline
from skumatch.errors import ArtefactError, ConfigError, DataError
from skumatch.finetune import batches as module
from skumatch.finetune.batches import Centres, Lookalikes, groups_of, load_lookalikes, lookalike_order, nth
from skumatch.finetune.parts import Sampling
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.sampler import epoch_order
from skumatch.model import open_bundle
from skumatch.readers import open_dataset
from skumatch.spec import Ids, Vectors
from skumatch.towers.build import ModelSource

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
RECIPE = Recipe(epochs=1, head_epochs=0, batch=6, embedding=16)
CPU = torch.device("cpu")
GROUPED: Ids = np.repeat(np.arange(12), 20).astype(np.int64)  # 240 pictures
GROUPS = (np.array([0, 1, 2], np.int64), np.array([5, 7], np.int64))
BATCH = 16


def rearranged(alpha: float = 0.5, seed: int = 3, epoch: int = 1, share: float = 0.5) -> Ids:
    order = epoch_order(GROUPED, alpha, seed, epoch)
    return lookalike_order(order, GROUPED, BATCH, Lookalikes(GROUPS, share), (seed, epoch))


def lines_of(order: Ids) -> Ids:
    return GROUPED[order[: len(order) // BATCH * BATCH]].reshape(-1, BATCH)


def test_without_look_alikes_the_order_is_left_alone() -> None:
    order = epoch_order(GROUPED, 0.5, 3, 1)
    assert lookalike_order(order, GROUPED, BATCH, Lookalikes(), (3, 1)) is order
    assert lookalike_order(order, GROUPED, BATCH, Lookalikes(GROUPS, 0.05), (3, 1)) is order


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_look_alike_batches_show_the_same_pictures_as_often(alpha: float) -> None:
    labels = np.repeat(np.arange(12), np.arange(5, 29, 2)).astype(np.int64)  # 192 pictures and 10 beyond
    labels = np.concatenate([labels, labels[:10]])
    order = epoch_order(labels, alpha, 0, 0)
    changed = lookalike_order(order, labels, BATCH, Lookalikes(GROUPS, 0.5), (0, 0))
    full = len(labels) // BATCH * BATCH
    assert full < len(labels)
    assert not np.array_equal(changed, order)
    assert np.array_equal(np.sort(changed[:full]), np.sort(order[:full]))
    assert np.array_equal(changed[full:], order[full:])


def test_a_batchs_share_is_filled_from_one_group_after_the_other() -> None:
    shown = lines_of(rearranged(alpha=1.0))
    group = np.full(12, -1)
    group[[0, 1, 2]], group[[5, 7]] = 0, 1
    filled = [line for line in group[shown[:, :8]] if (line >= 0).all()]
    assert len(filled) == 100 // 8
    assert sum(len(set(line.tolist())) == 1 for line in filled) >= len(filled) - 1  # one line may hold the end of one
    skus = [set(line.tolist()) for line in shown[:, :8] if (group[line] >= 0).all()]
    assert all(len(found) >= 2 for found in skus)


def test_look_alikes_meet_more_often_than_by_chance() -> None:
    def meetings(order: Ids) -> int:
        return sum(int((line == 5).sum() * (line == 7).sum()) for line in lines_of(order))

    plain = sum(meetings(epoch_order(GROUPED, 1.0, seed, 0)) for seed in range(20))
    grouped = sum(meetings(rearranged(1.0, seed, 0)) for seed in range(20))
    assert grouped > 2 * plain


def test_look_alike_batches_depend_on_seed_and_epoch_alone() -> None:
    assert np.array_equal(rearranged(), rearranged())
    assert not np.array_equal(rearranged(), rearranged(epoch=2))
    assert not np.array_equal(rearranged(), rearranged(seed=4))


def test_groups_larger_than_the_share_fill_it_everywhere() -> None:
    everyone = Lookalikes((np.arange(12, dtype=np.int64),), 1.0)
    order = lookalike_order(epoch_order(GROUPED, 1.0, 0, 0), GROUPED, BATCH, everyone, (0, 0))
    assert sorted(order) == list(range(240))
    assert all(len(set(line.tolist())) >= 10 for line in lines_of(order))  # evenly mixed


def test_groups_of_which_no_picture_is_shown_change_nothing_but_the_order() -> None:
    order = epoch_order(GROUPED, 1.0, 0, 0)
    absent = Lookalikes((np.array([70, 80], np.int64),), 0.5)
    assert sorted(lookalike_order(order, GROUPED, BATCH, absent, (0, 0))) == list(range(240))


def test_the_nth_of_its_kind_is_counted() -> None:
    assert nth(np.array([4, 1, 4, 4, 0, 1], np.int64)).tolist() == [0, 0, 1, 2, 0, 1]


def listed(folder: Path, text: str) -> Path:
    path = folder / "lookalikes.csv"
    path.write_text(f"group,sku,other\n{text}")
    return path


def test_a_list_becomes_labels_and_unknown_skus_are_counted(tmp_path: Path) -> None:
    path = listed(tmp_path, "1,d,b\n2,a,gone\n3,c,a2\n3,c,lost\n")
    recipe = Recipe(sampler=Sampling(lookalike_share=0.25))
    alike = load_lookalikes(path, ["a", "a2", "b", "c", "d"], recipe)
    assert [members.tolist() for members in alike.groups] == [[2, 4], [1, 3]]
    assert alike.unknown == ("gone", "lost")
    assert alike.share == 0.25


def test_a_list_of_other_skus_or_too_small_a_share_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, "1,x,y\n")
    with pytest.raises(DataError, match=r"lookalikes\.csv groups no two SKUs that are trained on"):
        load_lookalikes(path, ["a", "x"], Recipe())
    with pytest.raises(ConfigError, match="less than two pictures"):
        load_lookalikes(path, ["x", "y"], Recipe(sampler=Sampling(lookalike_share=0.01)))
    with pytest.raises(ConfigError, match="less than two SKUs"):
        load_lookalikes(path, ["x", "y"], Recipe(batch=8, sampler=Sampling("pk", lookalike_share=0.5)))


def unit(skus: int, seed: int = 0) -> Vectors:
    rows: Vectors = F.normalize(torch.randn(skus, 8, generator=torch.Generator().manual_seed(seed))).numpy()
    return rows


def planted(clusters: int, size: int, seed: int = 0) -> tuple[Vectors, Ids]:
    """Return shuffled unit rows in tight clusters, cluster 0 the tightest, and each row's cluster."""
    draw = torch.Generator().manual_seed(seed)
    cluster = torch.arange(clusters).repeat_interleave(size)
    noise = torch.randn(len(cluster), 32, generator=draw) * 0.01 * (1 + 0.2 * cluster[:, None])
    mixed = torch.randperm(len(cluster), generator=draw)
    rows = F.normalize(torch.randn(clusters, 32, generator=draw)[cluster] + noise)[mixed]
    return rows.numpy(), cluster[mixed].numpy().astype(np.int64)


@pytest.mark.parametrize("size", [2, 3, 5, 40])
def test_planted_groups_are_found_the_closest_first(size: int) -> None:
    rows, cluster = planted(6, size)
    groups = groups_of(rows, size, 0, 1)
    found = [set(cluster[members].tolist()) for members in groups]
    assert sorted(map(len, groups)) == [size] * 6
    assert all(len(clusters) == 1 for clusters in found)
    assert found[0] == {0}


def test_a_group_takes_in_the_next_nearest_where_the_nearest_are_few() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 2, 90, 93, 180, 184, 186, 270]))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1).numpy()
    groups = [set(members.tolist()) for members in groups_of(rows, 3, 0, 0)]
    assert {4, 5, 6} in groups
    assert sorted(map(len, groups)) == [2, 3, 3]
    assert any({0, 1} <= members for members in groups)
    assert any({2, 3} <= members for members in groups)


@pytest.mark.parametrize("skus", [2, 3, 7, 50, 101, 400])
@pytest.mark.parametrize("group", [2, 4, 64])
def test_groups_are_disjoint_and_leave_at_most_one_sku(skus: int, group: int) -> None:
    groups = groups_of(unit(skus), group, 0, 0)
    together = np.concatenate(groups)
    assert together.dtype == np.int64
    assert len(set(together.tolist())) == len(together) >= skus - 1
    assert all(2 <= len(members) <= group for members in groups)
    assert np.mean([len(members) for members in groups]) > 0.6 * min(group, skus)


def test_equal_centres_are_grouped_too() -> None:
    groups = groups_of(np.full((500, 4), 0.5, np.float32), 4, 0, 0)
    assert [len(members) for members in groups] == [4] * 125
    assert len(set(np.concatenate(groups).tolist())) == 500
    pairs = unit(60).repeat(2, axis=0)
    assert all(members[0] // 2 == members[1] // 2 for members in groups_of(pairs, 2, 0, 0))


def test_skus_without_a_centre_are_in_no_group() -> None:
    rows = unit(9)
    rows[2], rows[5, 3], rows[6, 0] = 0, np.nan, np.inf
    together = np.concatenate(groups_of(rows, 3, 0, 0))
    assert sorted(together.tolist()) == [0, 1, 3, 4, 7, 8]
    rows[1:] = 0
    assert groups_of(rows, 3, 0, 0) == ()
    assert groups_of(np.zeros((4, 8), np.float32), 3, 0, 0) == ()
    assert groups_of(np.zeros((0, 8), np.float32), 3, 0, 0) == ()


def test_groups_follow_the_embedding_and_repeat_for_the_same_one() -> None:
    before, after = planted(8, 3, seed=1)[0], planted(8, 3, seed=2)[0]

    def found(rows: Vectors, epoch: int) -> list[list[int]]:
        return [members.tolist() for members in groups_of(rows, 3, 0, epoch)]

    assert found(before, 1) == found(before.copy(), 1)
    assert {frozenset(x) for x in found(before, 1)} == {frozenset(x) for x in found(before, 2)}
    assert {frozenset(x) for x in found(before, 1)} != {frozenset(x) for x in found(after, 1)}
    same = np.full((20, 4), 0.5, np.float32)
    assert found(same, 1) != found(same, 2)


def test_blocks_do_not_change_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = planted(30, 4)
    whole = {frozenset(members.tolist()) for members in groups_of(rows, 4, 0, 0)}
    monkeypatch.setattr(module, "BLOCK", 7 * len(rows))  # rounds in another way, so that close ones may change places
    assert {frozenset(members.tolist()) for members in groups_of(rows, 4, 0, 0)} == whole


def test_a_centre_is_the_mean_direction_whatever_the_lengths() -> None:
    centres = Centres(3, 2, CPU)
    assert centres.take().tolist() == [[0, 0]] * 3
    centres.add(torch.tensor([[5.0, 0], [0, 0.1]], requires_grad=True), torch.tensor([0, 0]))
    centres.add(torch.tensor([[0.0, -2], [torch.nan, 1], [0, 3]]), torch.tensor([2, 2, 0]))
    assert np.abs(centres.take() - np.array([[5**-0.5, 2 * 5**-0.5], [0, 0], [0, -1]])).max() < 1e-6
    assert centres.take().dtype == np.float32


def test_an_epoch_starts_anew() -> None:
    centres = Centres(2, 2, CPU)
    centres.add(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 1]))
    taken = centres.take()
    centres.reset()
    centres.add(torch.tensor([[0.0, 1]]), torch.tensor([1]))
    assert taken.tolist() == [[1, 0], [1, 0]]
    assert centres.take().tolist() == [[0, 0], [0, 1]]


def test_the_order_of_adding_does_not_matter_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(500, 16, generator=draw), torch.randint(4, (500,), generator=draw)
    forwards, backwards, halves = (Centres(4, 16, CPU) for _ in range(3))
    forwards.add(embeddings, labels)
    backwards.add(embeddings.flip(0), labels.flip(0))
    halves.add(embeddings[:123], labels[:123])
    halves.add(embeddings[123:], labels[123:])
    assert np.array_equal(forwards.take(), backwards.take())
    assert np.array_equal(forwards.take(), halves.take())


def test_centres_resume_bit_for_bit_within_an_epoch() -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [(torch.randn(20, 8, generator=draw), torch.randint(6, (20,), generator=draw)) for _ in range(2)]
    whole, resumed = Centres(6, 8, CPU), Centres(6, 8, CPU)
    resumed.load_state_dict(whole.state_dict())  # nothing was shown yet
    whole.add(*parts[0])
    resumed.load_state_dict(whole.state_dict())
    for centres in (whole, resumed):
        centres.add(*parts[1])
    assert np.array_equal(whole.take(), resumed.take())
    assert whole.take().any()


def test_centres_of_another_run_are_refused() -> None:
    other = Centres(5, 8, CPU)
    other.add(torch.ones(1, 8), torch.tensor([0]))
    with pytest.raises(ArtefactError, match="do not fit 6 SKUs of 8 numbers"):
        Centres(6, 8, CPU).load_state_dict(other.state_dict())


def test_a_fine_tune_with_look_alikes_resumes_with_the_same_list_alone(patterns: Path, tmp_path: Path) -> None:
    from skumatch.finetune.run import Job, finetune, recorded_lookalikes, unfinished

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
    from skumatch.finetune.run import Job, finetune, recorded_lookalikes, unfinished

    job = Job(open_dataset(patterns), TINY, RECIPE, tmp_path / "out", "cpu", Pipeline(workers=1))
    assert finetune(job, should_stop=lambda: True).interrupted
    record = unfinished(job.out) / "run.json"
    start = json.loads(record.read_text())
    del start["recipe"]["sampler"]["lookalike_share"]
    record.write_text(json.dumps(start))
    assert recorded_lookalikes(record.parent) is None
    assert not finetune(job, resume=True).interrupted
