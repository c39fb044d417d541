"""The training loop: epochs of batches through augmentation, network, head and loss.

Every random number is a function of (seed, epoch, step or picture): a run that was stopped and resumed ends in the
same weights. Knows nothing about folders or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from skumatch.embed import Pipeline, cores
from skumatch.errors import ModelError
from skumatch.finetune.augment import augment
from skumatch.finetune.data import Batch, Canvases, Split
from skumatch.finetune.sampler import Lookalikes, epoch_order, lookalike_order
from skumatch.finetune.schedule import Schedule
from skumatch.finetune.state import TrainState
from skumatch.finetune.validate import BothLayers, Validation, validate
from skumatch.runtime.torch import FEATURES, Network
from skumatch.spec import Ids, Spec
from skumatch.towers.base import Tower


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
        skus = {sku: label for label, sku in enumerate(self.split.skus)}
        self.labels: Ids = np.array([skus[row.sku] for row in self.split.train], np.int64)
        workers = self.pipeline.workers or cores()
        self.canvases = Canvases(self.split.train, self.labels, self.state.recipe, workers, self.pipeline.max_pixels)
        steps = max(1, len(self.labels) // self.state.recipe.batch)
        self.schedule = Schedule(self.state.recipe, steps)

    def run(self, after_epoch: Callable[[], None]) -> bool:
        """Train to the end, calling ``after_epoch`` at each epoch's end; return False when asked to stop before."""
        total = self.schedule.epochs * self.schedule.steps
        self.reporter.begin(total, self.state.epoch * self.schedule.steps + self.state.step)
        while self.state.epoch < self.schedule.epochs:
            started, done = time.perf_counter(), self.state.step
            losses = self._epoch()
            if losses is None:
                return False
            images = (self.schedule.steps - done) * self.state.recipe.batch
            rate = images / (time.perf_counter() - started)
            self._finish_epoch(losses, rate)
            after_epoch()
        return True

    def _epoch(self) -> list[float] | None:
        """Train the rest of the running epoch; None when asked to stop before its end."""
        state, epoch = self.state, self.state.epoch
        state.set_stage(self.schedule.head_only(epoch))
        order = epoch_order(self.labels, state.recipe.balance, state.recipe.seed, epoch)
        order = lookalike_order(order, self.labels, state.recipe.batch, self.lookalikes, (state.recipe.seed, epoch))
        size = self._size()
        rest = order[state.step * state.recipe.batch :]
        losses: list[float] = []
        for batch in islice(self.canvases.batches(rest, epoch, size), self.schedule.steps - state.step):
            if self.should_stop():
                return None
            if batch is not None:
                losses.append(self._step(batch, epoch, size))
                self.reporter.step(losses[-1], len(batch.labels))
            state.step += 1
        if not losses and self.canvases.failures:
            raise next(iter(self.canvases.failures.values()))
        return losses

    def _size(self) -> int:
        return self.schedule.size(self.state.epoch, self.spec.size, self.tower.resizable)

    def _step(self, batch: Batch, epoch: int, size: int) -> float:
        """Do one optimiser step and return the loss. Raises ModelError when it is not finite."""
        state, schedule = self.state, self.schedule
        torch.manual_seed((state.recipe.seed * 1_000_003 + epoch) * 1_000_003 + state.step)
        state.scale_lr(schedule.lr_factor(epoch, state.step))
        moved = batch.to(state.device)
        pictures = augment(moved.canvases, moved.aspects, moved.draws, size, state.recipe.augment)
        pictures = pictures.to(memory_format=_layout(state.image))
        with self._autocast():
            with torch.set_grad_enabled(not schedule.head_only(epoch)):
                features = state.features(pictures)
            embeddings = state.head(state.dropout(features))
        loss = state.loss(embeddings, moved.labels, schedule.margin(epoch, state.step))
        value = float(loss.detach())
        if not np.isfinite(value):
            raise ModelError(
                f"the loss is {value} in epoch {epoch + 1}, step {state.step + 1}", "lower the learning rate"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.collect_gradients()
        torch.nn.utils.clip_grad_norm_([p for p in state.parameters() if p.grad is not None], state.recipe.clip)
        state.optimizer.step()
        state.update_average()
        return value

    def _autocast(self) -> AbstractContextManager[object]:
        """Use bf16 where the GPU has it. (On CPUs autocast is slower than float32.)"""
        if self.state.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _finish_epoch(self, losses: list[float], rate: float) -> None:
        state = self.state
        top1 = self.validate().top1
        state.keep_if_best(top1[FEATURES])
        record = {
            "epoch": state.epoch + 1,
            "of": self.schedule.epochs,
            "stage": "head" if self.schedule.head_only(state.epoch) else "all",
            "size": self._size(),
            "loss": float(np.mean(losses)) if losses else None,
            "margin": self.schedule.margin(state.epoch, state.step),
            "images_per_s": rate,
            "val_top1": top1,
        }
        state.epoch, state.step = state.epoch + 1, 0
        state.history.append(record)
        self.reporter.epoch(record)

    def validate(self) -> Validation:
        """Measure the averaged weights on the validation rows."""
        average = self.state.average
        network = Network(average["image"], self.spec).to(self.state.device).eval()
        encoder = BothLayers(network, average["head"], self.spec, self.state.device)  # type: ignore[arg-type]
        return validate(encoder, self.split.gallery, self.split.queries, self.pipeline)


def _layout(image: torch.nn.Module) -> torch.memory_format:
    first = next((p for p in image.parameters() if p.ndim == 4), None)
    channels_last = first is not None and first.is_contiguous(memory_format=torch.channels_last) and first.shape[1] > 1
    return torch.channels_last if channels_last else torch.contiguous_format
