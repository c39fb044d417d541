"""What an objective sees of a batch, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skumatch.finetune.recipe import Recipe
from skumatch.spec import Ids
from skumatch.towers.base import Tower


@dataclass(frozen=True)
class Seen:
    """One batch.

    ``features`` float (N, D): the encoder's, any length; ``embeddings`` float (N, E): the training head's. ``labels``
    int64 (N,). ``pictures`` float32 (N, 3, S, S) in 0..255 as the encoder saw them. ``ramp`` 0..1: how far the margin
    has risen. ``draws`` float64 (N, 68) in [0, 1), keyed by picture and epoch; objectives may use columns 64 to 67.
    """

    features: Tensor
    embeddings: Tensor
    labels: Tensor
    pictures: Tensor
    ramp: float
    draws: Tensor


class Objective(nn.Module):
    """Something to minimise."""

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class Setting:
    """What objectives are built from: ``counts`` int64 (SKUs,) training pictures and ``titles`` per label; ``tower``
    before training, with its untouched weights."""

    recipe: Recipe
    counts: Ids
    titles: tuple[str, ...]
    tower: Tower
    device: torch.device
