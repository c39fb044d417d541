"""``skumatch gallery``: what shows a gallery, and takes it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import GalleryOption, Where
from skumatch.cli.gallery import home_of, size

if TYPE_CHECKING:
    from skumatch.gallery_seam import AnyGallery

FLAT = str.maketrans("\t\r\n", "   ")  # a fact may hold them, a cell may not


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``skumatch gallery``."""
    app.command("list")(list_views)
    app.command()(info)
    app.command()(export)


def list_views(
    sku: Annotated[str | None, typer.Option(help="List the views of this SKU.")] = None,
    where: Where = None,
    gallery: GalleryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List SKUs with their number of views and what is known of them, or one SKU's views: a line each, with tabs."""
    import numpy as np

    from skumatch.dataset import parse_filters

    held = home_of(gallery).gallery()
    found: list[dict[str, Any]]
    if sku is not None:
        ids = np.array(held.ids_of(sku), np.int64)
        found = [{"view": view.id, "source": view.source, "sha256": view.sha256} for view in held.views_of(ids)]
    else:
        chosen = {held.skus[code] for code in held.facts.codes(parse_filters(where)).tolist()} if where else None
        found = _listed(held, chosen)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for line in [list(found[0]), *(line.values() for line in found)]:
        typer.echo("\t".join(str(value).translate(FLAT) for value in line))


def _listed(gallery: AnyGallery, chosen: set[str] | None) -> list[dict[str, Any]]:
    counts, lines = gallery.counts(), []
    for batch in gallery.facts.known().to_batches():
        for said in batch.to_pylist():
            name = said.pop("sku")
            if chosen is None or name in chosen:
                facts = {column: text or "" for column, text in said.items() if column != "title"}
                lines.append({"sku": name, "views": counts[name], "title": said.get("title") or "", **facts})
    return lines


def info(
    gallery: GalleryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show version, model, size and index."""
    home = home_of(gallery)
    held = home.gallery()
    told = home.info()
    facts = {
        "gallery": str(held.store),
        "version": held.version,
        **{name: told.pop(name) for name in ("parent", "made", "reason")},
        "model": held.spec.name,
        "layer": held.spec.layer,
        "spec_digest": held.spec.digest,
        "dim": held.spec.dim,
        "skus": len(held.skus),
        "views": len(held),
        "columns": held.facts.columns,
        **told,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        typer.echo(f"{name:12} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        numbers = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in value.items()}
        return ", ".join(f"{name} {number}" for name, number in numbers.items())
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")


def export(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the files into.")],
    gallery: GalleryOption = None,
) -> None:
    """Write vectors and their SKUs for apps that embed the exported model, and tables of all that is known."""
    from skumatch.gallery_export import FACTS, ROWS, VECTORS, VIEWS, export_gallery

    held = home_of(gallery).gallery()
    export_gallery(held, out)
    files = ", ".join((VECTORS, VIEWS, ROWS, FACTS))
    typer.echo(f"wrote {files} into {out}: {size(held)}")
