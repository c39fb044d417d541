"""A native TensorRT engine of an exported network, for Triton, DeepStream and other programs that load one.

An engine runs on the GPU model and the version of TensorRT that it was built with; beside it stands as JSON what it is
and what it was built for. skumatch itself answers through ``skumatch.runtime.tensorrt`` and needs no such file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.errors import ArtefactError, ConfigError, DeviceError, ModelError
from skumatch.runtime.metadata import read_passport
from skumatch.runtime.nvidia import Gpu, Profile, find_gpu, library, settle, timing_folder, version
from skumatch.runtime.onnx import INPUT
from skumatch.runtime.passport import Passport

FORMAT = 1
TIMINGS = "native.timings"
Shapes = list[tuple[int, int, int, int]]


def build_engine(
    model: bytes | Path, precision: str, profile: Profile, out: Path, device: str = "auto", memory: int | None = None
) -> Path:
    """Build an engine of the exported ONNX ``model`` for this GPU, write it as ``out`` and return ``out``.

    ``precision``: "fp32" without TF32, "bf16" of a float32 network, or the "fp16" of the network itself. ``profile``:
    the batches that it takes. ``memory``: bytes that a layer may use while it runs, None for all that the GPU has.
    ``OUT.json`` says what was built. Raises ModelError for a model that was not exported by skumatch or that TensorRT
    cannot read, ConfigError when TensorRT is not installed or lacks the precision, DeviceError without a GPU or when
    building fails, ArtefactError when the disk refuses.
    """
    passport, precision, gpu = _settled(model, precision, device)
    data = model if isinstance(model, bytes) else model.read_bytes()
    plan = _plan(data, precision, profile.shapes(passport.spec.size), gpu, memory)
    document = {
        "facts": facts_of(data, passport, precision, profile, gpu),
        "engine": hashlib.sha256(plan).hexdigest(),
        "passport": json.loads(passport.to_json()),
    }
    with artefact.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    artefact.write_file(out, plan)
    artefact.write_file(beside(out), json.dumps(document, indent=1, sort_keys=True).encode())
    return out


def engine_is_current(path: Path, model: bytes | Path, precision: str, profile: Profile, device: str = "auto") -> bool:
    """Return whether ``path`` is the engine that ``build_engine`` would make of ``model`` on this machine.

    Raises ModelError, ConfigError or DeviceError where nothing could be built.
    """
    passport, precision, gpu = _settled(model, precision, device)
    data = model if isinstance(model, bytes) else model.read_bytes()
    try:
        document = read_document(path)
    except ArtefactError:
        return False
    return bool(document["facts"] == facts_of(data, passport, precision, profile, gpu))


def read_document(path: Path) -> dict[str, Any]:
    """Return what stands beside the engine ``path``: "facts", "passport" and "engine", its SHA-256.

    Raises ArtefactError when there is no such engine or it is not the one that was written there.
    """
    try:
        document: dict[str, Any] = json.loads(beside(path).read_bytes())
        good = document["engine"] == artefact.file_digest(path) and document["facts"]["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is no engine of `skumatch export`", "build it again") from error
    if not good:
        raise ArtefactError(f"{path} is not the engine that {beside(path)} speaks of", "build it again")
    return document


def beside(path: Path) -> Path:
    """Return the JSON file of an engine."""
    return path.with_name(f"{path.name}.json")


def facts_of(data: bytes, passport: Passport, precision: str, profile: Profile, gpu: Gpu) -> dict[str, Any]:
    """Return all that an engine of the ONNX model ``data`` depends on, JSON-ready."""
    return {
        "format": FORMAT,
        "model": passport.spec.digest,
        "file": hashlib.sha256(data).hexdigest(),
        "precision": precision,
        "gpu": gpu.name,
        "capability": gpu.capability,
        "tensorrt": version(),
        "profile": asdict(profile),
    }


def _settled(model: bytes | Path, precision: str, device: str) -> tuple[Passport, str, Gpu]:
    passport = read_passport(model)
    name = "this model" if isinstance(model, bytes) else model
    precision = settle(passport.spec.precision, precision, name)
    return passport, precision, find_gpu(device)


def _plan(data: bytes, precision: str, shapes: Shapes, gpu: Gpu, memory: int | None) -> bytes:
    """Return the serialized engine of an ONNX model."""
    import torch

    trt = library()
    log = _log(trt)
    with torch.cuda.device(gpu.number):
        builder = _builder(trt, log)
        # Typed as the file says, so that what it keeps in float32 stays there; bf16 alone is TensorRT's own choice.
        typed = 0 if precision == "bf16" else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
        if not parser.parse(data):
            found = parser.get_error(0).desc() if parser.num_errors else log.first()
            raise ModelError(f"TensorRT cannot read this model ({_line(found)})", "use --runtime onnx")
        config = _config(trt, builder, precision, shapes, memory)
        timings = timing_folder(gpu) / TIMINGS
        _use_timings(config, timings)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise DeviceError(f"TensorRT built no engine ({log.first()})", "give it more memory, or smaller batches")
        _keep_timings(config, timings)
        return bytes(plan)


def _builder(trt: Any, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise DeviceError(f"TensorRT does not start ({log.first()})", "see `skumatch doctor`") from error


def _config(trt: Any, builder: Any, precision: str, shapes: Shapes, memory: int | None) -> Any:
    """Return how to build: precision, memory and the shapes of the pictures."""
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and of 10 bits
    if precision == "bf16":
        flag = getattr(trt.BuilderFlag, "BF16", None)
        if flag is None:
            raise ConfigError(f"TensorRT {version()} cannot choose bf16", "pip install 'skumatch[tensorrt]'")
        config.set_flag(flag)
    if memory is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, memory)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *shapes)
    config.add_optimization_profile(profile)
    return config


def _use_timings(config: Any, file: Path) -> None:
    """Let ``config`` know the timings measured before; a cache that TensorRT does not take is left out."""
    known = config.create_timing_cache(file.read_bytes()) if file.is_file() else None
    if known is None or not config.set_timing_cache(known, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timings(config: Any, file: Path) -> None:
    with artefact.disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    artefact.write_file(file, bytes(config.get_timing_cache().serialize()))


def _log(trt: Any) -> Any:
    """Return a logger of TensorRT that keeps its errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

        def first(self) -> str:
            return _line(self.errors[0]) if self.errors else "it does not say why"

    return Log()


def _line(text: str, limit: int = 200) -> str:
    """Return the first line of a vendor's message, cut short."""
    return (text.strip().splitlines() or [""])[0][:limit]
