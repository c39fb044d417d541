"""What `skumatch export` can write: per format the precisions, and how an encoder becomes files in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from skumatch.errors import ConfigError
from skumatch.export.bundle import Made
from skumatch.export.int8 import Trying, to_int8, unseen
from skumatch.runtime.exports import Way, file_name, runs_here
from skumatch.spec import Pixels

if TYPE_CHECKING:
    import onnx

    from skumatch.runtime.torch import TorchEncoder

FORMATS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16"),
    "triton": ("fp32", "fp16", "int8"),
}
Crops = Callable[[], Pixels]  # the user's own crops, read when a format calibrates on them


def check(format: str, precision: str) -> None:
    """Raise ConfigError unless ``format`` is known and has ``precision``."""
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'", f"choose {', '.join(FORMATS)}")
    if precision not in FORMATS[format]:
        raise ConfigError(f"{format} has no precision '{precision}'", f"choose {', '.join(FORMATS[format])}")


def make(
    encoder: TorchEncoder,
    format: str,
    precision: str,
    version: str,
    crops: Crops,
    trying: Trying = unseen,
) -> Made:
    """Return ``encoder``, which is on the CPU, in ``format`` and ``precision``; its own way to run it comes first.

    ``version``: the bundle's, for the file's provenance. ``trying`` is told of each layer tried for int8. Raises
    ModelError when the network cannot be exported, and ConfigError where a library that the format needs is not
    installed.
    """
    check(format, precision)
    if format == "openvino":
        from skumatch.export.openvino import openvino_files

        return openvino_files(encoder, precision, version, crops, trying)
    model, facts = onnx_in(encoder, precision, version, crops, trying)
    name = file_name(precision)
    data = {name: bytes(model.SerializeToString())}
    if format == "tensorrt":
        return Made(data, (Way("tensorrt", precision, name),), facts)
    return Made(data, (Way("onnx", precision, name), *_others(precision, name)), facts)


def _others(precision: str, name: str) -> list[Way]:
    """Return what else may run a float32 file, or the weights that it came from, where the machine has it."""
    if precision != "fp32":
        return []  # OpenVINO takes its own files in fewer bits
    every = (Way("openvino", "fp32", name), Way("openvino", "bf16", name), Way("torch", "bf16"))
    return [way for way in every if runs_here(way)]


def onnx_in(
    encoder: TorchEncoder, precision: str, version: str, crops: Crops, trying: Trying = unseen
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Return the ONNX model of ``encoder`` in ``precision`` and facts about how it came to be."""
    import onnx

    from skumatch.export.onnx import to_onnx
    from skumatch.export.precision import to_fp16

    spec = replace(encoder.spec, precision=precision)
    model = to_onnx(encoder, spec, {"version": version})
    facts: dict[str, object] = {"format": "onnx", "precision": precision}
    if precision == "fp16":
        model = to_fp16(model)
    elif precision == "int8":
        found = to_int8(model, crops, trying)
        model, facts = found.model, {**facts, **found.facts}
    onnx.checker.check_model(model, full_check=True)
    return model, facts
