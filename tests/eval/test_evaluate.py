"""One evaluation over made-up vectors: every protocol, what is skipped and why, leaks, presets, degenerate data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.calibration import NOTHING, Calibration
from skumatch.dataset import Dataset
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.eval.evaluate import NAMES, Evaluation, Plan, Question, evaluate, judged, plan
from skumatch.eval.metrics import hit_ranks, top_k
from skumatch.eval.pool import Pool
from skumatch.eval.retrieval import retrieve
from skumatch.readers import open_dataset
from skumatch.techniques import Technique

MakeData = Callable[..., tuple[Dataset, Pool]]
Strict = Callable[[Any], Any]
ALL = {"train": 6, "test": 4, "catalogue": 1}
HELD = ("s02", "s05", "s07", "s09")


def run(what: Plan, pool: Pool, encoder: Encoder, question: Question | None = None, topk: int = 5) -> Evaluation:
    return evaluate(what, question or Question(), pool, encoder.spec, topk)


def lines(found: Evaluation) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found.document["protocols"]}


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Deal the SKUs of each split out at random."""
    names = np.array([row.sku for row in dataset])
    splits = np.array([row.split for row in dataset])
    rng = np.random.default_rng(seed)
    for split in dataset.splits:
        names[splits == split] = rng.permutation(names[splits == split])
    return dataset.with_rows([replace(row, sku=str(name)) for row, name in zip(dataset, names, strict=True)])


def test_all_protocols_on_data_that_allows_them(make_data: MakeData, encoder: Encoder, strict: Strict) -> None:
    dataset, pool = make_data(skus=30, splits=ALL)
    held = {f"s{sku:02}" for sku in range(12)}
    what = plan(dataset, Question(), held=held, trained={row.sku for row in dataset} - held)
    found = run(what, pool, encoder)
    figures = lines(found)
    names = ["closed", "k-shot 1", "k-shot 3", "k-shot 5", "held-out SKUs", "held-out SKUs alone", "catalogue"]
    assert list(figures) == names and found.document["skipped"] == []
    assert all(one["topk"]["1"] > 0.95 for one in figures.values())
    sizes = {name: (one["skus"], one["gallery_views"], one["queries"]) for name, one in figures.items()}
    assert sizes == {
        "closed": (30, 180, 120),
        **{f"k-shot {views}": (30, 30 * views, 120) for views in (1, 3, 5)},
        "held-out SKUs": (30, 180, 48),
        "held-out SKUs alone": (12, 72, 48),
        "catalogue": (30, 30, 120),
    }
    assert figures["k-shot 3"]["draws"] == 5 and figures["catalogue"]["note"] == "1.0 pictures per SKU"
    opened = found.document["open_set"]
    assert opened["known_skus"] == 18 and opened["draws"] == 10 and opened["auroc"] > 0.95 and opened["note"] == ""
    strict(found.document)
    assert {key: found.document[key] for key in ("topk", "ci95", "map_at_r")} == {
        key: figures["closed"][key] for key in ("topk", "ci95", "map_at_r")
    }


def test_shuffled_labels_are_chance_in_every_protocol(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(splits=ALL, spread=0.2)
    hits: dict[str, list[float]] = {}
    for seed in range(8):
        found = run(plan(shuffled(dataset, seed), Question(), held=HELD, trained={"s00"}), pool, encoder)
        for name, one in lines(found).items():
            hits.setdefault(name, []).append(one["topk"]["1"])
    assert set(hits) == {
        "closed",
        "k-shot 1",
        "k-shot 3",
        "k-shot 5",
        "held-out SKUs",
        "held-out SKUs alone",
        "catalogue",
    }
    for name, values in hits.items():
        chance = 1 / len(HELD) if name == "held-out SKUs alone" else 1 / 10
        assert 0.5 * chance < np.mean(values) < 1.5 * chance, name


def test_what_cannot_be_measured_is_skipped_with_a_reason(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(skus=8, splits={"train": 1, "test": 4})
    what = plan(dataset, Question())
    assert [line.partition(":")[0] for line in what.skipped] == ["k-shot", "held-out", "catalogue", "open-set"]
    assert "no SKU has more than 1 reference view" in what.skipped[0]
    assert "the encoder is untouched" in what.skipped[1]
    assert "no pictures in split 'catalogue'" in what.skipped[2]
    assert "3 unknown SKUs of 8 do not make an open set" in what.skipped[3]
    found = run(what, pool, encoder)
    assert list(lines(found)) == ["closed"] and found.document["skipped"] == list(what.skipped)
    assert "open_set" not in found.document
    every = plan(dataset, Question(names=("held-out",)), trained={"s01"})
    assert every.skipped == ("held-out: every SKU was trained on (train with --hold-out)",)
    assert plan(dataset, Question(names=("held-out",)), held={"x"}).skipped == (
        "held-out: no query shows a held-out SKU",
    )


def test_an_open_set_with_too_few_crops_is_skipped_with_a_reason(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(skus=14, splits={"train": 3, "test": 2})
    question = Question(names=("open-set",))
    what = plan(dataset, question)
    assert len(what.open_set) == 10 and what.skipped == ()
    found = run(what, pool, encoder, question)
    assert "open_set" not in found.document
    assert found.document["skipped"][0].startswith("open-set: 6 crops of 2 unknown SKUs are too few")


def test_an_open_set_of_trained_skus_says_that_it_flatters(make_data: MakeData) -> None:
    dataset, _ = make_data(skus=14)
    assert "flatters" in plan(dataset, Question(), trained={"s00"}).open_note
    assert plan(dataset, Question()).open_note == ""
    assert plan(dataset, Question(), held=HELD, trained={"s00"}).open_note == ""


def test_only_what_was_asked_for(make_data: MakeData) -> None:
    dataset, _ = make_data(skus=14, splits=ALL)
    what = plan(dataset, Question(names=("closed",)))
    assert (what.protocols, what.open_set, what.skipped) == ((), (), ())
    assert len(what.rows) == 14 * 10
    twice = plan(dataset, Question(names=("k-shot", "catalogue", "k-shot")))
    assert [one.name for one in twice.protocols] == ["k-shot 1", "k-shot 3", "k-shot 5", "catalogue"]
    assert len(twice.rows) == len({row.path for row in twice.rows}) == 14 * 11


def test_questions_that_make_no_sense_are_refused(make_data: MakeData) -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'kshot' - did you mean k-shot"):
        Question(names=("closed", "kshot"))
    with pytest.raises(ConfigError, match="unknown protocol 'zzz' - choose closed, k-shot"):
        Question(names=("zzz",))
    for value in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"target false accept rate .* is out of range"):
            Question(target_far=value)
    with pytest.raises(ConfigError, match="preset sop needs a data set of format sop"):
        plan(make_data()[0], Question(preset="sop"))
    assert Question().names == NAMES


def test_k_shot_is_the_mean_of_its_draws(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(spread=1.2)
    what = plan(dataset, Question(names=("k-shot",), seed=3))
    found = lines(run(what, pool, encoder))["k-shot 3"]
    draws = [retrieve(pool.views(one.gallery), pool.views(one.queries), 10) for one in what.protocols[1].trials]
    ranks = [hit_ranks(one.nearest.skus, one.truth) for one in draws]
    assert len({float(top_k(one, 1).mean()) for one in ranks}) > 1
    for k in (1, 3, 5):
        assert found["topk"][str(k)] == pytest.approx(np.mean([top_k(one, k).mean() for one in ranks]))
    assert found["map_at_r"] == pytest.approx(np.mean([one.precision.mean() for one in draws]))
    assert found["topk"]["1"] < lines(run(what, pool, encoder))["closed"]["topk"]["1"]
    other = lines(run(plan(dataset, Question(names=("k-shot",), seed=4)), pool, encoder))["k-shot 3"]
    assert other["topk"] != found["topk"]


def test_the_same_seed_gives_the_same_figures(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(skus=30, splits=ALL, spread=1.0)
    found = [run(plan(dataset, Question(seed=5)), pool, encoder).document for _ in range(2)]
    for one in found:
        assert one.pop("seconds") > 0
    assert found[0] == found[1]
    assert "open_set" in found[0]


@pytest.fixture
def leaky(store: Path) -> Path:
    """Add byte copies of two gallery views to the queries."""
    shutil.copy(store / "train" / "sku-2" / "0.png", store / "test" / "sku-2" / "copy.png")
    shutil.copy(store / "train" / "sku-3" / "1.png", store / "test" / "sku-3" / "copy.png")
    return store


def test_byte_copies_take_part_in_nothing(leaky: Path) -> None:
    what = plan(open_dataset(leaky), Question(), held={"sku-2", "sku-3"}, trained={"sku-0"})
    assert sorted(row.path.parent.name for row, _ in what.leaks) == ["sku-2", "sku-3"]
    trials = [what.main, *(trial for one in what.protocols for trial in one.trials)]
    assert len(trials) == 13
    for rows in (*(trial.queries for trial in trials), what.rows, what.dataset.rows):
        assert not [row for row in rows if row.path.name == "copy.png"]
    assert len(what.dataset) == 36


def test_leaks_are_dropped_from_every_protocol(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(skus=30, splits=ALL)
    held = {f"s{sku:02}" for sku in range(12)}
    what = plan(dataset, Question(), held=held, trained={"s20"})
    leaked = {row.path for row in what.main.queries if row.path.stem == "0" or row.sku == "s00"}
    less = what.without(leaked)
    for trial in (less.main, *(trial for one in less.protocols for trial in one.trials)):
        assert not {row.path for row in trial.queries} & leaked
    assert not {row.path for row in less.dataset} & leaked and less.main.gallery == what.main.gallery
    found = run(less, pool, encoder)
    assert lines(found)["closed"]["queries"] == 120 - len(leaked) == 87
    assert lines(found)["held-out SKUs"]["queries"] == 33
    assert found.document["open_set"]["known"] == 54
    assert what.without(set()) is what


def test_a_protocol_of_leaks_alone_is_skipped_and_nothing_at_all_is_an_error(make_data: MakeData) -> None:
    what = plan(make_data()[0], Question(), held=HELD, trained={"s00"})
    less = what.without({row.path for row in what.main.queries if row.sku in HELD})
    assert [one.name for one in less.protocols] == ["k-shot 1", "k-shot 3", "k-shot 5"]
    assert less.skipped[-2:] == (
        "held-out SKUs: all its queries are leaks",
        "held-out SKUs alone: all its queries are leaks",
    )
    with pytest.raises(DataError, match="all 40 queries are leaks: none remains"):
        what.without({row.path for row in what.main.queries})


def test_a_preset_that_leaves_each_query_out(make_data: MakeData, encoder: Encoder, strict: Strict) -> None:
    """As Stanford Online Products: unrelated vectors would all be right if a picture answered itself."""
    dataset, pool = make_data(skus=12, splits={"train": 3, "test": 3}, format="sop")
    question = Question(preset="sop")
    what = plan(dataset, question)
    assert what.main.leave_one_out and what.protocols == () and what.open_set == ()
    assert [line.partition(":")[0] for line in what.skipped] == ["k-shot", "held-out", "catalogue", "open-set"]
    found = run(what, pool, encoder, question)
    (line,) = found.document["protocols"]
    assert line["name"] == "sop" and line["queries"] == line["gallery_views"] == 36 and line["topk"]["1"] > 0.9
    assert "12 SKUs where 11,316 are published" in line["note"]
    chance = [run(plan(shuffled(dataset, seed), question), pool, encoder, question).document for seed in range(15)]
    assert np.mean([one["topk"]["1"] for one in chance]) < 0.15
    assert np.mean([one["map_at_r"] for one in chance]) < 0.15
    alone = dataset.with_rows([row for row in dataset if row.path.stem == "0" or row.sku > "s05"])
    lonely = run(plan(alone, question), pool, encoder, question).document
    assert lonely["queries_without_gallery_view"] == 6 and lonely["topk"]["1"] <= 18 / 24
    strict(lonely)


def test_other_presets_allow_the_other_protocols(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(splits=ALL)
    question = Question(preset="catalogue")
    what = plan(dataset, question)
    assert [line.partition(":")[0] for line in what.skipped] == ["k-shot", "held-out", "catalogue", "open-set"]
    assert "no SKU has more" in what.skipped[0] and what.skipped[2].endswith("the gallery is the catalogue already")
    assert what.skipped[3].startswith("open-set: a preset")
    assert list(lines(run(what, pool, encoder, question))) == ["catalogue"]
    three = make_data(splits={**ALL, "catalogue": 3})[0]
    assert [one.name for one in plan(three, question).protocols] == ["k-shot 1"]


@pytest.mark.parametrize(
    "case", ["one sku", "one query", "nothing right", "everything right", "nothing in the gallery"]
)
def test_degenerate_data_is_still_strict_json(make_data: MakeData, encoder: Encoder, strict: Strict, case: str) -> None:
    dataset, pool = make_data(skus=1 if case == "one sku" else 6, spread=0.01)
    if case == "one query":
        rows = [row for row in dataset if row.split == "train" or str(row.path) == str(Path("test", "s01", "0.png"))]
        dataset = dataset.with_rows(rows)
    if case == "nothing right":
        turned = {f"s{n:02}": f"s{(n + 1) % 6:02}" for n in range(6)}
        dataset = dataset.with_rows([replace(r, sku=turned[r.sku]) if r.split == "test" else r for r in dataset])
    if case == "nothing in the gallery":
        dataset = dataset.with_rows([replace(r, sku="new") if r.split == "test" else r for r in dataset])
    found = run(plan(dataset, Question()), pool, encoder)
    document = strict(found.document)
    wrong = case.startswith("nothing")
    assert document["topk"]["1"] == document["topk_macro"]["1"] == (0.0 if wrong else 1.0)
    if case == "nothing in the gallery":
        assert document["map_at_r"] is None and document["queries_without_gallery_view"] == 24
    for one in document["protocols"]:
        for kind, ends in (("topk", "ci95"), ("topk_views", "ci95_views"), ("topk_macro", "ci95_macro")):
            assert all(one[ends][k][0] <= value <= one[ends][k][1] for k, value in one[kind].items())


def test_a_larger_k_is_reported_and_searched_for(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(skus=20, spread=2.0)
    found = run(plan(dataset, Question(names=("closed",))), pool, encoder, topk=15)
    assert list(found.document["topk"]) == ["1", "3", "5", "15"] and found.document["mrr_depth"] == 15
    assert found.document["topk"]["15"] > found.document["topk"]["5"]
    assert run(plan(dataset, Question(names=("closed",))), pool, encoder, topk=2).document["mrr_depth"] == 10


def test_unreadable_pictures_are_counted(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data()
    lost = [Path("test", "s01", "0.png"), Path("train", "s02", "0.png")]
    place = {path: at for path, at in pool.place.items() if path not in lost}
    broken = Pool(pool.vectors, place, tuple(f"{path} is broken" for path in lost))
    found = run(plan(dataset, Question(names=("closed",))), broken, encoder).document
    assert (found["unreadable"], found["queries"], found["gallery_views"]) == (2, 39, 59)
    assert found["unreadable_files"] == [f"{path} is broken" for path in lost]


def test_the_technique_of_the_model_answers_in_every_protocol(make_data: MakeData, encoder: Encoder) -> None:
    dataset, pool = make_data(spread=1.5)
    vote = Technique("vote", neighbours=15)
    what = plan(dataset, Question(names=("k-shot",)))
    plain, voted = run(what, pool, encoder), run(what, pool, encoder, Question(technique=vote))
    assert plain.document["topk_views"] == voted.document["topk_views"]
    for name in ("closed", "k-shot 5"):
        assert lines(plain)[name]["topk"] != lines(voted)[name]["topk"]


def rule(accept: float) -> Calibration:
    """Return a rule whose probability rises from 0.02 to 0.98 with the score."""
    return Calibration("", -4.0, (8.0, 0.0, 0.0), 0.9, accept, min(accept, 0.5), {"unknown_share": 0.2})


def test_a_calibration_is_judged_on_the_headline(make_data: MakeData, encoder: Encoder, strict: Strict) -> None:
    dataset, pool = make_data(spread=1.0)
    found = run(plan(dataset, Question(names=("closed",))), pool, encoder)
    score = found.answers.nearest.scores[:, 0].astype(np.float64)
    right = found.answers.nearest.skus[:, 0] == found.answers.truth
    probability = 1 / (1 + np.exp(4 - 8 * score))
    some = judged(rule(float(np.median(probability))), found.answers)
    accepted = probability >= np.median(probability)
    assert some["accept"] == pytest.approx(accepted.mean()) and some["accept"] + some["review"] + some["unknown"] == 1.0
    assert some["accuracy_accepted"] == pytest.approx(right[accepted].mean())
    assert some["brier"] == pytest.approx(((probability - right) ** 2).mean())
    assert strict(some) == some and "20 % of the crops" in some["note"]
    none = judged(rule(NOTHING), found.answers)
    assert none["accept"] == 0 and none["accuracy_accepted"] is None and strict(none) == none
