"""``skumatch gallery``: versions, and the upkeep of a gallery."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import (
    Device,
    GalleryOption,
    ModelOption,
    RuntimeOption,
    engine_of,
    gallery_home,
    note,
    pipeline_of,
    progress_bar,
    report_failures,
    workspace_or_none,
)
from skumatch.cli.gallery import done, home_of, size
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.backend import Backend

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Version = Annotated[str, typer.Argument(help="Version, such as v000003, v3 or 3.")]
SHOWN = 20  # SKUs that a difference names unless JSON is asked for


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``skumatch gallery``."""
    for command in (log, diff, rollback, prune, verify, compact, index, rebuild):
        app.command()(command)


def log(gallery: GalleryOption = None, as_json: AsJson = False) -> None:
    """Show what happened to the gallery, newest first; the current version is marked with a star."""
    lines = home_of(gallery).log()
    if as_json:
        typer.echo(json.dumps(lines, indent=1))
        return
    for line in lines:
        star = "*" if line["current"] else " "
        if "error" in line:
            typer.echo(f"{star} {line['version']}  broken: {line['error']}")
            continue
        change = f"+{line['added']:,} -{line['removed']:,}"
        held = f"{counted(line['views'], 'view')} of {counted(line['skus'], 'SKU')}"
        typer.echo(
            f"{star} {line['version']}  {line['time']}  {held:32} {change:16} {line['reason']} ({line['model']})"
        )


def diff(a: Version, b: Version, gallery: GalleryOption = None, as_json: AsJson = False) -> None:
    """Show what version B has that A has not, and the other way round."""
    found = home_of(gallery).diff(a, b)
    if as_json:
        views = {"views_added": found.views_added.tolist(), "views_removed": found.views_removed.tolist()}
        names = {"skus_added": found.skus_added, "skus_removed": found.skus_removed, "facts": found.facts}
        typer.echo(json.dumps({**names, **views, "model": found.model}, indent=1))
        return
    if found.model:
        typer.echo("model: another one, so every vector differs")
    typer.echo(f"views: +{len(found.views_added):,} -{len(found.views_removed):,}")
    named = {"SKUs added": found.skus_added, "SKUs removed": found.skus_removed, "other facts": found.facts}
    for what, skus in named.items():
        more = f" and {len(skus) - SHOWN:,} more (--json names all)" if len(skus) > SHOWN else ""
        typer.echo(f"{what}: {', '.join(skus[:SHOWN]) or 'none'}{more}")


def rollback(
    version: Annotated[str | None, typer.Argument(help="Version to go back to.", show_default="the parent")] = None,
    gallery: GalleryOption = None,
) -> None:
    """Make an older version the current one; later ones stay until they are pruned."""
    home = home_of(gallery)
    home.rollback(version)
    done(home)


def prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep, beside the current one.")] = 3,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Forget interrupted imports and rebuilds, too.")
    ] = False,
    gallery: GalleryOption = None,
) -> None:
    """Remove old versions, and files that no version needs any more."""
    gone, freed = home_of(gallery).prune(keep, unfinished)
    typer.echo(f"removed {counted(len(gone), 'version')}, {freed}")


def verify(
    everything: Annotated[bool, typer.Option("--all", help="All versions, not only the current one.")] = False,
    gallery: GalleryOption = None,
) -> None:
    """Hash every byte of the current version again and compare."""
    for held in home_of(gallery).verify(everything):
        typer.echo(f"{held.store} {held.version}: {size(held)}, every byte as written")


def compact(
    full: Annotated[bool, typer.Option("--full", help="Also where little would be gained.")] = False,
    watch: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Go on, looking every so many seconds, until interrupted.")
    ] = 0,
    gallery: GalleryOption = None,
) -> None:
    """Merge small segments, drop removed views from disk, and bring the index up to date, where that is worth while.

    Others may read and change the gallery meanwhile.
    """
    from skumatch.errors import GalleryError

    home = home_of(gallery)
    while True:
        before = home.gallery().version
        try:
            _maintain(home, full)
        except GalleryError as error:
            if not watch:
                raise
            note(str(error))  # another writer was there first: the next look may find it done
        same = home.gallery().version == before
        if not watch and same:
            more = "" if full else " (--full also does what gains little)"
            note(f"nothing to do: it is compact, and its index is up to date{more}")
        if not watch or not same:
            done(home)
        if not watch:
            return
        time.sleep(watch)


def _maintain(home: Backend, full: bool) -> None:
    """Compact and index the gallery where that is worth while."""
    if full or home.due():
        with progress_bar("compacting", None) as progress:
            home.maintain(full, progress)


def index(
    kind: Annotated[
        str | None, typer.Option(help="auto, exact, hnsw or ivf-rabitq.", show_default="as it was set before")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the sample that it is trained on.")] = 0,
    gallery: GalleryOption = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Choose the search index, build it, and measure it against comparing every view."""
    from skumatch.embed import no_progress

    home = gallery_home(workspace_or_none(), gallery, _granted(device))
    if home.compares_all(kind):
        made = home.index(kind, seed, no_progress)
    else:
        with progress_bar("indexing", len(home.gallery())) as progress:
            made = home.index(kind, seed, progress)
    figures: dict[str, Any] = {"kind": made.kind, **made.figures}
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    _explain(figures)
    done(home)


def _explain(figures: dict[str, Any]) -> None:
    """Say how well the index answers."""
    if figures["kind"] == "exact":
        typer.echo("every view is compared: answers are exact")
        return
    if "effort" not in figures:
        typer.echo(f"{figures['kind']}, built by the server")
        return
    typer.echo(
        f"{figures['kind']}, effort {figures['effort']}, on {figures['sample']:,} questions (and their worse half)"
    )
    typer.echo(f"recall@1       {figures['recall']:.4f} ({figures['recall_lower']:.4f})")
    typer.echo(f"top-5 overlap  {figures['overlap']:.4f} ({figures['overlap_lower']:.4f})")
    typer.echo(f"queries/s      {figures['rate']:,.0f} (comparing every view: {figures['exact_rate']:,.0f})")
    if figures["recall_lower"] < 0.99:
        note("recall@1 stays below .99 at the largest effort: `--kind exact` compares every view")


def _granted(device: str | None) -> str:
    """Return the device that ``device`` means; without a word, the CPU. Raises DeviceError when it is not granted."""
    from skumatch.index.matmul import sees_gpu

    if device == "auto":
        return "cuda" if sees_gpu() else "cpu"
    if device in (None, "cpu"):
        return "cpu"
    from skumatch.runtime.torch import pick_device

    return str(pick_device(device))


def rebuild(
    model: ModelOption = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out views that can be read neither from file nor thumbnail.")
    ] = False,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Embed all views again with another model, under their ids; the old version serves until it is done.

    An interrupted rebuild goes on when it is run again.
    """
    workspace = workspace_or_none()
    home = home_of(gallery)
    total = len(home.gallery())
    encoder = engine_of(workspace, model, device, (runtime, "fp32"))
    try:
        with progress_bar("rebuilding", total) as progress:
            made = home.rebuild(encoder, pipeline_of(workspace), progress, drop)
    except KeyboardInterrupt:
        note("what was embedded is kept: the same command goes on from there")
        raise
    if made.resumed:
        note(f"went on after {counted(made.resumed, 'view')} of an interrupted run")
    if made.from_thumbs:
        note(f"embedded from the thumbnail, the file being gone or changed: {counted(made.from_thumbs, 'view')}")
    report_failures(made.failures, "view", made.left_out or None)
    if not home.compares_all(None):
        with progress_bar("indexing", total) as progress:
            home.index(None, 0, progress)
    done(home)
