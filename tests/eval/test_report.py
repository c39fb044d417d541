"""eval.json and predictions.csv: every field that is promised, and figures that can be worked out again."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError
from skumatch.eval.protocol import Answers, Closed, answer, closed
from skumatch.eval.report import figures, predictions, write
from skumatch.readers import open_dataset
from skumatch.spec import Spec

Evaluated = tuple[Closed, Answers]


@pytest.fixture
def evaluated(store: Path, encoder: Encoder) -> Evaluated:
    """Evaluate a store with noise in it: swapped pictures, a leak, a broken file and a SKU without a view."""
    swap = [store / "test" / name for name in ("sku-0/4.png", "sku-1/4.png")]
    first, second = (path.read_bytes() for path in swap)
    swap[0].write_bytes(second)
    swap[1].write_bytes(first)
    shutil.copy(store / "train" / "sku-2" / "0.png", store / "test" / "sku-2" / "leak.png")
    (store / "test" / "sku-3" / "4.png").write_bytes(b"broken")
    shutil.rmtree(store / "train" / "sku-4")
    protocol = closed(open_dataset(store))
    return protocol, answer(protocol, encoder, Pipeline(workers=1), 5)


def test_every_promised_field_is_there(evaluated: Evaluated, encoder: Encoder) -> None:
    found = json.loads(json.dumps(figures(*evaluated, 5)))
    assert found["queries"] == 11
    assert found["gallery_views"] == 20
    assert found["skus"] == 5
    assert found["leaks"] == 1
    assert found["leaked_queries"][0][0].endswith("leak.png")
    assert found["queries_without_gallery_view"] == 2
    assert found["unreadable"] == len(found["unreadable_files"]) == 1
    assert found["model"] == "fake"
    assert found["spec_digest"] == encoder.spec.digest
    assert Spec.from_json(found["spec"]) == encoder.spec
    assert found["seconds"] > 0
    for name in ("topk", "topk_views", "ci95", "ci95_views"):
        assert set(found[name]) == {"1", "3", "5"}


def test_the_figures_are_what_was_built_in(evaluated: Evaluated) -> None:
    found = figures(*evaluated, 5)
    right = 11 - 2 - 2  # two were swapped, two have no gallery view
    assert found["topk"]["1"] == pytest.approx(right / 11)
    assert found["per_sku"]["sku-0"] == {"queries": 2, "top1": 0.5}
    assert found["per_sku"]["sku-3"] == {"queries": 1, "top1": 1.0}
    assert found["per_sku"]["sku-4"] == {"queries": 2, "top1": 0.0}
    assert found["top1_macro"] == pytest.approx((0.5 + 0.5 + 1 + 1 + 0 + 1) / 6)
    wrong = {(pair["shown"], pair["answered"]): pair["queries"] for pair in found["confused"]}
    assert wrong[("sku-0", "sku-1")] == wrong[("sku-1", "sku-0")] == 1
    assert sum(wrong.values()) == 4


def test_fractions_are_ordered_and_between_0_and_1(evaluated: Evaluated) -> None:
    found = figures(*evaluated, 5)
    for kind, interval in (("topk", "ci95"), ("topk_views", "ci95_views")):
        values = [found[kind][k] for k in ("1", "3", "5")]
        assert values == sorted(values)
        for k, value in found[kind].items():
            low, high = found[interval][k]
            assert 0 <= low <= value <= high <= 1
    assert found["topk"]["1"] == found["topk_views"]["1"]
    assert all(found["topk"][k] >= found["topk_views"][k] for k in ("3", "5"))


def test_another_k_is_reported_beside_the_usual_ones(evaluated: Evaluated) -> None:
    assert list(figures(*evaluated, 2)["topk"]) == ["1", "2", "3", "5"]


def test_the_predictions_reproduce_the_figures(evaluated: Evaluated, tmp_path: Path) -> None:
    document = figures(*evaluated, 5)
    write(tmp_path / "new" / "out", document, evaluated[1])
    assert json.loads((tmp_path / "new" / "out" / "eval.json").read_text()) == json.loads(json.dumps(document))
    with (tmp_path / "new" / "out" / "predictions.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == document["queries"]
    for k in (1, 3, 5):
        hits = [line["rank"] != "" and int(line["rank"]) <= k for line in lines]
        assert np.mean(hits) == pytest.approx(document["topk"][str(k)])
    for line in lines:
        answers = [line[f"sku_{n}"] for n in range(1, 6)]
        assert line["rank"] == (str(answers.index(line["sku"]) + 1) if line["sku"] in answers else "")
        scores = [float(line[f"score_{n}"]) for n in range(1, 6)]
        assert scores == sorted(scores, reverse=True)
        assert all(Path(line[f"view_{n}"]).parent.name == line[f"sku_{n}"] for n in range(1, 6))


def test_missing_answers_are_empty_cells(store: Path, encoder: Encoder) -> None:
    for sku in ("sku-2", "sku-3", "sku-4", "sku-5"):
        shutil.rmtree(store / "train" / sku)
    protocol = closed(open_dataset(store))
    text = predictions(answer(protocol, encoder, Pipeline(workers=1), 5))
    line = next(csv.DictReader(text.splitlines()))
    assert (line["sku_3"], line["score_3"], line["view_3"]) == ("", "", "")
    assert line["sku_2"] != ""


def test_a_folder_that_refuses_is_an_error(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    document: dict[str, Any] = figures(*evaluated, 5)
    with pytest.raises(ArtefactError, match="cannot write"):
        write(tmp_path / "file", document, evaluated[1])


def test_names_that_are_not_utf8_come_out_as_they_were(store: Path, encoder: Encoder, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (store / "test" / "sku-0" / "4.png").rename(store / "test" / "sku-0" / odd)
    protocol = closed(open_dataset(store))
    answers = answer(protocol, encoder, Pipeline(workers=1), 5)
    write(tmp_path / "out", figures(protocol, answers, 5), answers)
    assert b"caf\xe9.png" in (tmp_path / "out" / "predictions.csv").read_bytes()
