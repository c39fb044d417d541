"""``skumatch finetune``: adapt the workspace's encoder to its pictures."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import Device, Where, here, note, pipeline_of, report_failures

if TYPE_CHECKING:
    from skumatch.dataset import Dataset
    from skumatch.finetune.recipe import Recipe
    from skumatch.finetune.run import Job, Outcome
    from skumatch.finetune.trainer import Reporter


def finetune(
    recipe: Annotated[str | None, typer.Option(help="Recipe name or TOML file.", show_default="default")] = None,
    where: Where = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of stage 2, after the head's own.")] = None,
    mode: Annotated[str | None, typer.Option(help="What is trained: head, projection, lora or full.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the training pictures throughout.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same weights.")] = None,
    hold_out: Annotated[float | None, typer.Option(help="Share of the SKUs not to train on, to measure with.")] = None,
    lookalikes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="lookalikes.csv: these SKUs shall meet in batches.")
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Manifest of more training pictures, such as corrections.csv; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Model store.", show_default="models/ in the workspace")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted fine-tune.")] = False,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Pass a batch through in N parts: less memory, the same losses.")
    ] = None,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing", help="Keep few activations: less memory, slower.")
    ] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="torch.compile the encoder.")] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache", help="Keep shrunk pictures on disk: later epochs decode nothing.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto (bf16 where that is faster) or fp32.")] = None,
    track: Annotated[bool, typer.Option("--track", help="Write TensorBoard's events into the run's folder.")] = False,
    preview: Annotated[
        Path | None,
        typer.Option("--preview-augment", metavar="FILE.png", help="Only show what training pictures look like."),
    ] = None,
    device: Device = None,
) -> None:
    """Fine-tune on the split train, validate each epoch, publish the best model.

    Ctrl-C publishes what there is; --resume goes on from there.
    """
    asked: dict[str, Any] = {"name": recipe, "epochs": epochs, "mode": mode, "seed": seed, "hold_out": hold_out}
    asked["schedule"] = None if size is None else {"sizes": str(size)}
    compute: dict[str, Any] = {
        "accumulate": accumulate,
        "checkpointing": checkpointing,
        "compile": compiled,
        "cache": cache,
        "precision": precision,
    }
    asked["compute"] = {name: value for name, value in compute.items() if value is not None} or None
    asked["min_steps"] = None if epochs is None else 0  # so many epochs, not at least so many
    job = _job(asked, where or [], also or [], out, device)
    if preview is not None:
        return _preview(job, preview)
    job = replace(job, lookalikes=lookalikes, track=track)
    if resume:
        job = replace(job, recipe=_resumed(job.out, asked), lookalikes=lookalikes or _listed_before(job.out))
    outcome = train(job, resume)
    if not _speaks():
        raise typer.Exit(130 if outcome.interrupted else 0)
    report_failures(list(outcome.failures), "training picture")
    _say(outcome, job)
    place = here().gallery_place
    if outcome.current and out is None and (not isinstance(place, Path) or (place / "CURRENT").exists()):
        note("a gallery that was built with another model must be made anew: `skumatch gallery rebuild`")
    if outcome.interrupted:
        raise typer.Exit(130)


def _resumed(out: Path, asked: dict[str, Any]) -> Recipe:
    """Return the interrupted run's recipe, with the work done as it is asked for now.

    What else was asked for on the command line must agree with it.
    """
    from skumatch.errors import ConfigError
    from skumatch.finetune.recipe import load_recipe, recipe_from
    from skumatch.finetune.run import recorded_recipe, unfinished

    compute = asked["compute"] or {}
    asked = {**asked, "name": asked["name"] and load_recipe(asked["name"]).name, "compute": None}
    recipe = recorded_recipe(unfinished(out))
    before = recipe.to_json()
    for key, value in asked.items():
        wanted = value.items() if isinstance(value, dict) else [(key, value)]
        found = before[key] if isinstance(value, dict) else before
        for name, one in wanted:
            if one is not None and one != found[name]:
                said = f"the interrupted run has {name} {found[name]}, not {one}"
                raise ConfigError(said, "leave it out, or leave out --resume to start anew")
    return recipe_from({**before, "compute": {**before["compute"], **compute}})


def _preview(job: Job, path: Path) -> None:
    """Write originals beside the variants that training would show."""
    from skumatch.finetune.data import split_rows
    from skumatch.finetune.preview import preview

    preview(split_rows(job.dataset, job.recipe).train, job.recipe, path)
    typer.echo(f"wrote {path}: originals beside what `skumatch finetune` makes of them")


def _listed_before(out: Path) -> Path | None:
    """Return the list of look-alikes that the interrupted run was started with."""
    from skumatch.finetune.run import recorded_lookalikes, unfinished

    return recorded_lookalikes(unfinished(out))


def _job(asked: dict[str, Any], where: list[str], also: list[Path], out: Path | None, device: str | None) -> Job:
    from skumatch.dataset import parse_filters
    from skumatch.finetune.recipe import load_recipe
    from skumatch.finetune.run import Job
    from skumatch.workspace import require_pairs

    workspace = here()
    filters = parse_filters(where)
    dataset = _with(workspace.open_dataset(filters), also)
    require_pairs(dataset)
    return Job(
        dataset=dataset,
        source=workspace.source(),
        recipe=load_recipe(asked["name"] or "default", **{k: v for k, v in asked.items() if k != "name"}),
        out=out or workspace.models,
        device=device or workspace.runtime.device,
        pipeline=pipeline_of(workspace),
        facts={"where": filters, "also": [str(file) for file in also], "settings": workspace.resolved()},
    )


def _with(dataset: Dataset, also: list[Path]) -> Dataset:
    """Return the data with the pictures of more manifests to train on, whatever split these name."""
    from skumatch.readers import open_dataset

    split = "train" if "train" in dataset.splits else dataset.gallery_split
    more = [replace(row, split=split) for file in also for row in open_dataset(file)]
    return dataset.with_rows([*dataset, *more])


def train(job: Job, resume: bool = False) -> Outcome:
    """Run a fine-tune with a progress bar; the first Ctrl-C asks it to stop cleanly, the second ends it."""
    from skumatch.finetune.run import finetune as run

    with progress_reporter() if _speaks() else nullcontext() as reporter, stop_on_signal() as should_stop:
        return run(job, resume, reporter, should_stop)


def _speaks() -> bool:
    """Return whether this is the one of several processes that talks to the user."""
    from skumatch.finetune.ranks import writes

    return writes()


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came; a second signal interrupts at once."""
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if _speaks():
            note("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_reporter() -> Iterator[Reporter]:
    """Yield a Reporter that shows steps, loss, rate, time left and each epoch's validation on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield _Bar(bar)


class _Bar:
    """A Reporter on a rich progress bar."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.task = bar.add_task("training", total=None, now="")

    def begin(self, steps: int, done: int) -> None:
        self.bar.update(self.task, total=steps, completed=done)

    def step(self, loss: float, images: int) -> None:
        self.bar.advance(self.task)
        speed = self.bar.tasks[0].speed
        rate = f", {speed * images:.0f} images/s" if speed else ""
        self.bar.update(self.task, now=f"loss {loss:.2f}{rate}")

    def epoch(self, record: dict[str, Any]) -> None:
        found = ", ".join(f"{layer} {value:.1%}" for layer, value in record["val_top1"].items() if value is not None)
        validated = f", validation top-1: {found}" if found else ""
        self.bar.console.print(
            f"epoch {record['epoch']}/{record['of']}: {record['size']} px, loss {record['loss'] or 0:.3f}, "
            f"{record['images_per_s']:.0f} images/s{validated}",
            highlight=False,
            soft_wrap=True,
        )


def _say(outcome: Outcome, job: Job) -> None:
    from skumatch.model import open_bundle

    document = open_bundle(outcome.folder).document
    if unknown := document["lookalikes"]["unknown_skus"]:
        note(f"look-alikes: ignored SKUs that are not trained on: {unknown}")
    note(f"serving the {outcome.spec.layer}: {document['layer_reason']}")
    for one in document["after"]:
        if one["kept"] and one["name"] != "trained":
            note(f"kept {one['name']}: validation top-1 {one['validation_top1']:.1%}")
    if (line := _no_better(outcome)) is not None:
        note(line)
    state = "stopped early; " if outcome.interrupted else ""
    if not outcome.current:
        state += "the finished model stays in use; "
    then = "skumatch finetune --resume" if outcome.interrupted else "skumatch eval, skumatch match CROPS"
    typer.echo(f"wrote {outcome.folder} - {state}next: {then}")


def _no_better(outcome: Outcome) -> str | None:
    """Return a warning when validation fell below the untouched encoder's, None where it did not or cannot tell."""
    tuned = [value for value in outcome.top1.values() if value is not None]
    if outcome.untouched is None or not tuned or max(tuned) >= outcome.untouched:
        return None
    return (
        f"validation top-1 is {max(tuned):.1%}, the untouched encoder has {outcome.untouched:.1%}: "
        "train longer or on more pictures before using this model"
    )
