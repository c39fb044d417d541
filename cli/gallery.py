"""``skumatch gallery``: build, add, remove, list, info, verify, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    report_failures,
    workspace_or_none,
)
from skumatch.cli.match import build_from

if TYPE_CHECKING:
    from skumatch.gallery import Gallery

app = typer.Typer(no_args_is_help=True, help="Reference views per SKU: build, add, remove, list, info, verify, export.")


def _open(asked: Path | None) -> Gallery:
    from skumatch.gallery import open_gallery

    return open_gallery(gallery_path(workspace_or_none(), asked))


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
    made = build_from(workspace, encoder, gallery or workspace.gallery_path, filters)
    _done(made)


@app.command()
def add(
    sku: Annotated[str, typer.Argument(help="SKU that the pictures show.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, folders or globs.")],
    title: Annotated[str, typer.Option(help="Title of the SKU.")] = "",
    model: ModelOption = None,
    gallery: GalleryOption = None,
    device: Device = None,
    runtime: RuntimeOption = None,
) -> None:
    """Add reference views of one SKU, new or known. Pictures that it has already are skipped."""
    from skumatch.crops import expand
    from skumatch.dataset import Row
    from skumatch.enrol import extend_gallery

    workspace = workspace_or_none()
    before = _open(gallery)
    rows = [Row(path, sku, "gallery", title) for path in expand(paths)]
    encoder = engine_of(workspace, model, device, (runtime, "fp32"))
    with progress_bar("adding", len(rows)) as progress:
        enrolled = extend_gallery(before, rows, encoder, pipeline_of(workspace), progress)
    report_failures([str(error) for error in enrolled.failures], "pictures")
    if enrolled.known:
        note(f"{enrolled.known} pictures were in the gallery already")
    _done(enrolled.gallery)


@app.command()
def remove(
    skus: Annotated[list[str] | None, typer.Argument(metavar="[SKU]...", help="SKUs to remove with all views.")] = None,
    view: Annotated[list[int] | None, typer.Option(help="Id of a single view; repeatable.")] = None,
    gallery: GalleryOption = None,
) -> None:
    """Remove SKUs or single views. The pictures themselves are not touched."""
    from skumatch.errors import GalleryError
    from skumatch.gallery import remove_views

    before = _open(gallery)
    ids = [*(view or []), *(i for sku in skus or [] for i in before.ids_of(sku))]
    if not ids:
        raise GalleryError("nothing to remove", "name SKUs, or views with --view ID")
    _done(remove_views(before, ids))


@app.command("list")
def list_views(
    sku: Annotated[str | None, typer.Option(help="List the views of this SKU.")] = None,
    gallery: GalleryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List SKUs with their number of views, or one SKU's views."""
    opened = _open(gallery)
    found: list[dict[str, Any]]
    if sku is not None:
        found = [{"view": v.id, "source": v.source, "sha256": v.sha256} for v in map(opened.view, opened.ids_of(sku))]
    else:
        counts = sorted(opened.counts().items())
        found = [{"sku": name, "views": count, "title": opened.titles.get(name, "")} for name, count in counts]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for line in found:
        typer.echo("\t".join(str(value) for value in line.values()))


@app.command()
def info(
    gallery: GalleryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show version, model and size."""
    opened = _open(gallery)
    facts = {
        "gallery": str(opened.store),
        "version": opened.version,
        "parent": opened.document["parent"],
        "made": opened.document["time"],
        "reason": opened.document["reason"],
        "model": opened.spec.name,
        "layer": opened.spec.layer,
        "spec_digest": opened.spec.digest,
        "dim": opened.spec.dim,
        "skus": len(opened.skus),
        "views": len(opened),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        typer.echo(f"{name:12} {value}")


@app.command()
def verify(gallery: GalleryOption = None) -> None:
    """Hash every byte of the current version again and compare."""
    from skumatch.gallery import open_gallery

    opened = open_gallery(gallery_path(workspace_or_none(), gallery), full=True)
    typer.echo(
        f"{opened.store} {opened.version}: {len(opened):,} views of {len(opened.skus):,} SKUs, every byte as written"
    )


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write vectors.f32 and views.json into.")],
    gallery: GalleryOption = None,
) -> None:
    """Write the vectors and their SKUs for apps that embed the exported model."""
    from skumatch.gallery_export import VECTORS, VIEWS, export_gallery

    opened = _open(gallery)
    export_gallery(opened, out)
    typer.echo(f"wrote {out / VECTORS} and {out / VIEWS}: {len(opened):,} views of {len(opened.skus):,} SKUs")


def _done(gallery: Gallery) -> None:
    typer.echo(f"{gallery.store} {gallery.version}: {len(gallery):,} views of {len(gallery.skus):,} SKUs")
