"""Pictures from a studio on a shelf: another background behind the pack, and a neighbour at its side; and JPEG.

On decoded pictures, uint8 (H, W, 3), where they are decoded. Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from skumatch.finetune.augment import Draws
from skumatch.finetune.parts import Augment
from skumatch.spec import Image

BLEED, BACKGROUND = 50, 54  # first columns of the draws: 50 to 53 the neighbour, 54 to 59 the background
PLAIN = 12.0  # standard deviation of a studio picture's border, per channel, at most
NEAR = 14  # how far a colour may be from its neighbour's to belong to the same background
SMALL = 256  # long side at which the background is looked for


def border_of(image: Image) -> NDArray[np.uint8]:
    """Return the outermost pixels, (M, 3)."""
    depth = max(1, min(image.shape[:2]) // 50)
    sides = (image[:depth], image[-depth:], image[:, :depth], image[:, -depth:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def is_studio(image: Image) -> bool:
    """Return whether the picture's border is one plain colour, as behind a pack in a studio."""
    border = border_of(image).astype(np.float32)
    middle = np.median(border, axis=0)
    return bool((np.abs(border - middle).max(1) < 3 * PLAIN).mean() > 0.95 and border.std(0).max() < 2 * PLAIN)


def background_mask(image: Image) -> NDArray[np.float32]:
    """Return (H, W) in 0..1: 1 where the background is, with a soft edge.

    Filled from the border only: what is as white as the background but inside the pack stays.
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, SMALL / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    padded = cv2.copyMakeBorder(
        cv2.resize(image, small_size, interpolation=cv2.INTER_AREA), 1, 1, 1, 1, cv2.BORDER_REPLICATE
    )
    padded[[0, -1]] = padded[:, [0, -1]] = np.median(border_of(image), axis=0).astype(np.uint8)
    filled = np.zeros((padded.shape[0] + 2, padded.shape[1] + 2), np.uint8)
    flags = 4 | (1 << 8) | cv2.FLOODFILL_MASK_ONLY
    cv2.floodFill(padded, filled, (0, 0), (0, 0, 0), (NEAR,) * 3, (NEAR,) * 3, flags)
    soft = cv2.GaussianBlur(filled[2:-2, 2:-2].astype(np.float32), (3, 3), 0)
    found: NDArray[np.float32] = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return found


def replace_background(image: Image, draw: Draws, other: Image | None) -> Image:
    """Return a studio picture on another background: ``other``, blurred, or a gradient of two colours.

    ``draw``: (68,) in [0, 1), of which columns 55 to 59 count.
    """
    import cv2

    height, width = image.shape[:2]
    if other is None:
        first, second = (255 * draw[55:58], 255 * draw[[58, 59, 55]])
        slope = np.linspace(0, 1, height, dtype=np.float64)[:, None, None]
        behind = np.broadcast_to(first + slope * (second - first), (height, width, 3)).astype(np.float32)
    else:
        resized = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
        behind = cv2.GaussianBlur(resized, (0, 0), 1 + 0.02 * max(height, width)).astype(np.float32)
    mask = background_mask(image)[:, :, None]
    return np.asarray(np.rint(image * (1 - mask) + behind * mask), np.uint8)


def on_shelf(image: Image, draw: Draws, how: Augment, other: Callable[[float], Image | None]) -> Image:
    """Return the picture with another background and a neighbour where the ``draw`` (68,) says so.

    ``other`` returns the picture at a place in 0..1 among those that stand beside it, None where none is fit.
    """
    if draw[BACKGROUND] < how.background and is_studio(image):
        image = replace_background(image, draw, other(draw[BACKGROUND + 1]))
    if draw[BLEED] < how.bleed and (neighbour := other(draw[BLEED + 3])) is not None:
        image = beside(image, draw, neighbour)
    return image


def through_jpeg(image: Image, quality: int) -> Image:
    """Return the picture as it comes out of JPEG of ``quality`` 1..100."""
    stream = BytesIO()
    PILImage.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(PILImage.open(stream))


def beside(image: Image, draw: Draws, other: Image) -> Image:
    """Return the picture with a strip of ``other`` at its left or right edge, as on a crowded shelf.

    ``draw``: (68,) in [0, 1): column 51 chooses the side, 52 the width, 8 to 25 % of the picture's.
    """
    import cv2

    height, width = image.shape[:2]
    strip = max(1, round((0.08 + 0.17 * draw[52]) * width))
    scaled = cv2.resize(other, (max(strip, round(other.shape[1] * height / other.shape[0])), height))
    result = image.copy()
    if draw[51] < 0.5:
        result[:, :strip] = scaled[:, -strip:]
    else:
        result[:, -strip:] = scaled[:, :strip]
    return result
