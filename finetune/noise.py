"""Noises of shop photos on whole batches: motion, few pixels, glare, shadow, cut-outs; and all as a v2 transform.

Each function takes pictures float32 (N, 3, S, S) in 0..255, draws float (N, 68) in [0, 1) and the share of pictures to
change, and returns pictures of the same shape; which columns of the draws it reads is written beside it. Knows nothing
about training.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MIRROR = 49  # column of the draws
LEVELS = (0.25, 0.33, 0.42, 0.5)  # of the side that a picture of few pixels keeps
LONGEST = 0.08  # of the side: how far the camera moves at most


def motion(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Blur along a line of up to 8 % of the side, in any direction. Columns 32 to 34."""
    chosen = _chosen(u[:, 32], share)
    if not len(chosen):
        return images
    side = images.shape[-1]
    reach = max(1, math.ceil(LONGEST * side / 2))
    kernel = _lines(u[chosen, 33], u[chosen, 34], reach, side)
    flat = images[chosen].reshape(1, -1, side, side)
    flat = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(flat, kernel.repeat_interleave(3, 0)[:, None], groups=3 * len(chosen))
    return images.index_copy(0, chosen, blurred.view(len(chosen), 3, side, side))


def _lines(length: Tensor, angle: Tensor, reach: int, side: int) -> Tensor:
    """Return kernels (N, K, K) of sum 1: a line through the middle, antialiased."""
    steps = torch.arange(-reach, reach + 1, device=length.device, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    half = ((0.25 + 0.75 * length) * LONGEST * side / 2).float().clamp(max=reach)[:, None, None]
    turn = (angle * math.pi).float()[:, None, None]
    along, across = x * torch.cos(turn) + y * torch.sin(turn), y * torch.cos(turn) - x * torch.sin(turn)
    weight = (1 - across.abs()).clamp(0) * (half + 0.5 - along.abs()).clamp(0, 1)
    return weight / weight.sum((1, 2), keepdim=True)


def low_res(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Shrink to a quarter to a half of the side and enlarge again. Columns 35 and 36."""
    chosen = _chosen(u[:, 35], share)
    if not len(chosen):
        return images
    side, result = images.shape[-1], images.clone()
    level = (u[chosen, 36] * len(LEVELS)).long()
    for number, scale in enumerate(LEVELS):
        these = chosen[level == number]
        if len(these):
            small = F.interpolate(images[these], max(2, round(scale * side)), mode="bilinear", antialias=True)
            result[these] = F.interpolate(small, side, mode="bilinear", align_corners=False)
    return result


def glare(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Add a soft bright ellipse, as lamps on foil make it. Columns 37 to 43."""
    if not share:
        return images
    x, y = _plane(images)
    v = u.float()[:, :, None, None]
    dx, dy, turn = x - v[:, 38], y - v[:, 39], v[:, 43] * math.pi
    along, across = dx * torch.cos(turn) + dy * torch.sin(turn), dy * torch.cos(turn) - dx * torch.sin(turn)
    width = 0.06 + 0.2 * v[:, 40]
    spot = torch.exp(-0.5 * ((along / width) ** 2 + (across / (width * (0.2 + 0.6 * v[:, 42]))) ** 2))
    bright = 255 * (0.4 + 0.6 * v[:, 41]) * (v[:, 37] < share)
    return (images + (spot * bright)[:, None]).clamp(max=255)


def shadow(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Darken one side of a soft line to 35 to 75 %, as a shelf above does. Columns 44 to 48."""
    if not share:
        return images
    x, y = _plane(images)
    v = u.float()[:, :, None, None]
    turn = v[:, 45] * 2 * math.pi
    distance = (x - 0.5) * torch.cos(turn) + (y - 0.5) * torch.sin(turn) - 0.6 * (v[:, 46] - 0.5)
    covered = torch.sigmoid(distance / (0.01 + 0.08 * v[:, 48])) * (v[:, 44] < share)
    return images * (1 - (0.25 + 0.4 * v[:, 47]) * covered)[:, None]


def cut_out(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Shrink to 55 to 95 % and cut an oval to a rectangle out of it, on white, like a catalogue picture. Columns 60-63.

    For galleries of catalogue pictures: an encoder that never saw white around a pack may tell nothing else in them.
    """
    chosen = _chosen(u[:, 60], share)
    if not len(chosen):
        return images
    v = u[chosen].float()[:, :, None, None]
    x, y = (2 * axis - 1 for axis in _plane(images))
    scale = 0.55 + 0.4 * v[:, 61]
    power = 2 + 8 * v[:, 62]
    inside = (x.abs() / scale) ** power + (y.abs() / scale) ** power
    mask = torch.sigmoid((1 - inside) * 20)[:, None]
    grid = torch.stack([(x / scale).expand_as(inside), (y / scale).expand_as(inside)], -1)
    small = F.grid_sample(images[chosen], grid, mode="bilinear", padding_mode="border", align_corners=False)
    white = 255 - 25 * v[:, 63:64]
    return images.index_copy(0, chosen, (small * mask + white * (1 - mask)).clamp(0, 255))


def _chosen(draw: Tensor, share: float) -> Tensor:
    return torch.nonzero(draw < share).flatten() if share else draw.new_zeros(0, dtype=torch.long)


def _plane(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y (1, S, S), 0..1 across the picture."""
    side = images.shape[-1]
    line = (torch.arange(side, device=images.device, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def _always(answer: Any, _: float) -> Any:
    return answer


def _one_by_one(batch: Tensor, u: Tensor, how: Any) -> Tensor:
    """Return pictures (N, 3, H, W) with what is done to them one at a time on the CPU: background, neighbour, JPEG."""
    from skumatch.finetune.augment import jpeg_quality
    from skumatch.finetune.studio import on_shelf, through_jpeg

    def plain(number: int) -> Any:
        return batch[number].permute(1, 2, 0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()

    result = batch.clone()
    for number, draw in enumerate(u.cpu().numpy()):
        before, quality = plain(number), jpeg_quality(draw, how)
        neighbour = plain(number - 1) if len(batch) > 1 else None
        after = on_shelf(before, draw, how, partial(_always, neighbour))
        after = after if quality is None else through_jpeg(after, quality)
        if after is not before:
            result[number] = torch.from_numpy(after.copy()).permute(2, 0, 1).to(batch.device, batch.dtype)
    return result


def shelf_noise(how: Any = None, size: int | None = None) -> Any:
    """Return a torchvision v2 transform that applies the shelf augmentation of a recipe, for training elsewhere.

    ``how``: parts.Augment (None: its defaults). ``size``: side of the pictures it returns (None: the shorter side of
    what it is given). It takes pictures (3, H, W) or batches (N, 3, H, W), uint8 or float in 0..255, draws from torch's
    generator, and returns the dtype that it was given. What stands beside or behind a picture is another of its batch.
    """
    from torchvision.transforms import v2

    from skumatch.finetune.augment import DRAWS, augment
    from skumatch.finetune.parts import Augment

    strengths = Augment() if how is None else how

    class ShelfNoise(v2.Transform):  # type: ignore[misc]
        """The shelf augmentation as a torchvision transform."""

        def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
            first = next(item for item in flat_inputs if isinstance(item, Tensor) and item.ndim >= 3)
            count = len(first) if first.ndim == 4 else 1
            return {"draws": torch.rand(count, DRAWS, dtype=torch.float64)}

        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            if not isinstance(inpt, Tensor) or inpt.ndim < 3:
                return inpt
            batch = inpt if inpt.ndim == 4 else inpt[None]
            batch = _one_by_one(batch, params["draws"], strengths)
            height, width = batch.shape[-2:]
            side = size or min(height, width)
            canvas = F.interpolate(batch.float(), (max(height, width),) * 2, mode="bilinear", antialias=True)
            aspect = torch.full((len(batch),), width / height, dtype=torch.float64, device=batch.device)
            changed = augment(canvas, aspect, params["draws"].to(batch.device), side, strengths)
            changed = changed.round() if not inpt.is_floating_point() else changed
            return (changed if inpt.ndim == 4 else changed[0]).to(inpt.dtype)

    return ShelfNoise()
