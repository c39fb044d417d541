"""The TensorRT engine: what it is keyed by, what the provider is told, and what is refused where it cannot run."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from skumatch import artefact
from skumatch.errors import ConfigError, DeviceError, ModelError
from skumatch.export.onnx import to_onnx
from skumatch.export.precision import to_fp16
from skumatch.runtime import providers
from skumatch.runtime.metadata import ends, metadata, read_passport
from skumatch.runtime.nvidia import Gpu, Profile, find_gpu, key_of, library, settle, timing_folder
from skumatch.runtime.onnx import OnnxEncoder
from skumatch.runtime.passport import KEY
from skumatch.runtime.providers import CPU, CUDA, TENSORRT, TINY_MODEL, open_session, probe
from skumatch.runtime.tensorrt import CONTEXT, MANIFEST, Job, TensorRtEncoder, drop_partial, is_whole, parts, start
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

TINY = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
GPU = Gpu(0, "Some GPU", "9.0")


@pytest.fixture(scope="module")
def torch_encoder() -> TorchEncoder:
    return TorchEncoder(build(TINY), device="cpu")


@pytest.fixture(scope="module")
def exported(torch_encoder: TorchEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in fp32, beside one in fp16."""
    folder = tmp_path_factory.mktemp("exported")
    model = to_onnx(torch_encoder, torch_encoder.spec, {})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    half = to_fp16(to_onnx(torch_encoder, replace(torch_encoder.spec, precision="fp16"), {}))
    (folder / "model.fp16.onnx").write_bytes(half.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture
def some_version(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put a module of a version and nothing else where TensorRT is not installed."""
    if probe(TENSORRT).usable:
        pytest.skip("TensorRT runs here")
    module = ModuleType("tensorrt")
    module.__version__ = "10.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def pixels(count: int, side: int = 96) -> Pixels:
    smooth = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), np.uint8)
    found: Pixels = np.repeat(np.repeat(smooth, side // 8, 2), side // 8, 3)
    return found


def job(file: Path) -> Job:
    return Job(file, "a" * 64, 96, "fp32", GPU)


def test_metadata_is_read_past_the_weights(exported: Path, torch_encoder: TorchEncoder) -> None:
    expected = {entry.key: entry.value for entry in onnx.load(str(exported)).metadata_props}
    with exported.open("rb") as stream:
        assert metadata(stream) == expected and set(expected) == {KEY}
    assert read_passport(exported).spec == read_passport(exported.read_bytes()).spec == torch_encoder.spec
    assert metadata(io.BytesIO(TINY_MODEL)) == {}


def test_what_the_provider_writes_of_a_part_is_dropped(exported: Path, tmp_path: Path) -> None:
    with exported.open("rb") as stream:
        assert ends(stream) == {"images", "embeddings"}
    assert ends(io.BytesIO(TINY_MODEL)) == {"x", "y"} and ends(io.BytesIO(b"\xff" * 30)) == set()
    context = tmp_path / CONTEXT
    drop_partial(context, {"x", "y"})
    context.write_bytes(TINY_MODEL)
    drop_partial(context, {"x", "y"})
    assert context.is_file()
    drop_partial(context, {"x", "z"})
    assert not context.exists()


def test_metadata_of_what_is_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = exported.read_bytes()
    cut = [whole[: int(end)] for end in rng.integers(0, len(whole) - 10, 20)]
    noise = [rng.integers(0, 256, 4096, np.uint8).tobytes() for _ in range(200)]
    far = [b"\x72" + b"\xff" * 8 + b"\x7f", b"\x3a" + b"\xff" * 9 + b"\x7f", b"\xff" * 30]
    for data in (b"", *cut, *noise, *far):
        with pytest.raises(ModelError, match="this model was not written by `skumatch export`"):
            read_passport(data)
        (tmp_path / "other.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=r"other\.onnx was not written by `skumatch export`"):
            read_passport(tmp_path / "other.onnx")


@pytest.mark.skipif(TENSORRT not in providers.available_providers(), reason="this ONNX Runtime has no TensorRT")
def test_the_provider_knows_every_option_that_it_is_given(exported: Path, tmp_path: Path) -> None:
    import onnxruntime

    built_in = (Path(onnxruntime.__file__).parent / "capi" / providers.LIBRARIES[TENSORRT]).read_bytes()
    context = ["dump_ep_context_model", "ep_context_embed_mode", "ep_context_file_path", "engine_cache_path"]
    names = [*job(exported).options(tmp_path), *(f"trt_{name}" for name in context)]
    assert len(names) > 10
    for name in names:
        assert name.encode() + b"\0" in built_in, name


def test_options_follow_precision_and_profile(exported: Path, tmp_path: Path) -> None:
    plain = replace(job(exported), profile=Profile(4, 8)).options(tmp_path)
    assert plain["trt_profile_min_shapes"] == "images:1x3x96x96"
    assert plain["trt_profile_opt_shapes"] == "images:4x3x96x96"
    assert plain["trt_profile_max_shapes"] == "images:8x3x96x96"
    assert plain["trt_timing_cache_path"] == str(tmp_path) and plain["device_id"] == 0
    for precision, fp16, bf16 in (("fp32", False, False), ("fp16", True, False), ("bf16", False, True)):
        found = replace(job(exported), precision=precision).options(tmp_path)
        assert (found["trt_fp16_enable"], found["trt_bf16_enable"]) == (fp16, bf16)
        assert found["trt_layer_norm_fp32_fallback"] == fp16
    assert replace(job(exported), gpu=Gpu(3, "x", "8.9")).options(tmp_path)["device_id"] == 3


def test_whatever_changes_an_engine_changes_its_folder(
    exported: Path, some_version: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = job(exported)
    other_file = tmp_path / "model.onnx"
    other_file.write_bytes(exported.read_bytes() + b"\x72\x00")
    others = [
        replace(one, file=other_file),
        replace(one, model="b" * 64),
        replace(one, precision="bf16"),
        replace(one, profile=Profile(32, 64)),
        replace(one, gpu=Gpu(0, "Another GPU", "9.0")),
        replace(one, gpu=Gpu(0, "Some GPU", "8.9")),
    ]
    keys = [key_of(other.facts()) for other in (one, *others)]
    assert key_of(replace(one, gpu=replace(GPU, number=1)).facts()) == keys[0]  # the same model of GPU
    timings = [timing_folder(other.gpu) for other in (one, *others)]
    assert len(set(timings)) == 3
    monkeypatch.setattr(some_version, "__version__", "10.1")
    keys.append(key_of(one.facts()))
    assert timing_folder(GPU) not in timings
    monkeypatch.setattr(providers, "version", lambda: "2.0")
    keys.append(key_of(one.facts()))
    assert len(set(keys)) == len(keys) == 9


@pytest.mark.parametrize(("count", "most", "sizes"), [(0, 4, []), (3, 4, [3]), (4, 4, [4]), (9, 4, [4, 4, 1])])
def test_large_batches_are_split_in_order(count: int, most: int, sizes: list[int]) -> None:
    every = pixels(count, 16)[:, :, ::-1]
    found = list(parts(every, most))
    assert [len(part) for part in found] == sizes and all(part.flags.c_contiguous for part in found)
    assert np.array_equal(np.concatenate([every[:0], *found]), every)


def test_a_profile_that_holds_no_batch_is_refused() -> None:
    for usual, most in ((0, 4), (8, 4)):
        with pytest.raises(ConfigError, match=f"no profile has batches of {usual}, at most {most}"):
            Profile(usual, most)


def test_precisions_are_those_of_the_file_or_bf16() -> None:
    assert settle("fp32", "fp32", "x") == "fp32" and settle("fp32", "bf16", "x") == "bf16"
    assert settle("fp16", "fp32", "x") == "fp16" and settle("bf16", "bf16", "x") == "bf16"
    for own, wanted, words in (
        ("fp32", "fp16", "x is in fp32 - export it with `--format tensorrt --precision fp16`"),
        ("int8", "fp32", "TensorRT cannot run x, which is in int8"),
        ("fp32", "fp4", "TensorRT has no precision 'fp4'"),
    ):
        with pytest.raises(ConfigError, match=words):
            settle(own, wanted, "x")


def test_what_cannot_run_is_one_line(exported: Path, tmp_path: Path, no_tensorrt: None) -> None:
    with pytest.raises(ConfigError, match=r"^TensorRT is not installed - pip install 'skumatch\[tensorrt\]'$"):
        TensorRtEncoder(exported, "fp32")
    with pytest.raises(DeviceError, match="TensorRT runs on an NVIDIA GPU, not on the CPU"):
        TensorRtEncoder(exported, "fp32", "cpu")
    with pytest.raises(ConfigError, match=r"model\.onnx is in fp32 - export it with"):
        TensorRtEncoder(exported, "fp16")
    with pytest.raises(ModelError, match=r"there is no .*absent\.onnx"):
        TensorRtEncoder(tmp_path / "absent.onnx", "fp32")
    (tmp_path / "foreign.onnx").write_bytes(TINY_MODEL)
    with pytest.raises(ModelError, match=r"foreign\.onnx was not written by"):
        TensorRtEncoder(tmp_path / "foreign.onnx", "fp32")


def test_libraries_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libabsent.so.10')\n")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"TensorRT cannot be loaded \(libabsent\.so\.10: .*\) - pip install"):
        library()


def test_a_machine_without_a_gpu_is_refused(some_version: ModuleType, exported: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for device in ("auto", "cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="TensorRT needs an NVIDIA GPU and torch sees none"):
            find_gpu(device)


def test_a_build_that_fails_leaves_nothing_behind(some_version: ModuleType, exported: Path) -> None:
    with pytest.raises(DeviceError, match="TensorrtExecutionProvider") as caught:
        start(job(exported))
    assert "\n" not in str(caught.value)
    root = artefact.cache_dir() / "tensorrt"
    assert [path.name for path in root.iterdir()] == ["timings"] and not list((root / "timings").iterdir())


def test_what_was_built_is_kept_until_a_file_of_it_differs(some_version: ModuleType, exported: Path) -> None:
    folder = artefact.cache_dir() / "tensorrt" / key_of(job(exported).facts())
    assert not is_whole(folder)
    (folder / "engines").mkdir(parents=True)
    (folder / "engines" / "one.engine").write_bytes(b"engine")
    (folder / CONTEXT).write_bytes(TINY_MODEL)
    assert not is_whole(folder)  # no manifest: a build that was cut short
    artefact.seal(folder, MANIFEST, {})
    assert is_whole(folder)
    with pytest.raises(DeviceError, match=f"if it stays, remove {folder}$"):
        start(job(exported))
    assert is_whole(folder)  # what fails today may load tomorrow
    (folder / "engines" / "one.engine").write_bytes(b"engima")
    assert not is_whole(folder)
    with pytest.raises(DeviceError):
        start(job(exported))
    assert not folder.exists()


def test_a_session_has_every_provider_that_was_asked_for() -> None:
    session = open_session(TINY_MODEL, CPU, threads=1, options={CPU: {}})
    assert session.get_providers() == [CPU]
    for provider, behind in ((CPU, (CUDA,)), (CUDA, ()), (TENSORRT, (CUDA,))):
        if CUDA in providers.available_providers() and not probe(behind[0] if behind else provider).usable:
            with pytest.raises(DeviceError, match=f"choose another provider than {provider}"):
                open_session(TINY_MODEL, provider, behind=behind)
    with pytest.raises(DeviceError, match="without NoSuchProvider"):
        open_session(TINY_MODEL, CPU, behind=("NoSuchProvider",))


@pytest.mark.gpu
@pytest.mark.parametrize(("file", "precision", "least"), [("model", "fp32", 0.99999), ("model", "bf16", 0.999)])
def test_vectors_are_those_of_torch(
    file: str, precision: str, least: float, exported: Path, torch_encoder: TorchEncoder
) -> None:
    engine = TensorRtEncoder(exported.with_name(f"{file}.onnx"), precision, profile=Profile(2, 4))
    assert engine.spec == replace(torch_encoder.spec, precision=precision)
    for count in (1, 4, 9):
        batch = pixels(count)
        found = engine.encode(batch)
        assert found.dtype == np.float32 and (found * torch_encoder.encode(batch)).sum(1).min() > least
    assert engine.encode(pixels(1)[:0]).shape == (0, torch_encoder.spec.dim)


@pytest.mark.gpu
def test_fp16_is_that_of_the_file(exported: Path, torch_encoder: TorchEncoder) -> None:
    engine = TensorRtEncoder(exported.with_name("model.fp16.onnx"), "fp16", profile=Profile(2, 4))
    batch = pixels(4)
    assert engine.spec.precision == "fp16"
    assert (engine.encode(batch) * torch_encoder.encode(batch)).sum(1).min() > 0.999


@pytest.mark.gpu
def test_the_second_start_loads_what_the_first_built(exported: Path) -> None:
    first = TensorRtEncoder(exported, "fp32", profile=Profile(2, 4))
    root = artefact.cache_dir() / "tensorrt"
    built = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert any(path.name == CONTEXT for path in built) and any(path.suffix == ".engine" for path in built)
    second = TensorRtEncoder(exported, "fp32", profile=Profile(2, 4))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == built
    assert np.array_equal(first.encode(pixels(3)), second.encode(pixels(3)))


@pytest.mark.gpu
def test_a_damaged_engine_is_built_anew(exported: Path) -> None:
    first = TensorRtEncoder(exported, "fp32", profile=Profile(2, 4)).encode(pixels(3))
    (engine,) = (artefact.cache_dir() / "tensorrt").rglob("*.engine")
    engine.write_bytes(engine.read_bytes()[:1000])
    second = TensorRtEncoder(exported, "fp32", profile=Profile(2, 4)).encode(pixels(3))
    assert np.abs(first - second).max() < 1e-4 and engine.stat().st_size > 1000


@pytest.mark.gpu
def test_other_facts_are_another_engine(exported: Path) -> None:
    for profile in (Profile(2, 4), Profile(2, 8)):
        TensorRtEncoder(exported, "fp32", profile=profile)
    assert len(list((artefact.cache_dir() / "tensorrt").rglob(MANIFEST))) == 2


@pytest.mark.gpu
def test_it_agrees_with_the_cuda_provider(exported: Path) -> None:
    batch = pixels(4)
    found = TensorRtEncoder(exported, "fp32", profile=Profile(2, 4)).encode(batch)
    assert (found * OnnxEncoder(exported, "cuda").encode(batch)).sum(1).min() > 0.9999
