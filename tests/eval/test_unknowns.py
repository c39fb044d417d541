"""The open set on planted data: an encoder that separates, one that knows nothing, and who may see which rows."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.calibration import NOTHING
from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError
from skumatch.eval.calibrate import Case
from skumatch.eval.unknowns import (
    DRAWS,
    Draw,
    Setting,
    draw,
    groups,
    known_case,
    reliability_of,
    removed_case,
    rows_for_calibration,
    splits_of,
    summary,
)
from skumatch.eval.views import Views

ROOT = Path("shop")
COUNTS = {"train": 6, "val": 5, "test": 5}
HOW = Setting("train", "val", "test", 0.05, "digest")


def rows_of(skus: int = 30, counts: dict[str, int] | None = None) -> tuple[Row, ...]:
    return tuple(
        Row(ROOT / split / f"s{sku:02}" / f"{i}.jpg", f"s{sku:02}", split)
        for sku in range(skus)
        for split, count in (counts or COUNTS).items()
        for i in range(count)
    )


def planted(rows: tuple[Row, ...], noise: float, seed: int = 0, dim: int = 48) -> Views:
    """Return vectors around a centre per SKU; with endless ``noise`` the pictures show nothing of the SKU."""
    rng = np.random.default_rng(seed)
    skus = sorted({row.sku for row in rows})
    centres = rng.normal(size=(len(skus), dim)) * (0 if np.isinf(noise) else 1)
    spread = 1.0 if np.isinf(noise) else noise
    vectors = centres[[skus.index(row.sku) for row in rows]] + rng.normal(size=(len(rows), dim)) * spread
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Views(rows, vectors.astype(np.float32))


@cache
def drawn(noise: float, how: Setting = HOW) -> tuple[Draw, ...]:
    views = planted(rows_of(), noise)
    return tuple(draw(views, views, how, groups(views.skus, (), number)) for number in range(DRAWS))


@pytest.mark.parametrize("held", [(), tuple(f"s{i:02}" for i in range(9)), ("s00", "s01", "s02", "s03", "elsewhere")])
def test_groups_share_no_sku_and_leave_none_out(held: tuple[str, ...]) -> None:
    skus = [f"s{i:02}" for i in range(30)]
    halves = set()
    for seed in range(40):
        found = groups(skus, held, seed)
        assert not found.known & found.fit and not found.known & found.test and not found.fit & found.test
        assert found.known | found.fit | found.test == set(skus)
        assert found.fit | found.test == (set(held) & set(skus) if held else found.fit | found.test)
        assert 0 <= len(found.test) - len(found.fit) <= 1 and len(found.fit) >= 2
        assert groups(skus[::-1], held[::-1], seed) == found
        halves.add(found.fit)
    assert len(halves) > 3
    if not held:
        assert len(found.fit | found.test) == 10


@pytest.mark.parametrize(
    ("skus", "held"), [(10, ()), (30, ("s00", "s01", "s02")), (5, ("s00", "s01", "s02", "s03")), (0, ())]
)
def test_too_few_skus_make_no_open_set(skus: int, held: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=rf"\d+ unknown SKUs of {skus} do not make an open set"):
        groups([f"s{i:02}" for i in range(skus)], held, 0)


def test_an_encoder_that_separates_knows_what_it_does_not_know() -> None:
    found = summary(drawn(0.3), HOW.target_far, "")
    assert found["auroc"] > 0.99 and found["oscr"] > 0.99 and found["fpr95"] < 0.02
    assert found["far"] <= HOW.target_far and found["accepted"] > 0.9 and found["accuracy_accepted"] > 0.99
    assert found["unknown_said"] > 0.9 and found["known_said_unknown"] < 0.06
    assert found["reliability"]["ece"] < 0.02 and found["far_ci95"][0] <= found["far"] <= found["far_ci95"][1]


def test_an_encoder_that_knows_something_keeps_the_rate_that_was_asked_for() -> None:
    found = summary(drawn(1.6), HOW.target_far, "")
    assert 0.6 < found["auroc"] < 0.995 and found["far"] <= HOW.target_far + 0.02
    assert 0.02 < found["accepted"] < 0.95 and found["accuracy_accepted"] > 0.95
    assert found["reliability"]["ece"] < 0.08


def test_an_encoder_that_knows_nothing_is_at_chance_and_accepts_nothing() -> None:
    rows = rows_of(counts={"train": 6, "val": 40, "test": 5})
    views = planted(rows, np.inf)
    draws = [draw(views, views, HOW, groups(views.skus, (), number)) for number in range(DRAWS)]
    found = summary(draws, HOW.target_far, "")
    assert found["top1_known"] < 0.15 and abs(found["auroc"] - 0.5) < 0.06
    assert found["accepted"] < 0.02 and found["far"] < 0.02


def test_labels_that_mean_nothing_are_found_out() -> None:
    """Separated pictures under shuffled names: answers are right by chance and none is accepted."""
    rows = rows_of(counts={"train": 6, "val": 20, "test": 5})
    views = planted(rows, 0.3)
    names = np.random.default_rng(0).permutation([row.sku for row in rows])
    shuffled = replace(views, rows=tuple(replace(row, sku=str(name)) for row, name in zip(rows, names, strict=True)))
    draws = [draw(shuffled, shuffled, HOW, groups(shuffled.skus, (), number)) for number in range(DRAWS)]
    found = summary(draws, HOW.target_far, "")
    assert found["top1_known"] < 0.2 and abs(found["auroc"] - 0.5) < 0.06
    assert found["accepted"] < 0.05 and found["far"] < 0.05


def test_the_groups_of_a_draw_stay_apart() -> None:
    views = planted(rows_of(), 0.3)
    found = groups(views.skus, (), 0)
    one = draw(views, views, HOW, found)
    assert set(one.known.shown) == found.known and set(one.unknown.shown) == found.test
    assert len(one.known) == 5 * len(found.known) and len(one.unknown) == 5 * len(found.test)
    facts = one.rule.facts
    assert (facts["known_queries"], facts["known_skus"]) == (5 * len(found.known), len(found.known))
    assert (facts["unknown_crops"], facts["unknown_skus"]) == (11 * len(found.fit), len(found.fit))
    assert facts["worst_unknown"]["sku"] in found.fit


def test_fitting_never_looks_at_the_test_split_or_the_unknowns_to_test_on() -> None:
    views = planted(rows_of(), 1.6)
    found = groups(views.skus, (), 0)
    rule = draw(views, views, HOW, found).rule
    rng = np.random.default_rng(5)
    hidden = np.array([row.split == "test" or row.sku in found.test for row in views.rows])
    vectors = views.vectors.copy()
    vectors[hidden] = vectors[rng.permutation(np.flatnonzero(hidden))]
    other = replace(views, vectors=vectors)
    assert draw(other, other, HOW, found).rule.to_bytes() == rule.to_bytes()


def test_without_a_fitting_split_gallery_views_ask_each_without_itself() -> None:
    how = replace(HOW, fit=None)
    views = planted(rows_of(counts={"train": 8, "test": 5}), 0.3)
    draws = [draw(views, views, how, groups(views.skus, (), number)) for number in range(3)]
    assert draws[0].rule.facts["known_queries"] == 8 * 20
    found = summary(draws, how.target_far, "")
    assert found["auroc"] > 0.99 and found["far"] <= 0.1 and found["accepted"] > 0.9


def test_queries_may_be_embedded_in_another_way_than_the_gallery() -> None:
    views = planted(rows_of(), 0.3)
    found = groups(views.skus, (), 0)
    with pytest.raises(DataError, match="answers to known crops are right"):
        draw(views, replace(views, vectors=-views.vectors), HOW, found)
    assert draw(views, views, HOW, found).known.right.mean() > 0.95


def test_a_summary_is_plain_json_of_means_and_ranges() -> None:
    draws = drawn(1.6)
    found: dict[str, Any] = json.loads(json.dumps(summary(draws, 0.05, "this flatters"), allow_nan=False))
    each = [one.figures() for one in draws]
    for key in ("far", "auroc", "accepted", "oscr", "top1_known"):
        values = [one[key] for one in each]
        assert found[key] == pytest.approx(np.mean(values))
        assert found["range"][key] == [min(values), max(values)]
    assert (found["draws"], found["note"], found["target_far"]) == (DRAWS, "this flatters", 0.05)
    assert (found["known"], found["unknown"]) == (100, 25) and (found["fit_skus"], found["test_skus"]) == (5, 5)
    assert sum(found["histogram"]["known"]) == 100 and sum(found["histogram"]["unknown"]) == 25
    assert found["oscr_curve"]["fpr"][-1] == 1 and found["threshold"] == draws[0].rule.accept
    assert sum(b["count"] for b in found["reliability"]["bins"]) == pytest.approx(100 * DRAWS * 1.25)


def test_accepting_nothing_claims_no_accuracy() -> None:
    nothing = [replace(one, rule=replace(one.rule, accept=NOTHING)) for one in drawn(1.6)]
    found: dict[str, Any] = json.loads(json.dumps(summary(nothing, 0.05, ""), allow_nan=False))
    assert found["accepted"] == found["far"] == 0
    assert found["accuracy_accepted"] is None and found["right_of_all_accepted"] is None
    assert found["range"]["accuracy_accepted"] == [None, None]
    mixed = summary([nothing[0], drawn(0.3)[0]], 0.05, "")
    assert mixed["accuracy_accepted"] == drawn(0.3)[0].figures()["accuracy_accepted"]


def test_reliability_is_stated_for_the_share_of_unknown_crops_that_the_rule_assumes() -> None:
    one = drawn(1.6)[0]
    few = replace(one, unknown=one.unknown.take(np.arange(3)))
    many = replace(one, unknown=one.unknown.take(np.tile(np.arange(25), 40)))
    counts = [sum(b["count"] for b in reliability_of([draws])["bins"]) for draws in (one, few, many)]
    assert counts == [125, 125, 125]
    known = one.rule.probability(one.known.evidence)
    certain = replace(one, known=Case(one.known.evidence, known >= 0, one.known.shown))
    assert reliability_of([certain])["brier"] < reliability_of([one])["brier"] + 0.05


def test_the_only_view_of_a_sku_asks_nothing_of_its_own_gallery() -> None:
    rows = tuple(row for row in rows_of(4) if row.split == "train" and (row.sku != "s00" or row.path.stem == "0"))
    views = planted(rows, 0.3)
    case, _ = known_case(views, views)
    assert "s00" not in case.shown and len(case) == 18 and case.right.all()
    other = planted((Row(ROOT / "x.jpg", "s00", "val"), Row(ROOT / "y.jpg", "new", "val")), 0.3)
    assert known_case(views, other)[0].shown == ("s00", "new")


def test_removed_skus_are_asked_for_where_they_are_missing() -> None:
    views = planted(rows_of(12), 0.3)
    gallery, queries = (views.take(np.array([row.split == split for row in views.rows])) for split in ("train", "val"))
    found = removed_case(gallery, queries, 0.9)
    assert not found.right.any() and sorted(found.shown) == sorted(row.sku for row in queries.rows)
    known = known_case(gallery, queries, 0.9)[0]
    assert known.right.all() and found.evidence[:, 0].max() < known.evidence[:, 0].min()
    assert removed_case(gallery, gallery, 0.9).evidence[:, 0].max() < 0.7  # its sisters went with it
    assert removed_case(gallery, queries, 0.9, seed=1).evidence.tolist() != found.evidence.tolist()


def test_one_sku_cannot_be_removed() -> None:
    views = planted(rows_of(1), 0.3)
    with pytest.raises(DataError, match="too few SKUs to leave some out"):
        removed_case(views, views, 0.9)


def dataset(counts: dict[str, int] | None = None) -> Dataset:
    return Dataset(ROOT, "rp2k", rows_of(10, counts))


def test_calibration_takes_no_row_of_the_test_split() -> None:
    held = {"s00", "s01"}
    trained = {f"s{i:02}" for i in range(2, 10)}
    for known, unknown in ((trained, held), (trained, set[str]()), (set[str](), set[str]())):
        roles = rows_for_calibration(dataset(), known, unknown)
        assert {row.split for row in roles.gallery} == {"train"} and {row.split for row in roles.queries} == {"val"}
        assert {row.sku for row in roles.unknown} == unknown
        assert {row.split for row in roles.unknown} == ({"train", "val"} if unknown else set())
        assert not {row.sku for row in (*roles.gallery, *roles.queries)} & unknown
    assert len(roles.gallery) == 60 and len(roles.queries) == 50


def test_without_validation_crops_the_gallery_asks_itself() -> None:
    roles = rows_for_calibration(dataset({"train": 6, "test": 2}), (), ())
    assert roles.queries == roles.gallery and len(roles.gallery) == 60


def test_a_trained_sku_that_the_gallery_lacks_is_not_a_known_one() -> None:
    rows = [row for row in rows_of(10) if row.sku != "s05" or row.split == "val"]
    roles = rows_for_calibration(dataset().with_rows(rows), {f"s{i:02}" for i in range(2, 10)}, {"s00", "s01"})
    assert "s05" not in {row.sku for row in (*roles.gallery, *roles.queries)}


def test_no_crop_of_a_known_sku_is_an_error() -> None:
    for trained, held in (({"elsewhere"}, {"s00"}), (set[str](), {"s00"})):
        with pytest.raises(DataError, match="no crop in shop shows a SKU of split 'train' that the model knows"):
            rows_for_calibration(dataset(), trained, held)


def test_the_fitting_split_is_val_unless_that_is_tested_or_missing() -> None:
    assert splits_of(dataset(), "test") == ("train", "val")
    assert splits_of(dataset(), "val") == ("train", None)
    assert splits_of(dataset({"gallery": 2, "train": 3, "test": 1}), "test") == ("gallery", None)
