"""Networks of whole pictures: the pixels and vectors of the host's resize at every size, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image as PILImage
from torch import nn

from skumatch import images
from skumatch.encoder import asking
from skumatch.errors import DataError, ImageError, ModelError
from skumatch.export.onnx import to_onnx
from skumatch.export.precision import to_fp16
from skumatch.export.resize import AnySizeEncoder, ResizeParity, compare_resize, with_resize
from skumatch.runtime.guard import Guard
from skumatch.runtime.onnx import OnnxEncoder
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.served import Served
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Image, Interpolation, Pixels, ResizeMode, Spec
from skumatch.towers.build import ModelSource, build

SIDE = 56
MEAN = (0.48, 0.1, 0.9)
CONV = ModelSource("timm:test_efficientnet", random_init=True, size=64)
TINY = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
WAYS: list[tuple[ResizeMode, float]] = [("crop", 1.0), ("crop", 0.875), ("crop", 0.9), ("squash", 1.0), ("pad", 1.0)]
SIZES = [
    *[(20, 30), (30, 20), (SIDE, SIDE), (SIDE, SIDE + 1), (SIDE + 1, SIDE), (64, 64), (62, 62), (62, 63)],
    *[(1, 1), (1, 7), (9, 1), (1, 448), (3, 448), (5, 448), (448, 15), (7, 112)],  # halves where "pad" rounds
    *[(33, 1056), (33, 1057), (33, 1058), (1059, 33), (2000, 60), (5000, 3), (1, 4000)],  # beyond 32 to 1
    *[tuple(size) for size in np.random.default_rng(0).integers(1, 500, (60, 2)).tolist()],
]


def picture(height: int, width: int) -> Image:
    """Return coarse patches with noise: hard edges and fine grain."""
    rng = np.random.default_rng(height * 10_000 + width)
    coarse = rng.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3)).repeat(7, 0).repeat(7, 1)[:height, :width]
    noisy: Image = (coarse + rng.integers(-40, 41, coarse.shape)).clip(0, 255).astype(np.uint8)
    return noisy


def spec(resize: ResizeMode, crop_pct: float, interpolation: Interpolation) -> Spec:
    std = (0.2, 0.2, 0.2)
    return Spec(SIDE, MEAN, std, resize, crop_pct, interpolation, "plain", 3 * SIDE * SIDE, "features", "0" * 64)


def passing(how: Spec) -> onnx.ModelProto:
    """Return a network whose vectors are the pixels that it gets."""
    model = parse_model(f"""<ir_version: 10, opset_import: ["" : 18]>
        plain (uint8[N, 3, {SIDE}, {SIDE}] images) => (float[N, {how.dim}] embeddings) {{
            numbers = Cast <to = 1> (images)
            embeddings = Flatten (numbers)
        }}""")
    onnx.helper.set_model_props(model, {KEY: Passport(how, None, {}).to_json()})
    return model


def written(model: onnx.ModelProto, file: Path) -> Path:
    file.write_bytes(model.SerializeToString())
    return file


def both(model: onnx.ModelProto, how: Spec, folder: Path) -> tuple[OnnxEncoder, AnySizeEncoder]:
    """Return the network as it is, and with the resize inside."""
    plain = OnnxEncoder(written(model, folder / "plain.onnx"), threads=1)
    return plain, AnySizeEncoder(written(with_resize(model, how), folder / "resize.onnx"), threads=1)


def guarded() -> TorchEncoder:
    torch.manual_seed(0)
    tower = build(CONV)
    centres = nn.functional.normalize(torch.randn(4, tower.dim), dim=1)
    head = nn.Linear(tower.dim, 16, bias=False)
    return TorchEncoder(tower, Served("head", head, guard=Guard(centres, 0.1, 0.2)), "cpu")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize", "crop_pct"), WAYS)
def test_pixels_are_those_of_the_host(
    resize: ResizeMode, crop_pct: float, interpolation: Interpolation, tmp_path: Path
) -> None:
    how = spec(resize, crop_pct, interpolation)
    inside = AnySizeEncoder(written(with_resize(passing(how), how), tmp_path / "resize.onnx"), threads=1)
    for height, width in SIZES:
        image = picture(height, width)
        found = inside.encode(image).reshape(3, SIDE, SIDE)
        apart = np.abs(found - images.to_pixels(image, how).astype(np.float32))
        assert apart.max() <= 2 and apart.mean() < 0.2, f"{height} x {width}: {apart.max()}, {apart.mean()}"


def test_a_transposed_array_is_taken_and_an_empty_one_refused(tmp_path: Path) -> None:
    how = spec("crop", 1.0, "bicubic")
    inside = AnySizeEncoder(written(with_resize(passing(how), how), tmp_path / "resize.onnx"), threads=1)
    turned = picture(80, 120).swapaxes(0, 1)
    assert np.array_equal(inside.encode(turned), inside.encode(np.ascontiguousarray(turned)))
    with pytest.raises(ImageError, match="is not an image"):
        inside.encode(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.slow
def test_every_precision_keeps_its_vectors(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(TINY), device="cpu")
    whole = to_onnx(encoder, encoder.spec, {})
    small = tmp_path / "int8.onnx"
    quantize_dynamic(written(whole, tmp_path / "whole.onnx"), small, ["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    eight = onnx.load(str(small))
    del eight.metadata_props[:]  # the quantiser adds a mark of its own
    eight.metadata_props.extend(whole.metadata_props)
    for model in (whole, to_fp16(whole), eight):
        before = model.SerializeToString(deterministic=True)
        plain, inside = both(model, encoder.spec, tmp_path)
        assert model.SerializeToString(deterministic=True) == before
        for size in ((120, 90), (33, 64), (96, 96)):
            image = picture(*size)
            found = inside.encode(image)
            assert found.shape == (1, encoder.spec.dim) and found.dtype == np.float32
            host: Pixels = images.to_pixels(image, encoder.spec)[None]
            assert (found * plain.encode(host)).sum() > 0.999


@pytest.mark.slow
def test_a_guarded_network_gives_the_rows_to_ask_with(tmp_path: Path) -> None:
    encoder = guarded()
    plain, inside = both(to_onnx(encoder, encoder.spec, {}), encoder.spec, tmp_path)
    image = picture(70, 200)
    rows = plain.encode(images.to_pixels(image, encoder.spec)[None])
    assert np.abs(inside.encode(image) - rows).max() < 0.01
    assert np.abs(inside.asking(image) - asking(encoder, rows)).max() < 0.02
    assert np.abs(inside.asking(image) - rows).max() > 0.04
    unguarded = TorchEncoder(build(CONV), device="cpu")
    _, alone = both(to_onnx(unguarded, unguarded.spec, {}), unguarded.spec, tmp_path)
    assert np.array_equal(alone.asking(image), alone.encode(image))


def test_the_file_says_what_it_is_and_takes_nothing_else(tmp_path: Path) -> None:
    encoder = guarded()
    model = to_onnx(encoder, encoder.spec, {"version": "v000007"})
    _, inside = both(model, encoder.spec, tmp_path)
    assert inside.spec == encoder.spec
    made = onnx.load(str(tmp_path / "resize.onnx"))
    assert [one.key for one in made.metadata_props] == [KEY]
    passport = Passport.read(made.metadata_props[0].value, "")
    assert passport.facts == {"version": "v000007", "input": "image"}
    assert passport.guard is not None and torch.equal(passport.guard.centres, encoder.guard.centres)  # type: ignore[union-attr]
    shapes = {one.name: shape_of(one) for one in (*made.graph.input, *made.graph.output)}
    dim = encoder.spec.dim
    assert shapes == {"image": ["height", "width", 3], "embeddings": [1, dim], "queries": [1, dim]}
    with pytest.raises(ModelError, match=r"resize\.onnx takes whole pictures, not pixels"):
        OnnxEncoder(tmp_path / "resize.onnx")
    with pytest.raises(ModelError, match=r"plain\.onnx takes pixels, not whole pictures"):
        AnySizeEncoder(tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match=r"there is no .*absent\.onnx"):
        AnySizeEncoder(tmp_path / "absent.onnx")


def shape_of(value: onnx.ValueInfoProto) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_other_networks_are_refused() -> None:
    how = spec("crop", 1.0, "bicubic")
    model = passing(how)
    with pytest.raises(ModelError, match="this network takes no pictures of 64 pixels"):
        with_resize(model, replace(how, size=64))
    with pytest.raises(ModelError, match="takes whole pictures"):
        with_resize(with_resize(model, how), how)
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="was not written by `skumatch export`"):
        with_resize(model, how)


def test_the_comparison_finds_another_resize(tmp_path: Path) -> None:
    encoder = TorchEncoder(build(CONV), device="cpu")
    model = to_onnx(encoder, encoder.spec, {})
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        PILImage.fromarray(picture(60 + 40 * number, 90)).save(path)
    paths.append(tmp_path / "broken.jpg")
    paths[-1].write_bytes(b"\xff\xd8\xff broken")
    file = written(with_resize(model, encoder.spec), tmp_path / "resize.onnx")
    found = compare_resize(file, encoder, paths)
    assert found.pictures == 4 and 0.999 < found.min_cosine <= found.mean_cosine < 1.00001
    assert found.beyond() == []
    written(with_resize(model, replace(encoder.spec, resize="pad")), file)
    other = compare_resize(file, encoder, paths)
    assert other.min_cosine < found.min_cosine
    assert ResizeParity(1, 0.9, 0.95).beyond() == ["least cosine with the host's resize 0.900000 is below 0.999"]
    with pytest.raises(DataError, match="no readable picture"):
        compare_resize(file, encoder, paths[-1:])


@pytest.mark.slow
def test_real_photos_keep_their_vectors(tmp_path: Path) -> None:
    data, folder = os.environ.get("SKUMATCH_TEST_DATA"), os.environ.get("SKUMATCH_TEST_WEIGHTS")
    if not data or not folder:
        pytest.skip("SKUMATCH_TEST_DATA and SKUMATCH_TEST_WEIGHTS are not set")
    weights = Path(folder) / "mobilenetv2_100_imagenet.safetensors"
    encoder = TorchEncoder(build(ModelSource("timm:mobilenetv2_100", weights)), device="cpu")
    photos = sorted((Path(data) / "grocery-store").rglob("*.jpg"))
    rng = np.random.default_rng(0)
    paths = []
    for number in range(100):
        path = photos[number * len(photos) // 100]
        if number % 3 == 0:  # a crop of any size, as a detector cuts it
            photo = PILImage.open(path)
            width, height = (int(rng.integers(20, side)) for side in photo.size)
            path = tmp_path / f"{number}.png"
            photo.crop((0, 0, width, height)).save(path)
        paths.append(path)
    model = to_onnx(encoder, encoder.spec, {})
    host = OnnxEncoder(written(model, tmp_path / "plain.onnx"))
    for resize, crop_pct in WAYS:
        host.spec = replace(encoder.spec, resize=resize, crop_pct=crop_pct)
        file = written(with_resize(model, host.spec), tmp_path / "resize.onnx")
        found = compare_resize(file, host, paths)
        assert found.pictures == 100 and found.beyond() == [], (resize, crop_pct)
