"""Geometry of the renderer: emblem outlines, background patterns, pack silhouettes and the light on them.

Arrays only; it knows nothing about colours, words or SKUs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skumatch.synth_design import Emblem, Pattern, Shape

Points = NDArray[np.float64]  # (N, 2) x, y
Mask = NDArray[np.uint8]  # (H, W): 255 where the pack is

ASPECT: dict[Shape, float] = {"box": 1.25, "pouch": 1.2, "can": 1.4, "bottle": 1.65}  # height per width


def emblem_points(emblem: Emblem) -> Points:
    """Return the outline (N, 2) of an emblem within the unit circle, y down."""
    turn = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], 1)
    if emblem in ("star", "sun"):
        spikes, inner = (5, 0.45) if emblem == "star" else (12, 0.68)
        angle = np.arange(2 * spikes) * math.pi / spikes
        radius = np.where(np.arange(2 * spikes) % 2, inner, 1.0)
        return np.stack([np.sin(angle), -np.cos(angle)], 1) * radius[:, None]
    if emblem == "leaf":
        return np.stack([np.sin(turn) * np.abs(np.sin(turn / 2)) * 0.75, -np.cos(turn)], 1) @ _rotation(0.6)
    if emblem == "drop":
        return np.stack([np.sin(turn) * np.sin(turn / 2) ** 2 * 0.9, -np.cos(turn)], 1)
    if emblem == "heart":
        heart = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([np.sin(turn) ** 3, -heart / 16], 1)
    polygons = {
        "cup": [
            (-0.9, -0.7),
            (0.55, -0.7),
            (0.55, -0.5),
            (1, -0.5),
            (1, 0.25),
            (0.45, 0.25),
            (0.25, 0.75),
            (-0.6, 0.75),
        ],
        "peak": [(-1, 0.75), (-0.4, -0.35), (-0.15, 0), (0.3, -0.9), (1, 0.75)],
        "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    }
    return np.array(polygons[emblem]) if emblem in polygons else circle


def _rotation(angle: float) -> Points:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def fixed_point(points: Points) -> NDArray[np.int32]:
    """Return points for OpenCV's fixed-point drawing with ``shift=4``."""
    return np.round(points * 16).astype(np.int32)


@lru_cache(maxsize=64)
def pattern_mask(pattern: Pattern, height: int, width: int) -> NDArray[np.bool_]:
    """Return where a background pattern is drawn: bool (H, W)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / width
    if pattern == "plain":
        return np.zeros(x.shape, np.bool_)
    if pattern == "stripes":
        return np.asarray(np.sin((x + y) * 28) > 0)
    if pattern == "dots":
        return np.asarray(np.sin(x * 36) * np.sin(y * 36) > 0.35)
    if pattern == "rays":
        return np.asarray(np.sin(np.arctan2(y - 0.6, x - 0.5) * 12) > 0)
    if pattern == "waves":
        return np.asarray(np.sin(y * 26 + np.sin(x * 12) * 1.5) > 0)
    return np.asarray(x * 0.5 + y > 0.75) if pattern == "split" else np.asarray(np.sin(x * 18) * np.sin(y * 18) > 0)


@lru_cache(maxsize=64)
def shade(shape: Shape, height: int, width: int) -> NDArray[np.float32]:
    """Return the light on the pack as factors (H or 1, W, 1): round bodies darken to their sides, pouches crumple."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    if shape in ("can", "bottle"):
        light = 0.62 + 0.44 * np.sqrt(1 - 0.9 * x**2) + 0.10 * np.exp(-(((x + 0.45) / 0.12) ** 2))
        return np.asarray(light[None, :, None], np.float32)
    if shape == "box":
        return np.asarray((1.0 - 0.06 * x)[None, :, None], np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    folds = 1 - 0.13 * np.abs(x) ** 3 + 0.05 * np.sin(7 * x + 3 * y) * np.abs(y) - 0.10 * np.abs(y) ** 6
    return np.asarray(folds[..., None], np.float32)


@lru_cache(maxsize=64)
def silhouette(shape: Shape, height: int, width: int) -> Mask:
    import cv2

    points = np.array(_outline(shape)) * (width - 1, height - 1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [fixed_point(points)], (255,), cv2.LINE_AA, shift=4)
    return mask


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Return the silhouette as fractions of width and height: a right half, mirrored to the left."""
    halves = {
        "box": [(1.0, 0.0), (1.0, 1.0)],
        "can": [(0.92, 0.0), (0.94, 0.03), (1.0, 0.075), (1.0, 0.94), (0.94, 1.0)],
        "pouch": [(1.0, 0.0), (0.985, 0.06), (0.965, 0.3), (0.96, 0.5), (0.965, 0.75), (0.985, 0.95), (1.0, 1.0)],
        "bottle": [
            (0.66, 0.0), (0.66, 0.11), (0.61, 0.115), (0.61, 0.16), (0.70, 0.19), (0.86, 0.23),
            (0.96, 0.275), (1.0, 0.33), (1.0, 0.96), (0.96, 1.0),
        ],
    }  # fmt: skip
    right = halves[shape]
    return [*right, *((1 - x, y) for x, y in reversed(right))]
