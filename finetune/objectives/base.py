"""What an objective sees of a batch, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skumatch.finetune.ranks import Ranks
from skumatch.finetune.recipe import Recipe
from skumatch.spec import Ids
from skumatch.towers.base import Tower


@dataclass(frozen=True)
class Seen:
    """One batch, or this process's part of it.

    ``features`` float (N, D): the encoder's, any length; ``embeddings`` float (N, E): the training head's. ``labels``
    int64 (N,). ``pictures`` float32 (N, 3, S, S) in 0..255 as the encoder saw them. ``ramp`` 0..1: how far the margin
    has risen. ``draws`` float64 (N, 68) in [0, 1), keyed by picture and epoch; objectives may use columns 64 to 67.
    ``counts``: how many rows each of the processes ``ranks`` has; empty where there is one.
    """

    features: Tensor
    embeddings: Tensor
    labels: Tensor
    pictures: Tensor
    ramp: float
    draws: Tensor
    ranks: Ranks = field(default_factory=Ranks)
    counts: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """How many rows all processes have."""
        return sum(self.counts) if self.counts else len(self.labels)

    @property
    def start(self) -> int:
        """How many of them come before the own ones."""
        return sum(self.counts[: self.ranks.rank])

    def mean(self, per_row: Tensor) -> Tensor:
        """Return this process's part of the mean over the rows of all: ``per_row`` (N,) summed, over ``total``."""
        return per_row.sum() / self.total

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows (N, ...) of all processes, (total, ...); gradients find their way back."""
        return self.ranks.gather(rows, self.counts)


class Objective(nn.Module):
    """Something to minimise."""

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss of a batch, a scalar: of this process's rows the part of it (``Seen.mean``)."""
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
