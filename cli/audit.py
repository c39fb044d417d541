"""``skumatch data audit``: labels that the pictures contradict, and a corrected manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import (
    Device,
    ModelOption,
    Where,
    encoder_of,
    here,
    note,
    pipeline_of,
    progress_bar,
    report_failures,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skumatch.dataset import Row
    from skumatch.embed import Pipeline
    from skumatch.encoder import Encoder

SHOWN = 5


def audit(
    model: ModelOption = None,
    where: Where = None,
    split: Annotated[
        str | None, typer.Option(help="Split whose labels are audited.", show_default="the gallery's")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Suspect crops listed at most.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Folder for page, CSV and JSON.", show_default="audit/ here")] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", metavar="FIXES.csv", help="Apply the fixes left in this file.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="NEW.csv", help="With --apply: the manifest to write; must not exist.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json (or the counts) on stdout.")] = False,
    device: Device = None,
) -> None:
    """List crops whose neighbours disagree with their label, and SKU folders to merge or split, with pictures.

    Writes index.html, fixes.csv and audit.json. Delete the lines of fixes.csv that are wrong, then run again with
    --apply fixes.csv --manifest NEW.csv. No picture is touched and no manifest replaced.
    """
    from skumatch.dataset import parse_filters
    from skumatch.errors import ConfigError

    if apply is not None or manifest is not None:
        if where or split or model or out or device:
            raise ConfigError(
                "--apply works on the whole data set", "leave out --model, --where, --split, --out and --device"
            )
        _apply(apply, manifest, as_json)
        return
    workspace = here()
    filters = parse_filters(where or [])
    dataset = workspace.open_dataset(filters)
    chosen = split or dataset.gallery_split
    rows = dataset.split(chosen).rows
    encoder = encoder_of(workspace, model, device)
    facts = {"split": chosen, "where": filters, "settings": workspace.resolved()}
    folder = out or workspace.folder / "audit"
    told = run(rows, encoder, pipeline_of(workspace), most, folder, facts)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
    else:
        _show(told)
    note(f"wrote {folder / 'index.html'}, fixes.csv and audit.json")
    note("next: delete the wrong lines of fixes.csv, then skumatch data audit --apply FIXES.csv --manifest NEW.csv")


def _apply(fixes: Path | None, manifest: Path | None, as_json: bool) -> None:
    """Write the corrected manifest and say what changed."""
    from skumatch.errors import ConfigError
    from skumatch.eval import fixes as lists

    if fixes is None or manifest is None:
        raise ConfigError("--apply and --manifest go together", "write --apply FIXES.csv --manifest NEW.csv")
    lists.check_new(manifest)
    dataset = here().open_dataset()
    asked = lists.read_fixes(fixes)
    rows, changed = lists.apply(dataset, asked, fixes)
    lists.write_manifest(manifest, rows)
    looks = sum(fix.kind == "look" for fix in asked)
    if as_json:
        counts = {"manifest": str(manifest), "pictures": len(rows), "changed": dict(changed), "look": looks}
        typer.echo(json.dumps(counts, indent=1))
        return
    said = ", ".join(f"{count:,} by {kind}" for kind, count in changed.items()) or "none"
    typer.echo(f"wrote {manifest}: {len(rows):,} pictures, changed {said}")
    if looks:
        typer.echo(f"{looks:,} lines of kind look change nothing; write relabel there where you agree")


def run(
    rows: Sequence[Row], encoder: Encoder, pipeline: Pipeline, most: int, out: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Embed and audit ``rows``, write page, CSV and JSON into ``out``; return what audit.json holds."""
    from skumatch.eval.audit_page import document, examine, write
    from skumatch.eval.views import embed_rows

    with progress_bar("embedding", len(rows)) as progress:
        views, unreadable = embed_rows(rows, encoder, pipeline, progress)
    report_failures(list(unreadable), "picture")
    found = examine(views, most)
    model = {"model": encoder.spec.name, "spec_digest": encoder.spec.digest}
    told = {**document(found), **model, **facts, "unreadable": list(unreadable)}
    with progress_bar("page", len(found.suspects)) as progress:
        write(out, found, told, progress)
    return told


def _show(told: dict[str, Any]) -> None:
    """Print how much was found and the first of each list."""
    suspects, pairs, splits = told["suspects"], told["same_product"], told["two_products"]
    certain = sum(suspect["kind"] == "relabel" for suspect in suspects)
    typer.echo(f"{told['crops']:,} crops of {told['skus']:,} SKUs in split {told['split']}")
    typer.echo(
        f"{told['suspected']:,} crops fit another SKU better; listed {len(suspects):,}: "
        f"{certain:,} to relabel, {len(suspects) - certain:,} to look at"
    )
    for suspect in suspects[:SHOWN]:
        typer.echo(f"  {suspect['score']:.2f} {suspect['path']}: {suspect['sku']} -> {suspect['proposed_sku']}")
    typer.echo(f"{len(pairs):,} pairs of SKUs look like one product")
    for pair in pairs[:SHOWN]:
        typer.echo(f"  {pair['mixing']:.2f} {pair['sku']} -> {pair['proposed_sku']}")
    typer.echo(f"{len(splits):,} SKUs look like two products")
    for split in splits[:SHOWN]:
        typer.echo(
            f"  {split['deviations']:.1f} {split['sku']}: {len(split['larger'])} and {len(split['smaller'])} pictures"
        )
    if told["only_picture"]:
        typer.echo(f"{told['only_picture']:,} crops are the only one of their SKU: nothing to compare them with")
