"""``skumatch gallery``: what changes a gallery's views and facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import (
    Device,
    GalleryOption,
    ModelOption,
    RuntimeOption,
    Where,
    engine_of,
    gallery_home,
    here,
    note,
    pipeline_of,
    progress_bar,
    report_enrolled,
    workspace_or_none,
)
from skumatch.cli.match import build_from
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.enrol import Supply
    from skumatch.gallery_seam import AnyGallery

app = typer.Typer(no_args_is_help=True, help="Reference views per SKU: changing them, showing them, and versions.")
Title = Annotated[str | None, typer.Option(help="Title of the SKU.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="COLUMN=TEXT", help="A fact about the SKU, such as brand=arla; repeatable."),
]


def home_of(asked: str | None) -> Backend:
    """Return where the gallery asked for, else the workspace's, is."""
    return gallery_home(workspace_or_none(), asked)


def size(gallery: AnyGallery) -> str:
    """Return "24 views of 6 SKUs"."""
    return f"{counted(len(gallery), 'view')} of {counted(len(gallery.skus), 'SKU')}"


def done(home: Backend) -> None:
    """Print what the gallery holds now, and what would make it faster."""
    gallery = home.gallery()
    typer.echo(f"{gallery.store} {gallery.version}: {size(gallery)}")
    reasons = home.due()
    if reasons:
        note(f"`skumatch gallery compact` would make it faster: {', '.join(reasons)}")


@app.command()
def build(
    where: Where = None,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Build the gallery anew from the workspace's data; older versions stay on disk."""
    from skumatch.dataset import parse_filters

    workspace = here()
    filters = parse_filters(where or [])
    encoder = engine_of(workspace, model, device, (runtime, "fp32"))
    home = gallery_home(workspace, gallery)
    build_from(workspace, encoder, home, filters)
    done(home)


@app.command()
def add(
    sku: Annotated[str, typer.Argument(help="SKU that the pictures show.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, folders or globs.")],
    title: Title = None,
    facts: Set = None,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Add reference views of one SKU, new or known. Pictures that it has already are skipped."""
    home = home_of(gallery)
    home.gallery()  # an error before any work
    _enrol(home, _pictures_of(sku, paths, _said(title, facts)), (model, device, runtime), replace=False)


@app.command()
def update(
    sku: Annotated[str, typer.Argument(help="SKU that is known already.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Pictures that take the place of all its views.")
    ] = None,
    title: Title = None,
    facts: Set = None,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Change what is known of a SKU (--set COLUMN= takes a fact back), or let pictures replace all its views."""
    from skumatch.errors import GalleryError
    from skumatch.sku_table import layer_of

    home, said = home_of(gallery), _said(title, facts)
    home.gallery().code_of(sku)
    if paths:
        _enrol(home, _pictures_of(sku, paths, {}), (model, device, runtime), replace=True)
    if said:
        home.say(layer_of({sku: said}), "update facts of 1 SKU")
        done(home)
    elif not paths:
        raise GalleryError("nothing to update", "name pictures, --title, or --set COLUMN=TEXT")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE|DIR", help="CSV, TSV or Parquet table, or a folder that `gallery export` or `embed` wrote."
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="The table's pictures take the place of all views of their SKUs.")
    ] = False,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Add the pictures that a table names (columns path and sku), with its other columns as facts about the SKUs.

    The groups.csv of `skumatch dedupe` makes the postings of a group views of one SKU. A table without a column path
    changes facts alone. An interrupted import goes on when it is run again.
    """
    from skumatch.errors import GalleryError
    from skumatch.gallery_import import has_pictures, table_layer, table_supply, without_picture

    home = home_of(gallery)
    if source.is_dir():
        _take_in(home, source)
        return
    if has_pictures(source):
        skipped = without_picture(source)
        if skipped:
            note(f"left out: {counted(skipped, 'posting')} without a picture")
        _enrol(home, table_supply(source), (model, device, runtime), replace)
        return
    if not home.exists():
        raise GalleryError(f"{source} has no column path, and there is no gallery in {home}", "import pictures first")
    layer = table_layer(source)
    home.say(layer, f"import facts of {counted(layer.num_rows, 'SKU')}")
    strange = int((home.gallery().skus.codes(layer["sku"].combine_chunks()) < 0).sum())
    if strange:
        note(f"without a view here: {counted(strange, 'SKU')} of the table, whose facts are kept for views to come")
    done(home)


def _take_in(home: Backend, folder: Path) -> None:
    """Add what `gallery export` or `skumatch embed` wrote into ``folder``."""
    from skumatch.bulk.views import embedded_spec, embedded_views, is_embedded, left_out
    from skumatch.gallery_import import Embedded, read_exported

    if is_embedded(folder):
        less = left_out(folder)
        home.take_in(Embedded(embedded_spec(folder), lambda: embedded_views(folder)))
        if less.unreadable or less.without_sku:
            nameless = counted(less.without_sku, "picture")
            note(f"left out: {counted(less.unreadable, 'unreadable picture')}, {nameless} without a SKU")
    else:
        home.take_in(read_exported(folder))
    done(home)


@app.command()
def remove(
    skus: Annotated[list[str] | None, typer.Argument(metavar="[SKU]...", help="SKUs to remove with all views.")] = None,
    listed: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Table with a column sku, or one SKU per line.")
    ] = None,
    view: Annotated[list[int] | None, typer.Option(help="Id of a single view; repeatable.")] = None,
    where: Where = None,
    gallery: GalleryOption = None,
) -> None:
    """Remove SKUs, or single views. The pictures themselves are not touched."""
    from skumatch.dataset import parse_filters
    from skumatch.errors import GalleryError
    from skumatch.gallery_import import skus_in

    home = home_of(gallery)
    before = home.gallery()
    names = [*(skus or []), *(skus_in(listed) if listed else [])]
    if where:
        names += [before.skus[code] for code in before.facts.codes(parse_filters(where)).tolist()]
    if bool(names) == bool(view):
        raise GalleryError(
            "nothing to remove" if not names else "both SKUs and views are named", "name SKUs, or views with --view ID"
        )
    if view:
        home.remove_views(view)
    else:
        home.remove_skus(names)
    done(home)


def _said(title: str | None, pairs: Sequence[str] | None) -> dict[str, str]:
    """Return the facts that the options tell. Raises ConfigError for a pair without ``=``, a column named twice or one
    that cannot be."""
    from skumatch.dataset import parse_filters
    from skumatch.sku_table import layer_of

    said = parse_filters([*(pairs or []), *([] if title is None else [f"title={title}"])], "--set")
    layer_of({"": said})  # refuses a reserved name before any work
    return said


def _pictures_of(sku: str, paths: Sequence[str], said: dict[str, str]) -> Supply:
    from skumatch.crops import expand
    from skumatch.dataset import Row
    from skumatch.enrol import Supply

    return Supply.of([Row(path.absolute(), sku, "gallery", extra=said) for path in expand(paths)])


def _enrol(home: Backend, supply: Supply, how: tuple[str | None, str | None, str | None], replace: bool) -> None:
    """Embed ``supply`` into the gallery, or into a new one where there is none, and say what became of it."""
    workspace = workspace_or_none()
    model, device, runtime = how
    encoder = engine_of(workspace, model, device, (runtime, "fp32"))
    total = sum(1 for _ in supply.rows())
    try:
        with progress_bar("embedding", total) as progress:
            work = home.build if not home.exists() else home.replace if replace else home.extend
            enrolled = work(supply, encoder, pipeline_of(workspace), progress)
    except KeyboardInterrupt:
        note("what was embedded is kept: the same command goes on from there")
        raise
    report_enrolled(enrolled, "picture")
    done(home)
