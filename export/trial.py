"""Exports that are made to be measured and thrown away: every product in the precision, no answers compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skumatch.export.int8 import Dynamic, Static, transformer
from skumatch.export.onnx import to_onnx
from skumatch.export.precision import to_fp16
from skumatch.runtime.exports import Way, file_name, runs_here
from skumatch.spec import Pixels

if TYPE_CHECKING:
    import onnx

    from skumatch.runtime.torch import TorchEncoder

ON_CPU = ("torch fp32", "torch bf16", "onnx fp32", "onnx int8", "openvino fp32", "openvino bf16", "openvino int8")
ON_GPU = ("torch fp32", "torch bf16", "onnx fp32", "onnx fp16", "tensorrt fp16")


def trials(encoder: TorchEncoder, device: str, runtimes: Sequence[str], crops: Pixels, folder: Path) -> Iterator[Way]:
    """Yield the ways to run ``encoder``, which is on the CPU, on ``device`` by ``runtimes`` (none: all that there are).

    Their files are written into ``folder``; int8 takes its ranges from ``crops``, uint8 (N, 3, S, S), one at least.
    Raises ModelError when the network cannot be exported.
    """
    wanted = [Way(*name.split(" ")) for name in (ON_GPU if device.startswith("cuda") else ON_CPU)]
    wanted = [way for way in wanted if not runtimes or way.runtime in runtimes]
    model: onnx.ModelProto | None = None
    for way in (way for way in wanted if runs_here(way)):
        if way.runtime == "torch":
            yield way
            continue
        if way.precision == "int8" and way.runtime == "openvino" and importlib.util.find_spec("nncf") is None:
            continue
        model = model or to_onnx(encoder, encoder.spec, {})
        yield replace(way, file=_file(way, model, crops, folder))


def _file(way: Way, model: onnx.ModelProto, crops: Pixels, folder: Path) -> str:
    """Write what ``way`` runs, and return the file's name."""
    plain = way.precision in ("fp32", "bf16")
    name = file_name("fp32" if plain else way.precision, ".xml" if _by_nncf(way) else ".onnx")
    out = folder / name
    if out.exists():
        return name
    if _by_nncf(way):
        from skumatch.export.openvino import convert, quantise

        convert(model, folder / "plain.xml")
        quantise(folder / "plain.xml", [], transformer(model), crops, out)
        return name
    made = model
    if way.precision == "fp16":
        made = to_fp16(model)
    elif way.precision == "int8":
        net = Dynamic(model) if transformer(model) else Static(model, crops, folder)
        made = net.only(net.layers)
    out.write_bytes(made.SerializeToString())
    return name


def _by_nncf(way: Way) -> bool:
    return way.runtime == "openvino" and way.precision == "int8"
