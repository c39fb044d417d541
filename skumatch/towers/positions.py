"""Position embeddings of transformers at other picture sizes than their own.

Resampled per forward pass, with gradients, so that they go on learning at 160 pixels and serve at 224; at the
encoder's own size nothing happens at all. Knows nothing about libraries.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled(positions: Tensor, grid: tuple[int, int], others: int) -> Tensor:
    """Return float (others + h * w, D) positions for a ``grid`` of (h, w) patches, from (others + s * s, D) ones.

    The first ``others`` rows (class token, registers) stay; the rest are resized as a picture of s x s, bicubic with
    antialiasing (Dosovitskiy et al., "An image is worth 16x16 words", 2021, section 3.2).
    """
    side = math.isqrt(len(positions) - others)
    kept, spatial = positions[:others], positions[others:]
    picture = spatial.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(picture, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([kept, resized.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).to(positions.dtype)])


def with_any_size(visual: Any, patch: int) -> None:
    """Let an image tower whose parameter ``positional_embedding`` is (others + s * s, D) take multiples of ``patch``.

    The tower stays the object that it is, with its keys; only the way it is called changes.
    """
    plain = type(visual)
    length = len(visual.positional_embedding)
    others = 0 if math.isqrt(length) ** 2 == length else length - math.isqrt(length - 1) ** 2

    class AnySize(plain):  # type: ignore[misc, valid-type]
        """The tower, with positions resampled to the picture's grid."""

        def forward(self, pictures: Tensor) -> Any:
            grid = (pictures.shape[-2] // patch, pictures.shape[-1] // patch)
            positions = self.positional_embedding
            if len(positions) == others + grid[0] * grid[1]:
                return super().forward(pictures)
            replaced = {"positional_embedding": resampled(positions, grid, others)}
            return torch.func.functional_call(self, replaced, (pictures,))

    AnySize.__name__ = plain.__name__
    visual.__class__ = AnySize
