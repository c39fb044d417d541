"""``skumatch data synth``: render a synthetic store to try everything else on, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synth(
    out: Annotated[Path, typer.Argument(help="New or empty folder for the store.")],
    skus: Annotated[int, typer.Option("--skus", help="Made-up SKUs.")] = 60,
    views: Annotated[int, typer.Option("--views", help="Training crops per SKU.")] = 30,
    test_views: Annotated[int, typer.Option("--test-views", help="Test crops per SKU.")] = 10,
    size: Annotated[int, typer.Option("--size", help="Side of a crop in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same bytes.")] = 0,
) -> None:
    """Render noisy shelf crops of made-up SKUs, with studio pictures and a product table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from skumatch.synth import write_store

    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("rendering", total=None, rate="")

        def show(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.0f} crops/s" if speed else "")

        write_store(out, skus, views, test_views, seed, size, show)
    typer.echo(f"wrote {skus * (views + test_views)} crops of {skus} SKUs to {out} - next: skumatch init --data {out}")
