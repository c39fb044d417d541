"""The training loop: epochs of steps, the pictures for them, validation and checkpoints.

Every random number is a function of (seed, epoch, step or picture): a run that was stopped and resumed ends in the
same weights. Knows nothing about folders or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline, cores
from skumatch.finetune.cache import PictureCache
from skumatch.finetune.data import Batch, Canvases, Shown, Split, ahead
from skumatch.finetune.memory import checkpointed
from skumatch.finetune.ranks import Ranks
from skumatch.finetune.sampler import Lookalikes, groups_of, order_for, shard, steps_of
from skumatch.finetune.schedule import Schedule, stopped
from skumatch.finetune.state import TrainState
from skumatch.finetune.step import Step
from skumatch.finetune.validate import LAYERS, Pictures, Probe, Validation, validate, validated
from skumatch.runtime.served import FEATURES
from skumatch.spec import Ids, Spec
from skumatch.towers.base import Tower

# Training pictures shown per picture that is embedded to validate: validation stays below a tenth of the time.
VALIDATE_EVERY = 3
SAVE_EVERY = 300.0  # seconds between two checkpoints within an epoch


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


def nothing() -> None:
    """Keep nothing."""


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
    ranks: Ranks = field(default_factory=Ranks)
    save: Callable[[], None] = nothing
    cache: PictureCache | None = None  # of the training pictures
    validating: PictureCache | None = None  # of those that every epoch validates with

    def __post_init__(self) -> None:
        recipe = self.state.recipe
        self.labels: Ids = labels_of(self.split)
        workers = self.pipeline.workers or cores()
        self.canvases = Canvases(
            self.split.train,
            self.labels,
            recipe,
            workers,
            self.pipeline.max_pixels,
            cache=self.cache,
            pinned=self.state.device.type == "cuda",
        )
        self.seen = Pictures(self.spec, self.pipeline, validated(self.split), self.validating)
        self.schedule = Schedule(recipe, steps_of(len(self._order(0)), recipe.batch))
        self.step = Step(self.state, self.schedule, self.split, self.ranks)
        self._saved, self._waited, self._filled = time.monotonic(), 0.0, False
        self.share = len(self._own(0).places) // self.schedule.steps  # pictures of a batch that this process shows

    def run(self) -> bool:
        """Train to the end; return False when asked to stop before.

        ``save`` is called at the end of each epoch, and within a long one every few minutes.
        """
        trained = self.state.image if self.state.low is None else self.state.low
        with checkpointed(trained, self.state.recipe.compute.checkpointing):
            return self._run()

    def _run(self) -> bool:
        total = self.schedule.epochs * self.schedule.steps
        self.reporter.begin(total, self.state.epoch * self.schedule.steps + self.state.step)
        while self.state.epoch < self.schedule.epochs and not self._stopped_early():
            started, done, self._waited = time.perf_counter(), self.state.step, 0.0
            if not self._epoch():
                return False
            images, seconds = (self.schedule.steps - done) * self.state.recipe.batch, time.perf_counter() - started
            self._fill()
            self._finish_epoch({"images_per_s": images / seconds, "waited": self._waited / seconds})
            self._save()
        return True

    def _fill(self) -> None:
        """Read what the caches still lack after the first epoch of this run, so that the next opens no picture."""
        ranks = self.ranks
        if self.cache is None or self._filled:
            return
        self.canvases.fill(np.arange(ranks.local, len(self.labels), ranks.locals))
        self.seen.fill()
        ranks.wait()
        for cache in (self.cache, self.validating):
            if cache is not None and ranks.local == 0:
                cache.settle()
        self._filled = True

    def _save(self) -> None:
        self.save()
        self._saved = time.monotonic()

    def _stopped_early(self) -> bool:
        stage = [r["val_top1"][FEATURES] for r in self.state.history if r["stage"] != "head"]
        return stopped(stage, self.state.recipe.schedule.patience)

    def _epoch(self) -> bool:
        """Train the rest of the running epoch; return False when asked to stop before its end."""
        state, epoch = self.state, self.state.epoch
        state.set_stage(self.schedule.head_only(epoch))
        if state.step == 0:
            self._refresh_lookalikes(epoch)
        size = self._size()
        decoded = self.canvases.batches(self._own(epoch), epoch, size, self.share, state.step)
        for batch in self._awaited(ahead(islice(decoded, self.schedule.steps - state.step))):
            said = self.ranks.every(int(self.should_stop()), 0 if batch is None else len(batch.labels))
            if any(stop for stop, _ in said):
                return False
            counts = tuple(count for _, count in said)
            if batch is not None and all(counts):
                losses = self.step.take(batch, size, counts)
                state.count(losses)
                self.reporter.step(losses["loss"], sum(counts))
            state.step += 1
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()
        if not state.counted and self.canvases.failures:
            raise next(iter(self.canvases.failures.values()))
        return True

    def _awaited(self, batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        """Yield ``batches`` and count the seconds spent waiting for them."""
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield batch

    def _order(self, epoch: int) -> Ids:
        return order_for(self.labels, self.state.recipe, self._alike(epoch), epoch)

    def _own(self, epoch: int) -> Shown:
        """Return what this process shows in ``epoch``: an equal part of every batch."""
        whole, batch = Shown.of(self._order(epoch)), self.state.recipe.batch
        ranks = self.ranks
        return Shown(*(shard(part, batch, ranks.rank, ranks.world) for part in (whole.places, whole.times)))

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

    def _finish_epoch(self, pace: dict[str, float]) -> None:
        state = self.state
        top1 = self._top1() if self._validation_due() else dict.fromkeys(LAYERS, None)
        means = state.mean_losses()
        record = {
            "epoch": state.epoch + 1,
            "of": self.schedule.epochs,
            "stage": "head" if self.schedule.head_only(state.epoch) else "all",
            "size": self._size(),
            "loss": means.pop("loss", None),
            "parts": means,
            "ramp": self.schedule.ramp(state.epoch, state.step),
            **pace,
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
        """Validate in the first process, and tell the others."""
        state, top1 = self.state, None
        if self.ranks.first:
            top1 = self.validate(state.average["image"], self.split.gallery, self.split.queries).top1
        found: dict[str, float | None] = self.ranks.share(top1)
        state.keep_if_best(found[FEATURES])
        return found

    def validate(self, image: nn.Module, gallery: Sequence[Row], queries: Sequence[Row]) -> Validation:
        """Measure ``image`` under the averaged head: nearest view in ``gallery`` of every query."""
        head: nn.Linear = self.state.average["head"]  # type: ignore[assignment]
        probe = Probe(image, head, self.spec, self.state.device)
        return validate(probe, gallery, queries, self.seen, self.state.recipe.serve.weight)


def labels_of(split: Split) -> Ids:
    """Return the label of each training row, int64 (N,): the place of its SKU among ``split.skus``."""
    places = {sku: label for label, sku in enumerate(split.skus)}
    return np.array([places[row.sku] for row in split.train], np.int64)
