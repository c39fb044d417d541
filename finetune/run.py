"""One fine-tune from data to published bundle: run folders, resuming, choosing the layer, provenance.

OUT/CURRENT, OUT/v000001/         published models
OUT/runs/r000001/run.json         what the run was started with
OUT/runs/r000001/metrics.jsonl    one line per epoch
OUT/runs/r000001/checkpoints/     the newest checkpoint, until the run is finished
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact
from skumatch.dataset import Dataset
from skumatch.embed import Pipeline
from skumatch.errors import ArtefactError, ConfigError, DataError, ModelError
from skumatch.finetune.cache import PictureCache, open_cache
from skumatch.finetune.curves import curves
from skumatch.finetune.data import Split, canvas_side, split_rows
from skumatch.finetune.finish import finish
from skumatch.finetune.objectives.base import Setting
from skumatch.finetune.ranks import Ranks, joined
from skumatch.finetune.recipe import Recipe, recipe_from
from skumatch.finetune.sampler import Lookalikes, load_lookalikes, steps_of
from skumatch.finetune.schedule import Schedule
from skumatch.finetune.state import TrainState, write_history
from skumatch.finetune.track import Several, require_tensorboard, tensorboard
from skumatch.finetune.trainer import Reporter, Silent, Trainer, labels_of, never
from skumatch.finetune.validate import validated
from skumatch.model import SKUS, Contents, finite, open_bundle, save_bundle
from skumatch.readers_common import safe_text
from skumatch.runtime.served import Served
from skumatch.runtime.torch import make_spec, pick_device
from skumatch.spec import Spec, preprocess_of
from skumatch.towers.build import ModelSource, build

RUN = "run.json"
FINISHED = "finished.json"
METRICS = "metrics.jsonl"
CURVES = "curves.svg"
_START = {"recipe": dict, "rows": str, "encoder": str, "name": str}
_RUN_NAME = re.compile(r"r\d{6,}")


@dataclass(frozen=True)
class Job:
    """What to fine-tune on what, where to, ``facts`` to keep with the model (settings, filters), and a list of
    look-alikes (``skumatch.eval.lookalikes``) that shall meet in batches. ``track``: write TensorBoard's events into
    the run's folder."""

    dataset: Dataset
    source: ModelSource
    recipe: Recipe
    out: Path
    device: str = "auto"
    pipeline: Pipeline = field(default_factory=Pipeline)
    facts: dict[str, Any] = field(default_factory=dict)
    lookalikes: Path | None = None
    track: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it: the bundle's folder, its spec, whether it is the store's current model, whether training was
    stopped before its end, validation top-1 per layer and of the untouched encoder (None: not measured), and training
    pictures that could not be read."""

    folder: Path
    spec: Spec
    current: bool
    interrupted: bool
    top1: dict[str, float | None]
    untouched: float | None
    failures: tuple[str, ...]


def finetune(
    job: Job, resume: bool = False, reporter: Reporter | None = None, should_stop: Callable[[], bool] = never
) -> Outcome:
    """Fine-tune and publish the model in ``job.out``.

    ``resume`` continues the newest unfinished run, whose recipe (``recorded_recipe``) must be the job's, but for how
    the work is done (``compute``). When ``should_stop`` turns true, the averaged weights so far are published and the
    run stays resumable. Started by torchrun in several processes, all call it alike; the first writes, and all get the
    same answer. Raises SkumatchError.
    """
    if job.track:
        require_tensorboard()
    with joined(pick_device(job.device).type) as ranks:
        return _finetune(job, resume, reporter or Silent(), should_stop, ranks)


def _finetune(job: Job, resume: bool, reporter: Reporter, should_stop: Callable[[], bool], ranks: Ranks) -> Outcome:
    device = pick_device(ranks.device(str(pick_device(job.device))))
    folder = unfinished(job.out) if resume and ranks.first else None
    split = split_rows(job.dataset, job.recipe)
    alike = load_lookalikes(job.lookalikes, split.skus, job.recipe) if job.lookalikes else Lookalikes()
    tower = build(replace(job.source, seed=job.recipe.seed))
    spec = make_spec(tower, Served())
    course = Schedule(job.recipe, 1)
    # An impossible size is refused before anything starts.
    largest = max(course.size(epoch, spec.size, tower.resizable, tower.patch) for epoch in range(course.epochs))
    start = _start_facts(job, split, spec)
    _require_alike(ranks, start)
    if ranks.first and folder is not None:
        _require_same(folder, start)
    elif ranks.first:
        folder = _new_run(job.out, start)
    labels = labels_of(split)
    recipe = job.recipe.lengthened(steps_of(len(labels), job.recipe.batch))
    counts = np.bincount(labels, minlength=len(split.skus))
    state = TrainState(Setting(recipe, counts, titles_of(split), tower, device))
    state.restore(folder and folder / "checkpoints", ranks)

    def save() -> None:
        if folder is not None:
            state.save(folder / "checkpoints")
            write_history(folder / METRICS, finite(state.history))

    caches = _caches(job, split, largest, spec, ranks)
    trainer = Trainer(tower, spec, split, state, job.pipeline, reporter, should_stop, alike, ranks, save, *caches)
    with ExitStack() as stack:
        if job.track and folder is not None:
            trainer.reporter = Several([reporter, stack.enter_context(tensorboard(folder / "tensorboard"))])
        finished = trainer.run()
    if not finished:
        save()
    outcome = None if folder is None else _publish(job, folder, trainer, finished)
    return _told(ranks, outcome)


def _caches(
    job: Job, split: Split, largest: int, spec: Spec, ranks: Ranks
) -> tuple[PictureCache | None, PictureCache | None]:
    """Return caches of the training pictures, for crops of up to ``largest`` pixels, and of those that every epoch
    validates with, which the first process does; None where the recipe wants none."""
    if not job.recipe.compute.cache:
        return None, None
    store, side = job.out / "cache" / f"node{ranks.node}", canvas_side(largest, job.recipe.augment)
    made = open_cache(store / "train", split.train, side, True) if ranks.local == 0 else None
    ranks.wait()
    how, shown = json.dumps(asdict(preprocess_of(spec))), validated(split)
    validating = open_cache(store / "validation", shown, spec.size, True, how) if ranks.first and shown else None
    return made or open_cache(store / "train", split.train, side, False), validating


def _require_alike(ranks: Ranks, start: dict[str, Any]) -> None:
    """Raise ConfigError where the processes were started with different data, recipes or encoders."""
    own = {key: start[key] for key in _START}
    if any(not same for (same,) in ranks.every(int(ranks.share(own) == own))):
        raise ConfigError(
            "the processes see different pictures, recipes or encoders", "start all of them with the same files"
        )


def _told(ranks: Ranks, outcome: Outcome | None) -> Outcome:
    """Return the first process's ``outcome`` in all of them."""
    told = ranks.share(outcome and {**asdict(outcome), "folder": str(outcome.folder)})
    if outcome is not None:
        return outcome
    return Outcome(
        **{
            **told,
            "folder": Path(told["folder"]),
            "spec": Spec.from_json(told["spec"]),
            "failures": tuple(told["failures"]),
        }
    )


def _publish(job: Job, folder: Path, trainer: Trainer, finished: bool) -> Outcome:
    """Publish the best (finished) or newest (interrupted) averaged weights; choose the layer they are served from."""
    found = finish(trainer, finished)
    state, tower, split = trainer.state, trainer.tower, trainer.split
    spec = make_spec(tower, found.served)
    validation = {
        "queries": len(split.queries),
        "top1": found.validation.top1,
        "untouched_top1": found.untouched,
        "unseen_queries": len(split.unseen_queries),
    }
    facts = {
        "layer_reason": found.reason,
        "interrupted": not finished,
        "epochs_done": state.epoch,
        "validation": validation,
        "after": found.tried,
        "recipe": job.recipe.to_json(),
        "trained_weights": _trained_facts(state),
        "history": state.history,
        "data": _data_facts(job.dataset, split),
        "lookalikes": {"groups": len(trainer.lookalikes.groups), "unknown_skus": len(trainer.lookalikes.unknown)},
        "source": {"name": job.source.name, "weights": job.source.weights and job.source.weights.name},
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **job.facts,
    }
    current = finished or not _has_finished_model(job.out)
    skus = {"trained": trainer.split.skus, "held_out": list(trainer.split.held_out)}
    files = {SKUS: json.dumps(skus, indent=0).encode(), CURVES: curves(finite(state.history))}
    contents = Contents(facts, tower.model.state_dict(), files)
    bundle = save_bundle(job.out, tower, found.served, spec, contents, current)
    if finished:
        artefact.write_file(folder / FINISHED, json.dumps({"model": bundle.name}).encode())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    failures = tuple(str(error) for error in trainer.canvases.failures.values())
    return Outcome(bundle, spec, current, not finished, found.validation.top1, found.untouched, failures)


def _has_finished_model(store: Path) -> bool:
    """Return whether the store's current model was trained to its end; a broken one keeps nobody from replacing it."""
    try:
        folder = artefact.current(store)
        return folder is not None and not open_bundle(folder).document.get("interrupted", False)
    except (ArtefactError, ModelError):
        return False


def titles_of(split: Split) -> tuple[str, ...]:
    """Return a title per SKU: the first that its training rows carry, else the SKU's name."""
    found: dict[str, str] = {}
    for row in split.train:
        if row.title:
            found.setdefault(row.sku, row.title)
    return tuple(found.get(sku, sku) for sku in split.skus)


def _trained_facts(state: TrainState) -> dict[str, int]:
    """Return how many of the image tower's weights were trained, and how many it has."""
    named = dict(state.image.named_parameters())
    return {"trained": state.trained_weights, "all": sum(p.numel() for p in named.values())}


def _data_facts(dataset: Dataset, split: Split) -> dict[str, Any]:
    return {
        "format": dataset.format,
        "skus": len(split.skus),
        "held_out_skus": len(split.held_out),
        "train": len(split.train),
        "validation_gallery": len(split.gallery),
        "validation_queries": len(split.queries),
    }


def _start_facts(job: Job, split: Split, spec: Spec) -> dict[str, Any]:
    """Return what must be the same when a run is resumed."""
    rows = hashlib.sha256()
    for row in (*split.train, *split.gallery, *split.queries):
        rows.update(f"{row.sku}|{os.path.relpath(row.path, job.dataset.root)}\n".encode("utf-8", "surrogateescape"))
    facts = {"recipe": job.recipe.to_json(), "rows": rows.hexdigest(), "encoder": spec.digest, "name": spec.name}
    if job.lookalikes is None:
        return facts
    listed = {"path": safe_text(str(job.lookalikes.absolute())), "sha256": artefact.file_digest(job.lookalikes)}
    return {**facts, "lookalikes": listed}


def runs(out: Path) -> list[Path]:
    """Return the run folders of a model store, oldest first."""
    folder = out / "runs"
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _RUN_NAME.fullmatch(p.name)), key=lambda p: int(p.name[1:]))


def unfinished(out: Path) -> Path:
    """Return the newest run that has not finished. Raises ConfigError when there is none."""
    for folder in reversed(runs(out)):
        if not (folder / FINISHED).exists():
            return folder
    raise ConfigError(f"there is no interrupted fine-tune in {out}", "leave out --resume to start one")


def recorded_recipe(folder: Path) -> Recipe:
    """Return the recipe that a run was started with. Raises ConfigError when its record is unreadable."""
    return recipe_from(_started_with(folder)["recipe"], str(folder / RUN))


def recorded_lookalikes(folder: Path) -> Path | None:
    """Return the list of look-alikes that a run was started with, None where there was none. Raises ConfigError."""
    path = _listed(_started_with(folder)).get("path")
    return None if path is None else Path(path)


def _listed(start: dict[str, Any]) -> dict[str, str]:
    """Return path and digest of the look-alikes in the record of a start, empty where there were none."""
    found = start.get("lookalikes")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _started_with(folder: Path) -> dict[str, Any]:
    """Return the record of what a run was started with. Raises ConfigError when it is unreadable."""
    try:
        start = json.loads((folder / RUN).read_text())
        if {key: type(start[key]) for key in _START} == _START:
            return dict(start)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{folder / RUN} is corrupt", f"remove {folder} and start anew")


def _new_run(out: Path, start: dict[str, Any]) -> Path:
    number = int(runs(out)[-1].name[1:]) + 1 if runs(out) else 1
    folder = out / "runs" / f"r{number:06d}"
    with artefact.disk_errors(folder):
        folder.mkdir(parents=True)
    artefact.write_file(folder / RUN, json.dumps(start, indent=1, sort_keys=True).encode())
    return folder


def _require_same(folder: Path, start: dict[str, Any]) -> None:
    before = _started_with(folder)
    wanted = {**start["recipe"], "compute": None}  # how the work is done may change
    if {**recorded_recipe(folder).to_json(), "compute": None} != wanted:  # keys newer than the record: their defaults
        raise ConfigError(f"{folder} was started with another recipe", "leave out --resume to start anew")
    if before["rows"] != start["rows"]:
        todo = "give the --where and --also of then, or leave out --resume to start anew"
        raise DataError(f"the pictures changed since {folder} was started", todo)
    if before["encoder"] != start["encoder"]:
        raise ConfigError(f"the encoder changed since {folder} was started", "leave out --resume to start anew")
    if _listed(before).get("sha256") != _listed(start).get("sha256"):
        raise DataError(f"the look-alikes changed since {folder} was started", "leave out --resume to start anew")
