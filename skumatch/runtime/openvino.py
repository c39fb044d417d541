"""The OpenVINO engine: an exported network on Intel and other CPUs, in float32, bf16 or int8.

It knows nothing about how the file was made.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skumatch.errors import ConfigError, DeviceError, ModelError
from skumatch.machine import usable_cores
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.passport import KEY, Passport
from skumatch.spec import Pixels, Vectors, require_pixels

HINTS = {"fp32": "f32", "bf16": "bf16"}
KNOWN = (*HINTS, "int8")


class OpenVinoEncoder:
    """An Encoder run by OpenVINO on the CPU from an exported ``file``, ``.onnx`` or ``.xml``.

    ``precision`` "fp32", "bf16" where the processor has it, or "int8"; a file in another precision than float32 keeps
    its own. Raises ModelError for a file that was not exported by skumatch, DeviceError when the processor lacks the
    precision, ConfigError when OpenVINO is not installed. Threads that use one encoder take turns.
    """

    def __init__(self, file: Path, precision: str = "fp32", threads: int = 0) -> None:
        if precision not in KNOWN:
            raise ConfigError(f"OpenVINO has no precision '{precision}'", f"choose {', '.join(KNOWN)}")
        if not file.is_file():
            raise ModelError(f"there is no {file}", "write it with `skumatch export`")
        core = _openvino().Core()
        if precision in HINTS and precision not in precisions():
            raise DeviceError(f"this processor has no {precision}", f"choose {', '.join(precisions())}")
        try:
            model = core.read_model(str(file))
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read {file}", "export the model again") from error
        passport = Passport.read(_said(model), str(file)).of_pixels(str(file))
        own = passport.spec.precision
        self.spec = replace(passport.spec, precision=precision if own == "fp32" else own)
        self.guard = passport.guard
        network = _compiled(core, model, precision, threads)
        self.request = network.create_infer_request()
        self.output = network.output(OUTPUT)
        self._lock = threading.Lock()

    @property
    def engine(self) -> str:
        """What runs it, in words."""
        return f"openvino {self.spec.precision} on cpu"

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) rows of unit length. Raises ModelError for another shape."""
        require_pixels(pixels, self.spec.size)
        if not len(pixels):
            return np.empty((0, self.spec.dim), np.float32)
        with self._lock:
            found: Vectors = self.request.infer({INPUT: np.ascontiguousarray(pixels)})[self.output].copy()
        return found


def compiled(data: bytes, precision: str, threads: int = 0) -> Any:
    """Return the ONNX model ``data``, of whatever it is, as OpenVINO's ``CompiledModel`` for the CPU."""
    core = _openvino().Core()
    return _compiled(core, core.read_model(data), precision, threads)


def _compiled(core: Any, model: Any, precision: str, threads: int) -> Any:
    hints = {
        "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32"),
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(model, "CPU", hints)


def precisions() -> tuple[str, ...]:
    """Return the precisions in which a float32 file runs on this processor. Raises ConfigError without OpenVINO."""
    capable = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in capable else ("fp32",)


def _said(model: Any) -> str | None:
    """Return the passport's text: what an ONNX file has in its metadata, and an IR file among its runtime facts."""
    try:
        return str(model.get_rt_info(["framework", KEY]).astype(str))
    except RuntimeError:
        return None


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError("OpenVINO is not installed", "pip install 'skumatch[openvino]'") from error
    return openvino
