"""``skumatch match``: which SKU does each crop show."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import (
    Device,
    GalleryOption,
    ModelOption,
    PrecisionOption,
    RuntimeOption,
    engine_of,
    gallery_home,
    model_of,
    note,
    pipeline_of,
    progress_bar,
    report_enrolled,
    workspace_or_none,
)

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.calibration import Calibration
    from skumatch.encoder import Encoder
    from skumatch.gallery_seam import AnyGallery
    from skumatch.match import CropMatches, Matcher
    from skumatch.page import PageRow
    from skumatch.resumable import ResumableFile
    from skumatch.workspace import Workspace


def match(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs; - reads a list.")],
    topk: Annotated[int, typer.Option(min=1, help="SKUs per crop.")] = 5,
    model: ModelOption = None,
    gallery: GalleryOption = None,
    out: Annotated[
        Path | None, typer.Option(help="FILE.csv, .jsonl or .parquet.", show_default="CSV on stdout")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page with each crop beside its best views.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted --out FILE.csv or .jsonl.")
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=TEXT", help="Only SKUs like this, by the gallery's facts; repeatable."),
    ] = None,
    device: Device = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Match crops to the SKUs of the gallery; builds it from the workspace's data if there is none yet."""
    from skumatch.dataset import parse_filters
    from skumatch.errors import ConfigError, SkumatchError
    from skumatch.match import Matcher
    from skumatch.resumable import ResumableFile
    from skumatch.search import search_of

    workspace = workspace_or_none()
    if resume and (out is None or html is not None or out.suffix == ".parquet"):
        raise ConfigError("--resume goes with --out FILE.csv or .jsonl alone", "leave out --html, or start anew")
    if out is not None:
        ResumableFile(out, {})  # refuse a wrong suffix before any work
    total = None if "-" in paths else _count(paths)
    encoder = engine_of(workspace, model, device, (runtime, precision))
    folder = model_of(workspace, model)
    opened = _gallery(workspace, gallery, encoder, model, device)
    filters = parse_filters(where or [])
    matcher = Matcher(encoder, opened, pipeline_of(workspace), _calibration(folder), search_of(folder), filters)
    result = ResumableFile(out, _identity(matcher, paths, topk), resume) if out is not None else None
    try:
        decisions = run(matcher, _crops(paths), total, topk, result, html, as_json)
    except (KeyboardInterrupt, SkumatchError):
        if result is not None and result.done and result.path.suffix != ".parquet":
            note(f"kept the answers for {result.done:,} crops: the same command with --resume goes on")
        raise
    said = ", ".join(f"{count:,} {decision}" for decision, count in sorted(decisions.items()))
    note(f"matched {sum(decisions.values()):,} crops: {said}")
    for path in (out, html):
        if path is not None:
            note(f"wrote {path}")


def _calibration(model: Path | None) -> Calibration | None:
    from skumatch.match import calibration_of

    rule = calibration_of(model) if model is not None else None
    if rule is None:
        note("this model is not calibrated, so every answer is for review: run `skumatch calibrate`")
    return rule


def _identity(matcher: Matcher, paths: list[str], topk: int) -> dict[str, str]:
    """Return what must be the same when an interrupted match goes on."""
    gallery = matcher.gallery
    rule = matcher.calibration.to_bytes().decode() if matcher.calibration else ""
    return {
        "model": matcher.encoder.spec.digest,
        "calibration": rule,
        "search": matcher.search.to_bytes().decode(),
        "gallery": gallery.identity,
        "where": repr(sorted(matcher.where.items())),
        "topk": str(topk),
        "crops": repr(paths),
    }


def run(
    matcher: Matcher,
    crops: Iterator[Path],
    total: int | None,
    topk: int,
    out: ResumableFile | None,
    html: Path | None,
    as_json: bool = False,
) -> Counter[str]:
    """Stream crops through ``matcher`` into the results and the page; return the number of crops per decision."""
    from skumatch.page import PageWriter
    from skumatch.results import CsvWriter, JsonWriter, Writer, records

    decisions: Counter[str] = Counter()
    facts = {
        "model": matcher.encoder.spec.name,
        "gallery": f"{len(matcher.gallery):,} views, {matcher.gallery.version}",
    }
    with ExitStack() as stack:
        skipped = out.done if out is not None else 0
        progress = stack.enter_context(progress_bar("matching", None if total is None else total - skipped))
        page = stack.enter_context(PageWriter(html, "Matched crops", facts)) if html else None
        writers: list[Writer | ResumableFile] = [stack.enter_context(out)] if out is not None else []
        if as_json or out is None:
            writers.append((JsonWriter if as_json else CsvWriter)(sys.stdout))
        rest = out.rest(crops) if out is not None else crops
        for found in matcher.stream(rest, topk, progress):
            decisions[found.decision] += 1
            for writer in writers:
                writer.write(records(found))
            if page is not None:
                page.add(_page_row(found, matcher, shown=sum(decisions.values()) <= page.limit))
    return decisions


def _count(paths: list[str]) -> int:
    from skumatch.crops import count

    return count(paths)


def _crops(paths: list[str]) -> Iterator[Path]:
    from skumatch.crops import expand

    for path in paths:
        if path == "-":
            yield from expand(line for line in (raw.rstrip("\r\n") for raw in sys.stdin) if line)
        else:
            yield from expand([path])


def _page_row(found: CropMatches, matcher: Matcher, shown: bool) -> PageRow:
    """Return the page's row; pictures only where the page will show them."""
    from skumatch.images import thumbnail
    from skumatch.page import PageRow, PageView

    readable = shown and found.error is None and isinstance(found.crop, Path)
    picture = thumbnail(found.crop, max_pixels=matcher.pipeline.max_pixels) if readable else None  # type: ignore[arg-type]
    views = [
        PageView(m.sku, m.score, matcher.gallery.thumb(m.view) if shown else None, m.source) for m in found.matches
    ]
    return PageRow(str(found.crop), picture, found.decision, views, found.error.what if found.error else "")


def _gallery(
    workspace: Workspace | None, asked: str | None, encoder: Encoder, model: str | None, device: str | None
) -> AnyGallery:
    """Open the gallery, for search where the encoder is; build it, in float32, from the workspace's data where the
    workspace has none yet."""
    from skumatch.encoder import pixels_on

    home = gallery_home(workspace, asked, pixels_on(encoder) or "cpu")
    if asked is not None or workspace is None or home.exists():
        return home.gallery()
    if encoder.spec.precision != "fp32":
        encoder = engine_of(workspace, model, device, ("auto", "fp32"))
    return build_from(workspace, encoder, home, {})


def build_from(workspace: Workspace, encoder: Encoder, home: Backend, filters: dict[str, str]) -> AnyGallery:
    """Build a gallery from the workspace's gallery split and say so."""
    from skumatch.enrol import Supply

    dataset = workspace.open_dataset(filters)
    rows = dataset.split(dataset.gallery_split).rows
    note(f"building the gallery {home} from split {dataset.gallery_split}: {len(rows):,} views")
    with progress_bar("gallery", len(rows)) as progress:
        enrolled = home.build(Supply.of(rows), encoder, pipeline_of(workspace), progress)
    report_enrolled(enrolled, "view")
    return home.gallery()
