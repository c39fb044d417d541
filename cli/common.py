"""What several commands share: options, the progress bar, and choosing encoder and pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.words import counted, were

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.embed import Pipeline, Progress
    from skumatch.encoder import Encoder
    from skumatch.enrol import Enrolled
    from skumatch.gallery_seam import AnyGallery
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.workspace import Workspace

Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help="Only rows like this; repeatable.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="the workspace's")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="DIR|SPEC", help="Model folder or name such as open_clip:ViT-B-32/openai."),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(help="auto (the fastest), torch, onnx, openvino or tensorrt.", show_default="the workspace's"),
]
PrecisionOption = Annotated[
    str | None, typer.Option(help="fp32, fp16, bf16 or int8.", show_default="the fastest that passed")
]
GalleryOption = Annotated[
    str | None,
    typer.Option(
        "--gallery",
        metavar="DIR|ADDRESS",
        help="Gallery folder, or milvus+file:./g.db, milvus://HOST:PORT/NAME.",
        show_default="the workspace's",
    ),
]


def note(text: str) -> None:
    """Print a line for a person on stderr."""
    typer.echo(text, err=True)


def here() -> Workspace:
    """Return the workspace of the current folder. Raises ConfigError."""
    from skumatch.workspace import Workspace

    return Workspace.find(Path.cwd())


def workspace_or_none() -> Workspace | None:
    """Return the workspace of the current folder, None where there is none; an invalid one is an error."""
    from skumatch.workspace import CONFIG, Workspace

    start = Path.cwd()
    found = any((folder / CONFIG).is_file() for folder in (start, *start.parents))
    return Workspace.find(start) if found else None


def pipeline_of(workspace: Workspace | None) -> Pipeline:
    """Return the pipeline that the workspace's ``[runtime]`` asks for."""
    from skumatch.embed import Pipeline

    if workspace is None:
        return Pipeline()
    runtime = workspace.runtime
    return Pipeline(runtime.batch, runtime.workers, runtime.max_pixels, runtime.decode)


def encoder_of(workspace: Workspace | None, model: str | None, device: str | None) -> TorchEncoder:
    """Open ``model``, else the workspace's fine-tuned model, else its configured encoder; say which."""
    from skumatch.encoder import open_encoder
    from skumatch.errors import ConfigError

    wanted = device or (workspace.runtime.device if workspace else "auto")
    if model is None and workspace is None:
        raise ConfigError("no workspace here and no --model", "run `skumatch init --data PATH`, or give --model")
    encoder = open_encoder(model or workspace.best_model(), wanted)  # type: ignore[union-attr]
    for line in encoder.tower.report.lines():
        note(line)
    note(f"model {encoder.spec.name} ({encoder.tower.report.source}), layer {encoder.spec.layer}, on {encoder.device}")
    return encoder


def engine_of(
    workspace: Workspace | None, model: str | None, device: str | None, how: tuple[str | None, str | None]
) -> Encoder:
    """Open what ``encoder_of`` would open on (runtime, precision), the runtime being the workspace's where it is None,
    and say which."""
    from skumatch.encoder import open_engine

    runtime, precision = how
    runtime = runtime or (workspace.runtime.engine if workspace else "auto")
    folder = model_of(workspace, model)
    if folder is None or (runtime == "torch" and precision in (None, "fp32")):
        return encoder_of(workspace, model, device)
    encoder = open_engine(folder, device or (workspace.runtime.device if workspace else "auto"), runtime, precision)
    note(f"model {encoder.spec.name} ({folder}), layer {encoder.spec.layer}, {getattr(encoder, 'engine', runtime)}")
    return encoder


def model_of(workspace: Workspace | None, model: str | None) -> Path | None:
    """Return the folder of the model that ``encoder_of`` opens; None where it is an encoder by name."""
    chosen = model if model is not None else workspace.best_model() if workspace else None
    if isinstance(chosen, (str, Path)) and Path(chosen).is_dir():
        return Path(chosen)
    return None


def gallery_home(workspace: Workspace | None, asked: str | None, device: str = "cpu") -> Backend:
    """Return where the gallery is: as asked for, else the workspace's. Raises GalleryError without either."""
    from skumatch.backend import backend
    from skumatch.errors import GalleryError

    if asked is not None:
        return backend(asked, device)
    if workspace is None:
        raise GalleryError("no workspace here and no --gallery", "run `skumatch init --data PATH`, or give --gallery")
    return backend(workspace.gallery_place, device)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Progress]:
    """Show a bar with count, rate and time left on stderr while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            bar.advance(task, done)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.0f}/s" if speed else "")

        yield advance


def report_failures(failures: list[str], what: str, count: int | None = None) -> None:
    """Print up to five unreadable files and how many there were (``count`` where not all are named); ``what``: one of
    them, "view"."""
    for failure in failures[:5]:
        note(f"unreadable: {failure}")
    if failures:
        number = count or len(failures)
        note(f"{counted(number, what)} could not be read and {were(number)} left out")


def report_enrolled(enrolled: Enrolled[AnyGallery], what: str) -> None:
    """Print what became of the pictures that were to be enrolled."""
    if enrolled.resumed:
        note(f"went on after {counted(enrolled.resumed, what)} of an interrupted run")
    report_failures(enrolled.failures, what, enrolled.unreadable)
    if enrolled.known:
        note(f"{counted(enrolled.known, what)} {were(enrolled.known)} in the gallery already")
