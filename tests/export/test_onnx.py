"""Exported networks: the same vectors as torch for every kind of encoder, and a file that says what it is."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from skumatch.encoder import asking
from skumatch.errors import DeviceError, ModelError
from skumatch.export.onnx import ASKING, to_onnx
from skumatch.export.precision import to_fp16
from skumatch.runtime.guard import Guard, Middle
from skumatch.runtime.onnx import OnnxEncoder
from skumatch.runtime.passport import KEY
from skumatch.runtime.served import Served
from skumatch.runtime.torch import TorchEncoder, make_spec
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

CONV = ModelSource("timm:test_efficientnet", random_init=True, size=64)
SOURCES = {
    "timm network": CONV,
    "timm transformer": ModelSource("timm:test_vit", random_init=True, size=64),
    "open_clip transformer": ModelSource("open_clip:skumatch-tiny-96", random_init=True),
    "mobilenet": ModelSource("timm:mobilenetv2_050", random_init=True, size=64),
}


def pixels(side: int, count: int) -> Pixels:
    smooth = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), np.uint8)
    found: Pixels = np.repeat(np.repeat(smooth, side // 8, 2), side // 8, 3)
    return found


def exported(encoder: TorchEncoder, folder: Path) -> OnnxEncoder:
    file = folder / "model.onnx"
    file.write_bytes(to_onnx(encoder, encoder.spec, {"note": "test"}).SerializeToString())
    return OnnxEncoder(file, "cpu", threads=1)


def guarded() -> TorchEncoder:
    """Return an encoder with a head, an untouched tower that shares blocks, and a vector from half-way."""
    torch.manual_seed(0)
    tower = build(ModelSource("timm:mobilenetv2_050", random_init=True, size=64))
    tower.image.eval()
    before = copy.deepcopy(tower.image.state_dict())
    with torch.no_grad():
        for name, parameter in tower.image.named_parameters():
            if name.startswith(("blocks.6", "conv_head")):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    differing = {name: tensor for name, tensor in before.items() if name.startswith(("blocks.6", "conv_head"))}
    stages: nn.Sequential = tower.image.blocks  # type: ignore[assignment]
    blocks = tuple(f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j in range(len(stage)))  # type: ignore[arg-type]
    width = tower.image.get_parameter("blocks.6.0.conv_pw.weight").shape[1]
    middle = Middle(nn.Linear(width, 12, bias=False), 0.2, 0.6, 0.3)
    centres = nn.functional.normalize(torch.randn(4, tower.dim), dim=1)
    guard = Guard(centres, 0.1, 0.2, differing, blocks, middle)
    return TorchEncoder(tower, Served("head", nn.Linear(tower.dim, 16, bias=False), guard=guard), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_vectors_are_those_of_torch_at_any_batch(name: str, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(SOURCES[name]), device="cpu")
    other = exported(encoder, tmp_path)
    assert other.spec == encoder.spec and other.guard is None
    for count in (1, 2, 5):
        batch = pixels(encoder.spec.size, count)
        found = other.encode(batch)
        assert found.dtype == np.float32 and np.abs(found - encoder.encode(batch)).max() < 1e-4
    assert other.encode(batch[:0]).shape == (0, encoder.spec.dim)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_hugging_face_encoders_export_too(kind: str, hf_folder: Path, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(ModelSource(f"hf:{hf_folder / kind}")), device="cpu")
    batch = pixels(encoder.spec.size, 3)
    assert np.abs(exported(encoder, tmp_path).encode(batch) - encoder.encode(batch)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_clips_of_full_size_export_too(name: str, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(ModelSource(f"open_clip:{name}", random_init=True)), device="cpu")
    batch = pixels(encoder.spec.size, 2)
    found = exported(encoder, tmp_path).encode(batch)
    assert (found * encoder.encode(batch)).sum(1).min() > 0.99999


@pytest.mark.slow
def test_a_guarded_encoder_brings_the_rows_to_ask_with(tmp_path: Path) -> None:
    encoder = guarded()
    other = exported(encoder, tmp_path)
    batch = pixels(64, 4)
    rows = encoder.encode(batch)
    assert np.abs(other.encode(batch) - rows).max() < 1e-4
    asked = other.session.run([ASKING], {"images": batch})[0]
    assert np.abs(asked - asking(encoder, rows)).max() < 1e-4
    assert np.abs(asking(other, rows) - asking(encoder, rows)).max() < 1e-6
    assert not np.allclose(asked, rows, atol=1e-2)


@pytest.mark.slow
def test_fp16_is_half_as_large_and_close(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(SOURCES["open_clip transformer"]), device="cpu")
    model = to_onnx(encoder, encoder.spec, {})
    whole, half = model.SerializeToString(), to_fp16(model).SerializeToString()
    assert len(half) < 0.6 * len(whole)
    (tmp_path / "half.onnx").write_bytes(half)
    batch = pixels(encoder.spec.size, 4)
    other = OnnxEncoder(tmp_path / "half.onnx", "cpu", threads=1)
    rows = other.encode(batch)
    assert (rows * encoder.encode(batch)).sum(1).min() > 0.9999
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    model = to_onnx(TorchEncoder(build(CONV), device="cpu"), make_spec(build(CONV)), {})
    assert [one.key for one in model.metadata_props] == [KEY]
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(ModelError, match=r"foreign\.onnx was not written by `skumatch export`"):
        OnnxEncoder(tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match=r"there is no .*absent\.onnx"):
        OnnxEncoder(tmp_path / "absent.onnx")
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        OnnxEncoder(tmp_path / "foreign.onnx", "tpu")


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    other = exported(TorchEncoder(build(CONV), device="cpu"), tmp_path)
    with pytest.raises(ModelError, match=r"give uint8 \(N, 3, 64, 64\)"):
        other.encode(np.zeros((1, 3, 32, 32), np.uint8))
