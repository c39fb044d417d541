"""``skumatch eval``: how often the nearest SKU is the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import Device, ModelOption, Where, encoder_of, here, note, pipeline_of, progress_bar

if TYPE_CHECKING:
    from skumatch.dataset import Dataset
    from skumatch.embed import Pipeline
    from skumatch.encoder import Encoder


def evaluate(
    topk: Annotated[int, typer.Option(min=1, help="Largest k; 1, 3 and 5 are always reported.")] = 5,
    model: ModelOption = None,
    split: Annotated[str, typer.Option(help="Queries: val or test.")] = "test",
    where: Where = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Evaluate the untouched encoder too.")] = False,
    max_leaks: Annotated[int | None, typer.Option(min=0, help="Exit with 1 when more queries leaked.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for eval.json.", show_default="eval/ here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json on stdout.")] = False,
    device: Device = None,
) -> None:
    """Match one split against the gallery split and report top-k over distinct SKUs and over views."""
    from skumatch.dataset import parse_filters
    from skumatch.encoder import open_encoder

    workspace = here()
    filters = parse_filters(where or [])
    dataset = workspace.open_dataset(filters)
    encoder = encoder_of(workspace, model, device)
    pipeline = pipeline_of(workspace)
    facts = {"split": split, "where": filters, "settings": workspace.resolved()}
    untouched = open_encoder(workspace.source(), device or workspace.runtime.device) if baseline else None
    folder = out or workspace.folder / "eval"
    document = run(dataset, split, topk, (encoder, untouched), pipeline, folder, facts)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        show(document)
        typer.echo(f"wrote {folder / 'eval.json'} and predictions.csv")
    if max_leaks is not None and document["leaks"] > max_leaks:
        note(f"gate failed: {document['leaks']} leaked queries, at most {max_leaks} allowed")
        raise typer.Exit(1)


def run(
    dataset: Dataset,
    split: str,
    topk: int,
    encoders: tuple[Encoder, Encoder | None],
    pipeline: Pipeline,
    out: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate the first encoder, and the second as the baseline where there is one; write and return eval.json."""
    from skumatch.eval.protocol import answer, closed
    from skumatch.eval.report import figures, write

    protocol = closed(dataset, split)
    encoder, untouched = encoders
    total = len(protocol.gallery) + len(protocol.queries)
    k = max(5, topk)
    with progress_bar("embedding", total) as progress:
        answers = answer(protocol, encoder, pipeline, k, progress)
    document = {**figures(protocol, answers, topk), **facts}
    if untouched is not None:
        with progress_bar("embedding (untouched)", total) as progress:
            document["baseline"] = figures(protocol, answer(protocol, untouched, pipeline, k, progress), topk)
    write(out, document, answers)
    return document


def show(document: dict[str, Any]) -> None:
    """Print the headline figures as a table, then leaks, confusions and what was left out."""
    from rich.console import Console
    from rich.table import Table

    untouched = document.get("baseline")
    table = Table("", box=None, pad_edge=False)
    for column in ("right", "95 % interval", "by views", *(["untouched", "95 % interval"] if untouched else [])):
        table.add_column(column, justify="right")
    for k, value in document["topk"].items():
        cells = [_percent(value), _interval(document["ci95"][k]), _percent(document["topk_views"][k])]
        cells += [_percent(untouched["topk"][k]), _interval(untouched["ci95"][k])] if untouched else []
        table.add_row(f"top-{k}", *cells)
    gallery = f"{document['gallery_views']:,} views of {document['skus']:,} SKUs"
    typer.echo(f"{document['queries']:,} queries against {gallery}; k counts distinct SKUs")
    Console(highlight=False).print(table)
    for line in _remarks(document):
        typer.echo(line)


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """Yield what was left out or stands in the way, and the most confused pairs."""
    if document["leaks"]:
        yield f"{document['leaks']} queries are byte for byte a gallery view: left out"
    if document["unreadable"]:
        yield f"{document['unreadable']} pictures could not be read, first: {document['unreadable_files'][0]}"
    if document["queries_without_gallery_view"]:
        yield f"{document['queries_without_gallery_view']} queries show a SKU without any gallery view"
    for pair in document["confused"][:5]:
        yield f"confused {pair['queries']} times: {pair['shown']} taken for {pair['answered']}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f}"
