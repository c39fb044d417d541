"""Photograph a pack on its shelf: neighbours, price rail, view, light, blur, low resolution and sensor noise.

It knows nothing about files and seeds: the caller hands in the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ConfigError
from skumatch.spec import Image
from skumatch.synth_design import DARK, LIGHT, PALETTE, Colour, Pack
from skumatch.synth_pack import painted
from skumatch.synth_shapes import ASPECT, Mask, Points

Floats = NDArray[np.float32]
FILL = 0.94  # pack height per crop height before ``Noise.zoom``
HEADROOM = 0.35  # shelf above and rail below the packs, in pack heights
RAIL: tuple[Colour, ...] = (DARK, (188, 190, 194), (120, 124, 130), (226, 226, 222), PALETTE["red"], PALETTE["blue"])
TAG: tuple[Colour, ...] = (LIGHT, (255, 255, 255), (250, 226, 90), (235, 90, 70))


@dataclass(frozen=True, slots=True)
class Noise:
    """The largest size of each disturbance; every crop draws its own up to it, and 0 switches one off.

    Geometry is in fractions of the crop side or pack height, angles in degrees, blur in pixels of a 128-pixel crop,
    light in fractions of full scale, sensor noise as a standard deviation in 8-bit steps.
    """

    rotation: float = 4.0
    perspective: float = 0.04
    shift: float = 0.05
    zoom: float = 0.10
    gap: float = 0.05  # between facings; a negative draw lets a neighbour stand before the pack
    rail: float = 0.12  # share of the pack hidden from below
    gain: float = 0.25
    gamma: float = 0.2
    tint: float = 0.06
    gradient: float = 0.3
    glare: float = 0.45
    glare_odds: float = 0.3
    defocus: float = 0.8
    motion: float = 2.0
    low_resolution: float = 0.5  # 1 halves the resolution
    sensor: float = 5.0

    def scaled(self, strength: float) -> Noise:
        """Return every amplitude times ``strength``. Raises ConfigError unless it is in 0..4."""
        if not 0 <= strength <= 4:
            raise ConfigError(f"noise strength {strength} is out of range", "choose 0 (none) to 4")
        return Noise(*(getattr(self, f.name) * strength for f in fields(self)))


NOISE = Noise()


def render_crop(
    pack: Pack,
    neighbours: Sequence[Pack],
    rng: np.random.Generator,
    size: int = 128,
    strength: float = 1.0,
    noise: Noise = NOISE,
) -> Image:
    """Return one noisy shelf crop of ``pack``: uint8 (size, size, 3) RGB.

    ``neighbours``: packs that may stand left and right of it (none: bare shelf). ``strength`` scales ``noise``; 0 is a
    clean frontal view. Raises ConfigError for a size outside 32..1024 or a strength outside 0..4.
    """
    if not 32 <= size <= 1024:
        raise ConfigError(f"crop size {size} is out of range", "choose 32 to 1024 pixels")
    drawn = noise.scaled(strength)
    shelf, box = _shelf(pack, neighbours, rng, round(size * FILL), drawn)
    crop = _view(shelf, box, rng, size, drawn)
    crop = _light(crop, rng, drawn)
    return _sensor(_blur(crop, rng, drawn), rng, drawn)


@lru_cache(maxsize=512)
def _sprite(pack: Pack, height: int) -> tuple[Image, Mask]:
    """Return the pack at about crop scale: painted large, then averaged down, so that small words keep their form."""
    import cv2

    size = (max(8, round(height / ASPECT[pack.look.shape])), height)
    rgb, mask = painted(pack, max(192, size[0]))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)


def _shelf(
    pack: Pack, neighbours: Sequence[Pack], rng: np.random.Generator, height: int, noise: Noise
) -> tuple[Image, tuple[int, int, int, int]]:
    """Return the flat shelf (H, W, 3) and the pack's left, top, right, bottom on it."""
    pad = round(height * HEADROOM)
    centre = _sprite(pack, height)
    beside = [_sprite(neighbours[i], height) for i in rng.integers(len(neighbours), size=2)] if neighbours else []
    gaps = [round(_spread(rng, noise.gap) * height + 0.02 * height) for _ in range(2)]
    width = centre[0].shape[1]
    left = max([width // 2, *(sprite[0].shape[1] + gaps[0] for sprite in beside[:1])])
    right = max([width // 2, *(sprite[0].shape[1] + gaps[1] for sprite in beside[1:])])
    canvas = _background(rng, (height + 2 * pad, left + width + right))
    _place(canvas, centre, left, pad)
    if beside:
        _place(canvas, beside[0], left - gaps[0] - beside[0][0].shape[1], pad)
        _place(canvas, beside[1], left + width + gaps[1], pad)
    _rail(canvas, pad + height - round(abs(_spread(rng, noise.rail)) * height), rng)
    return canvas, (left, pad, left + width, pad + height)


def _spread(rng: np.random.Generator, amount: float) -> float:
    return float(rng.uniform(-amount, amount))


def _background(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """The back wall of the shelf: dim, darker to the top where the next board throws its shadow."""
    depth = np.linspace(0.35, 1.0, shape[0], dtype=np.float32)[:, None, None]
    wall = depth * (rng.uniform(45, 140) + rng.uniform(-15, 15, 3)).astype(np.float32)
    return np.broadcast_to(wall, (*shape, 3)).astype(np.uint8)


def _place(canvas: Image, sprite: tuple[Image, Mask], left: int, top: int) -> None:
    rgb, mask = sprite
    height, width = mask.shape
    spot = canvas[top : top + height, left : left + width]
    alpha = mask[..., None].astype(np.uint16)
    spot[:] = (rgb * alpha + spot * (255 - alpha)) // 255


def _rail(canvas: Image, top: int, rng: np.random.Generator) -> None:
    """Draw the price rail over everything from ``top`` down, with a tag every so often."""
    canvas[top:] = RAIL[rng.integers(len(RAIL))]
    canvas[top : top + 2] = 225
    height = canvas.shape[0] - top
    width, y = round(height * 0.9), top + max(2, height // 12)
    for x in range(int(rng.integers(-width, width)), canvas.shape[1], int(rng.integers(2, 4)) * width):
        tag = canvas[y : y + round(height * 0.6), max(0, x) : max(0, x + width)]
        tag[:] = TAG[rng.integers(len(TAG))]
        tag[height // 8 : height // 3, width // 8 : width // 2] = DARK


def _view(shelf: Image, box: tuple[int, int, int, int], rng: np.random.Generator, size: int, noise: Noise) -> Image:
    """Look at the shelf so that ``box`` about fills the crop: zoom, turn, shift and bend its four corners."""
    import cv2

    left, top, right, bottom = box
    source: Points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    scale = FILL * size / (bottom - top) * (1 + _spread(rng, noise.zoom))
    angle = np.deg2rad(_spread(rng, noise.rotation))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    target = (source - source.mean(0)) * scale @ turn + size / 2
    target += rng.uniform(-noise.shift, noise.shift, (1, 2)) * size
    target += rng.uniform(-noise.perspective, noise.perspective, (4, 2)) * size
    matrix = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
    return np.asarray(cv2.warpPerspective(shelf, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _light(crop: Image, rng: np.random.Generator, noise: Noise) -> Image:
    """Apply exposure, gamma and white balance by one table, then a gradient across the crop and at times a glare."""
    import cv2

    gain = np.exp(_spread(rng, noise.gain) + rng.uniform(-noise.tint, noise.tint, 3))
    gamma = np.exp(_spread(rng, noise.gamma))
    table = np.clip(255 * gain * (np.arange(256)[:, None] / 255) ** gamma, 0, 255).astype(np.uint8)
    lit = np.asarray(cv2.LUT(crop, table.reshape(1, 256, 3)), np.float32)
    x, y = _grid(crop.shape[0])
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.float32(rng.uniform(0, noise.gradient))
    shade = 1 + slope * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    lit *= shade[..., None]
    if rng.random() < noise.glare_odds:
        lit += _glare(x, y, rng, noise.glare)[..., None]
    return np.clip(lit, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Floats, Floats]:
    """Return x (1, size) and y (size, 1), both -1..1."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[None, :], line[:, None]


def _glare(x: Floats, y: Floats, rng: np.random.Generator, amount: float) -> Floats:
    """A soft bright ellipse, as lamps leave on foil and film, in 8-bit steps (size, size)."""
    cx, cy = rng.uniform(-0.9, 0.9, 2).astype(np.float32)
    wide, high = rng.uniform(0.10, 0.35, 2).astype(np.float32)
    spot = np.exp(-(((x - cx) / wide) ** 2)) * np.exp(-(((y - cy) / high) ** 2))
    return np.asarray(spot * np.float32(255 * rng.uniform(0.2, 1) * amount), np.float32)


def _blur(crop: Image, rng: np.random.Generator, noise: Noise) -> Image:
    """Blur by focus or by motion, one or the other, then lose resolution."""
    import cv2

    size = crop.shape[0]
    unit = size / 128
    if rng.random() < 0.5:
        sigma = abs(_spread(rng, noise.defocus)) * unit
        if sigma > 0.2:
            crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8)
    else:
        crop = _motion(crop, abs(_spread(rng, noise.motion)) * unit, rng.uniform(0, np.pi))
    small = round(size / (1 + abs(_spread(rng, noise.low_resolution))))
    if small < size:
        low = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
        crop = np.asarray(cv2.resize(low, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    return crop


def _motion(crop: Image, length: float, angle: float) -> Image:
    """Smear by ``length`` pixels along ``angle`` (radians)."""
    import cv2

    if length < 1:
        return crop
    reach = int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    steps = np.linspace(-length / 2, length / 2, 4 * reach + 1)
    rows, columns = np.rint(reach + steps * np.sin(angle)), np.rint(reach + steps * np.cos(angle))
    np.add.at(kernel, (rows.astype(np.intp), columns.astype(np.intp)), 1 / len(steps))
    return np.asarray(cv2.filter2D(crop, -1, kernel, borderType=cv2.BORDER_REPLICATE), np.uint8)


def _sensor(crop: Image, rng: np.random.Generator, noise: Noise) -> Image:
    """Add sensor noise that differs per crop in strength and per pixel and channel in value."""
    grain = rng.standard_normal(crop.shape, dtype=np.float32)
    grain *= np.float32(rng.uniform(0, noise.sensor))
    grain += crop
    return np.clip(grain, 0, 255).astype(np.uint8)
