"""An exported float32 network in fewer bits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from skumatch.export.onnx import in_order

if TYPE_CHECKING:
    import onnx

FLOAT, FLOAT16 = 1, 10  # ONNX's numbers for them

# What overflows or loses its small parts in 16 bits: norms, softmax, and the lengths that vectors are divided by.
IN_FP32 = (
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "Softmax",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Pow",
    "Sqrt",
    "Exp",
    "Sigmoid",
    "Div",
    "Sub",
    "Resize",
)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with weights and products in fp16; inputs, outputs, norms and softmax stay as they are."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kinds, nodes = {*DEFAULT_OP_BLOCK_LIST, *IN_FP32}, _of_lengths(model)
    found: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=sorted(kinds), node_block_list=nodes
    )
    _drop_repeated(found)
    precise = [node for node in found.graph.node if node.op_type in kinds or node.name in nodes]
    _keep_precise(found, {name for node in precise for name in node.output})
    return found


def _of_lengths(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes between the length of a vector and what is divided by it."""
    lengths, found = set[str](), []
    for node in model.graph.node:
        if node.op_type == "ReduceL2":
            lengths.update(node.output)
        elif node.op_type in ("Clip", "Expand") and node.input[0] in lengths:
            lengths.update(node.output)
            found.append(node.name)
    return found


def _keep_precise(model: onnx.ModelProto, in_fp32: set[str]) -> None:
    """Let float32 pass from the nodes that give ``in_fp32`` to others of them, and to the outputs, as it is: the
    converter rounds it to fp16 on the way, by which vectors lose their unit length."""
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}

    def unrounded(name: str) -> str:
        """Return what ``name`` was before it was rounded and cast back, else ``name``."""
        up = maker.get(name)
        down = maker.get(up.input[0]) if up is not None and _casts_to(up, FLOAT) else None
        rounded = down is not None and _casts_to(down, FLOAT16) and down.input[0] in in_fp32
        return down.input[0] if down is not None and rounded else name

    renamed = {unrounded(output.name): output.name for output in graph.output}
    renamed = {before: after for before, after in renamed.items() if before != after}
    ends = set(renamed.values())
    nodes = [node for node in graph.node if not ends.intersection(node.output)]
    for node in nodes:
        inputs = [unrounded(name) for name in node.input]
        for names, new in ((node.input, inputs), (node.output, list(node.output))):
            names[:] = [renamed.get(name, name) for name in new]
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(in_order(nodes)):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(one.i == kind for one in node.attribute if one.name == "to")


def converted(model: onnx.ModelProto, convert: Callable[[Path, Path], None]) -> onnx.ModelProto:
    """Return what ``convert`` makes of a file with ``model`` in another file; it says of itself what ``model`` said."""
    import onnx

    said = list(model.metadata_props)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, str(before))
        convert(before, after)
        found: onnx.ModelProto = onnx.load(str(after))
    del found.metadata_props[:]
    found.metadata_props.extend(said)
    return found


def _drop_repeated(model: onnx.ModelProto) -> None:
    """Remove nodes that make what was made before: the converter casts a weight once for each node that takes it."""
    made: set[str] = set()
    kept = []
    for node in model.graph.node:
        if not made.issuperset(node.output):
            kept.append(node)
            made.update(node.output)
    del model.graph.node[:]
    model.graph.node.extend(kept)
