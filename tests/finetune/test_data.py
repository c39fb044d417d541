"""What trains and what validates, and the stream of canvases."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError
from skumatch.finetune.augment import draws
from skumatch.finetune.data import Batch, Canvases, Shown, Split, held_out_skus, split_rows
from skumatch.finetune.parts import Augment
from skumatch.finetune.recipe import Recipe
from skumatch.readers import open_dataset
from skumatch.spec import Ids

ROOT = Path("shop")


def made(sizes: dict[str, int], split: str = "train", start: int = 0) -> tuple[Row, ...]:
    return tuple(
        Row(ROOT / split / sku / f"{i}.jpg", sku, split) for sku, n in sizes.items() for i in range(start, start + n)
    )


def paths(rows: tuple[Row, ...], sku: str) -> list[Path]:
    return [row.path for row in rows if row.sku == sku]


def test_the_test_split_is_never_touched() -> None:
    rows = (*made({"a": 20, "b": 20}), *made({"a": 5, "b": 5}, "test"))
    split = split_rows(Dataset(ROOT, "rp2k", rows), Recipe())
    assert {row.split for row in (*split.train, *split.gallery, *split.queries)} == {"train"}


def test_a_tenth_is_held_out_of_skus_with_at_least_four_pictures() -> None:
    sizes = {"three": 3, "four": 4, "twenty": 20, "one": 1}
    split = split_rows(Dataset(ROOT, "rp2k", made(sizes)), Recipe())
    held = {sku: len(paths(split.queries, sku)) for sku in sizes}
    assert held == {"three": 0, "four": 1, "twenty": 2, "one": 0}
    assert not {row.path for row in split.train} & {row.path for row in split.queries}
    assert len(split.train) + len(split.queries) == 28
    assert {row.path for row in split.gallery} <= {row.path for row in split.train}


def test_what_is_held_out_depends_on_seed_and_sku_alone() -> None:
    alone = split_rows(Dataset(ROOT, "rp2k", made({"a": 30, "b": 4})), Recipe())
    others = split_rows(Dataset(ROOT, "rp2k", (*made({"c": 40}), *reversed(made({"b": 9, "a": 30})))), Recipe())
    assert set(paths(alone.queries, "a")) == set(paths(others.queries, "a"))
    other_seed = split_rows(Dataset(ROOT, "rp2k", made({"a": 30, "b": 4})), Recipe(seed=1))
    assert set(paths(alone.queries, "a")) != set(paths(other_seed.queries, "a"))


def test_a_val_split_validates_and_everything_in_train_trains() -> None:
    rows = (*made({"a": 20, "b": 20}), *made({"a": 5, "b": 5, "never trained": 5}, "val"))
    split = split_rows(Dataset(ROOT, "rp2k", rows), Recipe())
    assert len(split.train) == 40
    assert {row.split for row in split.queries} == {"val"}
    assert {row.sku for row in split.queries} == {"a", "b"}


def test_val_views_and_val_queries_are_limits() -> None:
    rows = (*made({"a": 20, "b": 3}), *made({"a": 9, "b": 9}, "val"))
    split = split_rows(Dataset(ROOT, "rp2k", rows), Recipe(val_views=5, val_queries=7))
    assert (len(paths(split.gallery, "a")), len(paths(split.gallery, "b"))) == (5, 3)
    assert len(split.queries) == 7


def test_labels_follow_the_sorted_skus() -> None:
    assert Split(made({"b": 1, "a": 2}), (), ()).skus == ["a", "b"]


def test_one_sku_cannot_be_told_from_others() -> None:
    with pytest.raises(DataError, match="has 1 SKUs to train on"):
        split_rows(Dataset(ROOT, "rp2k", made({"a": 9})), Recipe())


def shop(skus: int = 20) -> Dataset:
    sizes = {f"s{i:02}": 6 for i in range(skus)}
    return Dataset(ROOT, "rp2k", (*made(sizes), *made(sizes, "val", 6), *made(sizes, "test", 12)))


@pytest.mark.parametrize("with_val", [True, False])
def test_held_out_skus_are_kept_apart(with_val: bool) -> None:
    data = shop()
    data = data if with_val else data.with_rows([row for row in data if row.split != "val"])
    split = split_rows(data, Recipe(hold_out=0.25))
    assert len(split.held_out) == 5 and split.held_out == tuple(sorted(split.held_out))
    for rows in (split.train, split.gallery, split.queries):
        assert rows and not {row.sku for row in rows} & set(split.held_out)
    assert set(split.skus) == set(data.skus) - set(split.held_out)
    assert len(split.skus) == 15 and {row.split for row in split.queries} == {"val" if with_val else "train"}
    for rows in (split.unseen_gallery, split.unseen_queries):
        assert {row.sku for row in rows} == set(split.held_out)
    assert not {row.path for row in split.unseen_gallery} & {row.path for row in split.unseen_queries}


def test_nothing_is_held_out_unless_asked_for() -> None:
    assert split_rows(shop(), Recipe()).held_out == ()
    assert split_rows(shop(), Recipe(hold_out=0.02)).held_out == ()  # of 20 SKUs less than half of one


def test_the_seed_chooses_who_is_held_out_and_pictures_do_not() -> None:
    first = split_rows(shop(), Recipe(hold_out=0.25)).held_out
    fewer = shop().with_rows([row for row in reversed(shop().rows) if row.path.stem != "3"])
    assert split_rows(fewer, Recipe(hold_out=0.25)).held_out == first
    assert len({split_rows(shop(), Recipe(hold_out=0.25, seed=seed)).held_out for seed in range(6)}) == 6


def test_a_new_sku_moves_few_others() -> None:
    names = [f"s{i:03}" for i in range(200)]
    before, after = held_out_skus(names, 0.2, 0), held_out_skus([*names, "new"], 0.2, 0)
    assert len(before) == len(after) == 40 and len(before - after) <= 1
    assert held_out_skus(names, 0.5, 0) >= before and held_out_skus(names, 0, 0) == set()


def test_two_skus_must_remain_to_train_on() -> None:
    with pytest.raises(DataError, match="has 1 SKUs to train on"):
        split_rows(shop(4), Recipe(hold_out=0.75))


def canvases(root: Path, recipe: Recipe, workers: int = 2) -> Canvases:
    rows = open_dataset(root).split("train").rows
    skus = sorted({row.sku for row in rows})
    return Canvases(rows, np.array([skus.index(row.sku) for row in rows], np.int64), recipe, workers)


def read(batches: Iterable[Batch | None]) -> list[Batch]:
    return [batch for batch in batches if batch is not None]


def test_canvases_come_in_order_with_their_labels_and_draws(patterns: Path) -> None:
    recipe = Recipe(seed=3)
    source = canvases(patterns, recipe)
    order: Ids = np.random.default_rng(0).permutation(len(source.rows))
    batches = read(source.batches(Shown.of(order), 2, 32, 7))
    assert [len(batch.labels) for batch in batches] == [7, 7, 7, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == source.labels[order].tolist()
    assert np.array_equal(torch.cat([batch.draws for batch in batches]).numpy(), draws(3, 2, order))
    first = batches[0]
    side = first.canvases.shape[-1]
    assert first.canvases.shape == (7, 3, side, side)
    assert side >= 32
    assert first.canvases.dtype == torch.uint8
    assert first.aspects.tolist() == [1.0] * 7


def test_smaller_crops_are_cut_from_larger_canvases(patterns: Path) -> None:
    order = np.arange(4, dtype=np.int64)
    sides = []
    for min_scale in (1.0, 0.35, 0.05):
        recipe = Recipe(augment=Augment(min_scale=min_scale))
        sides.append(read(canvases(patterns, recipe).batches(Shown.of(order), 0, 64, 4))[0].canvases.shape[-1])
    assert sides[0] == 64
    assert sides == sorted(set(sides))


def test_canvases_do_not_depend_on_threads_or_batches(patterns: Path) -> None:
    order = np.arange(12, dtype=np.int64)
    how = Augment(jpeg=0.5)
    one = read(canvases(patterns, Recipe(augment=how), workers=1).batches(Shown.of(order), 0, 32, 4))
    two = read(canvases(patterns, Recipe(augment=how), workers=4).batches(Shown.of(order), 0, 32, 6))
    assert torch.equal(torch.cat([b.canvases for b in one]), torch.cat([b.canvases for b in two]))
    plain = read(canvases(patterns, Recipe(augment=Augment(jpeg=0))).batches(Shown.of(order), 0, 32, 4))
    assert not torch.equal(torch.cat([b.canvases for b in one]), torch.cat([b.canvases for b in plain]))


def test_unreadable_pictures_are_left_out_and_remembered(store: Path) -> None:
    bad = store / "train" / "sku-2" / "1.png"
    bad.write_bytes(b"not a picture")
    shutil.rmtree(store / "test")
    source = canvases(store, Recipe())
    order = np.arange(24, dtype=np.int64)
    for _ in range(2):
        labels = torch.cat([batch.labels for batch in read(source.batches(Shown.of(order), 0, 32, 8))])
        assert len(labels) == 23
        assert int((labels == 2).sum()) == 3
    assert list(source.failures) == [bad]
    assert str(bad) in str(source.failures[bad])


def test_a_batch_without_two_readable_pictures_keeps_its_place(store: Path) -> None:
    for view in (0, 1, 2):
        (store / "train" / "sku-0" / f"{view}.png").write_bytes(b"broken")
    found = list(canvases(store, Recipe()).batches(Shown.of(np.arange(8, dtype=np.int64)), 0, 32, 4))
    assert found[0] is None
    assert found[1] is not None
    assert len(found[1].labels) == 4
