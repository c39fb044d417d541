"""Six ways in which a shelf crop goes bad, at five strengths each, to measure how far an encoder holds.

In the spirit of ImageNet-C (Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", section 3): fixed kinds, five strengths, from barely visible to as bad as a shelf crop gets while a
person can still tell most packs; for testing only, never for training. Kinds and values are those of a store audit by
phone:

| kind           | in the store                          | value                   |   1 |   2 |   3 |   4 |   5 |
|----------------|---------------------------------------|-------------------------|-----|-----|-----|-----|-----|
| blur           | missed focus                          | sigma, % of short side  | 0.3 | 0.6 |   1 | 1.5 | 2.2 |
| darkness       | dim aisle, bottom shelf, back row     | light lost, in stops    | 0.6 | 1.3 |   2 | 2.8 | 3.6 |
| jpeg           | photo shrunk by a messenger or upload | JPEG quality            |  40 |  25 |  15 |  10 |   7 |
| low-resolution | small in a photo of the whole aisle   | long side, pixels       | 160 | 112 |  80 |  56 |  40 |
| occlusion      | price rail, pack in front, hand       | covered, % of the area  |   5 |  12 |  20 |  30 |  40 |
| rotation       | tilted phone, leaning pack            | degrees, to either side |   4 |   8 |  14 |  22 |  32 |

A value means the same for crops of any size (low resolution: how many pixels the photo has left for the pack), because
the work is done on a copy whose short side is at most 512 pixels; without that, a JPEG block or a grain of noise would
vanish in a crop of 3,000 pixels. What an encoder of more than 512 pixels would see beyond that is lost. Place, side
and noise come from the picture's own bytes, the kind and the seed, not from the strength: a stronger corruption goes
on where the weaker one stopped, and order and threads change nothing. It knows nothing about encoders or accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFilter

from skumatch.errors import ConfigError, ImageError, nearest
from skumatch.spec import Image

VERSION: Final = 1  # raise it when a corruption changes: figures kept from before are then made anew
STRENGTHS: Final = (1, 2, 3, 4, 5)
VALUES: Final[dict[str, tuple[float, ...]]] = {
    "blur": (0.3, 0.6, 1, 1.5, 2.2),
    "darkness": (0.6, 1.3, 2, 2.8, 3.6),
    "jpeg": (40, 25, 15, 10, 7),
    "low-resolution": (160, 112, 80, 56, 40),
    "occlusion": (5, 12, 20, 30, 40),
    "rotation": (4, 8, 14, 22, 32),
}
KINDS: Final = tuple(VALUES)
_TEXTS: Final = {
    "blur": "sigma {} % of the short side",
    "darkness": "{} stops darker",
    "jpeg": "quality {}",
    "low-resolution": "long side {} px",
    "occlusion": "{} % covered",
    "rotation": "{} degrees",
}
_SHORT, _LONG = 512, 512 * 32  # the working copy's sides at most; the second keeps a strip within what OpenCV turns
_GAMMA: Final = 2.2
_LEVELS: Final = 4096  # a 12-bit sensor
# Noise of a phone's sensor at high ISO: variance per unit of light, and spread without light; full scale is 1.
_SHOT, _READ = 0.0004, 0.003
_GRID: Final = 48  # cells per side of what is drawn on a cover

Rng = np.random.Generator


def corrupt(image: Image, kind: str, strength: int, seed: int = 0) -> Image:
    """Return ``image``, uint8 (H, W, 3), after the corruption ``kind`` at ``strength`` 1 to 5, in the same shape.

    It is ``image`` itself at strength 0 and where nothing changes. Same picture, kind and seed: same place and noise.
    Raises ConfigError for an unknown kind or strength, ImageError for an array that is not an image.
    """
    check(kind, strength)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"an array of {image.dtype} {image.shape} is not an image", "pass RGB as (H, W, 3) uint8")
    if strength == 0:
        return image
    height, width = image.shape[:2]
    ratio = min(1.0, _SHORT / min(height, width), _LONG / max(height, width))
    work = _resized(image, max(1, round(height * ratio)), max(1, round(width * ratio)))
    changed = _CORRUPTIONS[kind](work, VALUES[kind][strength - 1], _rng(work, kind, seed))
    return np.ascontiguousarray(_resized(changed, height, width))


def check(kind: str, strength: int) -> None:
    """Raise ConfigError unless ``kind`` is known and ``strength`` is 0 to 5."""
    if kind not in VALUES:
        near = nearest(kind, list(KINDS)) or ", ".join(KINDS)
        raise ConfigError(f"unknown corruption '{kind}'", f"choose from: {near}")
    if strength not in (0, *STRENGTHS):
        raise ConfigError(f"strength {strength} of '{kind}' is out of range", "give 1 to 5, or 0 for unchanged")


def value_text(kind: str, strength: int) -> str:
    """Return what ``strength`` 1 to 5 of ``kind`` means, with its unit. Raises ConfigError as ``check`` does."""
    check(kind, strength)
    return _TEXTS[kind].format(VALUES[kind][strength - 1]) if strength else "unchanged"


def examples(
    image: Image, kinds: Sequence[str] = KINDS, strengths: Sequence[int] = STRENGTHS, seed: int = 0, side: int = 160
) -> dict[str, list[bytes]]:
    """Return, per kind, one JPEG per strength of the corrupted ``image``, long side at most ``side`` pixels.

    The corruption is done at full size, then shown small. Raises as ``corrupt`` does.
    """
    return {kind: [_jpeg_of(corrupt(image, kind, s, seed), side) for s in strengths] for kind in kinds}


def _jpeg_of(image: Image, side: int) -> bytes:
    small = PILImage.fromarray(image)
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _rng(image: Image, kind: str, seed: int) -> Rng:
    """Return the generator of one picture, whatever the order or thread."""
    key = hashlib.blake2b(f"{seed}|{kind}|{image.shape}|".encode(), digest_size=16)
    key.update(image.tobytes())
    return np.random.default_rng(int.from_bytes(key.digest(), "big"))


def _resized(image: Image, height: int, width: int) -> Image:
    """Reduce by averaging areas, as larger sensor pixels would, or enlarge (by OpenCV: 20 times as fast as Pillow)."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    smaller = height * width < image.shape[0] * image.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=way), np.uint8)


def _blur(image: Image, percent: float, rng: Rng) -> Image:
    sigma = percent / 100 * min(image.shape[:2])
    return np.asarray(PILImage.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _darkness(image: Image, stops: float, rng: Rng) -> Image:
    """Take light away before the sensor: its shot and read noise stay, so the dark picture is also the noisy one."""
    light = (np.arange(256) / 255) ** _GAMMA * 2.0**-stops
    spread = np.sqrt(_SHOT * light + _READ**2)
    sensed = rng.standard_normal(image.shape, np.float32)
    sensed *= spread.astype(np.float32)[image]
    sensed += light.astype(np.float32)[image]
    sensed *= _LEVELS - 1
    np.clip(sensed, 0, _LEVELS - 1, out=sensed)
    shown = np.round((np.arange(_LEVELS) / (_LEVELS - 1)) ** (1 / _GAMMA) * 255).astype(np.uint8)
    changed: Image = shown[np.rint(sensed, out=sensed).astype(np.int16)]
    return changed


def _jpeg(image: Image, quality: float, rng: Rng) -> Image:
    buffer = BytesIO()
    PILImage.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(PILImage.open(buffer, formats=["JPEG"]))


def _low_resolution(image: Image, side: float, rng: Rng) -> Image:
    """Reduce and enlarge; a picture that is already as small stays as it is."""
    height, width = image.shape[:2]
    ratio = min(1.0, side / max(height, width))
    return _resized(_resized(image, max(1, round(height * ratio)), max(1, round(width * ratio))), height, width)


def _rotation(image: Image, degrees: float, rng: Rng) -> Image:
    """Turn about the centre, to a drawn side; the edge pixels go on outwards, for black corners are not of a store."""
    import cv2

    height, width = image.shape[:2]
    centre = ((width - 1) / 2, (height - 1) / 2)
    turn = cv2.getRotationMatrix2D(centre, degrees * rng.choice((-1, 1)), 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


def _occlusion(image: Image, percent: float, rng: Rng) -> Image:
    """Lay a price rail on the bottom, a neighbouring pack on one side, or a hand over a lower corner.

    Cover and drawing stand still while the covered area grows, so every strength contains the weaker ones.
    """
    height, width = image.shape[:2]
    share, form, mirror = percent / 100, rng.integers(3), rng.integers(2)
    up = 1 - ((np.arange(height) + 0.5) / height)[:, None]
    along = ((np.arange(width) + 0.5) / width)[None, :]
    along = 1 - along if mirror else along
    if form == 0:
        covered, drawing = np.broadcast_to(up < share, (height, width)), _rail(rng)
    elif form == 1:
        covered, drawing = np.broadcast_to(along < share, (height, width)), _neighbour(rng)
    else:  # a quarter of an ellipse
        slim = rng.uniform(0.8, 1.25)
        covered, drawing = (along * slim) ** 2 + (up / slim) ** 2 < 4 * share / np.pi, _hand(rng)
    cells = drawing[np.arange(height) * _GRID // height][:, np.arange(width) * _GRID // width]
    return np.where(covered[..., None], cells, image)


def _rail(rng: Rng) -> Image:
    """Draw a light grey strip with two price tickets: white, with dark print."""
    grid = np.full((_GRID, _GRID, 3), 196, np.uint8)
    start = int(rng.integers(_GRID // 2))
    for left in (start, start + _GRID // 2):
        columns = np.arange(left, left + 14) % _GRID
        grid[:, columns] = 244
        grid[1::2, columns[2:-2]] = rng.choice((40, 244), (_GRID // 2, 10, 1))
    return grid


def _neighbour(rng: Rng) -> Image:
    """Draw another pack: blocks in three colours."""
    colours = rng.integers(25, 235, (3, 3))
    blocks = rng.choice(3, (_GRID // 4, _GRID // 3), p=(0.6, 0.25, 0.15))
    return colours[blocks].repeat(4, 0).repeat(3, 1).astype(np.uint8)


def _hand(rng: Rng) -> Image:
    """Draw skin or a glove, darker downwards."""
    tones = np.array([(224, 172, 140), (198, 134, 98), (120, 78, 56), (70, 120, 190), (60, 60, 64)])
    shade = np.linspace(1.05, 0.75, _GRID)[:, None, None]
    tone = tones[rng.integers(len(tones))]
    return np.broadcast_to(tone * shade, (_GRID, _GRID, 3)).clip(0, 255).astype(np.uint8)


_CORRUPTIONS: Final[dict[str, Callable[[Image, float, Rng], Image]]] = {
    "blur": _blur,
    "darkness": _darkness,
    "jpeg": _jpeg,
    "low-resolution": _low_resolution,
    "occlusion": _occlusion,
    "rotation": _rotation,
}
