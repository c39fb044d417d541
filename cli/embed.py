"""``skumatch embed``: pictures of any number into a folder of vectors, here or on a Ray cluster."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import (
    Device,
    ModelOption,
    RuntimeOption,
    engine_of,
    model_of,
    note,
    pipeline_of,
    progress_bar,
    workspace_or_none,
)
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.bulk.run import BulkReport, Engine
    from skumatch.bulk.sources import BulkOptions
    from skumatch.towers.build import ModelSource
    from skumatch.workspace import Workspace

How = tuple[str | None, str | None, str | None, str]  # model, device, runtime, precision


def embed(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, manifest, .tar, .parquet, a pattern of them, or a URL.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the vectors.")],
    model: ModelOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")] = "fp32",
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="local|ADDRESS", help="On Ray: started here, auto or HOST:PORT.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers with a model.", show_default="one per GPU")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Pictures per file of vectors.")] = 8192,
    column: Annotated[str | None, typer.Option(help="Parquet column of image bytes.")] = None,
    sku_from: Annotated[str, typer.Option(metavar="folder", help="A picture's folder is its SKU.")] = "",
    thumbs: Annotated[bool, typer.Option("--thumbs", help="Keep thumbnails, as a gallery has them.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Remove what an earlier run left in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The counts as JSON on stdout.")] = False,
) -> None:
    """Embed pictures into Parquet files of vectors, one row each; the same command goes on where it was interrupted."""
    from skumatch.bulk.sources import BulkOptions, plan_of
    from skumatch.errors import ConfigError

    if workers is not None and ray is None:
        raise ConfigError("--workers goes with --ray alone", "leave it out, or add --ray local")
    options = BulkOptions(shard_rows, column, sku_from, thumbs, restart)
    plan = plan_of(source, options)  # before any model is opened
    workspace = workspace_or_none()
    how = (model, device, runtime, precision)
    engine = _plain(workspace, how) if ray is None else _on_ray(workspace, how, ray, workers)
    report = _run(source, out, engine, options, plan.count())
    _say(report, out, as_json)


def _plain(workspace: Workspace | None, how: How) -> Engine:
    from skumatch.bulk.run import Plain

    model, device, runtime, precision = how
    return Plain(engine_of(workspace, model, device, (runtime, precision)), pipeline_of(workspace))


def _on_ray(workspace: Workspace | None, how: How, address: str, workers: int | None) -> Engine:
    from skumatch.bulk.cluster import Cluster, OnRay, spec_of
    from skumatch.bulk.worker import Opening
    from skumatch.errors import ConfigError

    model, device, runtime, precision = how
    folder = model_of(workspace, model)
    named: Path | str | ModelSource
    if folder is not None:
        named = folder.absolute()
    elif model is not None:
        named = model
    elif workspace is not None:
        named = workspace.best_model()
    else:
        raise ConfigError("no workspace here and no --model", "run `skumatch init --data PATH`, or give --model")
    runtime = runtime or (workspace.runtime.engine if workspace else "auto")
    device = device or (workspace.runtime.device if workspace else "auto")
    opening = Opening(named, device, runtime, precision)
    cluster = Cluster(address, workers or 0)
    spec = spec_of(opening)
    note(f"model {spec.name} ({folder or 'by name'}), layer {spec.layer}, on Ray {address}")
    return OnRay(spec, opening, cluster, pipeline_of(workspace))


def _run(source: str, out: Path, engine: Engine, options: BulkOptions, total: int | None) -> BulkReport:
    from skumatch.bulk.run import embed_source
    from skumatch.errors import SkumatchError

    done = 0
    try:
        # a Ray that loses a worker says so on stdout, which is for results
        with redirect_stdout(sys.stderr), progress_bar("embedding", total) as progress:

            def advance(pictures: int) -> None:
                nonlocal done
                done += pictures
                progress(pictures)

            return embed_source(source, out, engine, options, advance)
    except (KeyboardInterrupt, SkumatchError):
        if done:
            note(f"finished files in {out} are kept: the same command goes on from there")
        raise


def _say(report: BulkReport, out: Path, as_json: bool) -> None:
    for failure in report.failures:
        note(f"unreadable: {failure}")
    if report.unreadable:
        note(f"{counted(report.unreadable, 'picture')} could not be read: the column error says why")
    if report.resumed:
        note(f"there already: {counted(report.resumed, 'picture')}")
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        typer.echo(f"{out}: {counted(report.pictures, 'picture')} in {counted(report.shards, 'shard')}")
