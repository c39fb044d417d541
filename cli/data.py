"""``skumatch data``: look at a data set before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from skumatch.datacheck import CheckReport
    from skumatch.dataset import Dataset

app = typer.Typer(no_args_is_help=True)
EXAMPLES = 5


@app.callback()
def data() -> None:
    """Check data sets, audit their labels and make synthetic ones."""


@app.command("check")
def check_command(
    path: Annotated[
        Path | None, typer.Argument(help="Folder or manifest file. Default: the data set of the workspace.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="auto, or a format of docs/data-formats.md.", show_default="auto")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split where the data brings none.", show_default="0")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Read every picture once; report bad files, leaks between splits and SKUs that can never be matched.

    Exits with 1 when there is a problem.
    """
    from skumatch.datacheck import check

    dataset = _dataset(path, format, seed)
    with _progress() as progress:
        report = check(dataset, workers=os.cpu_count() or 1, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)
    raise typer.Exit(0 if report.ok else 1)


def _dataset(path: Path | None, format: str | None, seed: int | None) -> Dataset:
    from skumatch.errors import ConfigError
    from skumatch.readers import open_dataset

    if path is not None:
        return open_dataset(path, format or "auto", seed or 0)
    if format is not None or seed is not None:
        raise ConfigError("--format and --seed describe a PATH, and none was given", "set them in skumatch.toml")
    from skumatch.workspace import Workspace

    return Workspace.find(Path.cwd()).open_dataset()


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on stderr while a terminal watches it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Pictures per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    console = Console(stderr=True)
    columns = ("Reading pictures", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("read", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(report: CheckReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("split", "pictures", "SKUs"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, pictures in report.pictures.items():
        table.add_row(split, f"{pictures:,}", f"{report.skus[split]:,}")
    console.print(f"{report.root} ({report.format})")
    console.print(table)
    if report.views is not None:
        views = report.views
        console.print(
            f"Gallery: split {views.split}, views per SKU: {views.minimum} least, {views.median:g} median, "
            f"{views.maximum} most\n"
        )
    for title, lines in _details(report).items():
        _print_some(console.print, title, lines)
    for note in report.notes:
        console.print(f"note: {note}")
    for problem in report.problems:
        console.print(f"problem: {problem}")
    console.print("ok" if report.ok else f"{len(report.problems)} problem(s) found")


def _details(report: CheckReport) -> dict[str, list[str]]:
    """Return the lists worth printing, by title; single-picture SKUs and the like stand in the notes."""
    return {
        "Cannot be read": [f"{bad.path}: {bad.reason}" for bad in report.unreadable],
        "Missing": list(report.missing),
        "Same bytes in several splits": [
            " = ".join(f"{path} [{split}]" for path, split in zip(same.paths, same.splits, strict=True))
            for same in report.across_splits
        ],
        "Same bytes under several SKUs": [
            " = ".join(f"{path} ({sku})" for path, sku in zip(same.paths, same.skus, strict=True))
            for same in report.two_skus
        ],
        "Queried SKUs without a view": list(report.without_views),
    }


def _print_some(show: Callable[[str], None], title: str, lines: list[str]) -> None:
    if not lines:
        return
    show(f"{title} ({len(lines):,})")
    for line in lines[:EXAMPLES]:
        show(f"  {line}")
    if len(lines) > EXAMPLES:
        show(f"  ... and {len(lines) - EXAMPLES:,} more (--json lists all)")
    show("")
