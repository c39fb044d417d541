"""JPEGs decoded where the encoder computes: the host's pixels, errors and limits, whatever decodes.

Without a GPU the decoder is torchvision's for the CPU: all but nvJPEG itself runs.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from skumatch import images
from skumatch.embed import LARGEST, Pipeline, Source
from skumatch.encoder import Encoder, open_encoder
from skumatch.errors import ConfigError, DeviceError, ImageError
from skumatch.images import Jpeg, image_or_jpeg, load_pixels
from skumatch.runtime import nvjpeg
from skumatch.runtime.nvjpeg import (
    TOLERANCE,
    JpegDecoder,
    decoder_for,
    disagreement,
    groups,
    made_jpeg,
    torchvision_decoder,
    trouble_on,
)
from skumatch.spec import Image, Pixels, Preprocess, ResizeMode, Spec, Vectors
from skumatch.towers.build import ModelSource

HOST = torch.device("cpu")


def how(resize: ResizeMode = "crop", size: int = 64) -> Preprocess:
    return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize, 0.9 if resize == "crop" else 1.0, "bicubic")


def picture(width: int, height: int) -> PILImage.Image:
    """Waves, a box and noise, another for each size."""
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[0:height, 0:width]
    waves = 128 + 90 * np.stack([np.sin(x / 9), np.sin(y / 13), np.sin((x - y) / 21)], -1)
    waves[: height // 3, : width // 4] = (240, 30, 20)
    return PILImage.fromarray((waves + rng.normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8))


def stored(image: PILImage.Image, kind: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def jpeg(data: bytes) -> Jpeg:
    found = image_or_jpeg(data)
    assert isinstance(found, Jpeg)
    return found


def without(data: bytes, marker: int) -> bytes:
    """Return a JPEG without the segments of ``marker``."""
    at = 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == marker:
            data = data[:at] + data[at + length :]
        else:
            at += length
    return data


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other).max())


class Counting:
    """torchvision's decoder for the CPU, and how many files it was given in each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.decode = torchvision_decoder(HOST)

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.calls.append(len(files))
        return self.decode(files)


class OnDevice:
    """An encoder that takes tensors too, on the CPU, and remembers what it was given."""

    pixels_on = "cpu"

    def __init__(self, plain: Encoder) -> None:
        self.plain = plain
        self.given: list[type] = []

    @property
    def spec(self) -> Spec:
        return self.plain.spec

    def encode(self, pixels: Pixels | Tensor) -> Vectors:
        self.given.append(type(pixels))
        return self.plain.encode(pixels.numpy() if isinstance(pixels, Tensor) else pixels)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Return files of every kind, two of them broken: one cannot be opened, one only fails while it is decoded."""
    root = tmp_path_factory.mktemp("crops")
    grey, cmyk = picture(80, 60).convert("L"), picture(70, 90).convert("CMYK")
    files = {
        "0.jpg": stored(picture(120, 90)),
        "1.png": stored(picture(90, 91), "PNG"),
        "2.jpg": stored(picture(64, 200), orientation=6, subsampling="4:2:0"),
        "3.jpg": stored(cmyk),
        "4.jpg": stored(grey, orientation=3),
        "5.jpg": without(stored(picture(50, 50)), 0xDB),
        "6.webp": stored(picture(33, 77), "WEBP"),
        "7.jpg": stored(picture(150, 70), progressive=True),
        "8.jpg": b"\xff\xd8\xff",
        "9.jpg": stored(picture(300, 40), orientation=8),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return [*sorted(root.iterdir()), PILImage.fromarray(np.asarray(picture(60, 60))), stored(picture(61, 60))]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_the_hosts_however_a_picture_lies(orientation: int, resize: ResizeMode) -> None:
    data = [stored(picture(*size), orientation=orientation) for size in ((120, 81), (64, 64), (40, 300), (3000, 60))]
    rows = JpegDecoder(HOST).decoded([jpeg(one) for one in data], how(resize))
    for row, one in zip(rows, data, strict=True):
        assert isinstance(row, Tensor) and row.is_contiguous()
        assert apart(row.numpy(), load_pixels(one, how(resize))) <= 2


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 2}])
def test_pixels_are_the_hosts_however_a_picture_is_coded(options: dict[str, Any]) -> None:
    for image in (picture(130, 90), picture(130, 90).convert("L")):
        data = stored(image, **options)
        (row,) = JpegDecoder(HOST).decoded([jpeg(data)], how())
        assert isinstance(row, Tensor) and apart(row.numpy(), load_pixels(data, how())) <= 2


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_in_float32_as_a_gpu_does_differs_by_one_at_most(mode: str) -> None:
    for width, height in ((400, 300), (70, 90), (61, 33)):
        planes = torch.from_numpy(np.array(picture(width, height))).permute(2, 0, 1)
        there, here = (resize(planes, (64, 80), mode) for resize in (images._resized_in_float32, images._resized))
        assert apart(there.numpy(), here.numpy()) <= 1


def frame_of(data: bytes, marker: int = 0xC0) -> tuple[int, bytes]:
    """Return where the frame header of ``marker`` begins, and the header."""
    at = data.index(bytes([0xFF, marker]))
    return at, data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]


def renamed(data: bytes, names: bytes) -> bytes:
    """Return a JPEG of three colours, without the segment that says which, under other ``names``."""
    found = bytearray(without(data, 0xE0))
    at, scan = frame_of(bytes(found))[0], found.index(b"\xff\xda")
    for place, name in enumerate(names):
        found[at + 10 + 3 * place] = found[scan + 5 + 2 * place] = name
    return bytes(found)


def outcome(read: Callable[[bytes], Image | Jpeg], data: bytes) -> str:
    """Return what ``read`` makes of a file, in words that can be compared."""
    try:
        found = read(data)
    except ImageError as error:
        return str(error)
    return "undecoded" if isinstance(found, Jpeg) else found.tobytes().hex()


def test_what_decoders_may_read_in_different_ways_is_decoded_by_the_host() -> None:
    plain, slow = stored(picture(90, 60)), stored(picture(90, 60), progressive=True)
    at, frame = frame_of(plain)
    (_, late), second = frame_of(slow, 0xC2), slow.index(b"\xff\xda", slow.index(b"\xff\xda") + 2)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # colours are RGB
    odd = {
        "two frames": plain[:at] + frame + plain[at:],
        "a frame behind the first scan": slow[:second] + late + slow[second:],
        "colours that are said to be RGB": plain[:2] + adobe + plain[2:],
        "colours that are called R, G and B": renamed(plain, b"RGB"),
        "colours of unknown names": renamed(plain, b"\x11\x12\x13"),
        "CMYK": stored(picture(90, 60).convert("CMYK")),
    }
    for data in (plain, slow, renamed(plain, b"\x01\x02\x03")):
        assert outcome(image_or_jpeg, data) == "undecoded"
        assert outcome(lambda file: jpeg(file).image(), data) == outcome(images.read_image, data)
    for name, data in odd.items():
        assert outcome(image_or_jpeg, data) == outcome(images.read_image, data), name


def test_what_follows_a_picture_is_cut_off() -> None:
    """Phones append a second picture, of another size."""
    data = stored(picture(90, 60))
    found = jpeg(data + stored(picture(400, 300)))
    assert (found.data, found.size) == (jpeg(data).data, (90, 60))


def test_no_picture_beyond_the_limit_is_given_to_the_decoder(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "big.jpg").write_bytes(stored(picture(200, 100)))
    (tmp_path / "small.jpg").write_bytes(stored(picture(90, 60)))
    with pytest.raises(ImageError, match="200 x 100 is more than 19999 pixels"):
        image_or_jpeg(tmp_path / "big.jpg", 19999)
    (batch,) = Pipeline(max_pixels=19999, decode="gpu").embed(sorted(tmp_path.iterdir()), OnDevice(encoder))
    assert batch.good.tolist() == [1] and "more than 19999 pixels" in str(batch.errors[0])


def test_a_decoder_that_gives_another_size_is_not_believed() -> None:
    def halves(files: list[Tensor]) -> list[Tensor]:
        return [planes[:, ::2] for planes in torchvision_decoder(HOST)(files)]

    data = stored(picture(90, 60))
    (row,) = JpegDecoder(HOST, halves).decoded([jpeg(data)], how())
    assert isinstance(row, np.ndarray) and np.array_equal(row, load_pixels(data, how()))


def test_one_that_cannot_be_decoded_costs_the_others_nothing() -> None:
    counting = Counting()
    data = [stored(picture(90, 60 + i)) for i in range(4)]
    data[2] = without(data[2], 0xDB)
    rows = JpegDecoder(HOST, counting).decoded([jpeg(one) for one in data], how())
    with pytest.raises(ImageError) as caught:
        load_pixels(data[2], how())
    assert isinstance(rows[2], ImageError) and str(rows[2]) == str(caught.value)
    assert counting.calls == [4, 1, 1, 1, 1]
    assert [isinstance(row, Tensor) for row in rows] == [True, True, False, True]


def test_large_pictures_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "MOST_PIXELS", 20_000)
    pictures = [jpeg(stored(picture(*size))) for size in ((100, 100), (99, 100), (100, 10), (300, 200), (50, 50))]
    assert [len(group) for group in groups(pictures)] == [2, 1, 1, 1]
    counting = Counting()
    assert len(JpegDecoder(HOST, counting).decoded(pictures, how())) == 5 and counting.calls == [2, 1, 1, 1]
    assert list(groups([])) == []


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_pipeline_gives_what_it_gives_without(batch: int, crops: list[Source], encoder: Encoder) -> None:
    there = OnDevice(encoder)
    plain = list(Pipeline(batch, 2, decode="cpu").embed(crops, encoder, also=repr))
    found = list(Pipeline(batch, 2).embed(crops, there, also=repr))
    assert torch.Tensor in there.given and len(found) == len(plain)
    for one, other in zip(found, plain, strict=True):
        assert one.sources == other.sources and one.extras == other.extras
        assert one.good.tolist() == other.good.tolist()
        assert [str(error) for error in one.errors] == [str(error) for error in other.errors]
        assert one.vectors.shape == other.vectors.shape and np.abs(one.vectors - other.vectors).max(initial=0) < 0.02
    assert sum(error is not None for one in found for error in one.errors) == 2


def test_pictures_are_decoded_together_and_large_files_by_the_host(tmp_path: Path, encoder: Encoder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), np.uint8)
    (tmp_path / "large.jpg").write_bytes(stored(PILImage.fromarray(noise), quality=100))
    assert (tmp_path / "large.jpg").stat().st_size > LARGEST
    (tmp_path / "small.jpg").write_bytes(stored(picture(90, 60)))
    there = OnDevice(encoder)
    (batch,) = Pipeline(decode="gpu").embed(sorted(tmp_path.iterdir()), there)
    assert batch.good.tolist() == [0, 1] and there.given == [torch.Tensor]
    (batch,) = Pipeline(decode="gpu").embed([tmp_path / "large.jpg"], there)
    assert there.given == [torch.Tensor, np.ndarray]


def test_a_change_is_made_on_the_host(crops: list[Source], encoder: Encoder) -> None:
    there, seen = OnDevice(encoder), []

    def mirrored(image: Image) -> Image:
        seen.append(image.shape)
        return image[:, ::-1]

    (found,) = Pipeline(decode="gpu").embed(crops, there, change=mirrored)
    (plain,) = Pipeline(decode="cpu").embed(crops, encoder, change=mirrored)
    assert there.given == [np.ndarray] and np.array_equal(found.vectors, plain.vectors)
    assert len(seen) == 2 * len(found.good)


def test_settings_are_checked(encoder: Encoder, crops: list[Source]) -> None:
    with pytest.raises(ConfigError, match="unknown decode 'nvjpeg' - choose auto, cpu, gpu"):
        Pipeline(decode="nvjpeg")
    with pytest.raises(DeviceError, match="cannot be decoded on the GPU: the encoder takes its pixels on the host"):
        list(Pipeline(decode="gpu").embed(crops, encoder))
    assert decoder_for("auto", "") is None and decoder_for("cpu", "cpu") is None
    assert isinstance(decoder_for("gpu", "cpu"), JpegDecoder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error_or_the_host() -> None:
    assert trouble_on("cuda:0") and decoder_for("auto", "cuda:0") is None
    with pytest.raises(DeviceError, match=r"cannot be decoded on the GPU: .* - set decode to auto or cpu"):
        decoder_for("gpu", "cuda:0")


def test_a_decoder_is_trusted_only_when_its_pixels_are_the_hosts() -> None:
    def swapped(files: list[Tensor]) -> list[Tensor]:
        return [planes.flip(0) for planes in torchvision_decoder(HOST)(files)]

    def shifted(files: list[Tensor]) -> list[Tensor]:
        return [planes.roll(2, 2) for planes in torchvision_decoder(HOST)(files)]

    assert disagreement(JpegDecoder(HOST)) < 0.1
    for wrong in (swapped, shifted):
        assert disagreement(JpegDecoder(HOST, wrong)) > TOLERANCE


def repeating(files: list[Tensor]) -> list[Tensor]:
    """Decode on the CPU as decoders do that repeat the colours of a 4:2:0 picture where libjpeg-turbo interpolates."""
    found = []
    for file in files:
        whole, half = (PILImage.open(BytesIO(file.numpy().tobytes())) for _ in range(2))
        decoded: PILImage.Image = whole
        if whole.mode == "RGB":
            whole.draft("YCbCr", whole.size)
            half.draft("YCbCr", (whole.width // 2, whole.height // 2))  # the colour planes as they are stored
            assert (half.width * 2, half.height * 2) == whole.size
            colours = np.asarray(half)[:, :, 1:].repeat(2, 0).repeat(2, 1)
            decoded = PILImage.fromarray(np.dstack([np.asarray(whole)[:, :, 0], colours]), "YCbCr")
        found.append(torch.from_numpy(np.array(decoded.convert("RGB"))).permute(2, 0, 1))
    return found


def test_the_check_allows_for_colours_enlarged_in_another_way() -> None:
    assert 0.1 < disagreement(JpegDecoder(HOST, repeating)) < TOLERANCE


def test_the_made_picture_has_the_sizes_and_colours_that_the_check_needs() -> None:
    with PILImage.open(BytesIO(made_jpeg("RGB"))) as image:
        assert image.size == (200, 160) and image.getexif()[0x0112] == 6 and image.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]
    assert jpeg(made_jpeg("L")).orientation == 6


@pytest.mark.gpu
def test_a_gpu_decodes_as_the_host_does(crops: list[Source]) -> None:
    assert trouble_on("cuda:0") == ""
    decoder = decoder_for("gpu", "cuda:0")
    assert decoder is not None
    data = [stored(picture(200 + i, 150), orientation=1 + i) for i in range(8)]
    rows = decoder.decoded([jpeg(one) for one in data], how())
    for row, one in zip(rows, data, strict=True):
        assert isinstance(row, Tensor) and row.device == torch.device("cuda:0")
        assert np.abs(row.cpu().numpy().astype(float) - load_pixels(one, how())).mean() < 2


@pytest.mark.gpu
def test_a_pipeline_on_a_gpu_gives_what_it_gives_without(crops: list[Source]) -> None:
    encoder = open_encoder(ModelSource("timm:test_vit", random_init=True, size=64), "cuda")
    for _ in range(20):  # a race between streams would not show each time
        found = list(Pipeline(3, decode="gpu").embed(crops, encoder))
        plain = list(Pipeline(3, decode="cpu").embed(crops, encoder))
        for one, other in zip(found, plain, strict=True):
            assert one.good.tolist() == other.good.tolist()
            assert [str(error) for error in one.errors] == [str(error) for error in other.errors]
            assert (one.vectors * other.vectors).sum(1).min(initial=1) > 0.99
