"""The TensorRT engine: an exported network on an NVIDIA GPU, through ONNX Runtime's TensorRT provider.

TensorRT builds an engine for one GPU and one version of itself, in minutes. What it built is kept in the cache folder,
and a later start loads that. Nodes that TensorRT has no layer for run on ONNX Runtime's CUDA provider, none on the CPU.
It knows nothing about how the file was made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact
from skumatch.errors import ArtefactError, DeviceError
from skumatch.runtime import providers
from skumatch.runtime.metadata import ends, read_passport
from skumatch.runtime.nvidia import PROFILE, Gpu, Profile, find_gpu, key_of, settle, timing_folder, version
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.providers import CUDA, TENSORRT
from skumatch.spec import Pixels, Vectors, require_pixels

FORMAT = 1
MANIFEST, CONTEXT, ENGINES = "built.json", "context.onnx", "engines"


@dataclass(frozen=True)
class Job:
    """An engine to be had: of ``file``, which holds the network of ``model`` (a digest) for pictures of ``side``
    pixels, computed in ``precision`` on ``gpu`` for the batches of ``profile``."""

    file: Path
    model: str
    side: int
    precision: str
    gpu: Gpu
    profile: Profile = PROFILE

    def facts(self) -> dict[str, Any]:
        """Return all that an engine depends on, JSON-ready: where one of it differs, another engine is built."""
        return {
            "format": FORMAT,
            "model": self.model,
            "file": artefact.file_digest(self.file),
            "precision": self.precision,
            "gpu": self.gpu.name,
            "capability": self.gpu.capability,
            "tensorrt": version(),
            "onnxruntime": providers.version(),
            "profile": asdict(self.profile),
        }

    def options(self, timings: Path) -> dict[str, object]:
        """Return the provider's options for building; ``timings``: the folder of its timing cache."""
        least, usual, most = (f"{INPUT}:{'x'.join(map(str, shape))}" for shape in self.profile.shapes(self.side))
        return {
            "device_id": self.gpu.number,
            "trt_fp16_enable": self.precision == "fp16",
            "trt_bf16_enable": self.precision == "bf16",
            "trt_layer_norm_fp32_fallback": self.precision == "fp16",
            "trt_profile_min_shapes": least,
            "trt_profile_opt_shapes": usual,
            "trt_profile_max_shapes": most,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(timings),
            "trt_engine_cache_enable": True,
        }


class TensorRtEncoder:
    """An Encoder run by TensorRT from an exported ONNX ``file``.

    ``precision``: "fp32", or "bf16", in which TensorRT may compute a float32 file; a file in another precision keeps
    its own. ``device``: "auto" and "cuda" are the first GPU, "cuda:N" another. Larger batches than ``profile`` has are
    split. Raises ModelError for a file that was not exported by skumatch, ConfigError for an unknown precision or when
    TensorRT is not installed, DeviceError when the GPU is not granted or the engine cannot be built, ArtefactError when
    the cache folder cannot be written.
    """

    def __init__(self, file: Path, precision: str, device: str = "auto", profile: Profile = PROFILE) -> None:
        passport = read_passport(file)
        precision = settle(passport.spec.precision, precision, file)
        self.spec, self.guard = replace(passport.spec, precision=precision), passport.guard
        self.gpu, self.most = find_gpu(device), profile.most
        self.session = start(Job(file, self.spec.digest, self.spec.size, precision, self.gpu, profile))

    @property
    def engine(self) -> str:
        """What runs it, in words."""
        return f"tensorrt {self.spec.precision} on {self.gpu.name}"

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) rows of unit length. Raises ModelError for another shape."""
        require_pixels(pixels, self.spec.size)
        rows = [np.empty((0, self.spec.dim), np.float32)]
        rows += [self.session.run([OUTPUT], {INPUT: part})[0] for part in parts(pixels, self.most)]
        return np.concatenate(rows)


def parts(pixels: Pixels, most: int) -> Iterator[Pixels]:
    """Yield ``pixels`` in order, ``most`` at a time, each part in one piece of memory."""
    for start in range(0, len(pixels), most):
        yield np.ascontiguousarray(pixels[start : start + most])


def start(job: Job) -> Any:
    """Return a session on the engine of ``job``, which is built where it was not, or where its files were damaged.

    Raises DeviceError when TensorRT cannot build or load it, ArtefactError when the cache folder cannot be written.
    """
    facts = job.facts()
    folder = artefact.cache_dir() / "tensorrt" / key_of(facts)
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return _build(job, folder, facts)
    try:
        return _load(job, folder)
    except DeviceError as error:
        raise DeviceError(error.what, f"{error.todo}; if it stays, remove {folder}") from error


def is_whole(folder: Path) -> bool:
    """Return whether ``folder`` holds what was built there, every file as it was written."""
    try:
        artefact.read_manifest(folder, MANIFEST)
    except ArtefactError:
        return False
    return True


def _build(job: Job, folder: Path, facts: dict[str, Any]) -> Any:
    """Let TensorRT build the engine and publish it as ``folder``, with a network of one node that loads it.

    Returns a session that was loaded from what was written, so that nothing is published that does not load. Where
    TensorRT runs the network in part there is no such node, and the engines are found when the file is opened.
    """
    timings = timing_folder(job.gpu)
    with artefact.disk_errors(timings):
        timings.mkdir(parents=True, exist_ok=True)
    with artefact.staged(folder.parent, folder.name, by_content=True) as stage:
        options = {
            **job.options(timings),
            "trt_dump_ep_context_model": True,
            "trt_ep_context_embed_mode": 0,
            "trt_ep_context_file_path": str(stage.folder / CONTEXT),
            "trt_engine_cache_path": ENGINES,  # beside the context; an absolute path is refused
        }
        try:
            session = _session(job, job.file, options)
        except DeviceError:
            shutil.rmtree(timings, ignore_errors=True)  # one that was cut short would fail every later build too
            raise
        whole = {end.name for end in (*session.get_inputs(), *session.get_outputs())}
        del session  # it may write until it ends
        if not any(stage.folder.rglob("*.engine")):
            raise DeviceError(f"TensorRT has no layer for any part of {job.file}", "choose another --runtime")
        drop_partial(stage.folder / CONTEXT, whole)
        loaded = _load(job, stage.folder)
        artefact.seal(stage.folder, MANIFEST, {"facts": facts})
    return loaded


def drop_partial(context: Path, whole: set[str]) -> None:
    """Remove ``context`` unless its inputs and outputs are those of the ``whole`` network.

    Of a network that TensorRT runs in part the provider writes that part alone.
    """
    if context.is_file():
        with context.open("rb") as stream:
            found = ends(stream)
        if found != whole:
            context.unlink()


def _load(job: Job, folder: Path) -> Any:
    """Return a session on what was built in ``folder``."""
    if (folder / CONTEXT).is_file():
        return _session(job, folder / CONTEXT, {"device_id": job.gpu.number})
    options = {**job.options(timing_folder(job.gpu)), "trt_engine_cache_path": str(folder / ENGINES)}
    return _session(job, job.file, options)


def _session(job: Job, file: Path, options: dict[str, object]) -> Any:
    every: dict[str, dict[str, object]] = {TENSORRT: options, CUDA: {"device_id": job.gpu.number}}
    return providers.open_session(file, TENSORRT, strict=True, behind=(CUDA,), options=every)
