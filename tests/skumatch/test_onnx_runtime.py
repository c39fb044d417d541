"""The ONNX Runtime engine: devices that are granted, options, buffers that stay, several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from skumatch.errors import DeviceError, ModelError
from skumatch.export.onnx import to_onnx
from skumatch.runtime.onnx import ON_CUDA, OUTPUT, Bound, OnnxEncoder
from skumatch.runtime.passport import KEY
from skumatch.runtime.providers import CUDA, grants_cuda
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def pixels(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 64, 64), np.uint8)


@pytest.fixture(scope="module")
def plain() -> TorchEncoder:
    return TorchEncoder(build(ModelSource("timm:test_vit", random_init=True, size=64)), device="cpu")


@pytest.fixture(scope="module")
def file(plain: TorchEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    path.write_bytes(to_onnx(plain, plain.spec, {}).SerializeToString())
    return path


def bound(file: Path) -> Bound:
    """Return a session with buffers as on a GPU, on the CPU."""
    encoder = OnnxEncoder(file, "cpu", threads=1)
    return Bound(encoder.session, encoder.spec.dim, "cpu", 0)


def test_bound_buffers_give_what_a_plain_run_gives(plain: TorchEncoder, file: Path) -> None:
    kept = bound(file)
    for seed, count in enumerate((3, 3, 1, 5, 3, 2, 7, 9, 3)):
        batch = pixels(count, seed)
        expected = plain.encode(batch)
        assert np.abs(kept.run(batch) - expected).max() < 1e-4
        assert np.abs(kept.run(torch.from_numpy(batch)) - expected).max() < 1e-4
        assert len(kept._buffers) <= Bound.KEPT


def test_vectors_are_the_callers_own(file: Path) -> None:
    kept = bound(file)
    first = kept.run(pixels(2, 1))
    copy = first.copy()
    second = kept.run(pixels(2, 2))
    assert np.array_equal(first, copy) and not np.allclose(first, second, atol=1e-3)


def test_odd_arrays_are_taken_and_tensors_that_lie_elsewhere_are_not(plain: TorchEncoder, file: Path) -> None:
    kept, batch = bound(file), pixels(4)
    assert np.abs(kept.run(batch[::-1]) - plain.encode(batch[::-1])).max() < 1e-4
    batch.flags.writeable = False
    assert np.abs(kept.run(batch) - plain.encode(batch)).max() < 1e-4
    scattered = torch.from_numpy(pixels(4)).to(memory_format=torch.channels_last)
    for tensor in (scattered, torch.empty((1, 3, 64, 64), dtype=torch.uint8, device="meta")):
        with pytest.raises(ModelError, match="is not contiguous on cpu"):
            kept.run(tensor)


def test_several_threads_take_turns(plain: TorchEncoder, file: Path) -> None:
    kept = bound(file)
    batches = [pixels(1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kept.run, batches))
    for one, batch in zip(found, batches, strict=True):
        assert np.abs(one - plain.encode(batch)).max() < 1e-4


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "", "tpu"])
def test_a_device_that_is_none(device: str, file: Path) -> None:
    with pytest.raises(DeviceError, match=f"unknown device '{device}' - choose auto, cpu, cuda or cuda:N"):
        OnnxEncoder(file, device)


@without_gpu
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(file: Path) -> None:
    assert not grants_cuda()
    encoder = OnnxEncoder(file)
    assert (encoder.device, encoder.engine, encoder.pixels_on) == ("cpu", "onnx fp32 on cpu", "")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="choose another provider than CUDAExecutionProvider"):
            OnnxEncoder(file, device)


def test_a_file_that_takes_no_pictures_is_refused(file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(file))
    model.graph.input[0].name = "pictures"
    for node in model.graph.node:
        node.input[:] = ["pictures" if name == "images" else name for name in node.input]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match=r"other\.onnx takes pictures, not images"):
        OnnxEncoder(tmp_path / "other.onnx", "cpu")


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_vectors_from_arrays_and_tensors(plain: TorchEncoder, file: Path) -> None:
    for number in range(torch.cuda.device_count()):
        encoder = OnnxEncoder(file, f"cuda:{number}")
        assert encoder.session.get_provider_options()[CUDA]["device_id"] == str(number)
        assert ON_CUDA.items() <= encoder.session.get_provider_options()[CUDA].items()
        assert encoder.pixels_on == f"cuda:{number}"
        for seed in range(6):
            batch = pixels(1 + seed % 3, seed)
            expected = plain.encode(batch)
            assert (encoder.encode(batch) * expected).sum(1).min() > 0.99999
            there = torch.from_numpy(batch).to(encoder.pixels_on, non_blocking=True)
            assert (encoder.encode(there) * expected).sum(1).min() > 0.99999


@pytest.mark.gpu
def test_auto_is_a_gpu_but_for_int8_files(file: Path, tmp_path: Path) -> None:
    assert grants_cuda() and OnnxEncoder(file).device == "cuda"
    model = onnx.load(str(file))
    (said,) = (prop for prop in model.metadata_props if prop.key == KEY)
    said.value = said.value.replace('"precision": "fp32"', '"precision": "int8"')
    onnx.save(model, str(tmp_path / "int8.onnx"))
    assert OnnxEncoder(tmp_path / "int8.onnx").device == "cpu"
    assert OnnxEncoder(tmp_path / "int8.onnx", "cuda").device == "cuda"


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(DeviceError):
        OnnxEncoder(file, f"cuda:{torch.cuda.device_count()}")
    assert OnnxEncoder(file, "cuda").session.get_outputs()[0].name == OUTPUT
