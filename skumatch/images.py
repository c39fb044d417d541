"""Pictures in, pixels out: decode a JPEG, PNG or WebP, turn it upright, resize it to what an encoder takes.

The one preprocessing that every runtime shares. Pillow decodes (it releases the GIL while it does, and says when a
file is truncated); torch resizes uint8 with the antialiased filters that Pillow and torchvision use, about five times
as fast. Metadata is cut off before Pillow sees a file: the orientation is read here, and nothing else in it (broken
EXIF, text bombs, animation control) can warn, cost memory or fail a picture that is fine.

It knows nothing about encoders, batches or data sets. All functions are safe to call from several threads.
"""

from __future__ import annotations

import math
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from skumatch import jpeg
from skumatch.errors import ImageError
from skumatch.spec import Image, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["jpeg", "png", "webp"]

DEFAULT_MAX_PIXELS: Final = 64_000_000
MAX_ASPECT: Final = 32  # "crop" looks at the middle of anything longer, or a 1 x 64M strip would fill the memory
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_OPENERS: Final[dict[Format, type[ImageFile]]] = {"jpeg": JpegImageFile, "png": PngImageFile, "webp": WebPImageFile}
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, PILImage.DecompressionBombError)
_CONVERT: Final = "convert it to JPEG, PNG or WebP"
_REPLACE: Final = "replace the file or leave it out"


@dataclass(frozen=True)
class Jpeg:
    """A JPEG that was read, checked and not yet decoded, so that another decoder may do it.

    ``data``: the file without metadata, a picture in grey or YCbCr that any decoder reads alike, of ``size`` (width,
    height) before it is turned upright as ``orientation`` (EXIF, 1 to 8) says. ``name`` stands for it in messages.
    """

    data: bytes
    name: str
    size: tuple[int, int]
    orientation: int

    def image(self) -> Image:
        """Return it decoded here, as ``read_image`` does. Raises ImageError for a corrupt one."""
        return _upright(_decode(JpegImageFile(BytesIO(self.data)), self.name), self.orientation)


def sniff(data: bytes) -> Format:
    """Return the format that the first 12 bytes of ``data`` announce. Raises ImageError for any other."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == _PNG_MAGIC:
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ImageError("not a JPEG, PNG or WebP" if data else "empty, not an image", _CONVERT)


def read_image(source: Path | str | bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Return ``source`` (a path or a file's bytes) as upright RGB, (H, W, 3) uint8.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB, transparency is laid on white, of an animation the first
    frame counts. Raises ImageError, naming the path, for what is missing, unreadable, in another format, truncated or
    corrupt, and, before any pixel is decoded, for more than ``max_pixels`` (width x height).
    """
    picture, name, orientation = _open(source, max_pixels)
    return _upright(_decode(picture, name), orientation)


def to_pixels(image: Image, how: Preprocess) -> NDArray[np.uint8]:
    """Resize and crop an upright RGB ``image`` of (H, W, 3) uint8 to (3, S, S) uint8, S being ``how.size``.

    "crop", "squash" and "pad" place and round as open_clip's "shortest", "squash" and "longest" do, and "crop" with
    ``crop_pct`` below 1 as timm does; "pad" fills with ``how.mean``. Raises ImageError for another dtype or shape.
    """
    import torch

    # torch shares the array's memory: it warns about one that is read-only and refuses negative strides.
    whole = np.require(_checked(image), requirements=["C", "W"])
    planes = torch.from_numpy(whole if min(whole.strides) > 0 else whole.copy()).permute(2, 0, 1)
    pixels: NDArray[np.uint8] = planes_to_pixels(planes, how).numpy()
    return pixels


def planes_to_pixels(planes: Tensor, how: Preprocess) -> Tensor:
    """Do for uint8 (3, H, W) ``planes`` of an upright RGB picture, on any device, what ``to_pixels`` does.

    Only the CPU's kernels resize uint8 as it is: elsewhere float32 is resized and rounded, which may change a value
    by one.
    """
    if how.resize == "crop":
        down, across = _middle(planes.shape[1], planes.shape[2])
        planes = planes[:, down, across]
    size = _target(planes.shape[1], planes.shape[2], how)
    if size == tuple(planes.shape[1:]):
        return _place(planes, how)
    resize = _resized if planes.device.type == "cpu" else _resized_in_float32
    return _place(resize(planes, size, how.interpolation), how)


def _resized(planes: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(planes[None], size=size, mode=mode, antialias=True)[0]


def _resized_in_float32(planes: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    import torch

    return _resized(planes.float(), size, mode).round_().clamp_(0, 255).to(torch.uint8)


def fill_of(how: Preprocess) -> NDArray[np.uint8]:
    """Return the colour, (3,) RGB, with which "pad" fills: ``how.mean`` in 0..255."""
    return np.clip(np.round(np.multiply(how.mean, 255)), 0, 255).astype(np.uint8)


def load_pixels(source: Path | str | bytes, how: Preprocess, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Return ``source`` as (3, S, S) uint8: ``read_image``, then ``to_pixels``. Raises ImageError as they do."""
    return to_pixels(read_image(source, max_pixels), how)


def image_of(image: Image | PILImage.Image | Path | str | bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Return upright RGB (H, W, 3) uint8 of a path, a file's bytes, an upright RGB array or a Pillow image.

    A Pillow image is turned upright where its EXIF says so. Raises ImageError for anything else and for what
    ``read_image`` refuses.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    if isinstance(image, PILImage.Image):
        _check_size(image.size, "the Pillow image", max_pixels)
        return _upright(_decode(image, "the Pillow image"), _orientation(_exif_of(image)))
    if isinstance(image, Path | str | bytes):
        return read_image(image, max_pixels)
    raise ImageError(f"a {type(image).__name__} is not an image", "pass a path, bytes, an RGB array or a Pillow image")


def image_or_jpeg(
    source: Image | PILImage.Image | Path | str | bytes, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image | Jpeg:
    """Return ``source`` as ``image_of`` does, but a JPEG file undecoded where any decoder reads it alike.

    Raises ImageError as ``image_of`` does, for a corrupt JPEG only once it is decoded.
    """
    if not isinstance(source, Path | str | bytes):
        return image_of(source, max_pixels)
    picture, name, orientation = _open(source, max_pixels)
    if isinstance(picture, JpegImageFile) and _same_colours(picture):
        data = jpeg.one_picture(picture.fp.getvalue())  # type: ignore[union-attr]
        if data is not None:
            return Jpeg(data, name, picture.size, orientation)
    return _upright(_decode(picture, name), orientation)


def _same_colours(picture: JpegImageFile) -> bool:
    """Return whether a JPEG is grey or says in every way that its colours are YCbCr; decoders guess at the rest."""
    if picture.mode != "RGB":
        return picture.mode == "L"
    said = "jfif" in picture.info or "adobe" in picture.info or [part[0] for part in picture.layer] == [1, 2, 3]
    return said and picture.info.get("adobe_transform", 1) == 1


def _checked(image: Image) -> Image:
    """Return an array that is a picture. Raises ImageError for another dtype or shape."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"an array of {image.dtype} {image.shape} is not an image", "pass RGB as (H, W, 3) uint8")
    return image


def pixels_of(image: Image | PILImage.Image | Path | str | bytes, how: Preprocess) -> NDArray[np.uint8]:
    """Return ``image`` as (3, S, S) uint8 pixels. Raises ImageError as ``image_of`` and ``to_pixels`` do."""
    return to_pixels(image_of(image), how)


def thumbnail(source: Path | bytes, side: int = 256, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Return an upright JPEG of ``source``, long side at most ``side`` pixels (never enlarged), without metadata.

    A big JPEG is decoded at a fraction of its size. Raises ImageError as ``read_image`` does.
    """
    picture, name, orientation = _open(source, max_pixels)
    picture.draft(None, (2 * side, 2 * side))
    small = PILImage.fromarray(_decode(picture, name))
    small.thumbnail((side, side))
    buffer = BytesIO()
    PILImage.fromarray(_upright(np.asarray(small), orientation)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _open(source: Path | str | bytes, max_pixels: int) -> tuple[ImageFile, str, int]:
    """Return the opened but not yet decoded picture, its name for messages and its EXIF orientation."""
    data, name = _read(source)
    try:
        kind = sniff(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error.what}", error.todo) from None
    try:
        data, exif = _STRIP[kind](data)
        if kind == "webp":  # its decoder allocates the canvas on opening
            _check_size(_webp_size(data), name, max_pixels)
        picture = _OPENERS[kind](BytesIO(data))
    except _BROKEN as error:
        raise ImageError(f"{name}: corrupt or truncated {kind} ({error})", _REPLACE) from error
    _check_size(picture.size, name, max_pixels)
    return picture, name, _orientation(exif or _exif_of(picture))


def _read(source: Path | str | bytes) -> tuple[bytes, str]:
    """Return the bytes of ``source`` and a name that can always be printed, whatever bytes the path is made of."""
    if isinstance(source, bytes):
        return source, f"image of {len(source)} bytes"
    path = Path(source)
    name = os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            raise ImageError(f"{name}: {'a folder' if path.is_dir() else 'not a file'}", "name an image file")
        return path.read_bytes(), name
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{name}: cannot be read ({reason})", "check the path and its permissions") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: no pixels ({width} x {height})", _REPLACE)
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} is more than {max_pixels} pixels", "shrink it or allow more")


def _decode(picture: PILImage.Image, name: str) -> Image:
    try:
        return _rgb(picture, name)
    except _BROKEN as error:
        raise ImageError(f"{name}: corrupt or truncated image ({error})", _REPLACE) from error


def _rgb(picture: PILImage.Image, name: str) -> Image:
    """Return the pixels of any 8- or 16-bit Pillow image as RGB, not yet turned upright."""
    if picture.mode.startswith("I;16"):
        picture.load()
        deep = np.asarray(picture)
        grey = (deep >> 8).astype(np.uint8)
        grey[deep == picture.info.get("transparency", -1)] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ImageError(f"{name}: Pillow mode {picture.mode} has no fixed range", "convert it to 8-bit RGB")
    picture.load()  # only now is all of a PNG's transparency known
    if picture.mode in ("P", "PA") and picture.palette is None:
        raise ValueError("it has no palette")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = PILImage.alpha_composite(PILImage.new("RGBA", picture.size, "white"), picture)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _upright(image: Image, orientation: int) -> Image:
    """Undo an EXIF ``orientation`` (1 to 8: CIPA DC-008, tag 0x0112) of an (H, W, 3) array."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image.copy()  # ascontiguousarray would leave negative strides along an axis of one pixel


def _orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that ``exif`` (a TIFF header and its first directory) gives, 1 in doubt."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, at + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory runs past the end: as good as none
        return 1
    return 1


def _exif_of(picture: PILImage.Image) -> bytes:
    exif = picture.info.get("exif", b"")
    return exif if isinstance(exif, bytes) else b""


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Return ``data`` with only the chunks that make up the picture, and the EXIF block. Raises ValueError."""
    parts, exif, at, kind = [data[:8]], b"", 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise ValueError("it has no end")
        if kind in _PNG_KEPT:
            parts.append(data[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(parts), exif


def _strip_webp(data: bytes) -> tuple[bytes, bytes]:
    """Return ``data`` as it is: opening a WebP parses no metadata, and its EXIF block stands in ``info``."""
    return data, b""


_STRIP: Final = {"jpeg": jpeg.stripped, "png": _strip_png, "webp": _strip_webp}


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a WebP's canvas (RFC 9649, section 2). Raises ValueError for an unknown layout."""
    if len(data) < 30:
        raise ValueError("it ends before the picture")
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise ValueError("unknown layout")


def _middle(height: int, width: int) -> tuple[slice, slice]:
    """Return (rows, columns) of the middle of a strip longer than ``MAX_ASPECT`` times its width, else of all."""
    over = max(height, width) - MAX_ASPECT * min(height, width)
    start = over // 2 if over >= 2 else 0  # the same on both sides, so that the centre stays where it was
    if height > width:
        return slice(start, height - start), slice(width)
    return slice(height), slice(start, width - start)


def _target(height: int, width: int, how: Preprocess) -> tuple[int, int]:
    """Return (height, width) to resize to, rounded as torchvision's and open_clip's transforms round."""
    if how.resize == "squash":
        return how.size, how.size
    if how.resize == "pad":
        ratio = max(height / how.size, width / how.size)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    short = math.floor(how.size / how.crop_pct)
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _place(resized: Tensor, how: Preprocess) -> Tensor:
    """Centre (3, H, W) on (3, S, S): cut what is longer, fill with the mean what is shorter."""
    _, height, width = resized.shape
    side = how.size
    if how.resize == "pad":
        canvas = resized.new_tensor(fill_of(how).tolist())[:, None, None].repeat(1, side, side)
        top, left = (side - height) // 2, (side - width) // 2
        canvas[:, top : top + height, left : left + width] = resized
        return canvas
    top, left = round((height - side) / 2), round((width - side) / 2)
    return resized[:, top : top + side, left : left + side].contiguous()
