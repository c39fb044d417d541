"""Figures, predictions and pictures: every field that is promised, worked out again from the answers."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.dataset import Dataset, Row
from skumatch.errors import ArtefactError
from skumatch.eval.pool import Pool
from skumatch.eval.report import best_skus, compare, detail, pictures_of, predictions, summary, write
from skumatch.eval.retrieval import Answers, retrieve
from skumatch.eval.views import Views

MakeData = Callable[..., tuple[Dataset, Pool]]
Strict = Callable[[Any], Any]
LOW_HIGH = (("topk", "ci95"), ("topk_views", "ci95_views"), ("topk_macro", "ci95_macro"))


def answered(data: tuple[Dataset, Pool], k: int = 10, lacking: tuple[str, ...] = ()) -> Answers:
    """Answer the test split; the gallery has no view of the SKUs ``lacking``."""
    dataset, pool = data
    gallery = [row for row in dataset.split("train") if row.sku not in lacking]
    return retrieve(pool.views(gallery), pool.views(dataset.split("test").rows), k)


@pytest.fixture
def hard(make_data: MakeData) -> Answers:
    """Return answers of which some are wrong; two SKUs have no view."""
    return answered(make_data(skus=12, spread=1.4), lacking=("s03", "s08"))


def test_the_figures_are_those_of_the_answers(hard: Answers) -> None:
    found = summary([hard], 4)
    names = [[hard.skus[code] for code in line] for line in hard.nearest.skus]
    ranks = [
        line.index(row.sku) + 1 if row.sku in line else 0 for line, row in zip(names, hard.queries.rows, strict=True)
    ]
    assert list(found["topk"]) == ["1", "3", "4", "5"] and found["mrr_depth"] == 10
    for k, value in found["topk"].items():
        assert value == pytest.approx(np.mean([0 < rank <= int(k) for rank in ranks]))
    assert 0.3 < found["topk"]["1"] < found["topk"]["5"] < 1
    views = [[hard.skus[code] for code in line[:3]] for line in hard.views]
    assert found["topk_views"]["3"] == pytest.approx(
        np.mean([row.sku in line for line, row in zip(views, hard.queries.rows, strict=True)])
    )
    assert found["mrr"] == pytest.approx(np.mean([1 / rank if rank else 0 for rank in ranks]))
    assert found["map_at_r"] == pytest.approx(np.nanmean(hard.precision)) and np.isnan(hard.precision).sum() == 8
    by_sku: dict[str, list[bool]] = {}
    for rank, row in zip(ranks, hard.queries.rows, strict=True):
        by_sku.setdefault(row.sku, []).append(rank == 1)
    assert found["topk_macro"]["1"] == pytest.approx(np.mean([np.mean(hits) for hits in by_sku.values()]))
    assert (found["queries"], found["gallery_views"], found["skus"]) == (48, 60, 10)


@pytest.mark.parametrize("spread", [0.01, 0.8, 1.4, 5.0])
def test_intervals_contain_the_value_and_k_counts_skus(make_data: MakeData, spread: float) -> None:
    found = summary([answered(make_data(skus=9, spread=spread, seed=3))], 5)
    for kind, interval in LOW_HIGH:
        values = list(found[kind].values())
        assert values == sorted(values)
        for k, value in found[kind].items():
            low, high = found[interval][k]
            assert 0 <= low <= value <= high <= 1
    assert found["topk"]["1"] == found["topk_views"]["1"]
    assert all(found["topk"][k] >= found["topk_views"][k] for k in ("3", "5"))
    assert found["topk"]["1"] <= found["mrr"] <= 1


def test_draws_are_averaged_query_by_query(make_data: MakeData) -> None:
    data = make_data(skus=9, spread=1.2)
    draws = []
    for part in (0, 1, 2):
        gallery = data[0].with_rows([row for row in data[0] if row.split == "test" or int(row.path.stem) % 3 == part])
        draws.append(answered((gallery, data[1])))
    each = [summary([one], 5) for one in draws]
    mean = summary(draws, 5)
    for key in ("topk", "topk_views", "topk_macro"):
        assert mean[key]["3"] == pytest.approx(np.mean([one[key]["3"] for one in each]))
    assert mean["mrr"] == pytest.approx(np.mean([one["mrr"] for one in each]))
    assert mean["map_at_r"] == pytest.approx(np.mean([one["map_at_r"] for one in each]))
    assert mean["ci95"]["1"][0] < mean["topk"]["1"] < mean["ci95"]["1"][1]


def test_the_details_are_those_of_the_answers(hard: Answers, strict: Strict) -> None:
    found = detail(hard)
    said = best_skus(hard)
    assert said == [hard.skus[code] for code in hard.nearest.skus[:, 0]]
    shown = [row.sku for row in hard.queries.rows]
    assert found["queries_without_gallery_view"] == 8
    assert list(found["per_sku"]) == sorted(set(shown))
    for sku, facts in found["per_sku"].items():
        mine = [answer == sku for answer, name in zip(said, shown, strict=True) if name == sku]
        assert facts == {"queries": len(mine), "top1": pytest.approx(np.mean(mine))}
    assert found["per_sku"]["s03"]["top1"] == 0.0
    wrong = Counter((name, answer) for name, answer in zip(shown, said, strict=True) if name != answer)
    listed = {(one["shown"], one["answered"]): one["queries"] for one in found["confused"]}
    assert len(listed) == min(20, len(wrong)) and all(wrong[pair] == count for pair, count in listed.items())
    assert [one["queries"] for one in found["confused"]] == sorted(wrong.values(), reverse=True)[:20]
    curve = found["coverage"]
    assert curve["coverage"][-1] == 1.0 and curve["accuracy"][-1] == pytest.approx(summary([hard], 5)["topk"]["1"])
    assert 0 <= curve["aurc"] <= 1 and found["seconds"] > 0
    strict(found)


def test_the_predictions_reproduce_the_figures(hard: Answers, tmp_path: Path) -> None:
    document = {**summary([hard], 5), **detail(hard)}
    write(tmp_path / "new" / "out", document, hard)
    assert json.loads((tmp_path / "new" / "out" / "eval.json").read_text()) == document
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["eval.json", "predictions.csv"]
    with (tmp_path / "new" / "out" / "predictions.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["query"] for line in lines] == [str(row.path) for row in hard.queries.rows]
    for k in (1, 3, 5):
        hits = [line["rank"] != "" and int(line["rank"]) <= k for line in lines]
        assert np.mean(hits) == pytest.approx(document["topk"][str(k)])
    for line in lines:
        answers = [line[f"sku_{n}"] for n in range(1, 11)]
        assert line["rank"] == (str(answers.index(line["sku"]) + 1) if line["sku"] in answers else "")
        scores = [float(line[f"score_{n}"]) for n in range(1, 11)]
        assert scores == sorted(scores, reverse=True) and len(set(answers)) == 10
        assert all(Path(line[f"view_{n}"]).parent.name == line[f"sku_{n}"] for n in range(1, 11))


def test_missing_answers_are_empty_cells(make_data: MakeData) -> None:
    line = next(csv.DictReader(predictions(answered(make_data(skus=2), k=5)).splitlines()))
    assert line["sku_2"] != "" and (line["sku_3"], line["score_3"], line["view_3"]) == ("", "", "")


def test_names_that_are_no_text_come_out_as_they_were(make_data: MakeData, tmp_path: Path) -> None:
    dataset, pool = make_data(skus=2)
    odd = os.fsdecode(b"caf\xe9.png")
    rows = [replace(row, path=Path(odd)) if row.path == Path("test/s00/0.png") else row for row in dataset]
    place = {row.path: at for at, row in enumerate(rows)}
    answers = answered((dataset.with_rows(rows), Pool(pool.vectors, place, ())))
    write(tmp_path, detail(answers), answers)
    assert b"caf\xe9.png" in (tmp_path / "predictions.csv").read_bytes()


def test_a_folder_that_refuses_is_an_error(hard: Answers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write"):
        write(tmp_path / "file", {}, hard)


def test_a_model_is_no_better_than_itself(hard: Answers) -> None:
    found = compare(hard, hard)
    assert (found.verdict, found.difference, found.gained, found.lost, found.p) == ("no difference shown", 0, 0, 0, 1.0)


def test_a_clearly_better_model_is_found_whichever_stands_first(make_data: MakeData) -> None:
    good, bad = answered(make_data(skus=20, spread=0.3)), answered(make_data(skus=20, spread=1.8))
    for a, b, verdict in ((good, bad, "A is better"), (bad, good, "B is better")):
        found = compare(a, b)
        top1 = [float((one.nearest.skus[:, 0] == one.truth).mean()) for one in (a, b)]
        assert found.verdict == verdict
        assert found.difference == pytest.approx(top1[1] - top1[0])
        assert found.low <= found.difference <= found.high and found.low * found.high > 0
        assert found.gained - found.lost == round(80 * found.difference)


def test_models_are_compared_on_the_queries_that_both_could_read(make_data: MakeData) -> None:
    answers = answered(make_data(skus=10, spread=1.4))
    hits = answers.nearest.skus[:, 0] == answers.truth
    right, wrong = np.flatnonzero(hits), np.flatnonzero(~hits)
    a = answers.take(np.concatenate([right, wrong[2:]]))
    b = answers.take(np.concatenate([wrong, right[3:]]))  # another order, other queries missing
    found = compare(a, b)
    assert (found.difference, found.gained, found.lost) == (0, 0, 0)


def test_pictures_of_what_went_wrong(hard: Answers) -> None:
    held = pictures_of(hard, [(Path("q.png"), Path("v.png"), "near")])
    said = best_skus(hard)
    queries = {row.path: (row, answer) for row, answer in zip(hard.queries.rows, said, strict=True)}
    wrong = [row.path for row, answer in queries.values() if row.sku != answer]
    assert len(held.failures) == min(24, len(wrong)) and len(wrong) > 8
    scores = [one.score for one in held.failures]
    assert scores == sorted(scores, reverse=True)
    vectors = {row.path: vector for row, vector in zip(hard.queries.rows, hard.queries.vectors, strict=True)}
    for one in held.failures:
        row, answer = queries[one.query]
        assert (one.sku, one.answered) == (row.sku, answer) and one.answered != one.sku
        assert one.answered_view.parent.name == one.answered
        if one.sku in ("s03", "s08"):
            assert (one.right_view, one.right_score) == (None, None)
            continue
        mine = [i for i, view in enumerate(hard.gallery.rows) if view.sku == one.sku]
        best = max(mine, key=lambda i: float(hard.gallery.vectors[i] @ vectors[one.query]))
        assert one.right_view == hard.gallery.rows[best].path
        assert one.right_score is not None and one.right_score <= one.score + 1e-6
    for shown, answered_with, count, query, view in held.confusions:
        assert sum(r.sku == shown and a == answered_with for r, a in queries.values()) == count
        assert queries[query][0].sku == shown and queries[query][1] == view.parent.name == answered_with
    values = [value for _, _, value, _ in held.worst]
    assert values == sorted(values) and {"s03", "s08"} <= {sku for sku, *_ in held.worst}
    for sku, count, value, examples in held.worst:
        mine_wrong = [path for path in wrong if queries[path][0].sku == sku]
        assert (count, 4 * value) == (4, 4 - len(mine_wrong)) and set(examples) <= set(mine_wrong)
    assert held.leaks == [(Path("q.png"), Path("v.png"), "near")]


def test_nothing_wrong_nothing_shown(make_data: MakeData) -> None:
    held = pictures_of(answered(make_data(skus=3, spread=0.01)))
    assert (held.failures, held.confusions, held.worst, held.leaks) == ([], [], [], [])


def test_a_query_is_not_its_own_right_view() -> None:
    """Left out of its own gallery, the only picture of a SKU has no right view to show beside it."""
    rows = tuple(Row(Path(f"{sku}{i}.png"), sku, "test") for sku, count in (("a", 2), ("b", 1)) for i in range(count))
    views = Views(rows, np.array([[1, 0], [0.8, 0.6], [0.9, 0.43589]], np.float32))
    answers = retrieve(views, views, 2)
    failures = {one.query.name: one for one in pictures_of(answers).failures}
    assert failures["b0.png"].right_view is None
    assert failures["a0.png"].right_view == Path("a1.png")
    assert detail(answers)["queries_without_gallery_view"] == 1
