"""From a model to one ONNX file: uint8 pictures in, unit vectors out, and what it is in the file's metadata.

Scaling and normalising are inside the graph, so that a program that embeds it cannot get them wrong.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skumatch.errors import ModelError
from skumatch.runtime.guard import Guard
from skumatch.runtime.onnx import INPUT, OUTPUT
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Spec

if TYPE_CHECKING:
    import onnx

OPSET = 18
ASKING = "queries"  # the second output of a guarded encoder: rows to ask a gallery with
LARGEST = 2_000_000_000  # bytes of weights that one ONNX file can hold


class Answering(nn.Module):
    """What is exported: ``network`` and, of a guarded encoder, what turns its rows into rows to ask with."""

    def __init__(self, network: nn.Module, guard: Guard | None) -> None:
        super().__init__()
        self.network = network
        self.guard = guard

    def forward(self, images: Tensor) -> Any:
        """Map uint8 (N, 3, S, S) to float32 (N, D), or to two of them."""
        rows = self.network(images)
        return rows if self.guard is None else (rows, self.guard.asked(rows))


def to_onnx(encoder: TorchEncoder, spec: Spec, facts: dict[str, Any]) -> onnx.ModelProto:
    """Return ``encoder``, which is on the CPU, as an ONNX model in float32 with dynamic batch, checked by onnx.

    Input ``images`` uint8 (N, 3, S, S); output ``embeddings`` float32 (N, D) of unit length and, where the encoder is
    guarded, ``queries`` float32 (N, D): the rows that crops ask with. ``facts``: JSON-ready provenance. Raises
    ModelError when the network cannot be exported.
    """
    import onnx

    side = encoder.spec.size
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    names = [OUTPUT] if encoder.guard is None else [OUTPUT, ASKING]
    weights = sum(p.numel() * p.element_size() for p in encoder.network.parameters())
    if weights > LARGEST:
        raise ModelError(f"{weights / 1e9:.1f} GB of weights do not fit into one ONNX file", "use the torch runtime")
    model = exported(Answering(encoder.network, encoder.guard).eval(), example, INPUT, names)
    _measure_after_cast(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: Passport(spec, encoder.guard, facts).to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def exported(network: nn.Module, example: Tensor, given: str, names: list[str]) -> onnx.ModelProto:
    """Return ``network`` as an ONNX model with an input ``given`` like ``example``, any batch, and outputs ``names``.

    Raises ModelError when it cannot be exported.
    """
    loud = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[given],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"this network cannot be exported to ONNX ({_first_line(error)})", "use the torch runtime"
        ) from error
    finally:
        logging.getLogger("torch.onnx").setLevel(loud)
    if program is None:
        raise ModelError("torch exported nothing", "use the torch runtime")
    model = program.model_proto
    _describe_once(model.graph)
    return model


def _describe_once(graph: onnx.GraphProto) -> None:
    """Remove the shapes noted beside weights, which say their own: converters that turn a weight forget them."""
    weights = {one.name for one in graph.initializer}
    kept = [one for one in graph.value_info if one.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _measure_after_cast(model: onnx.ModelProto) -> None:
    """Take the shape of the pictures from their float32 copy: TensorRT lets a cast alone read a uint8 input."""
    nodes = list(model.graph.node)
    casts = [node for node in nodes if node.op_type == "Cast" and list(node.input) == [INPUT]]
    if not casts:
        return
    first = casts[0]
    for node in nodes:
        if node.op_type == "Shape" and list(node.input) == [INPUT]:
            node.input[0] = first.output[0]
    nodes.remove(first)
    del model.graph.node[:]
    model.graph.node.extend([first, *nodes])


def in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return ``nodes`` with each after those that it takes from, as ONNX wants it; converters append to the end."""
    maker = {name: place for place, node in enumerate(nodes) for name in node.output}
    needs = {place: [maker[name] for name in node.input if name in maker] for place, node in enumerate(nodes)}
    return [nodes[place] for place in TopologicalSorter(needs).static_order()]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
