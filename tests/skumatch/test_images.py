"""Decoding and resizing: golden against open_clip and timm, every format and orientation, and files that are broken."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageOps

from skumatch.errors import ImageError
from skumatch.images import load_pixels, pixels_of, read_image, sniff, thumbnail, to_pixels
from skumatch.spec import Image, Interpolation, Preprocess, ResizeMode

SIZES = [(400, 350), (350, 401), (61, 97), (640, 200), (224, 224), (1200, 901), (33, 1001)]
OPEN_CLIP_MODES = {"crop": "shortest", "squash": "squash", "pad": "longest"}
FORMATS = ["JPEG", "PNG", "WEBP"]
WHITE = [255, 255, 255]
LIMIT = 0.3  # mean error, of 255; half a pixel off gives more than 2


def preprocess(
    resize: ResizeMode = "crop", crop_pct: float = 1.0, interpolation: Interpolation = "bicubic", size: int = 224
) -> Preprocess:
    return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize, crop_pct, interpolation)


def shelf(width: int, height: int) -> PILImage.Image:
    """A package-like picture: gradient, hard edges, fine print and sensor noise."""
    rng = np.random.default_rng(width * 10_000 + height)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1) + rng.normal(0, 8, (height, width, 3))
    picture = PILImage.fromarray(base.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((width // 4, height // 4, width // 2, height // 2), fill=(200, 20, 30))
    for line in range(0, height, 14):
        draw.text((2, line), "Oat milk 1 l  BARISTA  0123456789 " * (1 + width // 200), fill=(255, 255, 240))
    return picture


def encode(picture: PILImage.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth: int, colour: int, width: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG that Pillow itself would not."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def turned(orientation: int) -> PILImage.Exif:
    exif = PILImage.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    return exif


def mean_error(ours: NDArray[np.uint8], theirs: NDArray[np.float32]) -> float:
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    return float(np.abs(ours.astype(np.float32) - theirs).mean())


def open_clip_pixels(picture: PILImage.Image, how: Preprocess) -> NDArray[np.float32]:
    from open_clip import image_transform

    transform = image_transform(
        how.size,
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=OPEN_CLIP_MODES[how.resize],
        interpolation=how.interpolation,
        fill_color=128,
    )
    return np.asarray(transform(picture).numpy() * 255, dtype=np.float32)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_same_pixels_as_open_clip(resize: ResizeMode, interpolation: Interpolation) -> None:
    how = preprocess(resize, interpolation=interpolation)
    for size in SIZES:
        picture = shelf(*size)
        assert mean_error(to_pixels(np.array(picture), how), open_clip_pixels(picture, how)) < LIMIT, size


def test_same_pixels_as_open_clip_from_a_jpeg() -> None:
    data = encode(shelf(400, 350), "JPEG", quality=90)
    with PILImage.open(BytesIO(data)) as picture:
        assert mean_error(load_pixels(data, preprocess()), open_clip_pixels(picture, preprocess())) < LIMIT


@pytest.mark.parametrize("size", [224, 225])
def test_same_pixels_as_timm(size: int) -> None:
    from timm.data import create_transform

    for crop_pct in (0.875, 0.9, 1.0):
        transform = create_transform(
            (3, size, size), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=crop_pct
        )
        for shape in SIZES:
            picture = shelf(*shape)
            theirs = np.asarray(transform(picture).numpy() * 255, dtype=np.float32)
            ours = to_pixels(np.array(picture), preprocess(crop_pct=crop_pct, size=size))
            assert mean_error(ours, theirs) < LIMIT, (shape, crop_pct)


def test_pad_fills_with_the_mean_and_centres() -> None:
    how = Preprocess(32, (0.2, 0.5, 1.0), (1.0, 1.0, 1.0), "pad", 1.0, "bicubic")
    pixels = to_pixels(np.zeros((10, 40, 3), np.uint8), how)
    assert pixels[:, 11, 0].tolist() == pixels[:, 20, 31].tolist() == [51, 128, 255]
    assert not pixels[:, 12:20].any() and pixels[:, :12].all() and pixels[:, 20:].all()


def test_an_endless_strip_costs_no_memory_and_keeps_its_centre() -> None:
    strip = np.zeros((2, 2_000_001, 3), np.uint8)
    strip[:, 1_000_000] = 255
    pixels = to_pixels(strip, preprocess())
    assert pixels.shape == (3, 224, 224)
    assert pixels.any() and np.abs(pixels.astype(int) - pixels[:, :, ::-1]).max() <= 1
    assert to_pixels(strip, preprocess("pad")).shape == to_pixels(strip, preprocess("squash")).shape == (3, 224, 224)


@pytest.mark.parametrize("kind", FORMATS)
def test_path_bytes_array_and_pillow_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    data = encode(shelf(300, 260), kind, exif=turned(6))
    path = tmp_path / os.fsdecode(b"caf\xe9 \xff.bin")  # neither valid UTF-8 nor a telling suffix
    path.write_bytes(data)
    how = preprocess(crop_pct=0.875)
    expected = load_pixels(data, how)
    assert expected.shape == (3, 224, 224) and expected.flags["C_CONTIGUOUS"]
    with PILImage.open(BytesIO(data)) as picture:
        sources: list[Image | PILImage.Image | Path | str | bytes] = [path, str(path), data, read_image(path), picture]
        assert all(np.array_equal(pixels_of(source, how), expected) for source in sources)


def test_any_memory_layout_of_an_array_will_do() -> None:
    image = np.array(shelf(90, 70))
    locked = image.copy()
    locked.setflags(write=False)
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    expected = to_pixels(image, preprocess())
    for array in (locked, mirrored, np.asfortranarray(image)):
        assert np.array_equal(to_pixels(array, preprocess()), expected)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_other_arrays_are_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match="is not an image"):
        pixels_of(array, preprocess())


def test_threads_agree_with_one_thread() -> None:
    files = [encode(shelf(100 + i, 90), FORMATS[i % 3]) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: load_pixels(data, preprocess()), files))
    assert all(np.array_equal(a, load_pixels(data, preprocess())) for a, data in zip(together, files, strict=True))


def test_importing_loads_no_torch() -> None:
    code = "import sys, skumatch.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    data = encode(shelf(50, 30), kind, exif=turned(orientation))
    with PILImage.open(BytesIO(data)) as picture:
        expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(read_image(data), expected)


YELLOW = {"L": (226,) * 3, "P": (255, 255, 0), "CMYK": (255, 255, 0), "LA": (240,) * 3, "RGBA": (255, 255, 127)}


@pytest.mark.parametrize("mode", ["1", *YELLOW])
def test_colour_modes_become_rgb(mode: str) -> None:
    picture = PILImage.new("RGB", (8, 8), "white" if mode == "1" else (255, 255, 0)).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(128)
    expected = YELLOW.get(mode, (255, 255, 255))
    image = read_image(encode(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert image.shape == (8, 8, 3) and np.abs(image.astype(int) - expected).max() <= 2
    pixels = pixels_of(picture, preprocess())
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - expected).max() <= 2


def test_transparency_is_laid_on_white() -> None:
    palette = PILImage.new("P", (4, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    palette.putdata([0, 1, 2, 1])
    keyed = read_image(encode(palette, "PNG", transparency=1))[0]
    assert keyed.tolist() == [[10, 20, 30], WHITE, [7, 8, 9], WHITE]
    half = read_image(encode(palette, "PNG", transparency=bytes([255, 0, 128])))[0]
    assert half[1].tolist() == WHITE and abs(int(half[2, 0]) - 131) <= 1
    clear = PILImage.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (read_image(encode(clear, "WEBP", lossless=True)) == 255).all()
    rgb = png(8, 2, 2, [bytes([1, 2, 3, 4, 5, 6])], (b"tRNS", bytes([0, 1, 0, 2, 0, 3])))
    assert read_image(rgb)[0].tolist() == [WHITE, [4, 5, 6]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    grey = struct.pack(">2H", 0x1234, 0xFF01)
    assert read_image(png(16, 0, 2, [grey]))[0].tolist() == [[0x12] * 3, [0xFF] * 3]
    assert read_image(png(16, 0, 2, [grey], (b"tRNS", b"\x12\x34")))[0, 0].tolist() == [255] * 3
    assert read_image(png(16, 2, 1, [struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)]))[0, 0].tolist() == [0x12, 0x56, 0x9A]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [PILImage.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (image == [255, 0, 0]).all()


def test_thumbnail_is_a_small_upright_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "crop.jpg"
    path.write_bytes(encode(shelf(1200, 900), "JPEG", exif=turned(6)))
    data = thumbnail(path)
    assert sniff(data) == "jpeg" and len(data) < 40_000
    small, full = read_image(data), read_image(path)
    assert small.shape == (256, 192, 3)
    expected = np.array(PILImage.fromarray(full).resize((192, 256)))
    assert np.abs(small.astype(int) - expected).mean() < 8
    assert read_image(thumbnail(encode(shelf(40, 20), "PNG"))).shape == (20, 40, 3)
    assert read_image(thumbnail(encode(shelf(999, 9).convert("RGBA"), "WEBP"), side=64)).shape == (1, 64, 3)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "crop.jpg"
    path.write_bytes(encode(shelf(20, 20), kind))
    with pytest.raises(ImageError, match=r"crop\.jpg: not a JPEG, PNG or WebP"):
        read_image(path)


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {"empty.png": "empty", "none.png": "No such file", "": "a folder", "pipe.png": "not a file"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in caught.value.what
    with pytest.raises(ImageError, match="No such file") as caught:
        read_image(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert "caf\\udce9.png" in caught.value.what.encode("utf-8").decode("utf-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encode(shelf(20, 20), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match=r"locked\.png: cannot be read \(Permission denied\)"):
        read_image(path)


def test_size_is_checked_before_decoding() -> None:
    jpeg, webp = bytearray(encode(shelf(20, 20), "JPEG")), bytearray(encode(shelf(20, 20), "WEBP", exif=turned(1)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (16000 - 1).to_bytes(3, "little") * 2
    bomb = png(8, 2, 1, [b"abc"]).replace(struct.pack(">II", 1, 1), struct.pack(">II", 60000, 60000))
    fixed = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    for data in (bytes(jpeg), bytes(webp), fixed):
        with pytest.raises(ImageError, match="is more than 64000000 pixels"):
            read_image(data)
    exact = encode(shelf(20, 20), "WEBP")
    assert read_image(exact, max_pixels=400).shape == (20, 20, 3)
    with pytest.raises(ImageError, match="20 x 20 is more than 399 pixels"):
        load_pixels(exact, preprocess(), max_pixels=399)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": turned(3)}])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused(kind: str, options: dict[str, object]) -> None:
    data = encode(shelf(64, 48), kind, **(options if kind == "JPEG" else {}))
    for keep in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 2, len(data) - 1]:
        with pytest.raises(ImageError):
            read_image(data[:keep])


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_after_the_end_do_no_harm(kind: str) -> None:
    data = encode(shelf(64, 48), kind)
    assert np.array_equal(read_image(data + bytes(1000)), read_image(data))


def test_broken_metadata_does_not_spoil_a_good_picture() -> None:
    plain = encode(shelf(64, 48), "JPEG")
    for block in (b"Exif\0\0MM\0*\0\0\0\x08\x00\x20", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
        assert np.array_equal(read_image(data), read_image(plain))
    animated = png(8, 0, 2, [b"ab"], (b"acTL", b"\0" * 8), (b"zTXt", b"broken"))
    assert read_image(animated)[0, :, 0].tolist() == [97, 98]


def test_headers_without_a_picture_are_refused() -> None:
    no_palette = png(8, 3, 2, [b"\0\1"])
    for data in (png(8, 2, 0, [b""]), png(8, 7, 1, [b"abc"]), no_palette, b"\xff\xd8\xff\xd9", b"RIFF\0\0\0\0WEBPVP9 "):
        with pytest.raises(ImageError):
            read_image(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_decode_or_raise_image_error(kind: str) -> None:
    rng = random.Random(kind)
    seeds = [encode(shelf(40, 32), kind, exif=turned(6)), encode(shelf(40, 32).convert("L"), kind)]
    outcomes = set()
    for turn in range(300):
        data = bytearray(seeds[turn % 2])
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(rng.choice((len(data), 200)))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            image = read_image(bytes(data), max_pixels=1_000_000)
        except ImageError:
            outcomes.add("refused")
        else:
            outcomes.add("decoded")
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert outcomes == {"refused", "decoded"}


def test_a_jpeg_of_a_thousand_scans_is_not_decoded() -> None:
    buffer = BytesIO()
    PILImage.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    assert read_image(data[:-2] + 10 * last + data[-2:]).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=r"corrupt or truncated jpeg \(it has 1\d\d\d scans\)"):
        read_image(data[:-2] + 1000 * last + data[-2:])
