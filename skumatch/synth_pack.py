"""Paint a designed pack flat, as a studio picture: silhouette, background pattern, band, emblem and words.

It knows nothing of shelves, cameras or noise: that is ``skumatch.synth_scene``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from skumatch.errors import ConfigError
from skumatch.spec import Image
from skumatch.synth_design import DARK, LIGHT, Colour, Pack, Shape, distance
from skumatch.synth_shapes import ASPECT, Mask, emblem_points, fixed_point, pattern_mask, shade, silhouette

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

BACKDROP: Colour = (206, 203, 198)  # studio grey; white would be lost beside white packs


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of what holds it: centre, width and height."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where things stand on the printed face. Nothing that tells look-alikes apart is at the foot: a rail hides it."""

    brand: Box
    noun: Box
    band: Box
    emblem: Box  # ``w``: diameter in face widths
    size: Box


FULL = 0.88  # width of a word that may use the whole face
LAYOUTS = (
    Arrangement(
        Box(0.5, 0.14, FULL, 0.19), Box(0.5, 0.275, 0.5, 0.08), Box(0.5, 0.70, 1, 0.24),
        Box(0.23, 0.44, 0.31, 0), Box(0.70, 0.44, 0.54, 0.19),
    ),
    Arrangement(
        Box(0.5, 0.38, FULL, 0.19), Box(0.5, 0.535, 0.6, 0.085), Box(0.5, 0.16, 1, 0.24),
        Box(0.77, 0.74, 0.36, 0), Box(0.31, 0.74, 0.54, 0.18),
    ),
    Arrangement(
        Box(0.5, 0.36, FULL, 0.18), Box(0.70, 0.14, 0.46, 0.10), Box(0.5, 0.59, 1, 0.23),
        Box(0.27, 0.13, 0.30, 0), Box(0.5, 0.80, 0.58, 0.17),
    ),
    Arrangement(
        Box(0.5, 0.13, FULL, 0.18), Box(0.5, 0.53, 0.6, 0.085), Box(0.5, 0.36, 1, 0.23),
        Box(0.25, 0.75, 0.37, 0), Box(0.71, 0.75, 0.53, 0.18),
    ),
    Arrangement(
        Box(0.5, 0.60, FULL, 0.19), Box(0.5, 0.77, 0.7, 0.10), Box(0.5, 0.37, 1, 0.23),
        Box(0.81, 0.125, 0.27, 0), Box(0.34, 0.14, 0.56, 0.18),
    ),
)  # fmt: skip
FACES: dict[Shape, tuple[float, float, float, float]] = {  # printed face on the silhouette: left, top, right, bottom
    "box": (0.0, 0.0, 1.0, 1.0),
    "pouch": (0.04, 0.07, 0.96, 0.95),
    "can": (0.0, 0.07, 1.0, 0.94),
    "bottle": (0.0, 0.30, 1.0, 0.97),
}


def render_pack(pack: Pack, width: int = 192, height: int | None = None) -> Image:
    """Return the studio picture of ``pack``: uint8 (H, W, 3) RGB, the pack edge to edge on grey.

    ``height`` follows from the pack's shape unless given. Raises ConfigError for a side under 32 pixels.
    """
    rgb, mask = painted(pack, width)
    alpha = mask[..., None].astype(np.float32) / 255
    flat = np.asarray(rgb * alpha + np.array(BACKDROP, np.float32) * (1 - alpha), np.uint8)
    return flat if height is None else _resized(flat, width, height)


def _resized(flat: Image, width: int, height: int) -> Image:
    import cv2

    if height < 32:
        raise ConfigError(f"a pack {height} pixels high cannot be drawn", "ask for at least 32")
    return np.asarray(cv2.resize(flat, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=128)
def painted(pack: Pack, width: int) -> tuple[Image, Mask]:
    """Return ``pack`` as read-only RGB (H, W, 3) and silhouette mask (H, W), both uint8; cached."""
    from PIL import Image as PilImage
    from PIL import ImageDraw

    if width < 32:
        raise ConfigError(f"a pack {width} pixels wide cannot be drawn", "ask for at least 32")
    shape = pack.look.shape
    height = round(width * ASPECT[shape])
    canvas = np.full((height, width, 3), pack.look.ground, np.uint8)
    left, top, right, bottom = FACES[shape]
    face = canvas[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    _paint_face(face, pack)
    drawn = PilImage.fromarray(face)
    _write_face(ImageDraw.Draw(drawn), pack, drawn.size)
    face[:] = np.asarray(drawn)
    _paint_closure(canvas, pack)
    rgb = np.clip(canvas * shade(shape, height, width), 0, 255).astype(np.uint8)
    mask = silhouette(shape, height, width)
    rgb.flags.writeable = mask.flags.writeable = False
    return rgb, mask


def readable(ground: Colour) -> Colour:
    """Return the dark or the light ink, whichever stands out from ``ground``."""
    return DARK if distance(DARK, ground) > distance(LIGHT, ground) else LIGHT


def _paint_face(face: Image, pack: Pack) -> None:
    """Paint pattern, band, emblem and the size badge into ``face``, a view of the canvas."""
    import cv2

    height, width = face.shape[:2]
    layout = LAYOUTS[pack.look.arrangement]
    _paint_pattern(face, pack)
    top, bottom = (round((layout.band.y + side * layout.band.h / 2) * height) for side in (-1, 1))
    rim = max(1, width // 64)
    face[top - rim : bottom + rim] = readable(pack.band)
    face[top:bottom] = pack.band
    emblem = layout.emblem
    points = emblem_points(pack.look.emblem) * (emblem.w * width / 2) + (emblem.x * width, emblem.y * height)
    cv2.fillPoly(face, [fixed_point(points)], pack.look.accent, cv2.LINE_AA, shift=4)
    if pack.look.emblem == "ring":
        centre = (round(emblem.x * width), round(emblem.y * height))
        cv2.circle(face, centre, round(emblem.w * width / 4), pack.look.ground, -1, cv2.LINE_AA)
    _paint_badge(face, pack, layout.size)


def _paint_pattern(face: Image, pack: Pack) -> None:
    """Draw the family's background in a neighbouring shade of the ground, and a foot in the accent colour."""
    height, width = face.shape[:2]
    lift = -38 if sum(pack.look.ground) > 380 else 42
    shade = np.clip(np.array(pack.look.ground) + lift, 0, 255).astype(np.uint8)
    face[pattern_mask(pack.look.pattern, height, width)] = shade
    face[round(0.93 * height) :] = pack.look.accent


def _paint_badge(face: Image, pack: Pack, box: Box) -> None:
    """Paint the plate that the size text stands on."""
    import cv2

    ink = readable(pack.look.ground)
    x0, y0, x1, y1 = _edges(box, face.shape[1], face.shape[0])
    if pack.look.badge == "plate":
        face[y0:y1, x0:x1] = ink
        return
    radius = (y1 - y0) // 2
    cv2.line(face, (x0 + radius, y0 + radius), (x1 - radius, y0 + radius), ink, 2 * radius, cv2.LINE_AA)


def _paint_closure(canvas: Image, pack: Pack) -> None:
    """Paint what is not printed: cap, rims, seals and folds."""
    height, width = canvas.shape[:2]
    shape = pack.look.shape
    if shape == "bottle":
        canvas[: round(0.11 * height)] = pack.look.accent
    elif shape == "can":
        canvas[: round(0.06 * height)] = canvas[-round(0.05 * height) :] = (172, 174, 178)
    elif shape == "pouch":
        seal = round(0.055 * height)
        canvas[:seal, :: max(3, width // 40)] = canvas[-seal:, :: max(3, width // 40)] = readable(pack.look.ground)
    else:
        canvas[round(0.028 * height) : round(0.036 * height)] = np.array(pack.look.ground) * 0.6


def _write_face(draw: ImageDraw.ImageDraw, pack: Pack, size: tuple[int, int]) -> None:
    """Write brand, noun, flavour and size text as large as their boxes allow."""
    layout = LAYOUTS[pack.look.arrangement]
    ink = readable(pack.look.ground)
    _write(draw, pack.brand.upper(), layout.brand, size, ink)
    _write(draw, pack.noun, layout.noun, size, ink)
    band = layout.band
    _write(draw, pack.label.upper(), Box(band.x, band.y, FULL, band.h * 0.82), size, readable(pack.band))
    badge = layout.size
    _write(draw, pack.size, Box(badge.x, badge.y, badge.w * 0.9, badge.h * 0.86), size, readable(ink))


def _write(draw: ImageDraw.ImageDraw, text: str, box: Box, size: tuple[int, int], ink: Colour) -> None:
    """Centre ``text`` in ``box`` by its ink, not its line height, and make it bold as print on packs is."""
    width, height = size
    left, top, right, bottom = _font(100).getbbox(text, stroke_width=4)
    points = min(box.w * width / (right - left), box.h * height / (bottom - top)) * 100
    font = _font(max(6, int(points)))
    stroke = font.size * 0.04
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    at = (box.x * width - (left + right) / 2, box.y * height - (top + bottom) / 2)
    draw.text(at, text, fill=ink, font=font, stroke_width=stroke)


@lru_cache(maxsize=256)
def _font(points: int) -> ImageFont.FreeTypeFont:
    """Pillow's bundled scalable font; without FreeType Pillow itself raises ImportError here."""
    from PIL import ImageFont

    font = ImageFont.load_default(float(points))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigError("Pillow was built without FreeType", "install Pillow's own wheel")
    return font


def _edges(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    x0, x1 = (round((box.x + side * box.w / 2) * width) for side in (-1, 1))
    y0, y1 = (round((box.y + side * box.h / 2) * height) for side in (-1, 1))
    return x0, y0, x1, y1
