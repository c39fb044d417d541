"""An exported network that takes a picture of any size: decoding is all that is left to the program around it.

The resize in the graph is the one of ``skumatch.images.to_pixels``: the same sizes and cuts, the same antialiased
filter on uint8. That holds for ONNX Runtime on the CPU; other runtimes take the file and may resize in another way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skumatch import images
from skumatch.encoder import Encoder
from skumatch.errors import DataError, ImageError, ModelError
from skumatch.export.onnx import ASKING, in_order
from skumatch.machine import usable_cores
from skumatch.runtime.onnx import OUTPUT
from skumatch.runtime.passport import KEY, WHOLE, Passport
from skumatch.runtime.providers import CPU, open_session
from skumatch.spec import Image, Preprocess, Vectors

if TYPE_CHECKING:
    import onnx

LEAST_COSINE = 0.999  # that each vector must keep with that of the host's resize
FILTERS = {"bicubic": "cubic", "bilinear": "linear"}

# ONNX in its text form; pairs are (height, width). On uint8 ONNX Runtime rounds between the two directions, as torch
# and Pillow do; exclude_outside and -0.5 make the filter theirs. Round halves to even, as Python's does.
MIDDLE = """
    swapped = Gather(full, other_way)
    longest = Mul(swapped, most)
    over = Sub(full, longest)
    cut_twice = Max(over, zero)
    cut = Div(cut_twice, two)
    last = Sub(full, cut)
    picture = Slice(image, cut, last)
    inner = Sub(last, cut)
    scaled = Mul(inner, short)
    sides = Gather(inner, other_way)
    by_other = Div(scaled, sides)
    target = Max(by_other, short)
"""
SQUASHED = """
    picture = Identity(image)
    target = Concat <axis = 0> (side, side)
"""
INSIDE = """
    picture = Identity(image)
    exact = Cast <to = 11> (full)
    ratios = Div(exact, exact_side)
    ratio = ReduceMax(ratios)
    shrunk = Div(exact, ratio)
    rounded = Round(shrunk)
    whole = Cast <to = 7> (rounded)
    target = Max(whole, one)
"""
CUT = """
    spare = Sub(target, side)
    exact_spare = Cast <to = 1> (spare)
    half_spare = Mul(exact_spare, half)
    even = Round(half_spare)
    start = Cast <to = 7> (even)
    end = Add(start, side)
    placed = Slice(resized, start, end, rows_and_columns)
"""
FILL = """
    spare = Sub(side, target)
    before = Div(spare, two)
    after = Sub(spare, before)
    borders = Concat <axis = 0> (no_planes, before, no_planes, after)
    wide = Cast <to = 6> (resized)
    from_fill = Sub(wide, fill)
    bordered = Pad(from_fill, borders)
    with_fill = Add(bordered, fill)
    placed = Cast <to = 2> (with_fill)
"""
STEPS = {"crop": (MIDDLE, CUT), "squash": (SQUASHED, "    placed = Identity(resized)\n"), "pad": (INSIDE, FILL)}
GRAPH = """resize (uint8[height, width, 3] image) => (uint8[1, 3, {side}, {side}] images) <
    int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] most = {{{most}}},
    int64[1] short = {{{short}}}, int64[1] side = {{{side}}}, double[1] exact_side = {{{side}.0}}, float half = {{0.5}},
    int64[2] other_way = {{1, 0}}, int64[2] rows_and_columns = {{2, 3}}, int64[2] no_planes = {{0, 0}},
    int64[2] planes = {{1, 3}}, int64[4] shape = {{1, 3, {side}, {side}}}, int32[1, 3, 1, 1] fill = {{{fill}}}
> {{
    full = Shape <start = 0, end = 2> (image)
{target}
    first_planes = Transpose <perm = [2, 0, 1]> (picture)
    batch = Unsqueeze(first_planes, zero)
    sizes = Concat <axis = 0> (planes, target)
    resized = Resize <mode = "{filter}", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5> (batch, , , sizes)
{place}
    images = Reshape(placed, shape)
}}"""


def with_resize(model: onnx.ModelProto, how: Preprocess) -> onnx.ModelProto:
    """Return the exported ``model`` as a network of one picture of any size, resized as ``how`` says.

    Input ``image`` uint8 (H, W, 3): upright RGB; outputs those of ``model``, float32 (1, D). ``model``, in any
    precision, stays as it is. Raises ModelError when `skumatch export` did not write it, or it takes other pixels.
    """
    import onnx

    said = next((one.value for one in model.metadata_props if one.key == KEY), None)
    passport = Passport.read(said, "this network").of_pixels("this network")
    taken = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if taken[1:] != [3, how.size, how.size]:
        raise ModelError(f"this network takes no pictures of {how.size} pixels", "give the spec that it was made with")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _put_before(made.graph, _resize_graph(how))
    facts = {**passport.facts, "input": WHOLE}
    onnx.helper.set_model_props(made, {KEY: replace(passport, facts=facts).to_json()})
    onnx.checker.check_model(made, full_check=True)
    return made


def _resize_graph(how: Preprocess) -> onnx.GraphProto:
    """Return the graph from ``image`` to ``images``, a batch of one, with names that no network has."""
    import onnx

    target, place = STEPS[how.resize]
    text = GRAPH.format(
        side=how.size,
        short=math.floor(how.size / how.crop_pct),
        most=images.MAX_ASPECT,
        fill=", ".join(map(str, images.fill_of(how))),
        filter=FILTERS[how.interpolation],
        target=target,
        place=place,
    )
    graph = onnx.parser.parse_graph(text)
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    named: onnx.GraphProto = onnx.compose.add_prefix_graph(graph, "resize/", rename_inputs=False, rename_outputs=False)
    return named


def _put_before(graph: onnx.GraphProto, first: onnx.GraphProto) -> None:
    """Put the nodes of ``first`` before those of ``graph``, which has one input; its batch becomes one picture."""
    nodes = in_order([*first.node, *graph.node])
    del graph.node[:], graph.input[:], graph.value_info[:]  # the values were described for any batch
    graph.node.extend(nodes)
    graph.input.extend(first.input)
    graph.initializer.extend(first.initializer)
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1


class AnySizeEncoder:
    """Runs a ``file`` that ``with_resize`` made by ONNX Runtime on the CPU, one picture of any size at a time.

    Raises ModelError for another file.
    """

    def __init__(self, file: Path, threads: int = 0) -> None:
        if not file.is_file():
            raise ModelError(f"there is no {file}", "write it with `skumatch export --with-resize`")
        self.session = open_session(file, CPU, threads=threads or usable_cores())
        passport = Passport.read(self.session.get_modelmeta().custom_metadata_map.get(KEY), str(file))
        if passport.facts.get("input") != WHOLE:
            raise ModelError(f"{file} takes pixels, not whole pictures", "export it with --with-resize")
        self.spec, self.guard = passport.spec, passport.guard

    def encode(self, image: Image) -> Vectors:
        """Map one upright RGB picture, uint8 (H, W, 3), to float32 (1, D) of unit length. Raises ImageError."""
        return self._run(OUTPUT, image)

    def asking(self, image: Image) -> Vectors:
        """Map one picture to float32 (1, D) to ask a gallery with. Raises ImageError."""
        return self._run(OUTPUT if self.guard is None else ASKING, image)

    def _run(self, output: str, image: Image) -> Vectors:
        found: Vectors = self.session.run([output], {WHOLE: np.ascontiguousarray(images.image_of(image))})[0]
        return found


@dataclass(frozen=True)
class ResizeParity:
    """How vectors of whole ``pictures`` compare with those of pixels that the host resized: least and mean cosine."""

    pictures: int
    min_cosine: float
    mean_cosine: float

    def beyond(self) -> list[str]:
        """Return what is beyond the limit, in words; empty when the two agree."""
        if self.min_cosine >= LEAST_COSINE:
            return []
        return [f"least cosine with the host's resize {self.min_cosine:.6f} is below {LEAST_COSINE}"]


def compare_resize(file: Path, host: Encoder, paths: Iterable[Path]) -> ResizeParity:
    """Compare a ``file`` of ``with_resize`` with ``host``, the same network without, on the pictures in ``paths``.

    Pictures that cannot be read are left out. Raises DataError when none can, ModelError for another file.
    """
    other = AnySizeEncoder(file)
    cosines = []
    for path in paths:
        try:
            image = images.read_image(path)
        except ImageError:
            continue
        pixels = images.to_pixels(image, host.spec)
        cosines.append(float(host.encode(pixels[None])[0] @ other.encode(image)[0]))
    if not cosines:
        raise DataError("no readable picture to compare the resize on", "see `skumatch data check`")
    return ResizeParity(len(cosines), min(cosines), float(np.mean(cosines)))
