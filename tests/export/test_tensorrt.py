"""Native TensorRT engines: a network that TensorRT can read, when an engine is still good, refusals in one line."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from skumatch import artefact
from skumatch.errors import ArtefactError, ConfigError, DeviceError, ModelError
from skumatch.export.onnx import to_onnx
from skumatch.export.precision import to_fp16
from skumatch.export.tensorrt import beside, build_engine, engine_is_current, facts_of, read_document
from skumatch.runtime.metadata import read_passport
from skumatch.runtime.nvidia import Gpu, Profile
from skumatch.runtime.passport import KEY
from skumatch.runtime.providers import TINY_MODEL
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels, Vectors
from skumatch.towers.build import ModelSource, build

CONV = ModelSource("timm:mobilenetv2_050", random_init=True, size=64)
TINY = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
PROFILE = Profile(2, 4)


@pytest.fixture(scope="module")
def torch_encoder() -> TorchEncoder:
    return TorchEncoder(build(TINY), device="cpu")


@pytest.fixture(scope="module")
def model(torch_encoder: TorchEncoder) -> onnx.ModelProto:
    return to_onnx(torch_encoder, torch_encoder.spec, {})


@pytest.fixture
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Stand for a machine with a GPU and TensorRT, on which nothing is built."""
    gpu, module = Gpu(0, "Some GPU", "9.0"), ModuleType("tensorrt")
    module.__version__ = "10.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("skumatch.export.tensorrt.find_gpu", lambda device: gpu)
    return gpu


def pixels(count: int) -> Pixels:
    smooth = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), np.uint8)
    found: Pixels = np.repeat(np.repeat(smooth, 12, 2), 12, 3)
    return found


def put(path: Path, data: bytes, precision: str, profile: Profile, gpu: Gpu) -> None:
    """Write what stands for an engine of the ONNX model ``data``."""
    path.write_bytes(b"engine")
    facts = facts_of(data, read_passport(data), precision, profile, gpu)
    beside(path).write_text(json.dumps({"facts": facts, "engine": hashlib.sha256(b"engine").hexdigest()}))


@pytest.mark.slow
@pytest.mark.parametrize("source", [CONV, TINY])
def test_a_cast_alone_reads_the_uint8_pictures(source: ModelSource) -> None:
    encoder = TorchEncoder(build(source), device="cpu")
    plain = to_onnx(encoder, encoder.spec, {})
    for found in (plain, to_fp16(plain)):
        readers = [node for node in found.graph.node if "images" in node.input]
        assert [node.op_type for node in readers] == ["Cast"]
        (target,) = (entry.i for entry in readers[0].attribute if entry.name == "to")
        assert target in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        assert any(node.op_type == "Shape" and readers[0].output[0] in node.input for node in found.graph.node)


def test_an_engine_is_current_until_anything_differs(
    model: onnx.ModelProto, some_gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = model.SerializeToString(), tmp_path / "model.engine"
    assert not engine_is_current(path, data, "fp32", PROFILE)
    put(path, data, "fp32", PROFILE, some_gpu)
    (tmp_path / "model.onnx").write_bytes(data)
    assert engine_is_current(path, data, "fp32", PROFILE)
    assert engine_is_current(path, tmp_path / "model.onnx", "fp32", PROFILE)
    assert not engine_is_current(path, data, "bf16", PROFILE)
    assert not engine_is_current(path, data, "fp32", Profile(2, 8))
    assert not engine_is_current(path, data + b"\x72\x00", "fp32", PROFILE)
    other = Gpu(0, "Some GPU", "8.9")
    with monkeypatch.context() as patch:
        patch.setattr("skumatch.export.tensorrt.find_gpu", lambda device: other)
        assert not engine_is_current(path, data, "fp32", PROFILE)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["tensorrt"], "__version__", "10.1")
        assert not engine_is_current(path, data, "fp32", PROFILE)
    path.write_bytes(b"engima")
    assert not engine_is_current(path, data, "fp32", PROFILE)


def test_what_stands_beside_an_engine_is_checked(model: onnx.ModelProto, some_gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    put(path, model.SerializeToString(), "fp32", PROFILE, some_gpu)
    good = json.loads(beside(path).read_text())
    assert read_document(path) == good and good["facts"]["profile"] == {"usual": 2, "most": 4}
    for bad in ("", "[]", "{}", json.dumps({**good, "facts": {}}), json.dumps({**good, "engine": "0" * 64})):
        beside(path).write_text(bad)
        with pytest.raises(ArtefactError, match=r"model\.engine is (no engine of|not the engine that)"):
            read_document(path)


def test_what_cannot_be_built_is_one_line(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = model.SerializeToString(), tmp_path / "model.engine"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ConfigError, match=r"^TensorRT is not installed - pip install 'skumatch\[tensorrt\]'$"):
        build_engine(data, "fp32", PROFILE, out)
    with pytest.raises(DeviceError, match="TensorRT runs on an NVIDIA GPU, not on the CPU"):
        build_engine(data, "fp32", PROFILE, out, "cpu")
    with pytest.raises(ConfigError, match="this model is in fp32 - export it with"):
        build_engine(data, "fp16", PROFILE, out)
    with pytest.raises(ConfigError, match="TensorRT has no precision 'int8'"):
        build_engine(data, "int8", PROFILE, out)
    with pytest.raises(ModelError, match="this model was not written by `skumatch export`"):
        build_engine(TINY_MODEL, "fp32", PROFILE, out)
    with pytest.raises(ModelError, match=r"there is no .*absent\.onnx"):
        build_engine(tmp_path / "absent.onnx", "fp32", PROFILE, out)
    assert not list(tmp_path.glob("model*"))


def run(path: Path, batch: Pixels, dim: int) -> Vectors:
    """Return what the engine ``path`` gives of ``batch``, run as a program without skumatch would."""
    import tensorrt as trt

    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    taken = torch.from_numpy(batch).cuda()
    given = torch.empty((len(batch), dim), device="cuda")
    torch.cuda.synchronize()
    if not context.set_input_shape("images", tuple(batch.shape)):
        pytest.fail("the engine takes no batch of this size")
    context.set_tensor_address("images", taken.data_ptr())
    context.set_tensor_address("embeddings", given.data_ptr())
    if not context.execute_async_v3(stream.cuda_stream):
        pytest.fail("the engine does not run")
    stream.synchronize()
    found: Vectors = given.cpu().numpy()
    return found


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999), ("fp16", 0.999)])
def test_a_native_engine_gives_the_same_vectors(
    precision: str, least: float, model: onnx.ModelProto, torch_encoder: TorchEncoder, tmp_path: Path
) -> None:
    if precision == "fp16":
        model = to_fp16(to_onnx(torch_encoder, replace(torch_encoder.spec, precision="fp16"), {}))
    data = model.SerializeToString()
    out = build_engine(data, precision, PROFILE, tmp_path / "deep" / "model.engine", memory=2**30)
    assert engine_is_current(out, data, precision, PROFILE)
    assert not engine_is_current(out, data, precision, Profile(2, 8))
    document = read_document(out)
    assert document["facts"]["model"] == torch_encoder.spec.digest
    assert document["passport"]["spec"]["dim"] == torch_encoder.spec.dim
    for count in (1, 4):
        batch = pixels(count)
        found = run(out, batch, torch_encoder.spec.dim)
        assert (found * torch_encoder.encode(batch)).sum(1).min() > least
    assert list((artefact.cache_dir() / "tensorrt" / "timings").rglob("*.timings"))


@pytest.mark.gpu
def test_timings_that_were_cut_short_are_left_out(model: onnx.ModelProto, tmp_path: Path) -> None:
    data = model.SerializeToString()
    build_engine(data, "fp32", PROFILE, tmp_path / "model.engine")
    (timings,) = (artefact.cache_dir() / "tensorrt" / "timings").rglob("*.timings")
    timings.write_bytes(timings.read_bytes()[:100])
    build_engine(data, "fp32", PROFILE, tmp_path / "model.engine")
    assert timings.stat().st_size > 100


@pytest.mark.gpu
def test_a_network_that_tensorrt_cannot_read_is_named_in_one_line(model: onnx.ModelProto, tmp_path: Path) -> None:
    foreign: Any = onnx.load(io.BytesIO(model.SerializeToString()))
    foreign.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="TensorRT cannot read this model") as caught:
        build_engine(foreign.SerializeToString(), "fp32", PROFILE, tmp_path / "model.engine")
    assert "\n" not in str(caught.value) and KEY in str([one.key for one in foreign.metadata_props])
    assert not (tmp_path / "model.engine").exists()
