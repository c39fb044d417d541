"""``skumatch eval``: files, protocols, gates, baselines, comparisons and what it refuses. (Figures: tests/eval.)"""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skumatch.cli.eval_show import show
from skumatch.eval.lookalikes import read_lookalikes
from skumatch.spec import Spec

Skumatch = Callable[..., Any]
EVAL = ("eval", "--device", "cpu")
MODEL = "models/v000001"


def figures(folder: Path) -> dict[str, Any]:
    """Read eval.json, refusing what is not JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    document: dict[str, Any] = json.loads((folder / "eval.json").read_text(), parse_constant=refuse)
    return document


def near_copy(workspace: Path) -> None:
    """Add a picture to the gallery, and its pixels in a file of other bytes to the queries."""
    blobs = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    picture = Image.fromarray(blobs).resize((64, 64), Image.Resampling.BICUBIC)
    picture.save(workspace / "shop/train/sku-2/photo.png")
    picture.save(workspace / "shop/test/sku-2/near.png", compress_level=1)


def test_it_writes_figures_predictions_report_and_lookalikes(skumatch: Skumatch, workspace: Path) -> None:
    started = time.process_time()
    ran = skumatch(*EVAL)
    assert time.process_time() - started < 20
    assert ran.code == 0, ran.err
    names = {path.name for path in (workspace / "eval").iterdir()}
    assert names == {"eval.json", "predictions.csv", "report.html", "lookalikes.csv", "vectors"}
    document = figures(workspace / "eval")
    assert (document["queries"], document["gallery_views"], document["skus"]) == (12, 24, 6)
    assert (document["split"], document["where"], document["leaks"], document["near_leaks"]) == ("test", {}, 0, 0)
    assert document["settings"]["model"]["name"] == "timm:test_efficientnet"
    assert document["search"] == {"technique": {"name": "nearest"}, "views": "none"}
    assert "baseline" not in document and "robustness" not in document
    with (workspace / "eval" / "predictions.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert sum(line["rank"] == "1" for line in lines) / 12 == pytest.approx(document["topk"]["1"])
    assert read_lookalikes(workspace / "eval" / "lookalikes.csv") == [tuple(g["skus"]) for g in document["lookalikes"]]
    page = (workspace / "eval" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "1 view per SKU, 5 draws" in page
    assert "top-1" in ran.out and "top-5" in ran.out
    assert [one["name"] for one in document["protocols"]] == ["closed", "k-shot 1", "k-shot 3"]
    assert [line.partition(":")[0] for line in document["skipped"]] == ["held-out", "catalogue", "open-set"]
    assert all(f"not measured: {line}" in ran.out for line in document["skipped"])


def test_the_same_seed_gives_the_same_file(skumatch: Skumatch, workspace: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", "7"), ("two", "7"), ("three", "8")):
        assert skumatch(*EVAL, "--seed", seed, "--out", tmp_path / name).code == 0
        found.append(figures(tmp_path / name))
        assert found[-1].pop("seconds") > 0
    assert found[0] == found[1]
    predictions = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "two")]
    assert predictions[0] == predictions[1]


def test_a_second_run_embeds_nothing(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--protocol", "closed").code == 0
    chunks = {path: path.stat().st_mtime_ns for path in (workspace / "eval" / "vectors").rglob("*.safetensors")}
    assert len(chunks) == 1
    ran = skumatch(*EVAL)
    assert "embedding" in ran.err and "36/36" not in ran.err.partition("looking for leaks")[0]
    again = {path: path.stat().st_mtime_ns for path in (workspace / "eval" / "vectors").rglob("*.safetensors")}
    assert again == chunks


def test_only_the_protocols_asked_for(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EVAL, "--protocol", "k-shot", "--protocol", "held-out")
    document = figures(workspace / "eval")
    assert [one["name"] for one in document["protocols"]] == ["closed", "k-shot 1", "k-shot 3"]
    assert document["skipped"] == ["held-out: every SKU was trained on (train with --hold-out)"]
    assert "1 view per SKU, 5 draws" in ran.out


def test_a_preset_takes_the_place_of_the_own_split(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--preset", "rp2k-clip").code == 0
    (headline, *shots) = figures(workspace / "eval")["protocols"]
    assert headline["name"] == "rp2k-clip" and "drawn with seed 0" in headline["note"]
    assert [one["name"] for one in shots] == ["k-shot 1", "k-shot 3"]


def test_the_baseline_is_the_untouched_encoder(skumatch: Skumatch, workspace: Path, tmp_path: Path) -> None:
    ran = skumatch(*EVAL, "--baseline", "--out", tmp_path / "tuned")
    document = figures(tmp_path / "tuned")
    assert "untouched" in ran.out
    shutil.rmtree(workspace / "models")
    assert skumatch(*EVAL, "--out", tmp_path / "plain").code == 0
    plain = figures(tmp_path / "plain")
    assert document["baseline"]["spec_digest"] == plain["spec_digest"] != document["spec_digest"]
    assert document["baseline"]["topk"] == plain["topk"]
    for one, other in zip(document["protocols"], plain["protocols"], strict=True):
        assert one["baseline"] == {key: other[key] for key in ("topk", "ci95", "map_at_r")}


def test_published_models_out_of_reach_are_a_line_and_no_more(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EVAL, "--baselines", "clip,fashion-clip", "--protocol", "closed")
    assert ran.code == 0 and ran.errors == []
    left_out = [line for line in ran.err.splitlines() if "is left out" in line]
    assert [line.split()[1] for line in left_out] == ["clip", "fashion-clip"]
    assert "baselines" not in figures(workspace / "eval")


def test_json_is_all_there_is_on_stdout(skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace / "shop" / "test")
    ran = skumatch(*EVAL, "--json", "--topk", "2")
    assert ran.out == (workspace / "eval" / "eval.json").read_text()
    assert set(figures(workspace / "eval")["topk"]) == {"1", "2", "3", "5"}


def test_where_filters_both_sides(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--where", "sku=sku-3").code == 0
    document = figures(workspace / "eval")
    assert (document["queries"], document["skus"], document["topk"]["1"]) == (2, 1, 1.0)
    assert document["where"] == {"sku": "sku-3"}


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (1, 1), (2, 0)])
def test_too_many_leaks_fail_the_gate(skumatch: Skumatch, workspace: Path, allowed: int, code: int) -> None:
    shutil.copy(workspace / "shop/train/sku-1/0.png", workspace / "shop/test/sku-1/leak.png")
    near_copy(workspace)
    ran = skumatch(*EVAL, "--max-leaks", str(allowed), "--protocol", "closed")
    assert ran.code == code
    assert ran.errors == []
    assert ("gate failed: 2 leaked" in ran.err) == bool(code)
    document = figures(workspace / "eval")
    assert (document["leaks"], document["near_leaks"], document["queries"]) == (1, 1, 13)
    assert document["leaked_queries"][0][0].endswith("leak.png") and not document["dropped_leaks"]
    assert "1 queries are byte for byte" in ran.out and "--drop-leaks leaves them out" in ran.out
    assert "near.png" in (workspace / "eval" / "leaks.html").read_text()


def test_leaks_are_dropped_on_demand(skumatch: Skumatch, workspace: Path) -> None:
    near_copy(workspace)
    ran = skumatch(*EVAL, "--drop-leaks", "--max-leaks", "1")
    assert ran.code == 0
    document = figures(workspace / "eval")
    assert (document["near_leaks"], document["dropped_leaks"]) == (1, True)
    assert [one["queries"] for one in document["protocols"]] == [12, 12, 12]
    assert "near.png" not in (workspace / "eval" / "predictions.csv").read_text()
    (workspace / "shop/test/sku-2/near.png").unlink()
    assert skumatch(*EVAL).code == 0
    assert not (workspace / "eval" / "leaks.html").exists()


def test_nothing_but_leaks_is_one_clear_error(skumatch: Skumatch, workspace: Path) -> None:
    shutil.rmtree(workspace / "shop/test")
    (workspace / "shop/test/sku-2").mkdir(parents=True)
    near_copy(workspace)
    ran = skumatch(*EVAL, "--drop-leaks")
    assert ran.code == 2 and len(ran.errors) == 1
    assert "all 1 queries are leaks: none remains" in ran.errors[0]


def test_an_unreadable_query_is_reported(skumatch: Skumatch, workspace: Path) -> None:
    (workspace / "shop/test/sku-1/4.png").write_bytes(b"broken")
    for _ in range(2):  # embedded, then from the vectors that were kept
        ran = skumatch(*EVAL, "--protocol", "closed")
        assert ran.code == 0
        assert "1 picture could not be read" in ran.out and "4.png" in ran.out
        document = figures(workspace / "eval")
        assert (document["queries"], document["unreadable"]) == (11, 1)


def test_a_model_folder_may_be_named(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--model", MODEL, "--protocol", "closed").code == 0
    document = figures(workspace / "eval")
    assert Spec.from_json(document["spec"]).digest == document["spec_digest"]


def test_a_model_against_itself_shows_no_difference(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EVAL, "--compare", MODEL, "models")
    assert ran.code == 0
    assert ran.out.splitlines()[:2] == [f"A {MODEL}: top-1 100.0 %", "B models: top-1 100.0 %"]
    assert "no difference shown: B - A is +0.0 points" in ran.out
    printed = json.loads(skumatch(*EVAL, "--compare", MODEL, "models", "--json").out)
    assert (printed["a"], printed["b"], printed["verdict"]) == (MODEL, "models", "no difference shown")
    assert not (workspace / "eval" / "eval.json").exists()


def test_robustness_goes_on_where_it_was(skumatch: Skumatch, workspace: Path) -> None:
    run = (*EVAL, "--robustness", "--protocol", "closed")
    ran = skumatch(*run)
    assert ran.code == 0 and "robustness, top-1 at strengths 1 to 5" in ran.out
    found = figures(workspace / "eval")["robustness"]
    assert all(len(cells) == 5 for cells in found["kinds"].values()) and found["queries"] == 12
    state = workspace / "eval" / "robustness.state.json"
    cells = json.loads(state.read_text())
    kept = dict(list(cells["cells"].items())[:20])
    assert len(cells["cells"]) > 20
    first = next(name for name in kept if name.startswith("blur"))
    state.write_text(json.dumps({**cells, "cells": {**kept, first: "0" * 12}}))  # no run finds all blurred crops wrong
    assert skumatch(*run).code == 0
    again = figures(workspace / "eval")["robustness"]
    assert [cell["top1"] for cell in again["kinds"]["blur"]].count(0.0) == 1
    again["kinds"]["blur"], found["kinds"]["blur"] = [], []
    assert again["kinds"] == found["kinds"]


def test_lookalikes_have_a_page_on_demand(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--lookalikes", "--protocol", "closed").code == 0
    page = (workspace / "eval" / "lookalikes.html").read_text()
    groups = figures(workspace / "eval")["lookalikes"]
    assert page.lower().startswith("<!doctype html>")
    assert all(sku in page for group in groups for sku in group["skus"])


def protocol(name: str, title: str, baseline: bool) -> dict[str, Any]:
    one: dict[str, Any] = {"name": name, "title": title, "skus": 11316, "queries": 60502, "map_at_r": 0.4321}
    one |= {"topk": {"1": 1.0, "5": 1.0}, "ci95": {"1": [0.888, 0.999]}}
    return {**one, "baseline": {"topk": {"1": 0.5}}} if baseline and name != "catalogue" else one


@pytest.mark.parametrize("baseline", [False, True])
def test_the_tables_are_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, baseline: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    titles = {
        "closed": "all SKUs, all views",
        "k-shot 10": "10 views per SKU, 5 draws",
        "held-out SKUs": "held-out SKUs, among all",
        "catalogue": "catalogue pictures",
        "preset": "grocery-store-catalogue",
    }
    ks = ("1", "3", "5", "10")
    top: dict[str, Any] = {key: dict.fromkeys(ks, 1.0) for key in ("topk", "topk_views")}
    top["ci95"] = {key: [1.0, 1.0] for key in ks}
    document: dict[str, Any] = {**top, "confused": [], "skipped": []}
    document |= dict.fromkeys(("leaks", "near_leaks", "unreadable", "queries_without_gallery_view"), 0)
    document |= {"queries": 60502, "skus": 11316, "gallery_views": 60502}
    document["protocols"] = [protocol(name, title, baseline) for name, title in titles.items()]
    if baseline:
        document |= {"baseline": document.copy(), "baselines": {"clip": top, "fashion-clip": top}}
    show(document)
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80 and not [line for line in printed if "\u2026" in line]
    for title in titles.values():
        (line,) = [line for line in printed if line.startswith(title)]
        last = "43.2" if not baseline else "" if title == "catalogue pictures" else "50.0"
        assert re.split(r"\s\s+", line.strip())[1:] == [w for w in ("100.0", "88.8 - 99.9", "100.0", last) if w] + [
            "11,316",
            "60,502",
        ]


def test_a_corrupt_model_is_named(skumatch: Skumatch, workspace: Path) -> None:
    weights = workspace / "models" / "v000001" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    for command in (EVAL, ("match", "shop/test", "--device", "cpu")):
        ran = skumatch(*command)
        assert ran.code == 2
        assert len(ran.errors) == 1
        assert f"{weights} is corrupt" in ran.errors[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "train"], "split 'train' is the gallery"),
        (["--split", "holdout"], "its splits are"),
        (["--where", "colour=red"], "no column 'colour'"),
        (["--where", "sku=sku-33"], "nearest values are sku: sku-"),
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--model", "timm:mobilnetv3"], "nearest names are"),
        (["--model", "shop"], "holds no model"),
        (["--device", "gpu"], "unknown device"),
        (["--protocol", "kshot"], "unknown protocol 'kshot' - did you mean k-shot?"),
        (["--preset", "sop"], "preset sop needs a data set of format sop"),
        (["--preset", "rp2k-clap"], "did you mean rp2k-clip?"),
        (["--target-far", "1.5"], "target false accept rate 1.5 is out of range"),
        (["--baselines", "clap"], "unknown baseline 'clap' - did you mean clip?"),
        (["--compare", "models/v000001", "nowhere"], "nowhere does not exist"),
        (["--compare", "shop", "models"], "holds no model"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("eval", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert not (workspace / "eval").exists()
