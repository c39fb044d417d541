"""``skumatch gallery``: what shows a gallery, and takes it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import GalleryOption, Where
from skumatch.cli.gallery import opened, size

if TYPE_CHECKING:
    from skumatch.gallery import Gallery

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
    from skumatch.dataset import parse_filters

    held = opened(gallery)
    found: list[dict[str, Any]]
    if sku is not None:
        found = [{"view": v.id, "source": v.source, "sha256": v.sha256} for v in map(held.view, held.ids_of(sku))]
    else:
        chosen = set(held.facts.codes(parse_filters(where)).tolist()) if where else None
        found = _listed(held, chosen)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for line in [list(found[0]), *(line.values() for line in found)]:
        typer.echo("\t".join(str(value).translate(FLAT) for value in line))


def _listed(gallery: Gallery, chosen: set[int] | None) -> list[dict[str, Any]]:
    columns = [name for name in gallery.facts.table.columns if name not in ("sku", "title")]
    lines = []
    for code, (name, count) in enumerate(gallery.counts().items()):
        if chosen is None or code in chosen:
            known = {column: gallery.facts.cell(code, column) for column in ("title", *columns)}
            lines.append({"sku": name, "views": count, **known})
    return sorted(lines, key=lambda line: str(line["sku"]))


def info(
    gallery: GalleryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show version, model, size and index."""
    from skumatch.gallery_index import figures_of

    held = opened(gallery)
    index = held.pieces.index_facts
    facts = {
        "gallery": str(held.store),
        "version": held.version,
        "parent": held.published.facts["parent"],
        "made": held.published.facts["time"],
        "reason": held.published.facts["reason"],
        "model": held.spec.name,
        "layer": held.spec.layer,
        "spec_digest": held.spec.digest,
        "dim": held.spec.dim,
        "skus": len(held.skus),
        "views": len(held),
        "columns": held.facts.table.columns[1:],
        "segments": len(held.pieces.segments),
        "index": index["index"]["kind"] if index else "exact",
        "index_kind": held.published.state.index_kind,
        "figures": figures_of(held),
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

    held = opened(gallery)
    export_gallery(held, out)
    files = ", ".join((VECTORS, VIEWS, ROWS, FACTS))
    typer.echo(f"wrote {files} into {out}: {size(held)}")
