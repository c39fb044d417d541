"""JPEGs decoded, turned upright and resized on the GPU that encodes them, so that pictures cross to it compressed.

The host reads the files and checks them (``images.image_or_jpeg``) and decodes what nvJPEG refuses, so that a corrupt
picture is reported in the words that it always is. A GPU decodes once its pixels of a made picture agreed with the
host's. It knows nothing about encoders but where they take their pixels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from skumatch import images
from skumatch.errors import DeviceError, ImageError
from skumatch.images import Jpeg
from skumatch.spec import Pixels, Preprocess

MOST_PIXELS = images.DEFAULT_MAX_PIXELS  # decoded at a time, so that a batch of photos fits beside the network

# Mean difference, of 255, between the pixels of the made picture on GPU and host. Where the colours of a 4:2:0 picture
# are repeated instead of interpolated, as decoders may do, that is 0.8 (and in 100 store photos 0.75, at most 1.3).
TOLERANCE = 1.5

Decode = Callable[[list[Tensor]], list[Tensor]]  # files, uint8 (bytes,) on the host -> uint8 (3, H, W) on the device
Row = Tensor | Pixels | ImageError  # a picture's uint8 (3, S, S) on the device or on the host, or why there is none


def decoder_for(setting: str, device: str) -> JpegDecoder | None:
    """Return what decodes JPEGs for an encoder that takes pixels on ``device`` ("": on the host alone), None: the host.

    ``setting``: "cpu", "gpu", or "auto" for the GPU where that is possible. Raises DeviceError when "gpu" is not.
    """
    if setting == "cpu" or (setting == "auto" and not device):
        return None
    trouble = trouble_on(device) if device else "the encoder takes its pixels on the host"
    if not trouble:
        return JpegDecoder(torch.device(device))
    if setting == "gpu":
        raise DeviceError(f"JPEGs cannot be decoded on the GPU: {trouble}", "set decode to auto or cpu")
    return None


@functools.cache
def trouble_on(device: str) -> str:
    """Return why ``device`` does not decode JPEGs as the host does, "" where it does; found out once."""
    try:
        off = disagreement(JpegDecoder(torch.device(device)))
    except (RuntimeError, ImportError, AttributeError) as error:  # without nvJPEG, torchvision's operator or a GPU
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return "" if off <= TOLERANCE else f"pixels differ from the host's by {off:.1f} of 255 on average"


def disagreement(decoder: JpegDecoder) -> float:
    """Return the mean difference, of 255, between the decoder's pixels and the host's of made pictures, the larger of
    one in colour and one in grey. Raises RuntimeError where the decoder refuses them."""
    half = (0.5, 0.5, 0.5)
    how = Preprocess(96, half, half, "crop", 1.0, "bicubic")
    found = []
    for mode in ("RGB", "L"):
        data = made_jpeg(mode)
        picture = images.image_or_jpeg(data)
        if not isinstance(picture, Jpeg):
            raise RuntimeError("the made picture is no plain JPEG")
        (pixels,) = decoder.on_device([picture], how)
        expected = images.load_pixels(data, how).astype(np.float32)
        found.append(float(np.abs(pixels.cpu().numpy().astype(np.float32) - expected).mean()))
    return max(found)


def made_jpeg(mode: str) -> bytes:
    """Return a JPEG of coloured waves and a bright box that stands on its side, 200 x 160, "RGB" (4:2:0) or "L"."""
    y, x = np.mgrid[0:160, 0:200]
    waves = np.stack([np.sin(x / 17), np.sin(y / 13), np.sin((x + y) / 29)], -1)
    picture = (128 + 100 * waves).astype(np.uint8)
    picture[30:60, 120:180] = (250, 240, 40)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    stored = BytesIO()
    PILImage.fromarray(picture).convert(mode).save(stored, "JPEG", quality=90, subsampling="4:2:0", exif=exif)
    return stored.getvalue()


def torchvision_decoder(device: torch.device) -> Decode:
    """Return torchvision's decoder for ``device``: nvJPEG on a GPU, libjpeg-turbo on the CPU.

    It raises RuntimeError for all of the files when it cannot decode one.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # torchvision announces that its decoders will move to a package of their own; a user cannot do anything about it.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")

    def decode(files: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device)
        return found

    return decode


class JpegDecoder:
    """Makes of JPEGs what an encoder takes, on ``device``. One thread at a time."""

    def __init__(self, device: torch.device, decode: Decode | None = None) -> None:
        self.device = device
        self._decode = decode or torchvision_decoder(device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def decoded(self, rows: Sequence[Jpeg | Row], how: Preprocess) -> list[Row]:
        """Return ``rows`` with uint8 (3, S, S) on the device, or an ImageError, in the place of each JPEG."""
        pictures = [row for row in rows if isinstance(row, Jpeg)]
        with self._aside():
            done = iter([row for group in groups(pictures) for row in self._group(group, how)])
        return [next(done) if isinstance(row, Jpeg) else row for row in rows]

    def batch(self, rows: Sequence[Tensor | Pixels]) -> Tensor:
        """Return uint8 (N, 3, S, S) on the device of N rows (3, S, S), from there or from the host."""
        with self._aside():
            batch = torch.stack([torch.as_tensor(row).to(self.device) for row in rows])
        if self._stream is not None:
            batch.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def on_device(self, pictures: Sequence[Jpeg], how: Preprocess) -> list[Tensor]:
        """Return uint8 (3, S, S) on the device of each picture. Raises RuntimeError when it refuses one of them."""
        if self.device.type == "cuda":
            # nvJPEG writes on a stream of its own and does not wait for this one. What is still to read memory that
            # was given back, and may now be written to, must be done.
            torch.cuda.current_stream(self.device).synchronize()
        files = [torch.frombuffer(bytearray(picture.data), dtype=torch.uint8) for picture in pictures]
        found = []
        for picture, planes in zip(pictures, self._decode(files), strict=True):
            if (planes.shape[2], planes.shape[1]) != picture.size:
                raise RuntimeError(f"{picture.name} is not {planes.shape[2]} x {planes.shape[1]}")
            found.append(images.planes_to_pixels(upright(planes, picture.orientation), how))
        return found

    def _group(self, pictures: Sequence[Jpeg], how: Preprocess) -> list[Row]:
        """Decode together, else one by one, else on the host."""
        try:
            return [*self.on_device(pictures, how)]
        except RuntimeError:  # torch.cuda.OutOfMemoryError is one too
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # nvJPEG may still write to what it leaves undone
            if len(pictures) > 1:
                return [row for picture in pictures for row in self._group([picture], how)]
        try:
            return [images.to_pixels(pictures[0].image(), how)]
        except ImageError as error:
            return [error]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Work on a stream of its own, beside the encoder's; what the current stream does next waits for it."""
        with torch.cuda.stream(self._stream):  # None: nothing changes
            yield
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)


def groups(pictures: Sequence[Jpeg]) -> Iterator[list[Jpeg]]:
    """Yield ``pictures`` in order, in groups of at most 64 million pixels, or of one picture."""
    group: list[Jpeg] = []
    for picture in pictures:
        if group and sum(width * height for width, height in (one.size for one in (*group, picture))) > MOST_PIXELS:
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def upright(planes: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF ``orientation`` (1 to 8: CIPA DC-008, tag 0x0112) of (3, H, W)."""
    if orientation >= 5:
        planes = planes.transpose(1, 2)
    down = [1] if orientation in (3, 4, 7, 8) else []
    across = [2] if orientation in (2, 3, 6, 7) else []
    return planes.flip(down + across) if down or across else planes
