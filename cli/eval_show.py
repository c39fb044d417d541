"""What ``skumatch eval`` prints: the headline, the protocols, the open set, and what stands in the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from skumatch.words import counted

if TYPE_CHECKING:
    from rich.table import Table


def show(document: dict[str, Any]) -> None:
    """Print the figures of eval.json as tables, then leaks, confusions and what was left out."""
    from rich.console import Console

    gallery = f"{document['gallery_views']:,} views of {document['skus']:,} SKUs"
    typer.echo(f"{document['queries']:,} queries against {gallery}; k counts distinct SKUs")
    console = Console(highlight=False)
    console.print(_headline(document))
    if len(document["protocols"]) > 1:
        typer.echo("")
        console.print(_protocols(document["protocols"]))
    for line in (*_decisions(document), *_robustness(document), *_remarks(document)):
        typer.echo(line)


def _headline(document: dict[str, Any]) -> Table:
    others = {"untouched": document["baseline"]} if "baseline" in document else {}
    others |= document.get("baselines", {})
    table = _table("", "right", "95 % interval", "by views")
    for name in others:
        table.add_column(name, justify="right")
        if len(others) == 1:  # more would not fit
            table.add_column("95 % interval", justify="right")
    for k, value in document["topk"].items():
        cells = [_percent(value), _interval(document["ci95"][k]), _percent(document["topk_views"][k])]
        for other in others.values():
            cells += [_percent(other["topk"][k]), _interval(other["ci95"][k])][: 2 if len(others) == 1 else 1]
        table.add_row(f"top-{k}", *cells)
    return table


def _protocols(protocols: list[dict[str, Any]]) -> Table:
    """Return a line per protocol, 80 columns wide at most: with a baseline, mAP@R is left to the report."""
    against = any("baseline" in one for one in protocols)
    table = _table("in %", "top-1", "interval", "top-5", "untouched" if against else "mAP@R", "SKUs", "queries")
    for one in protocols:
        last = one["baseline"]["topk"]["1"] if "baseline" in one else None if against else one["map_at_r"]
        figures = [_number(one["topk"]["1"]), _interval(one["ci95"]["1"]), _number(one["topk"]["5"]), _number(last)]
        table.add_row(one["title"], *figures, f"{one['skus']:,}", f"{one['queries']:,}")
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _decisions(document: dict[str, Any]) -> Iterator[str]:
    found = document.get("open_set")
    if found:
        accuracy = found["accuracy_accepted"]
        right = "" if accuracy is None else f", {_percent(accuracy)} of these right"
        yield (
            f"open set, {found['test_skus']} unknown SKUs, mean of {found['draws']} draws: false accept rate "
            f"{_percent(found['far'])} (asked for {_percent(found['target_far'])}), {_percent(found['accepted'])} of "
            f"the known crops accepted{right}; "
            f"AUROC {found['auroc']:.3f}, OSCR {found['oscr']:.3f}, FPR at 95 % TPR {_percent(found['fpr95'])}"
        )
        if found["note"]:
            yield f"  {found['note']}"
    rule = document.get("calibration")
    if rule:
        shares = ", ".join(f"{name} {_percent(rule[name])}" for name in ("accept", "review", "unknown"))
        right = (
            "" if rule["accuracy_accepted"] is None else f"; accepted and right {_percent(rule['accuracy_accepted'])}"
        )
        yield f"decisions on known crops: {shares}{right}; calibration error {_percent(rule['ece'])}"


def _robustness(document: dict[str, Any]) -> Iterator[str]:
    found = document.get("robustness")
    if found:
        yield f"robustness, top-1 at strengths 1 to 5 (clean {_percent(found['clean']['top1'])}):"
        for kind, cells in found["kinds"].items():
            yield f"  {kind:15}" + "".join(f"{_percent(cell['top1']):>9}" for cell in cells)


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """Yield what was left out or stands in the way, and the most confused pairs."""
    if document["leaks"]:
        yield f"{document['leaks']} queries are byte for byte a gallery view: left out"
    if document["near_leaks"]:
        what = "left out" if document["dropped_leaks"] else "counted; --drop-leaks leaves them out"
        yield f"{document['near_leaks']} queries are near-copies of a gallery view: {what}; see leaks.html"
    if document["unreadable"]:
        first = document["unreadable_files"][0]
        yield f"{counted(document['unreadable'], 'picture')} could not be read, first: {first}"
    if document["queries_without_gallery_view"]:
        yield f"{document['queries_without_gallery_view']} queries show a SKU without any gallery view"
    for line in document["skipped"]:
        yield f"not measured: {line}"
    for pair in document["confused"][:5]:
        yield f"confused {pair['queries']} times: {pair['shown']} taken for {pair['answered']}"


def show_comparison(found: dict[str, Any], as_json: bool) -> None:
    """Print the verdict of comparing two models."""
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(f"A {found['a']}: top-1 {_percent(found['top1_a'])}")
    typer.echo(f"B {found['b']}: top-1 {_percent(found['top1_b'])}")
    low, high = (100 * end for end in found["ci95"])
    typer.echo(
        f"{found['verdict']}: B - A is {100 * found['difference']:+.1f} points (95 % interval over SKUs {low:+.1f} to "
        f"{high:+.1f}); {found['gained']} queries gained, {found['lost']} lost, McNemar p = {found['p']:.2g}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f}"
