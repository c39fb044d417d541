"""Learning rate, margin and picture size over a fine-tune: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from skumatch.errors import ConfigError
from skumatch.finetune.recipe import Recipe

GRID = 32  # picture sizes are multiples of this: the stride of most convolution nets


@dataclass(frozen=True)
class Schedule:
    """The course of a fine-tune: ``steps`` per epoch, over the recipe's two stages."""

    recipe: Recipe
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs of both stages."""
        return self.recipe.head_epochs + self.recipe.epochs

    def head_only(self, epoch: int) -> bool:
        """Return whether ``epoch`` belongs to stage 1."""
        return epoch < self.recipe.head_epochs

    def lr_factor(self, epoch: int, step: int) -> float:
        """Return the factor on every learning rate: linear warm-up, then half a cosine to 0.01, in each stage."""
        first, length = (
            (0, self.recipe.head_epochs) if self.head_only(epoch) else (self.recipe.head_epochs, self.recipe.epochs)
        )
        total = max(1, length * self.steps)
        done = (epoch - first) * self.steps + step
        warm = max(1, round(total * self.recipe.warmup))
        if done < warm:
            return (done + 1) / warm
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))

    def margin(self, epoch: int, step: int) -> float:
        """Return the ArcFace margin in radians: from ``margin_from`` to ``margin_to`` over stage 2's first half."""
        if self.head_only(epoch):
            return self.recipe.margin_from
        done = (epoch - self.recipe.head_epochs) * self.steps + step
        share = min(1.0, done / max(1.0, 0.5 * self.recipe.epochs * self.steps))
        return self.recipe.margin_from + share * (self.recipe.margin_to - self.recipe.margin_from)

    def size(self, epoch: int, full: int, resizable: bool) -> int:
        """Return the side of training pictures in ``epoch``; the encoder's own where it cannot take another.

        Raises ConfigError when the recipe asks such an encoder for another size.
        """
        if not resizable and self.recipe.size not in (0, full):
            raise ConfigError(f"this encoder takes {full} px only", "leave out --size")
        if not resizable or self.recipe.size:
            return self.recipe.size or full
        share = max(0, epoch - self.recipe.head_epochs) / max(1, self.recipe.epochs - 1)
        scale = self.recipe.scale_from + share * (self.recipe.scale_to - self.recipe.scale_from)
        return max(GRID, round(full * scale / GRID) * GRID)
