"""Choosing how to run a model: what passed, what was asked for, and the fastest, measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from skumatch import artefact
from skumatch.encoder import open_encoder, open_engine
from skumatch.errors import ConfigError, DeviceError, ModelError
from skumatch.export.bundle import Made, publish
from skumatch.export.onnx import to_onnx
from skumatch.export.parity import Answers, Parity
from skumatch.model import Contents, open_bundle, save_bundle
from skumatch.runtime import fastest
from skumatch.runtime.exports import Way, candidates, file_name, listed, ways
from skumatch.runtime.onnx import OnnxEncoder
from skumatch.runtime.torch import TorchEncoder, make_spec
from skumatch.towers.build import ModelSource, build

GOOD = Parity("fp32", 10, 1.0, 1.0)
BAD = Parity("fp32", 10, 0.5, 0.9)
FP32, INT8 = Way("onnx", "fp32", "model.onnx"), Way("onnx", "int8", "model.int8.onnx")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a model that has an ONNX file which passed, and an int8 one which did not."""
    tower = build(ModelSource("timm:test_efficientnet", random_init=True, size=32))
    root = tmp_path_factory.mktemp("original") / "models"
    save_bundle(root, tower, None, make_spec(tower), Contents({}, tower.model.state_dict()))
    encoder = open_encoder(root, "cpu")
    data = to_onnx(encoder, encoder.spec, {}).SerializeToString()
    publish(open_bundle(root), Made({"model.onnx": data}, (FP32,), {"note": 1}), {FP32.name: GOOD})
    lost = Parity("int8", 1000, 0.9, 0.95, Answers(1000, 0.9, 0.9, 0.8))
    publish(open_bundle(root), Made({"model.int8.onnx": data}, (INT8,)), {INT8.name: lost})
    return root


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """Return a copy of that store, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "models", symlinks=True))


def test_a_bundle_lists_its_exports(store: Path) -> None:
    bundle = open_bundle(store)
    document = listed(bundle)
    assert set(document["files"]) == {"model.onnx", "model.int8.onnx"}
    assert document["files"]["model.onnx"] == {"note": 1, "model": bundle.spec.digest}
    assert [(way, bool(parity["beyond"])) for way, parity in ways(bundle)] == [(FP32, False), (INT8, True)]
    assert bundle.document["parent"] and (bundle.folder / "model.onnx").is_file()
    assert file_name("fp32") == "model.onnx" and file_name("bf16", ".xml") == "model.bf16.xml"


def test_what_was_beyond_its_limits_answers_only_when_asked_for(store: Path) -> None:
    bundle = open_bundle(store)
    torch = Way("torch", "fp32")
    assert candidates(bundle, "auto", None) == [torch, FP32] == candidates(bundle, "auto", "fp32")
    assert candidates(bundle, "onnx", None) == [FP32] and candidates(bundle, "onnx", "int8") == [INT8]
    assert candidates(bundle, "auto", "int8") == [Way("torch", "int8")]  # which torch refuses, in words
    with pytest.raises(ConfigError, match="torch has no precision 'int8'"):
        open_engine(store, "cpu", "auto", "int8")
    with pytest.raises(ModelError, match=r"no export that onnx can run in bf16 - .* --format onnx"):
        candidates(bundle, "onnx", "bf16")
    with pytest.raises(ModelError, match="no export that tensorrt can run"):
        open_engine(store, "cpu", "tensorrt")
    with pytest.raises(ConfigError, match="unknown runtime 'caffe' - choose auto, torch"):
        open_engine(store, "cpu", "caffe")


def test_a_new_export_takes_the_place_of_one_with_its_name(store: Path) -> None:
    publish(open_bundle(store), Made({"model.onnx": b"other"}, (FP32,)), {FP32.name: BAD})
    found = dict(ways(open_bundle(store)))
    assert (
        set(found) == {FP32, INT8}
        and found[FP32]["beyond"]
        and (open_bundle(store).folder / "model.onnx").read_bytes() == b"other"
    )


def test_the_fastest_is_measured_once_and_remembered(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch": 10.0, "onnx": 20.0}
    asked: list[str] = []

    def rate(encoder: Any) -> float:
        kind = "onnx" if isinstance(encoder, OnnxEncoder) else "torch"
        asked.append(kind)
        return rates[kind]

    monkeypatch.setattr(fastest, "rate", rate)
    bundle = open_bundle(store)
    assert fastest.choose(bundle, "cpu") == FP32 and sorted(asked) == ["onnx", "torch"]
    rates["onnx"] = 1.0
    assert fastest.choose(bundle, "cpu") == FP32 and len(asked) == 2  # remembered
    file = artefact.cache_dir() / "runtimes.json"
    assert list(json.loads(file.read_text()).values()) == [[10.0, 20.0]]
    file.write_text("broken")
    assert fastest.choose(bundle, "cpu") == Way("torch", "fp32") and len(asked) == 4
    assert fastest.choose(bundle, "cpu", "onnx") == FP32 and len(asked) == 4  # nothing to choose from
    assert isinstance(open_engine(store, "cpu", "onnx"), OnnxEncoder)
    assert isinstance(open_engine(store, "cpu", "auto"), TorchEncoder)
    assert isinstance(open_engine(store, "cpu", "torch"), TorchEncoder)
    assert isinstance(open_engine(bundle.folder / "model.onnx", "cpu"), OnnxEncoder)


def test_another_gpu_is_measured_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, name = open_bundle(store), ["Small GPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: name[number])
    before = {device: fastest._key(bundle, device, []) for device in ("cpu", "cuda", "cuda:1")}
    name[0] = "Large GPU"
    changed = [device for device in before if fastest._key(bundle, device, []) != before[device]]
    assert changed == ["cuda"]


def test_rates_are_really_measured(store: Path) -> None:
    bundle = open_bundle(store)
    found = dict(fastest.rates(bundle, "cpu", candidates(bundle, "auto", None)))
    assert set(found) == {Way("torch", "fp32"), FP32} and min(found.values()) > 1


def test_an_engine_that_does_not_start_is_not_the_fastest(store: Path) -> None:
    publish(open_bundle(store), Made({"model.onnx": b"broken"}, (FP32,)), {FP32.name: GOOD})
    bundle = open_bundle(store)
    assert dict(fastest.rates(bundle, "cpu", candidates(bundle, "auto", None)))[FP32] == 0
    assert fastest.choose(bundle, "cpu") == Way("torch", "fp32")


def test_a_device_that_is_not_there_is_said(store: Path) -> None:
    with pytest.raises(DeviceError):
        open_engine(store, "cuda:9", "onnx")
