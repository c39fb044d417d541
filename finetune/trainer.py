"""The training loop: epochs of batches through augmentation, network, head and objectives.

Every random number is a function of (seed, epoch, step or picture): a run that was stopped and resumed ends in the
same weights. Knows nothing about folders or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline, cores
from skumatch.errors import ModelError
from skumatch.finetune.augment import augment
from skumatch.finetune.data import Batch, Canvases, Split
from skumatch.finetune.objectives.base import Seen
from skumatch.finetune.sampler import Lookalikes, groups_of, order_for
from skumatch.finetune.schedule import Schedule, stopped
from skumatch.finetune.state import TrainState
from skumatch.finetune.validate import LAYERS, Probe, Validation, validate
from skumatch.runtime.served import FEATURES
from skumatch.spec import Ids, Spec
from skumatch.towers.base import Tower

# Training pictures shown per picture that is embedded to validate: validation stays below a tenth of the time.
VALIDATE_EVERY = 3


class Reporter(Protocol):
    """Told how training goes; ``Silent`` is the Null object."""

    def begin(self, steps: int, done: int) -> None:
        """Training starts: ``steps`` in all, ``done`` of them before a resume."""
        ...

    def step(self, loss: float, images: int) -> None:
        """One step is done."""
        ...

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done and validated."""
        ...


class Silent:
    """A Reporter that says nothing."""

    def begin(self, steps: int, done: int) -> None:
        """Ignore it."""

    def step(self, loss: float, images: int) -> None:
        """Ignore it."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Ignore it."""


def never() -> bool:
    """Never ask training to stop."""
    return False


@dataclass
class Trainer:
    """A fine-tune in progress. ``spec`` is the untouched encoder's: its preprocessing validates."""

    tower: Tower
    spec: Spec
    split: Split
    state: TrainState
    pipeline: Pipeline
    reporter: Reporter
    should_stop: Callable[[], bool] = never
    lookalikes: Lookalikes = field(default_factory=Lookalikes)

    def __post_init__(self) -> None:
        recipe = self.state.recipe
        self.labels: Ids = labels_of(self.split)
        workers = self.pipeline.workers or cores()
        self.canvases = Canvases(self.split.train, self.labels, recipe, workers, self.pipeline.max_pixels)
        self.schedule = Schedule(recipe, max(1, len(self._order(0)) // recipe.batch))

    def run(self, after_epoch: Callable[[], None]) -> bool:
        """Train to the end, calling ``after_epoch`` at each epoch's end; return False when asked to stop before."""
        total = self.schedule.epochs * self.schedule.steps
        self.reporter.begin(total, self.state.epoch * self.schedule.steps + self.state.step)
        while self.state.epoch < self.schedule.epochs and not self._stopped_early():
            started, done = time.perf_counter(), self.state.step
            losses = self._epoch()
            if losses is None:
                return False
            images = (self.schedule.steps - done) * self.state.recipe.batch
            rate = images / (time.perf_counter() - started)
            self._finish_epoch(losses, rate)
            after_epoch()
        return True

    def _stopped_early(self) -> bool:
        stage = [r["val_top1"][FEATURES] for r in self.state.history if r["stage"] != "head"]
        return stopped(stage, self.state.recipe.schedule.patience)

    def _epoch(self) -> list[dict[str, float]] | None:
        """Train the rest of the running epoch; None when asked to stop before its end."""
        state, epoch = self.state, self.state.epoch
        state.set_stage(self.schedule.head_only(epoch))
        if state.step == 0:
            self._refresh_lookalikes(epoch)
        size = self._size()
        decoded = self.canvases.batches(self._order(epoch), epoch, size, state.step * state.recipe.batch)
        losses: list[dict[str, float]] = []
        for batch in islice(decoded, self.schedule.steps - state.step):
            if self.should_stop():
                return None
            if batch is not None:
                losses.append(self._step(batch, epoch, size))
                self.reporter.step(losses[-1]["loss"], len(batch.labels))
            state.step += 1
        if not losses and self.canvases.failures:
            raise next(iter(self.canvases.failures.values()))
        return losses

    def _order(self, epoch: int) -> Ids:
        return order_for(self.labels, self.state.recipe, self._alike(epoch), epoch)

    def _alike(self, epoch: int) -> Lookalikes:
        """Return the look-alikes that shall meet: those listed, or those close in the last epoch's embedding."""
        how, seed = self.state.recipe.sampler, self.state.recipe.seed
        if not how.refresh or self.state.neighbours is None:
            return self.lookalikes
        return Lookalikes(
            groups_of(self.state.neighbours, how.group, seed, epoch, self.state.device), how.lookalike_share
        )

    def _refresh_lookalikes(self, epoch: int) -> None:
        if self.state.recipe.sampler.refresh and epoch > 0:
            self.state.neighbours = self.state.centres.take()
        self.state.centres.reset()

    def _size(self) -> int:
        return self.schedule.size(self.state.epoch, self.spec.size, self.tower.resizable, self.tower.patch)

    def _step(self, batch: Batch, epoch: int, size: int) -> dict[str, float]:
        """Do one optimiser step and return the losses. Raises ModelError when the sum is not finite."""
        state, schedule = self.state, self.schedule
        torch.manual_seed((state.recipe.seed * 1_000_003 + epoch) * 1_000_003 + state.step)
        state.scale_lr(schedule.lr_factor(epoch, state.step))
        moved = batch.to(state.device)
        pictures = augment(moved.canvases, moved.aspects, moved.draws, size, state.recipe.augment)
        pictures = pictures.to(memory_format=_layout(state.image))
        with self._autocast():
            with torch.set_grad_enabled(not schedule.head_only(epoch) and bool(state.trained)):
                features = state.features(pictures)
            embeddings = state.head(state.dropout(features))
            ramp = schedule.ramp(epoch, state.step)
            seen = Seen(features, embeddings, moved.labels, pictures, ramp, moved.draws)
            loss, parts = state.objectives(seen)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise ModelError(
                f"the loss is {value} in epoch {epoch + 1}, step {state.step + 1}", "lower the learning rate"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.collect_gradients()
        torch.nn.utils.clip_grad_norm_([p for p in state.parameters() if p.grad is not None], state.recipe.clip_norm)
        state.optimizer.step()
        state.update_average()
        if state.recipe.sampler.refresh:
            state.centres.add(embeddings.detach(), moved.labels)
        return {"loss": value, **{name: float(part) for name, part in parts.items()}}

    def _autocast(self) -> AbstractContextManager[object]:
        """Use bf16 where the GPU has it. (On CPUs autocast is slower than float32.)"""
        if self.state.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _finish_epoch(self, losses: list[dict[str, float]], rate: float) -> None:
        state = self.state
        top1 = dict.fromkeys(LAYERS, None) if not self._validation_due() else self._top1()
        means = {name: float(np.mean([one[name] for one in losses])) for name in losses[0]} if losses else {}
        record = {
            "epoch": state.epoch + 1,
            "of": self.schedule.epochs,
            "stage": "head" if self.schedule.head_only(state.epoch) else "all",
            "size": self._size(),
            "loss": means.pop("loss", None),
            "parts": means,
            "ramp": self.schedule.ramp(state.epoch, state.step),
            "images_per_s": rate,
            "val_top1": top1,
        }
        state.epoch, state.step = state.epoch + 1, 0
        state.history.append(record)
        self.reporter.epoch(record)

    def _validation_due(self) -> bool:
        """Return whether this epoch is validated: the last is, others once enough was trained to be worth the time."""
        state = self.state
        if state.epoch + 1 == self.schedule.epochs:
            return True
        since = 1
        for record in reversed(state.history):
            if any(value is not None for value in record["val_top1"].values()):
                break
            since += 1
        shown = since * self.schedule.steps * state.recipe.batch
        return shown >= VALIDATE_EVERY * (len(self.split.gallery) + len(self.split.queries))

    def _top1(self) -> dict[str, float | None]:
        state = self.state
        top1 = self.validate(state.average["image"], self.split.gallery, self.split.queries).top1
        state.keep_if_best(top1[FEATURES])
        return top1

    def validate(self, image: nn.Module, gallery: Sequence[Row], queries: Sequence[Row]) -> Validation:
        """Measure ``image`` under the averaged head: nearest view in ``gallery`` of every query."""
        head: nn.Linear = self.state.average["head"]  # type: ignore[assignment]
        probe = Probe(image, head, self.spec, self.state.device)
        return validate(probe, gallery, queries, self.pipeline, self.state.recipe.serve.weight)


def labels_of(split: Split) -> Ids:
    """Return the label of each training row, int64 (N,): the place of its SKU among ``split.skus``."""
    places = {sku: label for label, sku in enumerate(split.skus)}
    return np.array([places[row.sku] for row in split.train], np.int64)


def _layout(image: torch.nn.Module) -> torch.memory_format:
    first = next((p for p in image.parameters() if p.ndim == 4), None)
    channels_last = first is not None and first.is_contiguous(memory_format=torch.channels_last) and first.shape[1] > 1
    return torch.channels_last if channels_last else torch.contiguous_format
