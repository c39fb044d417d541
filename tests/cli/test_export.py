"""``skumatch export``: files beside the model, the gate, and commands that use what passed."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.export import parity
from skumatch.export.parity import Limit

Skumatch = Callable[..., Any]
EXPORT = ("export", "--device", "cpu")


def exports(workspace: Path) -> dict[str, Any]:
    models = workspace / "models"
    found: dict[str, Any] = json.loads((models / (models / "CURRENT").read_text().strip() / "exports.json").read_text())
    return found


def top(text: str) -> list[tuple[str, str, str]]:
    return [(line["crop"], line["rank"], line["sku"]) for line in csv.DictReader(io.StringIO(text))]


def test_an_export_passes_and_then_answers(skumatch: Skumatch, workspace: Path) -> None:
    before = skumatch("match", "shop/test", "--runtime", "torch", "--device", "cpu")
    ran = skumatch(*EXPORT, "--out", "app")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0].startswith("onnx fp32      12 crops: cosine at least ")
    assert "100.0% answers alike" in ran.out and "wrote app/model.onnx" in ran.out
    found = exports(workspace)
    assert found["ways"]["onnx fp32"]["parity"]["beyond"] == [] and "model.onnx" in found["files"]
    assert (workspace / "app" / "model.onnx").read_bytes()[:1] != b""
    after = skumatch("match", "shop/test", "--runtime", "onnx", "--device", "cpu")
    assert after.code == 0 and "onnx fp32 on cpu" in after.err and top(after.out) == top(before.out)
    auto = skumatch("match", "shop/test", "--device", "cpu")
    assert auto.code == 0 and [line[:2] for line in top(auto.out)] == [line[:2] for line in top(before.out)]
    ran = skumatch("eval", "--runtime", "onnx", "--device", "cpu", "--protocol", "closed")
    assert ran.code == 0, ran.err
    shutil.rmtree("gallery")
    ran = skumatch("gallery", "build", "--runtime", "onnx", "--device", "cpu")
    assert ran.code == 0 and "onnx fp32" in ran.err


@pytest.mark.slow
def test_int8_of_a_convolution_net_lists_what_each_layer_costs(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EXPORT, "--precision", "int8", "--no-gate")
    assert ran.code == 0, ran.err
    facts = exports(workspace)["files"]["model.int8.onnx"]
    assert facts["method"] == "static" and facts["mean_cosine"] >= 0.999 and facts["crops"] == 24
    assert facts["left"] == list(facts.get("sensitivity", {}))[: len(facts["left"])]


@pytest.mark.slow
def test_beyond_the_limits_is_exit_code_1_and_not_the_default(
    skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LIMITS, "fp16", Limit(1.1, 0.5))
    ran = skumatch(*EXPORT, "--precision", "fp16")
    assert ran.code == 1 and "is below 1.1: it is not used unless asked for" in ran.err
    assert exports(workspace)["ways"]["onnx fp16"]["parity"]["beyond"]
    auto = skumatch("match", "shop/test", "--device", "cpu")
    assert (auto.code == 0 and "torch" in auto.err) or "on cpu" in auto.err
    asked = skumatch("match", "shop/test", "--device", "cpu", "--runtime", "onnx")
    assert asked.code == 0 and "onnx fp16 on cpu" in asked.err
    assert skumatch(*EXPORT, "--precision", "fp16", "--no-gate").code == 0


@pytest.mark.slow
def test_whole_pictures(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EXPORT, "--with-resize", "--out", "app")
    assert ran.code == 0, ran.err
    assert "model.resize.onnx 12 crops: cosine at least 0.99" in ran.out
    assert (workspace / "app" / "model.resize.onnx").is_file() and (workspace / "app" / "model.onnx").is_file()


@pytest.mark.slow
def test_the_text_tower_and_its_tokenizer(skumatch: Skumatch, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    made = skumatch("init", "--data", "store", "--model", "open_clip:skumatch-tiny-96", "--random-init")
    assert made.code == 0, made.err
    ran = skumatch(*EXPORT, "--text", "--out", "app")
    assert ran.code == 0, ran.err
    assert "text.onnx      6 titles: cosine at least 1.0000" in ran.out or "cosine at least 0.99999" in ran.out
    assert {path.name for path in Path("app").iterdir()} == {
        "model.onnx",
        "text.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.slow
def test_triton_gets_a_repository(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*EXPORT, "--format", "triton", "--out", "triton")
    assert ran.code == 0, ran.err
    assert "wrote triton/timm-test-efficientnet/1" in ran.out
    assert (workspace / "triton/timm-test-efficientnet/1/model.onnx").is_file()
    assert "max_batch_size" in (workspace / "triton/timm-test-efficientnet/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "coreml"], "unknown format 'coreml' - choose onnx, openvino, tensorrt, triton"),
        (["--precision", "int4"], "onnx has no precision 'int4' - choose fp32, fp16, int8"),
        (["--format", "openvino", "--precision", "fp16"], "openvino has no precision 'fp16'"),
        (["--format", "openvino", "--with-resize"], "--with-resize makes no openvino"),
        (["--format", "triton"], "Triton's repository needs a folder - name it with --out"),
        (["--text"], "has no text tower"),
        (["--model", "timm:resnet18"], "timm:resnet18 is no model folder"),
    ],
)
def test_what_cannot_be_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch(*EXPORT, *arguments)
    assert ran.code == 2 and len(ran.errors) == 1 and said in ran.errors[0], ran.err


@pytest.mark.slow
def test_without_test_crops_vectors_alone_are_compared(skumatch: Skumatch, workspace: Path) -> None:
    shutil.rmtree(workspace / "shop" / "test")
    ran = skumatch(*EXPORT)
    assert ran.code == 0 and "vectors alone are compared" in ran.err and "top-1" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--out", "taken"], "taken is a file"),
        (["export", "--text"], "no text tower"),
        (["bench", "--json", "nowhere/x.json"], "there is no folder nowhere"),
        (["gallery", "export", "--out", "taken"], "cannot write taken"),
    ],
)
def test_what_cannot_end_well_is_refused_first(
    skumatch: Skumatch, workspace: Path, arguments: list[str], said: str
) -> None:
    (workspace / "taken").touch()
    ran = skumatch(*arguments)
    assert (ran.code, len(ran.errors)) == (2, 1) and said in ran.errors[0]
    assert not list((workspace / "models").rglob("*.onnx"))
