"""int8: close vectors, layers that hurt left in float32, and a list of what each costs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto

from skumatch.encoder import asking
from skumatch.errors import ModelError
from skumatch.export.int8 import GOOD, growing, sensitivity, to_int8, transformer, vectors_of
from skumatch.export.onnx import to_onnx
from skumatch.runtime.guard import Guard
from skumatch.runtime.onnx import OnnxEncoder
from skumatch.runtime.passport import KEY
from skumatch.runtime.served import Served
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels, Vectors
from skumatch.towers.build import ModelSource, build

CONV = ModelSource("timm:mobilenetv2_050", random_init=True, size=64)
TRANSFORMER = ModelSource("open_clip:skumatch-tiny-96", random_init=True)


def pixels(side: int, count: int) -> Pixels:
    smooth = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    found: Pixels = np.repeat(np.repeat(smooth, side // 8, 2), side // 8, 3)
    return found


def nodes(model: ModelProto, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in model.graph.node)


@pytest.mark.slow
def test_a_transformer_is_quantised_as_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TorchEncoder(build(TRANSFORMER), device="cpu")
    model = to_onnx(encoder, encoder.spec, {})
    crops = pixels(encoder.spec.size, 20)
    found = to_int8(model, lambda: crops)
    assert transformer(model) and found.facts["method"] == "dynamic" and found.facts["left"] == []
    assert found.facts["mean_cosine"] >= GOOD and "sensitivity" not in found.facts
    assert len(found.model.SerializeToString()) < 0.5 * len(model.SerializeToString())
    assert [one.key for one in found.model.metadata_props] == [KEY]
    (tmp_path / "small.onnx").write_bytes(found.model.SerializeToString())
    rows = OnnxEncoder(tmp_path / "small.onnx", "cpu", threads=1).encode(crops)
    assert (rows * encoder.encode(crops)).sum(1).min() > 0.99
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING] and capsys.readouterr().err == ""
    none = to_int8(model, lambda: crops[:0])
    assert none.facts == {"method": "dynamic", "left": []}


@pytest.mark.slow
def test_a_guarded_transformer_asks_as_before(tmp_path: Path) -> None:
    tower = build(TRANSFORMER)
    centres = torch.nn.functional.normalize(
        torch.randn(8, tower.dim, generator=torch.Generator().manual_seed(0)), dim=1
    )
    served = Served("head", torch.nn.Linear(tower.dim, 16, bias=False), guard=Guard(centres, 0.1, 0.2))
    encoder = TorchEncoder(tower, served, "cpu")
    crops = pixels(encoder.spec.size, 16)
    found = to_int8(to_onnx(encoder, encoder.spec, {}), lambda: crops)
    (tmp_path / "small.onnx").write_bytes(found.model.SerializeToString())
    other = OnnxEncoder(tmp_path / "small.onnx", "cpu", threads=1)
    (asked,) = other.session.run(["queries"], {"images": crops})
    assert (asked * asking(encoder, encoder.encode(crops))).sum(1).min() > 0.99


@pytest.mark.slow
def test_a_convolution_net_is_calibrated_and_keeps_what_hurts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TorchEncoder(build(CONV), device="cpu")
    model = to_onnx(encoder, encoder.spec, {})
    crops = pixels(64, 24)
    tried: list[int] = []
    found = to_int8(model, lambda: crops, lambda layers: tried.append)
    facts = found.facts
    assert not transformer(model) and facts["method"] == "static" and facts["crops"] == 24
    assert facts["mean_cosine"] >= GOOD
    costs = facts["sensitivity"]
    assert facts["left"] and list(costs)[: len(facts["left"])] == facts["left"]
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert len(tried) == len(costs) == nodes(model, "Conv") > len(facts["left"])
    assert nodes(found.model, "QuantizeLinear") > 0
    (tmp_path / "small.onnx").write_bytes(found.model.SerializeToString())
    other = OnnxEncoder(tmp_path / "small.onnx", "cpu", threads=1)
    assert (other.encode(crops) * encoder.encode(crops)).sum(1).mean() == pytest.approx(facts["mean_cosine"], abs=1e-3)
    assert [one.key for one in found.model.metadata_props] == [KEY]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING] and capsys.readouterr().err == ""
    with pytest.raises(ModelError, match="15 training crops are too few to calibrate int8 on - give at least 16"):
        to_int8(model, lambda: crops[:15])


class Spoilt:
    """A net one of whose layers spoils the vectors when it is quantised."""

    def __init__(self, model: ModelProto) -> None:
        self.plain = model
        self.layers = ["first", "bad", "last"]

    def only(self, layers: object) -> ModelProto:
        from onnx import numpy_helper

        made = ModelProto()
        made.CopyFrom(self.plain)
        if "bad" in layers:  # type: ignore[operator]
            weight = next(one for one in made.graph.initializer if len(one.dims) == 4)
            values = numpy_helper.to_array(weight)
            noise = np.random.default_rng(0).normal(0, values.std(), values.shape)
            weight.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), weight.name))
        return made

    best = only


@pytest.mark.slow
def test_sensitivity_names_the_layer_that_spoils() -> None:
    encoder = TorchEncoder(build(CONV), device="cpu")
    net = Spoilt(to_onnx(encoder, encoder.spec, {}))
    crops = pixels(64, 4)
    before: Vectors = vectors_of(net.plain, crops)
    seen: list[int] = []
    costs = sensitivity(net, before, crops, seen.append)
    assert next(iter(costs)) == "bad" and costs["bad"] > 0.01 and abs(costs["first"]) < 1e-5 and seen == [1, 1, 1]


def test_steps_grow_and_end_with_all() -> None:
    steps = list(growing(52))
    assert steps[:6] == [0, 1, 2, 3, 4, 6] and steps[-1] == 52 and steps == sorted(set(steps)) and len(steps) < 20
    assert list(growing(0)) == [0]
