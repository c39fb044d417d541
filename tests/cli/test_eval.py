"""``skumatch eval``: files, gate, baseline and what it refuses. (The figures are tested in tests/eval.)"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.spec import Spec

Skumatch = Callable[..., Any]
EVAL = ("eval", "--device", "cpu")


def test_it_writes_figures_and_predictions(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EVAL)
    assert ran.code == 0, ran.err
    document = json.loads((workspace / "eval" / "eval.json").read_text())
    assert (document["queries"], document["gallery_views"], document["skus"]) == (12, 24, 6)
    assert document["split"] == "test"
    assert document["settings"]["model"]["name"] == "timm:test_efficientnet"
    assert "baseline" not in document
    with (workspace / "eval" / "predictions.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert sum(line["rank"] == "1" for line in lines) / 12 == pytest.approx(document["topk"]["1"])
    assert "top-1" in ran.out
    assert "top-5" in ran.out


def test_the_baseline_is_the_untouched_encoder(skumatch: Skumatch, workspace: Path, tmp_path: Path) -> None:
    assert skumatch(*EVAL, "--baseline", "--out", tmp_path / "tuned").code == 0
    document = json.loads((tmp_path / "tuned" / "eval.json").read_text())
    shutil.rmtree(workspace / "models")
    assert skumatch(*EVAL, "--out", tmp_path / "plain").code == 0
    plain = json.loads((tmp_path / "plain" / "eval.json").read_text())
    assert document["baseline"]["spec_digest"] == plain["spec_digest"] != document["spec_digest"]
    assert document["baseline"]["topk"] == plain["topk"]


def test_json_is_all_there_is_on_stdout(skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace / "shop" / "test")
    ran = skumatch(*EVAL, "--json", "--topk", "2")
    printed = json.loads(ran.out)
    assert printed == json.loads((workspace / "eval" / "eval.json").read_text())
    assert set(printed["topk"]) == {"1", "2", "3", "5"}


def test_where_filters_both_sides(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--where", "sku=sku-3").code == 0
    document = json.loads((workspace / "eval" / "eval.json").read_text())
    assert (document["queries"], document["skus"], document["topk"]["1"]) == (2, 1, 1.0)
    assert document["where"] == {"sku": "sku-3"}


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (1, 0)])
def test_too_many_leaks_fail_the_gate(skumatch: Skumatch, workspace: Path, allowed: int, code: int) -> None:
    shutil.copy(workspace / "shop/train/sku-1/0.png", workspace / "shop/test/sku-1/leak.png")
    ran = skumatch(*EVAL, "--max-leaks", str(allowed))
    assert ran.code == code
    assert ran.errors == []
    assert ("gate failed: 1 leaked" in ran.err) == bool(code)
    assert json.loads((workspace / "eval" / "eval.json").read_text())["leaks"] == 1


def test_an_unreadable_query_is_reported(skumatch: Skumatch, workspace: Path) -> None:
    (workspace / "shop/test/sku-1/4.png").write_bytes(b"broken")
    ran = skumatch(*EVAL)
    assert ran.code == 0
    assert "4.png" in ran.out
    document = json.loads((workspace / "eval" / "eval.json").read_text())
    assert (document["queries"], document["unreadable"]) == (11, 1)


def test_a_model_folder_may_be_named(skumatch: Skumatch, workspace: Path) -> None:
    assert skumatch(*EVAL, "--model", "models/v000001").code == 0
    document = json.loads((workspace / "eval" / "eval.json").read_text())
    assert Spec.from_json(document["spec"]).digest == document["spec_digest"]


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
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("eval", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert not (workspace / "eval").exists()
