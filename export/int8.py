"""An exported float32 network with int8 products, where that does not change its answers.

A transformer's products take activations that are made uint8 on the way (dynamic: nothing to calibrate). A convolution
net's activations get fixed ranges, from crops of the user (static). Layers that hurt stay in float32.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from skumatch.embed import Progress, no_progress
from skumatch.errors import ModelError
from skumatch.export.precision import converted
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.providers import CPU, open_session
from skumatch.spec import Pixels, Vectors

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")
Trying = Callable[[int], Progress]  # told how many layers there are to try, and then of each
MOST_CONVOLUTIONS = 4  # of a transformer: the one that cuts patches
PREPARED = "onnx.quant.pre_process"
BATCH = 16
RANGES = 128  # crops that the ranges are taken from
TRIED = 64  # crops that a layer is tried on, and that the mean of its output is taken from
PERCENTILE = 99.99  # of an activation's values; the few beyond are cut, so that the others get finer steps
GOOD = 0.9995  # mean cosine with the float32 vectors at which no more layers are left in float32


@dataclass(frozen=True)
class Quantised:
    """An int8 ``model``, and JSON-ready ``facts``: how it was made, the layers that stayed in float32 ("left") and what
    each layer alone costs ("sensitivity": 1 - mean cosine, the most sensitive first; absent where all layers fit)."""

    model: onnx.ModelProto
    facts: dict[str, Any]


def unseen(layers: int) -> Progress:
    """Report the trying of ``layers`` to nobody."""
    return no_progress


def to_int8(model: onnx.ModelProto, crops: Callable[[], Pixels], trying: Trying = unseen) -> Quantised:
    """Return ``model`` in int8: dynamic where it is a transformer, else static, calibrated on ``crops``.

    Where the vectors of crops differ too much, each layer is tried alone, and as many of the most sensitive ones as it
    takes stay in float32. ``crops`` gives uint8 (N, 3, S, S), in an order without meaning: for a convolution net at
    least 16; a transformer is not tried without any. ``trying`` is told of each layer tried. Raises ModelError for too
    few.
    """
    shown = crops()
    with tempfile.TemporaryDirectory() as folder:
        if transformer(model):
            return chosen(Dynamic(model), shown[-TRIED:], {"method": "dynamic"}, trying)
        require(shown)
        used = shown[:RANGES]
        net = Static(model, used, Path(folder))
        return chosen(net, shown[-TRIED:], {"method": "static", "crops": len(used)}, trying)


def transformer(model: onnx.ModelProto) -> bool:
    """Return whether ``model`` is a transformer rather than a convolution net."""
    return len([node for node in model.graph.node if node.op_type == "Conv"]) <= MOST_CONVOLUTIONS


def require(crops: Pixels) -> None:
    """Raise ModelError where ``crops`` are too few to take ranges from."""
    if len(crops) < BATCH:
        raise ModelError(
            f"{len(crops)} training crops are too few to calibrate int8 on", f"give at least {BATCH}, or use fp16"
        )


class Net(Protocol):
    """A float32 network, ``plain``, that can be quantised in part; ``layers``: its products with weights, by name."""

    plain: onnx.ModelProto
    layers: list[str]

    def only(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8."""
        ...

    def best(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8, as good as it gets: slower to make than ``only``."""
        ...


def chosen(net: Net, crops: Pixels, facts: dict[str, Any], trying: Trying) -> Quantised:
    """Return ``net`` in int8 but for as many of its most sensitive layers as it takes until the vectors are good."""
    if not len(crops):
        return Quantised(_final(net.best(net.layers)), {**facts, "left": []})
    before = vectors_of(net.plain, crops)
    costs: dict[str, float] = {}

    def attempt(count: int) -> tuple[float, onnx.ModelProto]:
        if count and not costs:
            costs.update(sensitivity(net, before, crops, trying(len(net.layers))))
        found = net.best([layer for layer in net.layers if layer not in list(costs)[:count]])
        return cosine(before, vectors_of(found, crops)), found

    count, reached, found = fewest(len(net.layers), attempt, GOOD)
    said = {"mean_cosine": reached, "layers": len(net.layers), "left": list(costs)[:count]}
    return Quantised(_final(found), {**facts, **said, **({"sensitivity": costs} if costs else {})})


def fewest(layers: int, attempt: Callable[[int], tuple[float, T]], good: float) -> tuple[int, float, T]:
    """Return how many of ``layers`` have to stay in float32, with what ``attempt`` gives for that many: how good it is,
    which grows with them, and the result.

    None are tried first, then steps of 1, 2, 3, 4, 6, 9, 13, ... by bisection: each attempt takes seconds to minutes.
    """
    reached, found = attempt(0)
    if reached >= good or not layers:
        return 0, reached, found
    steps = [*growing(layers)]
    low, high, best = 0, len(steps) - 1, (layers, *attempt(layers))  # steps[low] is too few, best is the best so far
    while high - low > 1:
        middle = (low + high) // 2
        reached, found = attempt(steps[middle])
        if reached >= good:
            high, best = middle, (steps[middle], reached, found)
        else:
            low = middle
    return best


def sensitivity(net: Net, before: Vectors, crops: Pixels, progress: Progress) -> dict[str, float]:
    """Return what each layer of ``net`` alone costs: 1 - mean cosine with ``before``, the greatest first."""
    costs = {}
    for layer in net.layers:
        costs[layer] = 1 - cosine(before, vectors_of(net.only([layer]), crops))
        progress(1)
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def growing(layers: int) -> Iterator[int]:
    """Yield how many of ``layers`` to leave in float32, in steps that grow: 0, 1, 2, 3, 4, 6, 9, 13, 19, ..."""
    count = 0
    while count < layers:
        yield count
        count += max(1, count // 2)
    yield layers


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with what onnxruntime looks for before it says on stderr that a model was not prepared."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.metadata_props.add(key=PREPARED, value="onnxruntime.quant")
    return made


def _final(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what was noted for onnxruntime alone."""
    kept = [one for one in model.metadata_props if one.key != PREPARED]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


class Dynamic:
    """A transformer: int8 weights, per channel; convolutions and products of two activations stay in float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.plain = _prepared(model)
        self.layers = _products(model, ("Gemm", "MatMul"))

    def only(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        def quantise(before: Path, after: Path) -> None:
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["Gemm", "MatMul"],
                nodes_to_quantize=list(layers),
                per_channel=True,
                reduce_range=True,  # processors without VNNI add pairs of products up in 16 bits
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )

        return converted(self.plain, quantise) if layers else self.plain

    def best(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8."""
        return self.only(layers)


class Static:
    """A convolution net: the ranges of its activations are taken from ``crops``.

    Rounding weights shifts the mean of what a convolution gives; the shift is taken out of its bias (empirical bias
    correction, Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction").
    """

    def __init__(self, model: onnx.ModelProto, crops: Pixels, folder: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        def prepare(before: Path, after: Path) -> None:
            quant_pre_process(before, after, skip_symbolic_shape=True)

        self.plain = _prepared(converted(model, prepare))
        self.batch = min(BATCH, len(crops))
        self.crops = crops[: len(crops) // self.batch * self.batch]  # percentiles are taken over batches of one size
        self.ranges = folder / "ranges.json"  # taken once
        self.layers = _products(self.plain, ("Conv", "Gemm", "MatMul"))

    def only(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        def quantise(before: Path, after: Path) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                quantize_static(
                    before,
                    after,
                    _reader(self.crops, self.batch),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                    nodes_to_quantize=list(layers),
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8,
                    calibrate_method=CalibrationMethod.Percentile,
                    calibration_cache_path=self.ranges,
                    extra_options={"CalibPercentile": PERCENTILE},
                )

        return converted(self.plain, quantise) if layers else self.plain

    def best(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with ``layers`` in int8 and their biases corrected."""
        return _corrected(self.only(layers), self.plain, self.crops[:TRIED]) if layers else self.plain


def _products(model: onnx.ModelProto, kinds: Sequence[str]) -> list[str]:
    """Return the names of the nodes that multiply with weights on the way to the embeddings, in order."""
    weights = {one.name for one in model.graph.initializer}
    needed = {OUTPUT}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in kinds and node.input[1] in weights and needed.intersection(node.output)
    ]


def _corrected(model: onnx.ModelProto, plain: onnx.ModelProto, crops: Pixels) -> onnx.ModelProto:
    """Give ``model`` biases with which each convolution's output has the mean that it has in ``plain``, per channel."""
    from onnx import numpy_helper

    outputs = [node.output[0] for node in plain.graph.node if node.op_type == "Conv"]
    wanted = dict(zip(outputs, _means(plain, outputs, crops), strict=True))
    tensors = {one.name: one for one in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:  # in order: what comes later sees what was put right before
        scaled = made_by.get(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if scaled is None or scaled.op_type != "DequantizeLinear":
            continue
        shift = wanted[node.output[0]] - _means(model, node.output[:1], crops)[0]
        bias, scale = (tensors[name] for name in scaled.input[:2])
        steps = np.round(shift / numpy_helper.to_array(scale))
        moved = numpy_helper.to_array(bias) + steps.astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.int32), bias.name))
    return model


def _means(model: onnx.ModelProto, outputs: Sequence[str], crops: Pixels) -> list[NDArray[np.float64]]:
    """Return the mean per channel of each of ``outputs``, tensors (N, C, H, W) inside ``model``."""
    import onnx

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]  # so that nothing behind them runs
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = open_session(probed.SerializeToString(), CPU)
    sums: list[NDArray[np.float64]] = [np.zeros(1)] * len(outputs)
    for at in range(0, len(crops), BATCH):
        found = session.run(None, {INPUT: crops[at : at + BATCH]})
        sums = [total + one.mean((2, 3), np.float64).sum(0) for total, one in zip(sums, found, strict=True)]
    return [total / len(crops) for total in sums]


def _reader(crops: Pixels, batch: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the crops out in batches."""

        def __init__(self) -> None:
            self.starts = iter(range(0, len(crops), batch))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            """Return the next batch, None at the end."""
            start = next(self.starts, None)
            return None if start is None else {INPUT: crops[start : start + batch]}

    return Reader()


def vectors_of(model: onnx.ModelProto, crops: Pixels) -> Vectors:
    """Return what ``model`` gives of ``crops``, run by ONNX Runtime on the CPU."""
    session = open_session(model.SerializeToString(), CPU)
    blocks = [session.run([OUTPUT], {INPUT: crops[at : at + BATCH]})[0] for at in range(0, len(crops), BATCH)]
    found: Vectors = np.concatenate(blocks)
    return found


def cosine(before: Vectors, after: Vectors) -> float:
    """Return the mean cosine of rows of unit length."""
    return float((before * after).sum(1).mean())
