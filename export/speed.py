"""How fast a model is here, part by part, and how much of what the processor can do that is.

Rates are the best of several rounds: what a busy machine takes away is not the engine's. Engines run in turns, so that
their ratios hold even where the rates do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.encoder import Encoder
from skumatch.machine import usable_cores
from skumatch.runtime.exports import Way, runs_here
from skumatch.runtime.providers import CPU, open_session
from skumatch.spec import Pixels

if TYPE_CHECKING:
    import onnx

    from skumatch.embed import Pipeline
    from skumatch.runtime.torch import TorchEncoder

SIDE = 2048  # of the matrices whose product is the peak
ROUNDS = 5
TURN = 3.0  # seconds of matching, about
VIEWS, SEARCHED = 100_000, 64  # views of the made-up gallery, and crops that are looked up at once


@dataclass(frozen=True)
class Rate:
    """Images/s of one ``part`` ("decode", "encode", "search", "end to end"); ``engine`` "" where it has none.

    ``fraction``, 0..1: of "encode" what it reaches of the machine's peak in the engine's precision, of "end to end" of
    the engine's rate alone; None where that is not known.
    """

    part: str
    engine: str
    batch: int
    rate: float
    fraction: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Engine:
    """One way to run a model: its ``name`` ("openvino bf16"), ``precision`` and ``encoder``."""

    name: str
    precision: str
    encoder: Encoder


Works = dict[str, Callable[[], object]]


def flops(encoder: TorchEncoder) -> float:
    """Return the floating-point operations of one picture, two per multiplication with its addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = encoder.spec.size
    pixels = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=encoder.device)
    counter, fast = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention as one operation is not counted
    try:
        with counter, torch.no_grad():
            encoder.network(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def products(device: str = "cpu") -> dict[str, list[Callable[[], object]]]:
    """Return, per precision, large matrix products of which the fastest is taken for what ``device`` can do.

    Of 2048 x 2048 matrices, by torch and ONNX Runtime, int8 by oneDNN too; of 8192 x 8192 on a GPU, by torch.
    """
    import torch

    if device.startswith("cuda"):
        return _gpu_products(device)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, SIDE, SIDE), generator=generator)
    low_a, low_b = a.bfloat16(), b.bfloat16()
    floats, whole = _product("MatMul", np.float32), _product("MatMulInteger", np.uint8)
    return {
        "fp32": [lambda: a @ b, _by_onnxruntime(floats), *_by_openvino(floats, "fp32")],
        "bf16": [lambda: low_a @ low_b, *_by_openvino(floats, "bf16")],
        "int8": [_by_onnxruntime(whole), *_by_onednn()],
    }


def _product(kind: str, dtype: type[np.generic]) -> onnx.ModelProto:
    """Return an ONNX model of the product of ``x``, of ``dtype``, with weights, float32 or int8."""
    from onnx import TensorProto, helper, numpy_helper

    whole = dtype is np.uint8
    weights = np.random.default_rng(0).integers(-127, 128, (SIDE, SIDE)).astype(np.int8 if whole else np.float32)
    pair = (TensorProto.UINT8, TensorProto.INT32) if whole else (TensorProto.FLOAT, TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info(name, one, [SIDE, SIDE]) for name, one in zip("xy", pair, strict=True)]
    node = helper.make_node(kind, ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _by_onnxruntime(model: onnx.ModelProto) -> Callable[[], object]:
    session = open_session(model.SerializeToString(), CPU, threads=usable_cores())
    given = session.get_inputs()[0]
    x = np.ones((SIDE, SIDE), np.uint8 if "uint8" in given.type else np.float32)
    return lambda: session.run(None, {"x": x})


def _by_openvino(model: onnx.ModelProto, precision: str) -> list[Callable[[], object]]:
    """Return the product by OpenVINO; none where it is not installed or the processor lacks the precision."""
    if not runs_here(Way("openvino", precision)):
        return []
    from skumatch.runtime.openvino import compiled

    request = compiled(model.SerializeToString(), precision).create_infer_request()
    x = np.ones((SIDE, SIDE), np.float32)
    return [lambda: request.infer({"x": x}, share_inputs=True, share_outputs=True)]


def _by_onednn() -> list[Callable[[], object]]:
    """Return oneDNN's product of uint8 with int8, as torch brings it; none where this torch does not."""
    import torch

    whole = torch.randint(-128, 128, (SIDE, SIDE), dtype=torch.int8)
    x = torch.randint(0, 256, (SIDE, SIDE), dtype=torch.uint8)
    scales, zeros = torch.ones(SIDE), torch.zeros(SIDE, dtype=torch.int64)
    try:
        packed = torch.ops.onednn.qlinear_prepack(whole, [SIDE, SIDE])

        def product() -> object:
            how: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
            return torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scales, zeros, *how)

        product()
    except (AttributeError, RuntimeError, NotImplementedError):
        return []
    return [product]


def _gpu_products(device: str) -> dict[str, list[Callable[[], object]]]:
    import torch

    found: dict[str, list[Callable[[], object]]] = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        a = torch.randn((4 * SIDE, 4 * SIDE), device=device, dtype=dtype)

        def product(a: torch.Tensor = a) -> None:
            a @ a
            torch.cuda.synchronize(a.device)

        found[name] = [product]
    return found


def encode_rates(
    engines: Sequence[Engine], batches: Sequence[int], device: str, operations: float, rounds: int = 15
) -> tuple[list[Rate], dict[str, float]]:
    """Return images/s of each engine per batch size, with the fraction of the peak that pictures of ``operations`` make
    of it, and the peaks, operations/s per precision that an engine has. Engines and the peaks' products run in turns.
    """
    side = 4 * SIDE if device.startswith("cuda") else SIDE
    wanted = {engine.precision for engine in engines}  # one that a processor lacks takes seconds a product
    peak = {name: some for name, some in products(device).items() if name in wanted}
    every = {f"{name} {i}": one for name, some in peak.items() for i, one in enumerate(some)}
    measured, peaks = dict[tuple[Engine, int], float](), dict[str, float]()
    for batch in batches:
        pixels = _pixels(engines[0].encoder.spec.size, batch)
        works: Works = {engine.name: partial(engine.encoder.encode, pixels) for engine in engines}
        seconds = in_turns({**every, **works}, rounds)
        for name in every:
            precision = name.partition(" ")[0]
            peaks[precision] = max(peaks.get(precision, 0.0), 2 * side**3 / seconds[name])
        measured |= {(engine, batch): batch / seconds[engine.name] for engine in engines}
    rates = []
    for (engine, batch), rate in measured.items():
        most = peaks.get(engine.precision)
        rates.append(Rate("encode", engine.name, batch, rate, None if most is None else rate * operations / most))
    return rates, peaks


def in_turns(works: Works, rounds: int, warm: bool = True) -> dict[str, float]:
    """Return the seconds of the fastest of ``rounds`` calls of each, in turns; with ``warm`` after one not counted."""
    found = dict.fromkeys(works, float("inf"))
    for work in works.values() if warm else ():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            found[name] = min(found[name], time.perf_counter() - started)
    return found


def decode_rate(paths: Sequence[Path], encoder: Encoder, pipeline: Pipeline) -> Rate:
    """Return pictures/s from files to pixels, on the pipeline's threads. Raises ImageError for an unreadable one."""
    from skumatch import images
    from skumatch.embed import cores, ordered_batches

    def read(path: Path) -> Pixels:
        return images.load_pixels(path, encoder.spec, pipeline.max_pixels)

    def all_of_them() -> None:
        for _ in ordered_batches(paths, read, pipeline.batch, pipeline.workers or cores()):
            pass

    seconds = in_turns({"decode": all_of_them}, ROUNDS)["decode"]
    return Rate("decode", "", pipeline.batch, len(paths) / seconds)


def search_rate(dim: int, views: int = VIEWS) -> Rate:
    """Return crops/s looked up exactly among ``views`` random views of ``dim`` numbers, five SKUs each."""
    from skumatch.index.exact import ExactIndex

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(views + SEARCHED, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = ExactIndex(dim)
    index.add(np.arange(views), rows[:views])
    seconds = in_turns({"search": lambda: index.search(rows[views:], 5)}, ROUNDS)["search"]
    return Rate("search", "", SEARCHED, SEARCHED / seconds)


def end_to_end(engine: Engine, alone: float, paths: Sequence[Path], pipeline: Pipeline, gallery: Path) -> Rate:
    """Return crops/s from files to SKUs in a gallery of ``paths`` that is built in ``gallery`` unless it is there.

    The fraction is that of the engine's rate over pixels, in the pipeline's batches, measured in turns with the
    matching; ``alone``: about that rate, by which the length of a turn is chosen. Raises SkumatchError for what
    matching refuses.
    """
    from skumatch.dataset import Row
    from skumatch.enrol import Supply, build_gallery
    from skumatch.gallery import open_gallery
    from skumatch.match import Matcher

    if not gallery.exists():
        rows = [Row(path, path.parent.name, "gallery") for path in paths]
        build_gallery(gallery, Supply.of(rows), engine.encoder, pipeline)
    matcher = Matcher(engine.encoder, open_gallery(gallery), pipeline)
    batches = max(2, round(TURN * alone / pipeline.batch))
    crops = [paths[i % len(paths)] for i in range(batches * pipeline.batch)]
    pixels = _pixels(engine.encoder.spec.size, pipeline.batch)

    def encode() -> None:
        for _ in range(batches):
            engine.encoder.encode(pixels)

    def match() -> None:
        for _ in matcher.stream(crops, 5):
            pass

    works: Works = {"encode": encode, "match": match}
    turns = [in_turns(works, 1, warm=not i) for i in range(ROUNDS)]
    share = statistics.median(turn["encode"] / turn["match"] for turn in turns)
    return Rate("end to end", engine.name, pipeline.batch, len(crops) / min(turn["match"] for turn in turns), share)


def _pixels(side: int, batch: int) -> Pixels:
    found: Pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), np.uint8)
    return found
