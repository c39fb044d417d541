"""An encoder as OpenVINO's own files, ``.xml`` and ``.bin``: float32, bf16 with layers that need it in float32, int8.

In bf16 the first layers of a convolution net cost most of what is lost; they are marked to stay in float32, as many of
them as it takes. int8 is made by NNCF, calibrated on crops of the user.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from skumatch.errors import ConfigError, DeviceError, ModelError
from skumatch.export.bundle import Made
from skumatch.export.int8 import (
    GOOD,
    RANGES,
    TRIED,
    Dynamic,
    Static,
    Trying,
    cosine,
    fewest,
    require,
    sensitivity,
    transformer,
    unseen,
    vectors_of,
)
from skumatch.export.onnx import to_onnx
from skumatch.runtime.exports import Way, file_name
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.openvino import OpenVinoEncoder, precisions
from skumatch.spec import Pixels, Vectors

if TYPE_CHECKING:
    import onnx

    from skumatch.runtime.torch import TorchEncoder

PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
LENGTHS = ("ReduceL2", "Divide", "Subtract")  # what scales pictures and vectors: rounded, rows lose their unit length
PRECISE = {"name": "precise", "version": "0"}  # how OpenVINO marks a layer that keeps its precision
# Least cosine with the float32 vectors at which no more layers are left in float32: training crops, on which this is
# found out, lose less than crops that the model has not seen.
ENOUGH = 0.9999


def openvino_files(
    encoder: TorchEncoder, precision: str, version: str, crops: Callable[[], Pixels], trying: Trying = unseen
) -> Made:
    """Return ``encoder`` as OpenVINO's two files in ``precision`` "fp32", "bf16" or "int8".

    ``crops`` gives uint8 (N, 3, S, S); asked for unless "fp32". ``trying`` is told of each layer tried. Raises
    ModelError when the network cannot be exported, DeviceError for bf16 on a processor without it, ConfigError when
    OpenVINO or NNCF is not installed.
    """
    if precision not in ("int8", *precisions()):
        raise DeviceError(f"this processor has no {precision}", "export in fp32 or int8")
    spec = replace(encoder.spec, precision=precision)
    name = file_name(precision, ".xml")
    with tempfile.TemporaryDirectory() as folder:
        made, facts = Path(folder) / "plain.xml", dict[str, Any]()
        model = to_onnx(encoder, spec, {"version": version})
        convert(model, made)
        if precision == "bf16":
            made, facts = _bf16(made, encoder, crops())
        elif precision == "int8":
            made, facts = _int8(model, made, crops(), trying)
        files = {name: made.read_bytes(), file_name(precision, ".bin"): made.with_suffix(".bin").read_bytes()}
    return Made(files, (Way("openvino", precision, name),), {"format": "openvino", "precision": precision, **facts})


def convert(model: onnx.ModelProto, out: Path) -> None:
    """Write ``model`` as OpenVINO's two files, ``out`` being the ``.xml``.

    Constants are folded first: among marked layers that is not done later, and what then stands between a convolution
    and its bias keeps them from running as one.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations  # `openvino.convert_model` reports its use

    network = openvino.Core().read_model(_scaled_by_products(model).SerializeToString())
    apply_moc_transformations(network, cf=True)
    openvino.save_model(network, str(out), compress_to_fp16=False)


def _scaled_by_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with pictures scaled as x * (1 / std) + (- mean / std) in place of (x - mean) / std.

    OpenVINO makes that of it anyway, but of new layers, which lack the marks of those that keep their precision.
    """
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = {one.name: one for one in made.graph.initializer}
    taking = {name: node for node in made.graph.node for name in node.input}
    for less in made.graph.node:
        over = taking.get(less.output[0]) if less.op_type == "Sub" and less.input[1] in tensors else None
        if over is None or over.op_type != "Div" or over.input[1] not in tensors:
            continue
        mean, std = (numpy_helper.to_array(tensors[node.input[1]]) for node in (less, over))
        less.op_type, over.op_type = "Mul", "Add"
        for node, values, name in ((less, 1 / std, "scale"), (over, -mean / std, "shift")):
            node.input[1] = f"pictures.{name}"  # a new one: where mean and std are alike they are one tensor
            made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.input[1]))
        break
    return made


def _bf16(plain: Path, encoder: TorchEncoder, crops: Pixels) -> tuple[Path, dict[str, Any]]:
    """Mark as few of the first layers as it takes to stay in float32."""
    if not len(crops):
        raise ModelError("no readable training crop to choose the layers of bf16 on", "see `skumatch data check`")
    before = encoder.encode(crops)
    layers = _products(plain)

    def attempt(count: int) -> tuple[float, Path]:
        made = plain.with_name(f"bf16-{count}.xml")
        _mark(plain, layers[count] if count < len(layers) else None, count > 0, made)
        return _least_cosine(before, made, crops), made

    count, reached, made = fewest(len(layers), attempt, ENOUGH)
    return made, {"left": layers[:count], "layers": len(layers), "min_cosine": reached, "crops": len(crops)}


def _layers(file: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(file).getroot().iter("layer"))


def _mark(plain: Path, first: str | None, any_left: bool, out: Path) -> None:
    """Write ``plain`` with every layer before ``first`` (None: all) marked to keep its precision."""
    tree = ElementTree.parse(plain)
    for layer in tree.getroot().iter("layer") if any_left else ():
        if layer.get("name") == first:
            break
        if layer.get("type") not in ("Parameter", "Result"):
            facts = layer.find("rt_info")
            if facts is None:
                facts = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, facts)
            ElementTree.SubElement(facts, "attribute", PRECISE)
    tree.write(out)
    out.with_suffix(".bin").unlink(missing_ok=True)
    out.with_suffix(".bin").hardlink_to(plain.with_suffix(".bin"))


def _least_cosine(before: Vectors, file: Path, crops: Pixels) -> float:
    """Return the least cosine of the vectors of ``crops``; -1 where OpenVINO cannot run the file."""
    try:
        after = OpenVinoEncoder(file, "bf16").encode(crops)
    except RuntimeError:  # a mark between layers that it runs as one
        return -1.0
    return float((before * after).sum(1).min())


def _int8(model: onnx.ModelProto, plain: Path, crops: Pixels, trying: Trying) -> tuple[Path, dict[str, Any]]:
    """Quantise but for as many of the most sensitive layers as it takes until the vectors are good."""
    require(crops)
    used, tried = crops[:RANGES], crops[-TRIED:]
    before = OpenVinoEncoder(plain).encode(tried)
    costs: dict[str, float] = {}

    layers = len(_products(plain))

    def attempt(count: int) -> tuple[float, Path]:
        if count == layers:  # NNCF would still round what flows between them
            return 1.0, plain
        if count and not costs:
            costs.update(_costs(model, crops, plain.parent, trying))
        made = plain.with_name(f"int8-{count}.xml")
        quantise(plain, list(costs)[:count], transformer(model), used, made)
        return cosine(before, OpenVinoEncoder(made).encode(tried)), made

    count, reached, made = fewest(layers, attempt, GOOD)
    facts: dict[str, Any] = {"method": "nncf", "crops": len(used), "mean_cosine": reached, "layers": layers}
    return made, {**facts, "left": list(costs)[:count], **({"sensitivity": costs} if costs else {})}


def _costs(model: onnx.ModelProto, crops: Pixels, folder: Path, trying: Trying) -> dict[str, float]:
    """Return what each layer alone costs, as ONNX Runtime quantises it: many times faster to find out than by NNCF."""
    net = Dynamic(model) if transformer(model) else Static(model, crops[:RANGES], folder)
    return sensitivity(net, vectors_of(net.plain, crops[-TRIED:]), crops[-TRIED:], trying(len(net.layers)))


def _products(file: Path) -> list[str]:
    return [layer.get("name", "") for layer in _layers(file) if layer.get("type") in PRODUCTS]


def quantise(plain: Path, left: Sequence[str], is_transformer: bool, crops: Pixels, out: Path) -> None:
    """Write ``plain`` in int8 but for the layers that came from the ONNX nodes ``left``."""
    import openvino

    nncf = _nncf()
    model = openvino.Core().read_model(str(plain))
    # OpenVINO names a product after the ONNX node that it came from, or puts what it left out behind that name
    kept = [name for name in _products(plain) if name.partition("/")[0] in left] + _beside(model)
    with contextlib.redirect_stdout(io.StringIO()):
        found = nncf.quantize(
            model,
            nncf.Dataset([crops[i : i + 1] for i in range(len(crops))], lambda pixels: {INPUT: pixels}),
            subset_size=len(crops),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            advanced_parameters=_without_overflow(nncf) if is_transformer else None,
            ignored_scope=nncf.IgnoredScope(names=kept, types=list(LENGTHS), validate=False),
        )
    openvino.save_model(found, str(out), compress_to_fp16=False)


def _without_overflow(nncf: Any) -> Any:
    """Return the setting under which weights take half of their range: processors without VNNI add pairs of products up
    in 16 bits, and the sums of a transformer's reach beyond them."""
    from nncf.quantization.advanced_parameters import OverflowFix

    return nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)


def _beside(model: Any) -> list[str]:
    """Return the names of what is not on the way to the embeddings: the rows that a guarded encoder asks with."""
    waiting, needed = [model.output(OUTPUT).get_node()], set[str]()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in needed:
            needed.add(node.get_friendly_name())
            waiting += [value.get_node() for value in node.input_values()]
    every = [node for node in model.get_ops() if node.get_type_name() not in ("Constant", "Parameter", "Result")]
    return [node.get_friendly_name() for node in every if node.get_friendly_name() not in needed]


def _nncf() -> Any:
    """Import NNCF without its telemetry, which reports to its vendor unless somebody said no. Raises ConfigError."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA, on stderr
    try:
        import nncf
    except ImportError as error:
        raise ConfigError("NNCF is not installed", "pip install 'skumatch[openvino]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf
