"""The exports in a bundle, the ways to run a model on this machine, and which of them may answer by default.

BUNDLE/model.onnx, model.int8.onnx, model.bf16.xml + .bin, ...    the networks
BUNDLE/exports.json    "files": what made each file; "ways": per way to run the model how its answers compare
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch.errors import DeviceError, ModelError

if TYPE_CHECKING:
    from skumatch.encoder import Encoder
    from skumatch.model import Bundle

EXPORTS = "exports.json"
RUNTIMES = ("auto", "torch", "onnx", "openvino", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Way:
    """A way to run a model: the ``runtime``, its ``precision`` and the ``file`` in the bundle, "" for its weights."""

    runtime: str
    precision: str
    file: str = ""

    @property
    def name(self) -> str:
        """Its name in ``exports.json``: "openvino bf16"."""
        return f"{self.runtime} {self.precision}"

    def open(self, folder: Path, device: str = "auto") -> Encoder:
        """Open the engine. Raises ModelError, DeviceError or ConfigError."""
        if self.runtime == "torch":
            from skumatch.encoder import open_encoder

            return open_encoder(folder, device, self.precision)
        if self.runtime == "openvino":
            from skumatch.runtime.openvino import OpenVinoEncoder

            if device not in ("auto", "cpu"):
                raise DeviceError(f"OpenVINO runs on the CPU, not on {device}", "choose --runtime onnx or torch")
            return OpenVinoEncoder(folder / self.file, self.precision)
        if self.runtime == "tensorrt":
            from skumatch.runtime.tensorrt import TensorRtEncoder

            return TensorRtEncoder(folder / self.file, self.precision, device)
        from skumatch.runtime.onnx import OnnxEncoder

        return OnnxEncoder(folder / self.file, device)


def file_name(precision: str, suffix: str = ".onnx") -> str:
    """Return the name of a bundle's file of ``precision``: ``model.onnx``, ``model.int8.xml``."""
    return f"model{'' if precision == 'fp32' else f'.{precision}'}{suffix}"


def runs_here(way: Way) -> bool:
    """Return whether what ``way`` needs is installed here and the processor has its precision."""
    if way.runtime == "openvino":
        if importlib.util.find_spec("openvino") is None:
            return False
        from skumatch.runtime.openvino import precisions

        return way.precision not in ("fp32", "bf16") or way.precision in precisions()
    if way.runtime == "tensorrt":
        return importlib.util.find_spec("tensorrt") is not None
    return True


def listed(bundle: Bundle) -> dict[str, Any]:
    """Return what ``exports.json`` says: "files" and "ways", both empty without exports."""
    found: dict[str, Any] = json.loads(bundle.file(EXPORTS) or b'{"files": {}, "ways": {}}')
    return found


def entry_of(way: Way, parity: dict[str, Any]) -> dict[str, Any]:
    """Return what ``exports.json`` keeps of a way."""
    return {**asdict(way), "parity": parity}


def ways(bundle: Bundle) -> Iterator[tuple[Way, dict[str, Any]]]:
    """Yield the ways listed in ``bundle`` that this machine has, each with how its answers compare."""
    for entry in listed(bundle)["ways"].values():
        way = Way(entry["runtime"], entry["precision"], entry["file"])
        if runs_here(way):
            yield way, entry["parity"]


def candidates(bundle: Bundle, runtime: str, precision: str | None) -> list[Way]:
    """Return the ways of which the fastest may answer: those of ``runtime`` ("auto": all) and, unless None,
    ``precision``, whose answers were found within the limits; "auto" has torch in float32 too.

    An export beyond its limits is taken where a ``runtime`` was asked for that has no other. Raises ModelError where
    nothing fits.
    """
    fitting = [
        (way, parity)
        for way, parity in ways(bundle)
        if runtime in ("auto", way.runtime) and precision in (None, way.precision)
    ]
    good = [way for way, parity in fitting if not parity["beyond"]]
    if runtime == "auto":
        return good if precision not in (None, "fp32") and good else [Way("torch", precision or "fp32"), *good]
    if not fitting:
        said = f" in {precision}" if precision else ""
        raise ModelError(
            f"{bundle.folder} has no export that {runtime} can run{said}",
            f"write one with `skumatch export --format {runtime}`",
        )
    return good or [min((way for way, _ in fitting), key=lambda way: PRECISIONS.index(way.precision))]
