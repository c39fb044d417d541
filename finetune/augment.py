"""Shelf augmentation on whole batches: geometry in one warp, then light, blur and occlusion.

All randomness comes in as uniform numbers keyed by (seed, epoch, picture): the same picture in the same epoch is
changed in the same way, whatever batch, thread or device it is on. What a noise does is in ``noise``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from skumatch.finetune.noise import MIRROR, cut_out, glare, low_res, motion, shadow
from skumatch.finetune.parts import Augment

DRAWS = 68
JPEG_DRAW, JPEG_QUALITY_DRAW = 30, 31
Draws = NDArray[np.float64]


def draws(seed: int, epoch: int, positions: NDArray[np.int64], time: int = 0) -> Draws:
    """Return uniform numbers (N, 68) in [0, 1) for the pictures at ``positions``, shown for the ``time``-th time."""
    more = (time,) if time else ()
    return np.stack([np.random.default_rng((seed, epoch, int(i), 2, *more)).random(DRAWS) for i in positions])


def jpeg_quality(draw: Draws, how: Augment) -> int | None:
    """Return the JPEG quality for one picture's (68,) draws, None where it stays as it is."""
    if draw[JPEG_DRAW] >= how.jpeg:
        return None
    return int(25 + 65 * draw[JPEG_QUALITY_DRAW])


def augment(canvas: Tensor, aspect: Tensor, u: Tensor, size: int, how: Augment) -> Tensor:
    """Return float32 (N, 3, size, size) in 0..255 from uint8 (N, 3, R, R) canvases.

    ``aspect`` float (N,): width / height before the picture was squashed to the canvas. ``u`` float (N, 68) draws.
    """
    warped = F.grid_sample(
        canvas.float(), warp_grid(aspect, u, size, how), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    lit = glare(shadow(light(warped, u, how), u, how.shadow), u, how.glare)
    soft = low_res(motion(blur(lit, u, how), u, how.motion), u, how.low_res)
    return cut_out(occlude(soft, u, how).clamp(0, 255), u, how.cut_out)


def warp_grid(aspect: Tensor, u: Tensor, size: int, how: Augment) -> Tensor:
    """Return sampling positions (N, size, size, 2) in -1..1: random resized crop, rotation and perspective at once."""
    corners = _corners(aspect, u, how)
    matrix = _homography(corners).float()
    line = (torch.arange(size, device=u.device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    plane = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    if how.mirror:
        turned = torch.where(u[:, MIRROR] < how.mirror, -1.0, 1.0).float()
        plane = plane * torch.stack([turned, torch.ones_like(turned), torch.ones_like(turned)], 1)[:, None]
    mapped = plane @ matrix.transpose(1, 2)
    positions = mapped[..., :2] / mapped[..., 2:]
    return positions.view(len(u), size, size, 2)


def _corners(aspect: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Return where the output's corners lie on the canvas: (N, 4, 2) in -1..1, order TL, TR, BL, BR."""
    area = how.min_scale + (1 - how.min_scale) * u[:, 0]
    # Of the crop's width to its height, in the real picture; mild crops keep the shape, or they would cut more away.
    ratio = torch.exp((u[:, 1] * 2 - 1) * min(math.log(4 / 3), -0.5 * math.log(how.min_scale)))
    half_w = torch.sqrt(area * ratio / aspect).clamp(max=1)
    half_h = torch.sqrt(area / ratio * aspect).clamp(max=1)
    centre_x = (u[:, 2] * 2 - 1) * (1 - half_w)
    centre_y = (u[:, 3] * 2 - 1) * (1 - half_h)
    angle = (u[:, 4] * 2 - 1) * math.radians(how.rotation)
    signs = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]], device=u.device, dtype=u.dtype)
    jitter = (u[:, 5:13].view(-1, 4, 2) * 2 - 1) * 2 * how.perspective
    square = signs[None] * (1 - jitter.abs() * 0.5) + jitter * 0.5
    wide = torch.stack([half_w * torch.sqrt(aspect), half_h / torch.sqrt(aspect)], 1)  # to real proportions
    local = square * wide[:, None]
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    turned = torch.stack([local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos], -1)
    back = torch.stack([turned[..., 0] / torch.sqrt(aspect)[:, None], turned[..., 1] * torch.sqrt(aspect)[:, None]], -1)
    return back + torch.stack([centre_x, centre_y], 1)[:, None]


def _homography(corners: Tensor) -> Tensor:
    """Return (N, 3, 3) matrices that map the square's corners (-1..1; TL, TR, BL, BR) to ``corners`` (N, 4, 2)."""
    n = len(corners)
    x = torch.tensor([-1.0, 1, -1, 1], device=corners.device, dtype=corners.dtype).expand(n, 4)
    y = torch.tensor([-1.0, -1, 1, 1], device=corners.device, dtype=corners.dtype).expand(n, 4)
    u, v = corners[..., 0], corners[..., 1]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    top = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    bottom = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    solved = torch.linalg.solve(torch.cat([top, bottom], 1), torch.cat([u, v], 1))
    return torch.cat([solved, torch.ones(n, 1, device=corners.device, dtype=corners.dtype)], 1).view(n, 3, 3)


def light(images: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Change brightness, contrast, saturation and white balance of (N, 3, S, S) in 0..255."""
    if how.colour == 0:
        return images
    shift = ((u[:, 13:19] * 2 - 1) * how.colour).float()
    gains = (1 + shift[:, 0:1]) * (1 + shift[:, 3:6] * 0.25)
    bright = images * gains[:, :, None, None]
    grey = (bright * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    saturated = grey + (bright - grey) * (1 + shift[:, 2])[:, None, None, None]
    middle = grey.mean((2, 3), keepdim=True)
    return middle + (saturated - middle) * (1 + shift[:, 1])[:, None, None, None]


def blur(images: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Blur a share ``how.blur`` of the pictures by a Gaussian of 0.4 to 1.8 pixels per 128 of their side."""
    chosen = torch.nonzero(u[:, 19] < how.blur).flatten()
    if not len(chosen):
        return images
    side = images.shape[-1]
    sigma = ((0.4 + 1.4 * u[chosen, 20]) * side / 128).float()
    reach = max(1, math.ceil(1.8 * side / 128 * 2))
    line = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (line / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    flat = images[chosen].reshape(1, -1, side, side)
    flat = F.pad(flat, (reach, reach, reach, reach), mode="reflect")
    flat = F.conv2d(F.conv2d(flat, kernel[:, :, :, None], groups=len(kernel)), kernel[:, :, None], groups=len(kernel))
    result = images.clone()
    result[chosen] = flat.view(len(chosen), 3, side, side)
    return result


def occlude(images: Tensor, u: Tensor, how: Augment) -> Tensor:
    """Cover part of a share ``how.occlusion`` of the pictures: half of them by a price rail, half by a box."""
    if how.occlusion == 0:
        return images
    v = u.float()
    covered = v[:, 21] < how.occlusion
    rail = v[:, 22] < 0.5
    height = torch.where(rail, 0.05 + 0.2 * v[:, 23], 0.1 + 0.3 * v[:, 23])
    width = torch.where(rail, torch.ones_like(height), 0.1 + 0.3 * v[:, 24])
    top = torch.where(rail, 1 - height, v[:, 25] * (1 - height))
    left = v[:, 26] * (1 - width)
    line = (torch.arange(images.shape[-1], device=images.device, dtype=torch.float32) + 0.5) / images.shape[-1]
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    mask = (rows[:, :, None] & columns[:, None, :] & covered[:, None, None])[:, None]
    return torch.where(mask, (v[:, 27:30] * 255)[:, :, None, None], images)
