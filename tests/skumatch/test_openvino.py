"""The OpenVINO engine: the same vectors as torch in float32 and, where the processor has it, nearly so in bf16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from skumatch.errors import ConfigError, ModelError
from skumatch.export.onnx import to_onnx
from skumatch.runtime.torch import TorchEncoder
from skumatch.towers.build import ModelSource, build

openvino = pytest.importorskip("openvino")
from skumatch.runtime.openvino import OpenVinoEncoder  # noqa: E402

SOURCES = {
    "network": ModelSource("timm:test_efficientnet", random_init=True, size=64),
    "transformer": ModelSource("open_clip:skumatch-tiny-96", random_init=True),
}


@pytest.mark.parametrize("name", ["network", pytest.param("transformer", marks=pytest.mark.slow)])
def test_vectors_are_those_of_torch(name: str, tmp_path: Path) -> None:
    encoder = TorchEncoder(build(SOURCES[name]), device="cpu")
    file = tmp_path / "model.onnx"
    file.write_bytes(to_onnx(encoder, encoder.spec, {}).SerializeToString())
    side = encoder.spec.size
    smooth = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    batch = np.repeat(np.repeat(smooth, side // 8, 2), side // 8, 3)
    before = encoder.encode(batch)
    plain = OpenVinoEncoder(file, threads=1)
    assert plain.spec == encoder.spec
    first = plain.encode(batch)
    assert np.abs(first - before).max() < 1e-4
    assert plain.encode(batch[:1]).shape == (1, encoder.spec.dim) and np.abs(first - before).max() < 1e-4
    openvino.save_model(openvino.Core().read_model(str(file)), str(tmp_path / "ir.xml"), compress_to_fp16=False)
    assert np.abs(OpenVinoEncoder(tmp_path / "ir.xml", threads=1).encode(batch) - before).max() < 1e-4
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        low = OpenVinoEncoder(file, "bf16", threads=1)
        assert low.spec.precision == "bf16" and (low.encode(batch) * before).sum(1).min() > 0.995


def test_threads_take_turns(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(SOURCES["network"]), device="cpu")
    (tmp_path / "model.onnx").write_bytes(to_onnx(encoder, encoder.spec, {}).SerializeToString())
    other = OpenVinoEncoder(tmp_path / "model.onnx", threads=1)
    batches = [np.full((2, 3, encoder.spec.size, encoder.spec.size), 20 * i, np.uint8) for i in range(12)]
    alone = [other.encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for one, both in zip(alone, pool.map(other.encode, batches), strict=True):
            assert np.array_equal(one, both)


def test_bad_files_and_precisions_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"OpenVINO cannot read .*broken\.onnx"):
        OpenVinoEncoder(tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match=r"there is no .*absent\.onnx"):
        OpenVinoEncoder(tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match="no precision 'fp4' - choose fp32, bf16"):
        OpenVinoEncoder(tmp_path / "absent.onnx", "fp4")
