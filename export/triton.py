"""A model repository for NVIDIA's Triton Inference Server.

FOLDER/NAME/config.pbtxt     inputs, outputs, batching; under "parameters" whose vectors these are
FOLDER/NAME/1/model.onnx     the network, or model.plan where an engine is given; the next export is 2, and is served

Triton serves the version with the largest number unless config.pbtxt says otherwise, and so do the files written here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from skumatch import artefact
from skumatch.errors import ConfigError, ModelError
from skumatch.export.onnx import ASKING
from skumatch.export.tensorrt import read_document
from skumatch.runtime.metadata import read_passport
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.passport import Passport

CONFIG = "config.pbtxt"
DIGEST, SPEC = "skumatch_model", "skumatch_spec"  # parameters: the digest that galleries are tied to; the whole spec
KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True)
class Serving:
    """How Triton serves: batches of at most ``most``, put together from single requests, which wait ``delay``
    microseconds at most for a batch of one of the ``preferred`` sizes; ``instances`` of the network on ``device``
    ("auto": each GPU, else the CPU; "cpu"; "gpu")."""

    most: int = 64
    preferred: tuple[int, ...] = (8, 16, 32)
    delay: int = 1000
    device: str = "auto"
    instances: int = 1

    def __post_init__(self) -> None:
        if min(self.most, self.instances, *self.preferred) < 1 or self.delay < 0:
            raise ConfigError("batches and instances are at least 1, delays at least 0", "correct them")
        if max(self.preferred, default=0) > self.most:
            raise ConfigError(f"no batch of {max(self.preferred)} fits into {self.most}", "prefer smaller batches")
        if self.device not in KINDS:
            raise ConfigError(f"Triton has no device '{self.device}'", f"choose {', '.join(KINDS)}")


SERVING = Serving()


def write_repository(
    folder: Path, name: str, onnx_bytes: bytes, engine: Path | None = None, serving: Serving = SERVING
) -> Path:
    """Write an exported ONNX model as model ``name`` of the repository ``folder``; returns the new version's folder.

    ``engine``: what ``build_engine`` made of the same model, which Triton is to run instead; its profile limits the
    batches. Where ``name`` is there, a version is added and its config.pbtxt stays as it is but for the parameters.
    Raises ModelError for a model or engine that was not exported by skumatch, ConfigError for a bad name or for one
    that is taken by another kind of model, ArtefactError when the disk refuses.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"Triton cannot name a model '{name}'", "use letters, digits, '_', '-' and '.'")
    passport = read_passport(onnx_bytes)
    if engine is None:
        return _publish(folder / name, passport, Platform("onnxruntime_onnx", "model.onnx", onnx_bytes), serving)
    document = read_document(engine)
    facts = document["facts"]
    if facts["model"] != passport.spec.digest:
        raise ModelError(f"{engine} was built of another model", "build it again")
    passport = replace(passport, spec=replace(passport.spec, precision=facts["precision"]))
    plan = Platform("tensorrt_plan", "model.plan", engine.read_bytes(), facts["profile"]["most"])
    return _publish(folder / name, passport, plan, _within(serving, plan.most))


@dataclass(frozen=True)
class Platform:
    """What runs the network: Triton's ``name`` for it, the ``file`` that it loads with its ``data``, and the ``most``
    pictures that it takes at a time."""

    name: str
    file: str
    data: bytes
    most: int = 2**31 - 1


def config_text(name: str, passport: Passport, platform: str, serving: Serving) -> str:
    """Return the config.pbtxt of model ``name``: text of protobuf's message ``inference.ModelConfig``."""
    kind = _kind(passport.spec.precision, platform, serving.device)
    return "\n".join(
        [
            f"name: {_quoted(name)}",
            f"platform: {_quoted(platform)}",
            f"max_batch_size: {serving.most}",
            _ends(passport),
            "dynamic_batching {",
            f"  preferred_batch_size: [ {', '.join(map(str, serving.preferred))} ]",
            f"  max_queue_delay_microseconds: {serving.delay}",
            "}",
            f"instance_group [ {{ count: {serving.instances} kind: {kind} }} ]",
            "version_policy { latest { num_versions: 1 } }",
            *(_parameter(key, value) for key, value in _parameters(passport).items()),
            "",
        ]
    )


def _publish(home: Path, passport: Passport, platform: Platform, serving: Serving) -> Path:
    config = home / CONFIG
    if not home.exists():
        text = config_text(home.name, passport, platform.name, serving)
        with artefact.staged(home.parent, home.name) as stage:
            (stage.folder / CONFIG).write_bytes(text.encode())
            _fill(stage.folder / "1", platform)
        return home / "1"
    text = _renewed(config, passport, platform)
    number = str(max((int(path.name) for path in home.iterdir() if path.name.isdecimal()), default=0) + 1)
    with artefact.staged(home, number) as stage:
        _fill(stage.folder, platform)
    artefact.write_file(config, text.encode())
    return home / number


def _fill(folder: Path, platform: Platform) -> None:
    folder.mkdir(exist_ok=True)
    (folder / platform.file).write_bytes(platform.data)


def _renewed(config: Path, passport: Passport, platform: Platform) -> str:
    """Return the text of a ``config`` that was written here, as its user has changed it, with new parameters."""
    other = "choose another name or another folder"
    try:
        text = config.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.parent} was not written by `skumatch export`", other) from error
    for key, value in _parameters(passport).items():
        before, found, after = _around(text, key)
        if not found:
            raise ConfigError(f"{config.parent} was not written by `skumatch export`", other)
        text = before + _parameter(key, value) + after
    words = " ".join(text.split())
    if f"platform: {_quoted(platform.name)}" not in words or " ".join(_ends(passport).split()) not in words:
        raise ConfigError(f"{config.parent} holds a model with other inputs, outputs or platform", other)
    batch = re.search(r"max_batch_size: ?(\d+)", words)
    if batch and int(batch[1]) > platform.most:
        raise ConfigError(f"{config} has batches of {batch[1]}, the engine {platform.most}", "build it for larger ones")
    return text


def _around(text: str, key: str) -> tuple[str, str, str]:
    """Return ``text`` before, in and after the parameter ``key``; where it has none, what is in it is empty."""
    value = r'"(?:[^"\\]|\\.)*"'
    pattern = rf"parameters\s*{{\s*key:\s*{_quoted(key)}\s*value\s*{{\s*string_value:\s*{value}\s*}}\s*}}"
    found = re.search(pattern, text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _within(serving: Serving, most: int) -> Serving:
    """Return ``serving`` for an engine that takes ``most`` pictures. Raises ConfigError when the CPU is to run it."""
    if serving.device == "cpu":
        raise ConfigError("a TensorRT engine does not run on the CPU", "leave the engine out")
    fitting = tuple(size for size in serving.preferred if size <= most)
    return replace(serving, most=min(serving.most, most), preferred=fitting)


def _kind(precision: str, platform: str, device: str) -> str:
    """Return Triton's word for where the network runs; in int8 that is the CPU, which it was made int8 for."""
    if platform == "tensorrt_plan":
        return KINDS["gpu"]
    return KINDS["cpu" if device == "auto" and precision == "int8" else device]


def _ends(passport: Passport) -> str:
    """Return the inputs and outputs; the batch, which is their first dimension, goes without saying."""
    spec = passport.spec
    outputs = [OUTPUT] if passport.guard is None else [OUTPUT, ASKING]
    rows = ",\n".join(f"  {{ name: {_quoted(name)} data_type: TYPE_FP32 dims: [ {spec.dim} ] }}" for name in outputs)
    pictures = f"{{ name: {_quoted(INPUT)} data_type: TYPE_UINT8 dims: [ 3, {spec.size}, {spec.size} ] }}"
    return f"input [ {pictures} ]\noutput [\n{rows}\n]"


def _parameters(passport: Passport) -> dict[str, str]:
    return {DIGEST: passport.spec.digest, SPEC: json.dumps(passport.spec.to_json())}


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    """Return ``text`` as protobuf writes strings, which JSON's strings of ASCII are too."""
    return json.dumps(text)
