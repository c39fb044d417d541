"""OpenVINO's own files: float32, bf16 with layers left in float32, int8 by NNCF; and nothing reported to anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from skumatch.errors import ConfigError, ModelError
from skumatch.export.openvino import ENOUGH, openvino_files
from skumatch.runtime.openvino import OpenVinoEncoder, precisions
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

CONV = ModelSource("timm:mobilenetv2_050", random_init=True, size=64)
QUIET = ModelSource("timm:resnet18", random_init=True, size=64)  # loses little in int8 even with random weights
ALIKE = ModelSource("timm:test_vit", random_init=True, size=64)
TRANSFORMER = ModelSource("open_clip:skumatch-tiny-96", random_init=True)


def pixels(side: int, count: int) -> Pixels:
    smooth = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    found: Pixels = np.repeat(np.repeat(smooth, side // 8, 2), side // 8, 3)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", [CONV, ALIKE], ids=["network", "mean and std alike"])
def test_float32_files_run_alone(source: ModelSource, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(source), device="cpu")
    assert (encoder.spec.mean == encoder.spec.std) == (source is ALIKE)
    made = openvino_files(encoder, "fp32", "v000001", lambda: pixels(64, 0))
    assert sorted(made.files) == ["model.bin", "model.xml"] and made.facts == {
        "format": "openvino",
        "precision": "fp32",
    }
    made.write(tmp_path)
    other = made.ways[0].open(tmp_path)
    assert other.spec == encoder.spec
    crops = pixels(64, 5)
    assert np.abs(other.encode(crops) - encoder.encode(crops)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.skipif("bf16" not in precisions(), reason="this processor has no bf16")
def test_bf16_leaves_the_first_layers_of_a_convolution_net_in_float32(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(CONV), device="cpu")
    crops = pixels(64, 24)
    made = openvino_files(encoder, "bf16", "v000001", lambda: crops)
    made.write(tmp_path)
    left = made.facts["left"]
    assert left and made.facts["min_cosine"] >= ENOUGH and made.facts["crops"] == 24
    layers = list(ElementTree.parse(tmp_path / "model.bf16.xml").getroot().iter("layer"))
    marked = [layer.get("name") for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None]
    assert set(left) <= set(marked) and len(marked) < len(layers)
    other = OpenVinoEncoder(tmp_path / "model.bf16.xml", "bf16")
    assert other.spec.precision == "bf16" and other.spec.digest == encoder.spec.digest
    cosines = (other.encode(crops) * encoder.encode(crops)).sum(1)
    assert 0.9995 < cosines.min() < 0.9999999  # as good as said, and not float32 throughout
    with pytest.raises(ModelError, match="no readable training crop to choose the layers of bf16 on"):
        openvino_files(encoder, "bf16", "v000001", lambda: crops[:0])


@pytest.mark.slow
@pytest.mark.parametrize("source", [QUIET, TRANSFORMER], ids=["network", "transformer"])
def test_int8_keeps_unit_length_and_stays_close(source: ModelSource, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(source), device="cpu")
    crops = pixels(encoder.spec.size, 20)
    made = openvino_files(encoder, "int8", "v000001", lambda: crops)
    made.write(tmp_path)
    whole = openvino_files(encoder, "fp32", "v000001", lambda: crops)
    if source is QUIET:
        assert len(made.files["model.int8.bin"]) < 0.6 * len(whole.files["model.bin"])
    assert b'"I8"' in made.files["model.int8.xml"] or b'"i8"' in made.files["model.int8.xml"]
    other = OpenVinoEncoder(tmp_path / "model.int8.xml", "int8")
    rows = other.encode(crops)
    assert other.spec.precision == "int8" and np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-3
    reached = (rows * encoder.encode(crops)).sum(1).mean()
    assert reached == pytest.approx(made.facts["mean_cosine"], abs=2e-3) and reached > 0.995
    with pytest.raises(ModelError, match="15 training crops are too few"):
        openvino_files(encoder, "int8", "v000001", lambda: crops[:15])


@pytest.mark.slow
def test_layers_that_hurt_stay_in_float32(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(CONV), device="cpu")
    crops = pixels(64, 20)
    made = openvino_files(encoder, "int8", "v000001", lambda: crops)
    made.write(tmp_path)
    costs = made.facts["sensitivity"]
    assert made.facts["left"] == list(costs)[: len(made.facts["left"])] and made.facts["left"]
    rows = OpenVinoEncoder(tmp_path / "model.int8.xml", "int8").encode(crops)
    assert (rows * encoder.encode(crops)).sum(1).mean() > 0.998


@pytest.mark.slow
def test_nncf_is_imported_without_its_telemetry() -> None:
    code = """
import sys
reached = []
asking = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, args: reached.append(args) if event in asking else None)
from skumatch.export.openvino import _nncf
nncf = _nncf()
from nncf.telemetry.wrapper import telemetry
telemetry.send_event("a", "b", "c")
import time; time.sleep(1)
assert not reached and sys.modules["openvino_telemetry"] is None, reached
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_nncf_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from skumatch.export import openvino

    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"NNCF is not installed - pip install 'skumatch\[openvino\]'"):
        openvino._nncf()
