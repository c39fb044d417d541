"""Do two pictures show the same photo? A hash that finds candidates among a million, and a pixel check that decides.

The hash is the 64-bit DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
section 3.2.1. The pixel check lays one picture over the other (shift and scale per axis, brightness, contrast) and
correlates them patch by patch: a copy agrees everywhere, a second photo of the same thing only here and there.

Knows nothing about data sets, SKUs or encoders. Mirrored and turned copies are not looked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from skumatch import images
from skumatch.spec import Ids

Grey = NDArray[np.float32]  # (S, S), 0..255
Grid = NDArray[np.float64]
Hashes = NDArray[np.uint64]  # (N,)

HASH_SIDE: Final = 32
SIDE: Final = 192  # pixels of the pictures that the pixel check compares
LEVELS: Final = (24, 48, 96)  # sides at which they are aligned, coarse to fine
HOPELESS: Final = 0.4  # correlation at the coarsest level below which no finer one is tried
PATCHES: Final = 8  # per axis
SCALES: Final = (0.75, 4 / 3)  # per axis: a picture may lack up to a quarter of the other
SHIFTS: Final = (-0.25, 0.25)  # of half a side
STEPS: Final = 12
NOISE: Final = 16.0  # variance in grey levels that JPEG and resizing leave in flat areas; they tell nothing
BLOCK: Final = 1 << 22  # pairs of hashes compared at once


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A picture's 64-bit perceptual hash."""

    bits: int


@dataclass(frozen=True, slots=True)
class Plane:
    """A picture squashed to (192, 192) grey levels and its ``detail``: the pixels of its short side before that."""

    grey: Grey
    detail: int

    @property
    def bits(self) -> int:
        """The perceptual hash, within a bit or two of ``fingerprint``'s."""
        return hash_bits(_shrunk(self.grey, SIDE // HASH_SIDE))


@dataclass(frozen=True, slots=True)
class Overlay:
    """How well two pictures agree once laid over each other.

    ``agreement`` is the mean correlation of the patches, weighted by contrast; ``worst`` that of the worst tenth of
    the patches with contrast (both -1..1). ``overlap`` is the share of the query that the view covers, 0..1.
    """

    agreement: float
    worst: float
    overlap: float


NOTHING: Final = Overlay(-1.0, -1.0, 0.0)


def fingerprint(source: Path | bytes, max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Fingerprint:
    """Return the hash of a picture; a big JPEG is decoded at a fraction of its size. Raises ImageError."""
    return Fingerprint(hash_bits(_squashed(source, HASH_SIDE, max_pixels)[0]))


def plane(source: Path | bytes, max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Plane:
    """Return what ``overlay`` compares; decoded as ``fingerprint`` does. Raises ImageError."""
    return Plane(*_squashed(source, SIDE, max_pixels))


def hash_bits(grey: NDArray[np.floating]) -> int:
    """Return 64 bits of a (32, 32) grey picture: which of its 8 x 8 lowest frequencies lie above their median."""
    basis = _dct_rows()
    low = (basis @ grey @ basis.T).ravel()
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def nearest_hashes(queries: Hashes, gallery: Hashes, most: int, k: int, block: int = BLOCK) -> tuple[Ids, Ids]:
    """Return pairs of places (query, view), int64: hashes that differ in at most ``most`` of 64 bits.

    Per query the ``k`` nearest at most (ties: the first views), in order of queries. Compares ``block`` pairs at once.
    """
    high, wide = 64, max(1, block // 64)
    found: list[tuple[Ids, Ids]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for start in range(0, len(queries), high):
        rows, views, bits = (np.empty(0, np.int64) for _ in range(3))
        for left in range(0, len(gallery), wide):
            far = np.bitwise_count(queries[start : start + high, None] ^ gallery[None, left : left + wide])
            row, view = np.nonzero(far <= most)
            rows, views = np.concatenate([rows, row]), np.concatenate([views, view + left])
            bits = np.concatenate([bits, far[row, view]])
            kept = _first(rows, views, bits, k)
            rows, views, bits = rows[kept], views[kept], bits[kept]
        found.append((rows + start, views))
    return np.concatenate([rows for rows, _ in found]), np.concatenate([views for _, views in found])


def overlay(view: Plane, query: Plane) -> Overlay:
    """Lay two pictures over each other and say how well they agree.

    The alignment climbs the correlation by Gauss-Newton steps from coarse to fine (Evangelidis & Psarakis 2008, "ECC",
    here with shift and scale per axis). They are compared at the finest resolution that both have.
    """
    warp = np.array([1.0, 0.0, 1.0, 0.0])
    for side in LEVELS:
        coarse = _shrunk(view.grey, SIDE // side), _shrunk(query.grey, SIDE // side)
        warp = _refine(*coarse, warp)
        if side == LEVELS[0] and not _correlation(*_laid(*coarse, warp)) > HOPELESS:
            return NOTHING
    moved, fixed = _laid(view.grey, query.grey, warp)
    detail = min(view.detail, query.detail)
    shrink = next((SIDE // side for side in reversed(LEVELS) if detail >= side), SIDE // LEVELS[0])
    return _compare(_shrunk(moved, shrink), _shrunk(fixed, shrink), moved.size / SIDE**2)


def _squashed(source: Path | bytes, side: int, max_pixels: int) -> tuple[Grey, int]:
    small = images.read_image(images.thumbnail(source, 2 * side, max_pixels))
    grey = PILImage.fromarray(small).convert("L").resize((side, side), PILImage.Resampling.BILINEAR)
    return np.asarray(grey, np.float32), min(small.shape[:2])


@cache
def _dct_rows() -> Grid:
    """Return rows 1 to 8 of the DCT-II matrix of 32 samples; row 0 holds brightness, which is not looked at."""
    k, n = np.arange(1, 9)[:, None], np.arange(HASH_SIDE)[None, :]
    return np.cos(math.pi * (2 * n + 1) * k / (2 * HASH_SIDE))


def _first(rows: Ids, views: Ids, bits: Ids, k: int) -> Ids:
    """Return the places of the ``k`` nearest pairs of each row, in order of rows, then of distance."""
    order = np.lexsort((views, bits, rows))
    sorted_rows = rows[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
    return order[rank < k]


def _shrunk(grey: NDArray[np.floating], step: int) -> Grid:
    """Return means of ``step`` x ``step`` pixels; a rest at the far edges is left out."""
    height, width = (n // step for n in grey.shape)
    cut = grey[: height * step, : width * step].astype(np.float64)
    return np.asarray(cut.reshape(height, step, width, step).mean(axis=(1, 3)))


def _axis(side: int, scale: float, shift: float) -> tuple[slice, Grid]:
    """Return where along an axis the moved picture has pixels, and the matrix that interpolates them linearly.

    Pixel centres lie in -1..1; place x is read at ``scale * x + shift``.
    """
    at = ((scale * _centres(side) + shift + 1) * side - 1) / 2
    inside = np.flatnonzero((at >= -0.5) & (at <= side - 0.5))
    at = at[inside].clip(0, side - 1)
    low = np.minimum(at.astype(np.int64), side - 2)
    matrix = np.zeros((len(inside), side))
    rows = np.arange(len(inside))
    matrix[rows, low], matrix[rows, low + 1] = 1 - (at - low), at - low
    return slice(int(inside[0]), int(inside[-1]) + 1), matrix


def _centres(side: int) -> Grid:
    return (2 * np.arange(side) + 1) / side - 1


def _laid(view: NDArray[np.floating], query: NDArray[np.floating], warp: Grid) -> tuple[Grid, NDArray[np.floating]]:
    """Return the common part of both: ``view`` moved onto the pixels of ``query``, and those pixels."""
    columns, across = _axis(len(query), warp[0], warp[1])
    rows, down = _axis(len(query), warp[2], warp[3])
    return down @ view @ across.T, query[rows, columns]


def _refine(view: Grid, query: Grid, warp: Grid) -> Grid:
    """Return ``warp`` (scale and shift along x, then along y) after at most ``STEPS`` steps at one level."""
    side = len(query)
    low, high = np.array([SCALES, SHIFTS, SCALES, SHIFTS]).T
    for _ in range(STEPS):
        columns, across = _axis(side, warp[0], warp[1])
        rows, down = _axis(side, warp[2], warp[3])
        moved = down @ view @ across.T
        dy, dx = np.gradient(moved, 2 / side)
        dx, dy = dx / warp[0], dy / warp[2]
        x, y = _centres(side)[None, columns], _centres(side)[rows, None]
        step = _step(moved, query[rows, columns], np.stack([dx * x, dx, dy * y, dy]))
        warp = np.clip(warp + step, low, high)
        if np.abs(step).max() < 0.1 / side:
            break
    return warp


def _step(moved: Grid, fixed: Grid, slopes: Grid) -> Grid:
    """Return the least-squares step of the warp, brightness and contrast being free too; zeros without contrast."""
    design = np.stack([*slopes, moved, np.ones_like(moved)]).reshape(6, -1)
    normal = design @ design.T
    normal[np.diag_indices(6)] += 1e-6 * normal.diagonal() + 1e-6  # a blank picture has no slopes
    found = np.linalg.solve(normal, design @ fixed.ravel())
    contrast = float(found[4])
    return np.clip(found[:4] / contrast, -0.1, 0.1) if abs(contrast) > 0.1 else np.zeros(4)


def _correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.std() * b.std() + 1e-6))


def _compare(moved: Grid, fixed: Grid, overlap: float) -> Overlay:
    """Correlate patch by patch. A patch counts by its contrast; flat ones, mere noise, cannot be the worst."""
    alike, weights = [], []
    for left, right in zip(np.array_split(moved, PATCHES), np.array_split(fixed, PATCHES), strict=True):
        for a, b in zip(np.array_split(left, PATCHES, 1), np.array_split(right, PATCHES, 1), strict=True):
            contrast = float(a.std() * b.std())
            weights.append(contrast / (contrast + NOISE))
            alike.append(_correlation(a, b))
    scores, weight = np.array(alike), np.array(weights)
    told = np.sort(scores[weight > 0.5])
    if len(told) < PATCHES:
        return Overlay(0.0, 0.0, overlap)  # too blank to tell
    mean = float((scores * weight).sum() / weight.sum())
    return Overlay(mean, float(told[: math.ceil(len(told) / 10)].mean()), overlap)
