"""Which rows are reference views and which are queries, in each protocol."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skumatch.dataset import Dataset, Row
from skumatch.errors import ConfigError, DataError
from skumatch.eval.protocol import catalogue, closed, held_out, k_shot, shots_for, without_copies
from skumatch.eval.trial import Trial
from skumatch.readers import open_dataset

MakeData = Callable[..., tuple[Dataset, Any]]


def counts(rows: tuple[Row, ...]) -> dict[str, int]:
    return dict(Counter(row.sku for row in rows))


def test_closed_sets_the_gallery_split_against_another(patterns: Path) -> None:
    dataset = open_dataset(patterns)
    trial = closed(dataset)
    assert {row.split for row in trial.gallery} == {"train"} and {row.split for row in trial.queries} == {"test"}
    assert (len(trial.gallery), len(trial.queries), trial.leave_one_out) == (24, 12, False)
    with pytest.raises(ConfigError, match="split 'train' is the gallery"):
        closed(dataset, "train")
    with pytest.raises(DataError, match=r"no pictures in split 'val' - its splits are: .*train"):
        closed(dataset, "val")


def test_a_split_named_gallery_is_preferred() -> None:
    rows = tuple(Row(Path(f"{split}.png"), "a", split) for split in ("train", "gallery", "test"))
    trial = closed(Dataset(Path("made"), "csv", rows))
    assert (trial.gallery, trial.queries) == (rows[1:2], rows[2:])


def test_byte_copies_are_left_out_and_named(store: Path) -> None:
    shutil.copy(store / "train" / "sku-1" / "0.png", store / "test" / "sku-1" / "copy.png")
    shutil.copy(store / "train" / "sku-1" / "0.png", store / "test" / "sku-4" / "other-sku.png")
    trial = closed(open_dataset(store))
    clean, leaks = without_copies(trial)
    assert sorted((row.path.name, Path(view)) for row, view in leaks) == [
        ("copy.png", store / "train" / "sku-1" / "0.png"),
        ("other-sku.png", store / "train" / "sku-1" / "0.png"),
    ]
    assert clean == replace(trial, queries=tuple(row for row in trial.queries if row.path.stem.isdigit()))
    assert without_copies(clean) == (clean, ())


def test_nothing_but_copies_is_one_clear_error(store: Path) -> None:
    shutil.rmtree(store / "test")
    shutil.copytree(store / "train", store / "test")
    with pytest.raises(DataError, match="every query in split 'test' is a copy"):
        without_copies(closed(open_dataset(store)))


def test_leave_one_out_keeps_its_copies(patterns: Path) -> None:
    rows = open_dataset(patterns).split("test").rows
    trial = Trial("all", rows, rows, leave_one_out=True)
    assert without_copies(trial) == (trial, ())


def test_k_shot_draws_as_many_views_of_every_sku(make_data: MakeData) -> None:
    trial = closed(make_data(skus=6, splits={"train": 8, "test": 2})[0])
    for views in (1, 3, 8):
        protocol = k_shot(trial, views, draws=4, seed=7)
        assert len(protocol.trials) == 4
        for one in protocol.trials:
            assert set(counts(one.gallery).values()) == {views} and len(counts(one.gallery)) == 6
            assert set(map(id, one.gallery)) <= set(map(id, trial.gallery)) and one.queries == trial.queries
            assert len({row.path for row in one.gallery}) == 6 * views
    assert k_shot(trial, 3).title == "3 views per SKU, 5 draws" and k_shot(trial, 1).title.startswith("1 view per")
    assert k_shot(trial, 3).name == "k-shot 3" and k_shot(trial, 3).note == ""


def test_k_shot_draws_differ_and_follow_the_seed(make_data: MakeData) -> None:
    trial = closed(make_data(skus=6, splits={"train": 8, "test": 2})[0])
    drawn = [{row.path for row in one.gallery} for one in k_shot(trial, 3, seed=1).trials]
    assert all(drawn[i] != drawn[j] for i in range(5) for j in range(i))
    assert k_shot(trial, 3, seed=1) == k_shot(trial, 3, seed=1)
    other = [{row.path for row in one.gallery} for one in k_shot(trial, 3, seed=2).trials]
    assert all(one not in other for one in drawn)
    seen = Counter(
        path
        for seed in range(40)
        for one in k_shot(trial, 1, seed=seed).trials
        for path in (row.path for row in one.gallery if row.sku == "s03")
    )
    assert len(seen) == 8 and min(seen.values()) > 8  # 200 draws of eight views: no view is favoured


def test_k_shot_of_skus_with_fewer_views_says_so(make_data: MakeData) -> None:
    dataset = make_data(skus=4, splits={"train": 5, "test": 1})[0]
    few = dataset.with_rows([row for row in dataset if row.split == "test" or row.sku > "s01" or row.path.stem < "2"])
    protocol = k_shot(closed(few), 3)
    assert protocol.note == "2 of 4 SKUs have fewer views"
    assert all(counts(one.gallery) == {"s00": 2, "s01": 2, "s02": 3, "s03": 3} for one in protocol.trials)


def test_only_shots_that_leave_something_out(make_data: MakeData) -> None:
    for views, shots in ((11, [1, 3, 5, 10]), (10, [1, 3, 5]), (4, [1, 3]), (2, [1])):
        assert shots_for(closed(make_data(skus=2, splits={"train": views, "test": 1})[0])) == shots
    with pytest.raises(DataError, match="no SKU has more than 1 reference view"):
        shots_for(closed(make_data(skus=2, splits={"train": 1, "test": 1})[0]))


def test_held_out_skus_among_all_and_alone(make_data: MakeData) -> None:
    trial = closed(make_data(skus=5)[0])
    among, alone = (one.trials[0] for one in held_out(trial, {"s01", "s04", "never seen"}))
    assert set(counts(among.queries)) == set(counts(alone.queries)) == set(counts(alone.gallery)) == {"s01", "s04"}
    assert among.gallery == trial.gallery
    assert [one.name for one in held_out(trial, {"s01"})] == ["held-out SKUs", "held-out SKUs alone"]
    with pytest.raises(DataError, match="no query shows a held-out SKU"):
        held_out(trial, {"never seen"})
    unseen = replace(trial, gallery=tuple(row for row in trial.gallery if row.sku != "s01"))
    with pytest.raises(DataError, match="no pictures on the side 'gallery'"):
        held_out(unseen, {"s01"})


def test_catalogue_pictures_take_the_gallerys_place(make_data: MakeData) -> None:
    dataset = make_data(skus=4, splits={"train": 3, "test": 2, "catalogue": 2})[0]
    trial = closed(dataset)
    few = replace(trial, gallery=tuple(row for row in trial.gallery if row.sku != "s02"))
    protocol = catalogue(dataset, few)
    assert counts(protocol.trials[0].gallery) == {"s00": 2, "s01": 2, "s03": 2}
    assert {row.split for row in protocol.trials[0].gallery} == {"catalogue"}
    assert protocol.trials[0].queries == trial.queries
    assert protocol.note == "2.0 pictures per SKU"
    with pytest.raises(DataError, match="no pictures in split 'catalogue'"):
        catalogue(make_data()[0], trial)
    elsewhere = replace(trial, gallery=tuple(replace(row, sku="other") for row in trial.gallery))
    with pytest.raises(DataError, match="no SKU of the gallery has a catalogue picture"):
        catalogue(dataset, elsewhere)


def test_a_protocol_lists_the_rows_of_all_its_trials(make_data: MakeData) -> None:
    trial = closed(make_data(skus=3, splits={"train": 4, "test": 1})[0])
    found = {row.path for row in k_shot(trial, 1, draws=30).rows}
    assert found == {row.path for row in (*trial.gallery, *trial.queries)}
