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
    gallery_path,
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
    from skumatch.enrol import Enrolled, Supply
    from skumatch.gallery import Gallery

app = typer.Typer(no_args_is_help=True, help="Reference views per SKU: changing them, showing them, and versions.")
Title = Annotated[str | None, typer.Option(help="Title of the SKU.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="COLUMN=TEXT", help="A fact about the SKU, such as brand=arla; repeatable."),
]


def opened(asked: Path | None) -> Gallery:
    """Open the gallery asked for, else the workspace's."""
    from skumatch.gallery import open_gallery

    return open_gallery(gallery_path(workspace_or_none(), asked))


def size(gallery: Gallery) -> str:
    """Return "24 views of 6 SKUs"."""
    return f"{counted(len(gallery), 'view')} of {counted(len(gallery.skus), 'SKU')}"


def upkeep(gallery: Gallery) -> list[str]:
    """Return why `gallery compact` is worth while; nothing where it is not."""
    from skumatch.gallery_compact import due
    from skumatch.gallery_index import due as index_due

    return [reason for reason in (*due(gallery), index_due(gallery)) if reason]


def done(gallery: Gallery) -> None:
    """Print what the gallery holds now, and what would make it faster."""
    typer.echo(f"{gallery.store} {gallery.version}: {size(gallery)}")
    reasons = upkeep(gallery)
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
    done(build_from(workspace, encoder, gallery or workspace.gallery_path, filters))


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
    supply = _pictures_of(sku, paths, _said(title, facts))
    _enrol(opened(gallery), supply, (model, device, runtime), replace=False)


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
    from skumatch.gallery_changes import set_facts

    before, said = opened(gallery), _said(title, facts)
    before.code_of(sku)
    if paths:
        before = _enrol(before, _pictures_of(sku, paths, {}), (model, device, runtime), replace=True)
    if said:
        done(set_facts(before, {sku: said}))
    elif not paths:
        raise GalleryError("nothing to update", "name pictures, --title, or --set COLUMN=TEXT")


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="TABLE|DIR", help="CSV, TSV or Parquet table, or what `gallery export` wrote.")
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

    A table without a column path changes facts alone. An interrupted import goes on when it is run again.
    """
    from skumatch.errors import GalleryError
    from skumatch.gallery_changes import Change, apply
    from skumatch.gallery_import import has_pictures, import_exported, table_layer, table_supply

    store = gallery_path(workspace_or_none(), gallery)
    there = opened(gallery) if (store / "CURRENT").exists() else None
    if source.is_dir():
        done(import_exported(source, store, there))
        return
    if has_pictures(source):
        _enrol(there or store, table_supply(source), (model, device, runtime), replace)
        return
    if there is None:
        raise GalleryError(f"{source} has no column path, and there is no gallery in {store}", "import pictures first")
    layer = table_layer(source)
    made = apply(there, Change(f"import facts of {counted(layer.num_rows, 'SKU')}", layer=layer))
    strange = int((made.skus.codes(layer["sku"].combine_chunks()) < 0).sum())
    if strange:
        note(f"without a view here: {counted(strange, 'SKU')} of the table, whose facts are kept for views to come")
    done(made)


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
    from skumatch.gallery_changes import remove_skus, remove_views
    from skumatch.gallery_import import skus_in

    before = opened(gallery)
    names = [*(skus or []), *(skus_in(listed) if listed else [])]
    if where:
        names += [before.skus[code] for code in before.facts.codes(parse_filters(where)).tolist()]
    if bool(names) == bool(view):
        raise GalleryError(
            "nothing to remove" if not names else "both SKUs and views are named", "name SKUs, or views with --view ID"
        )
    done(remove_views(before, view) if view else remove_skus(before, names))


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


def _enrol(
    target: Gallery | Path, supply: Supply, how: tuple[str | None, str | None, str | None], replace: bool
) -> Gallery:
    """Embed ``supply`` into a gallery, or into a new one at a path, and say what became of it."""
    from skumatch.enrol import build_gallery, extend_gallery, replace_in_gallery

    workspace = workspace_or_none()
    model, device, runtime = how
    encoder = engine_of(workspace, model, device, (runtime, "fp32"))
    total = sum(1 for _ in supply.rows())
    try:
        with progress_bar("embedding", total) as progress:
            enrolled: Enrolled
            if isinstance(target, Path):
                enrolled = build_gallery(target, supply, encoder, pipeline_of(workspace), progress)
            else:
                extend = replace_in_gallery if replace else extend_gallery
                enrolled = extend(target, supply, encoder, pipeline_of(workspace), progress)
    except KeyboardInterrupt:
        note("what was embedded is kept: the same command goes on from there")
        raise
    report_enrolled(enrolled, "picture")
    done(enrolled.gallery)
    return enrolled.gallery
