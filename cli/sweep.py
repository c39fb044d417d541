"""``skumatch sweep``: better answers at no training cost, switched on only where validation shows a gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.calibrate import publish_untouched, roles_of
from skumatch.cli.common import Device, ModelOption, Where, encoder_of, here, model_of, note, pipeline_of, progress_bar

if TYPE_CHECKING:
    from skumatch.dataset import Dataset
    from skumatch.eval.sweep import Sweep
    from skumatch.model import Bundle
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.search import Search
    from skumatch.workspace import Workspace


def sweep(
    model: ModelOption = None,
    where: Where = None,
    seed: Annotated[int, typer.Option(help="Of folds and tests.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sweep on stdout.")] = False,
    device: Device = None,
) -> None:
    """Try view voting, prototypes, query expansion, augmentation, re-ranking and test-time views on validation crops.

    One is kept in a new version of the model if it answers more crops rightly beyond chance; otherwise the plain search
    stays. Never looks at the split test.
    """
    from skumatch.dataset import parse_filters
    from skumatch.model import open_bundle
    from skumatch.search import Search, search_of

    workspace = here()
    dataset = workspace.open_dataset(parse_filters(where or []))
    encoder = encoder_of(workspace, model, device)
    folder = model_of(workspace, model)
    bundle = open_bundle(folder) if folder is not None else None
    found = tried(workspace, dataset, encoder, bundle, seed)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)
    before = search_of(folder)
    chosen = Search(found.chosen.technique, found.chosen.views, found.to_json())
    if (chosen.technique, chosen.views) == (before.technique, before.views):
        note(f"nothing changed: {_words(chosen)} stays")
        return
    if bundle is None:
        bundle = open_bundle(publish_untouched(workspace, encoder))
    note(f"switched to {_words(chosen)}: wrote {_keep(bundle, chosen)}")


def _keep(bundle: Bundle, chosen: Search) -> Path:
    """Publish the bundle with ``chosen``; a calibration of the former search no longer holds and is left out."""
    from skumatch import calibration, search
    from skumatch.model import with_files

    files: dict[str, bytes | None] = {search.FILE: chosen.to_bytes()}
    if bundle.file(calibration.FILE) is not None:
        files[calibration.FILE] = None
        note("the calibration was fitted to the former search and is dropped: run `skumatch calibrate` again")
    return with_files(bundle, files)


def tried(workspace: Workspace, dataset: Dataset, encoder: TorchEncoder, bundle: Bundle | None, seed: int) -> Sweep:
    """Return the sweep over validation crops against the gallery split. Raises DataError without validation crops."""
    from skumatch.errors import DataError
    from skumatch.eval.options import embed_settings
    from skumatch.eval.pool import embed_pool
    from skumatch.eval.sweep import sweep as run

    trained, held = bundle.skus() if bundle is not None else (frozenset(), frozenset())
    roles = roles_of(dataset, bundle, trained, held)
    if {row.path for row in roles.gallery} & {row.path for row in roles.queries}:
        raise DataError("there are no validation crops", "add a split val, or sweep a model that was fine-tuned here")
    pipeline = pipeline_of(workspace)
    with progress_bar("embedding", len(roles.gallery) + 3 * len(roles.queries)) as progress:
        pool = embed_pool(roles.gallery, encoder, pipeline, None, progress)
        queries, settings, _ = embed_settings(roles.queries, encoder, pipeline, progress)
    return run(pool.views(roles.gallery), queries, settings, seed=seed)


def _show(found: Sweep) -> None:
    from rich.console import Console
    from rich.table import Table

    head, rows = found.table()
    table = Table(head[0], box=None, pad_edge=False)
    for column in head[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    typer.echo(f"{found.queries:,} validation crops; settings chosen on some SKUs, judged on others")
    Console(highlight=False, width=max(160, Console().width)).print(table)


def _words(search: Search) -> str:
    return f"{search.technique}, views {search.views}"
