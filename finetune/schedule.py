"""Learning rate, margin and picture size over a fine-tune: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skumatch.errors import ConfigError
from skumatch.finetune.recipe import Recipe

LOWEST = 0.01  # of the peak, where a cosine ends
PIXELS = 8  # sizes below are shares of the encoder's own
GRID = 32  # the stride of most convolution nets, which shares are rounded to


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
        """Return the factor on every learning rate, 0..1; stage 1 has a warm-up and a cosine of its own.

        Restarts: Loshchilov and Hutter, "SGDR" (2017); one-cycle: Smith and Topin, "Super-convergence" (2018).
        """
        how, first = self.recipe.schedule, self.recipe.head_epochs
        if self.head_only(epoch):
            return _cosine(epoch * self.steps + step, first * self.steps, self._warm(first * self.steps))
        done, total = (epoch - first) * self.steps + step, max(1, self.recipe.epochs * self.steps)
        if how.kind == "one-cycle":
            return _one_cycle(done, total, how.warmup)
        if how.kind == "restarts":
            return self._restarts(done, total)
        return _cosine(done, total, self._warm(total))

    def _warm(self, steps: int) -> int:
        return max(1, round(steps * self.recipe.schedule.warmup))

    def _restarts(self, done: int, total: int) -> float:
        """Return the factor within the running cycle; the first has the warm-up, the last ends with the training."""
        how, start, length = self.recipe.schedule, 0, float(self.recipe.schedule.cycle_len * self.steps)
        while start + round(length) <= done:
            start, length = start + round(length), length * how.cycle_mult
        cycle = min(round(length), total - start)
        return _cosine(done - start, cycle, self._warm(cycle) if start == 0 and how.warmup else 0)

    def ramp(self, epoch: int, step: int) -> float:
        """Return how far the margin has risen, 0..1: from 0 at the start of stage 2 to 1 at its middle."""
        if self.head_only(epoch):
            return 0.0
        done = (epoch - self.recipe.head_epochs) * self.steps + step
        return min(1.0, done / max(1.0, 0.5 * self.recipe.epochs * self.steps))

    def size(self, epoch: int, full: int, resizable: bool, patch: int) -> int:
        """Return the side of training pictures in ``epoch``, in pixels.

        ``full``: the encoder's own size, which it keeps where it is not ``resizable``; ``patch``: what its sizes are
        multiples of. The schedule's parts are spread over stage 2; stage 1 has the first size. Shares are rounded to
        the patch, or to 32 pixels for networks that take any size. Raises ConfigError when the recipe asks for pixels
        that the encoder cannot take.
        """
        steps = self.recipe.schedule.steps()
        if not resizable:
            if any(side >= PIXELS and side != full for side, _ in steps):
                raise ConfigError(f"this encoder takes {full} px only", "leave out --size")
            return full
        side = steps[self._part(epoch, [parts for _, parts in steps])][0]
        if side < PIXELS:
            grid = patch if patch > 1 else GRID
            return max(grid, round(side * full / grid) * grid)
        if side % patch:
            raise ConfigError(f"this encoder takes multiples of {patch} px, not {side:g}", "choose another size")
        return round(side)

    def _part(self, epoch: int, parts: Sequence[float]) -> int:
        """Return which of ``parts``, spread over stage 2 in proportion, ``epoch`` falls into."""
        place = (max(0, epoch - self.recipe.head_epochs) + 0.5) / max(1, self.recipe.epochs) * sum(parts)
        ends = [sum(parts[: number + 1]) for number in range(len(parts))]
        return next((number for number, end in enumerate(ends) if place < end), len(parts) - 1)


def _cosine(done: int, total: int, warm: int) -> float:
    """Up in a line over ``warm`` steps, then half a cosine down to a hundredth."""
    if done < warm:
        return (done + 1) / warm
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))


def _one_cycle(done: int, total: int, warmup: float) -> float:
    """From 1/25 of the peak up to it at ``warmup`` of the steps, and down to 1/1000, both as cosines."""
    warm = max(1, round(total * warmup))
    if done < warm:
        return _between(0.04, 1.0, done / warm)
    return _between(1.0, 0.001, (done - warm) / max(1, total - warm))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def stopped(scores: Sequence[float | None], patience: int) -> bool:
    """Return whether ``scores``, one per epoch (None: not validated), have not risen for ``patience`` epochs."""
    if not patience:
        return False
    best, since = -1.0, 0
    for score in scores:
        since = since if score is None else since + 1
        if score is not None and score > best:
            best, since = score, 0
    return since >= patience
