"""One step of training: shelf noise, the network, the objectives, the gradients and the optimiser.

A batch may pass through the network in parts; objectives see all of it, and that of the other processes. Knows nothing
about epochs beyond their number, about files or validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from skumatch.errors import ModelError
from skumatch.finetune.augment import augment
from skumatch.finetune.data import Batch, Split
from skumatch.finetune.norms import standing
from skumatch.finetune.objectives.base import Seen
from skumatch.finetune.ranks import Ranks
from skumatch.finetune.schedule import Schedule
from skumatch.finetune.state import TrainState


@dataclass
class Step:
    """Takes steps of ``state`` as ``schedule`` says; ``split`` names the pictures in errors."""

    state: TrainState
    schedule: Schedule
    split: Split
    ranks: Ranks = field(default_factory=Ranks)

    def take(self, batch: Batch, size: int, counts: tuple[int, ...]) -> dict[str, float]:
        """Train on ``batch`` at ``size`` pixels and return the losses of all processes, which have ``counts`` pictures.

        Raises ModelError when loss or gradient is not finite, before any weight changes, and when the GPU has not
        enough memory.
        """
        try:
            return self._losses(batch, size, counts)
        except torch.OutOfMemoryError as error:
            recipe = self.state.recipe
            parts = f" in {recipe.compute.accumulate} parts" if recipe.compute.accumulate > 1 else ""
            more = 2 * recipe.compute.accumulate  # a part needs two pictures
            helps = f"--accumulate {more}, --checkpointing" if recipe.batch >= 2 * more else "--checkpointing"
            raise ModelError(
                f"the GPU has not enough memory for a batch of {recipe.batch}{parts} at {size} px",
                f"{helps} or a smaller --size",
            ) from error

    def _losses(self, batch: Batch, size: int, counts: tuple[int, ...]) -> dict[str, float]:
        state, schedule, epoch = self.state, self.schedule, self.state.epoch
        key = (state.recipe.seed * 1_000_003 + epoch) * 1_000_003 + state.step
        state.scale_lr(schedule.lr_factor(epoch, state.step))
        moved = batch.to(state.device)
        pictures = augment(moved.canvases, moved.aspects, moved.draws, size, state.recipe.augment)
        pictures = pictures.to(memory_format=_layout(state.image))
        learns = not schedule.head_only(epoch) and bool(state.trained)
        parts = _cut(pictures, -(-len(pictures) // state.recipe.compute.accumulate))
        features = self._features(parts, learns, key)
        with state.autocast():
            torch.manual_seed(key)
            embeddings = state.head(state.dropped(features, self.ranks.rank, counts))
            ramp = schedule.ramp(epoch, state.step)
            seen = Seen(features, embeddings, moved.labels, pictures, ramp, moved.draws, self.ranks, counts)
            loss, values = state.objectives(seen)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if learns and len(parts) > 1:
            self._again(parts, features, key)
        state.collect_gradients()
        norm = state.clip_gradients(self.ranks)
        losses = self._summed({"loss": loss.detach(), **values})
        if not np.isfinite(losses["loss"]):
            raise self._not_finite(f"loss is {losses['loss']}", batch)
        if not norm.isfinite():
            raise self._not_finite(f"gradient's norm is {norm.item()}", batch)
        state.settle(self.ranks)
        if state.recipe.sampler.refresh:
            labels = self.ranks.gather(moved.labels, counts)
            state.centres.add(self.ranks.gather(embeddings.detach(), counts), labels)
        return losses

    def _features(self, parts: Sequence[Tensor], learns: bool, key: int) -> Tensor:
        """Return the features of all parts of a batch; of several, as a leaf whose gradient ``_again`` hands on."""
        state = self.state
        if learns and len(parts) == 1:
            torch.manual_seed(key)
            with state.autocast():
                return state.features(parts[0])
        found = []
        with torch.no_grad(), standing(state.image), state.autocast():
            for number, part in enumerate(parts):
                torch.manual_seed(key + number)
                found.append(state.features(part))
        return torch.cat(found).requires_grad_(learns)

    def _again(self, parts: Sequence[Tensor], features: Tensor, key: int) -> None:
        """Run each part again, now for its gradient: that of the ``features`` is known by now."""
        if features.grad is None:  # no objective looked at them
            return
        for number, (part, gradient) in enumerate(zip(parts, _cut(features.grad, len(parts[0])), strict=True)):
            torch.manual_seed(key + number)
            with self.state.autocast():
                again = self.state.features(part)
            torch.autograd.backward([again], [gradient.to(again.dtype)])

    def _summed(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the sums over the processes."""
        whole = torch.stack([value.float() for value in values.values()])
        self.ranks.total([whole])
        return dict(zip(values, whole.tolist(), strict=True))

    def _not_finite(self, what: str, batch: Batch) -> ModelError:
        where = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}"
        shown = [str(self.split.train[int(place)].path) for place in batch.places[:3]]
        helps = "start anew with a lower learning rate"
        if self.state.in_bf16:
            helps = f"go on from the last good checkpoint with --resume --precision fp32, or {helps}"
        return ModelError(
            f"the {what} in {where}, with {', '.join(shown)} and {len(batch.places) - len(shown)} more", helps
        )


def _cut(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _layout(image: torch.nn.Module) -> torch.memory_format:
    first = next((p for p in image.parameters() if p.ndim == 4), None)
    channels_last = first is not None and first.is_contiguous(memory_format=torch.channels_last) and first.shape[1] > 1
    return torch.channels_last if channels_last else torch.contiguous_format
