"""``skumatch reviews``: what people said of crops that the service was unsure of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skumatch.cli.common import note, workspace_or_none
from skumatch.cli.serve import StateOption, settings_of, state_of

app = typer.Typer(no_args_is_help=True, help="Crops that the service keeps for review.")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be empty or absent.")],
    state: StateOption = None,
) -> None:
    """Write the crops of which people said the SKU, and corrections.csv, for `skumatch finetune --also`."""
    from skumatch.errors import ConfigError

    try:
        from skumatch.serve.review_export import MANIFEST, write_folder
        from skumatch.serve.reviews import FILE, Reviews
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", "pip install 'skumatch[serve]'") from error
    workspace = workspace_or_none()
    settings = settings_of(workspace, {})
    path = state_of(workspace, state, settings) / FILE
    if not path.is_file():
        raise ConfigError(f"{path} is not there", "give the --state of a service that keeps reviews")
    reviews = Reviews(path, settings)
    try:
        count = write_folder(reviews, out)
    finally:
        reviews.close()
    note(f"{count:,} corrections; train on them with `skumatch finetune --also {out / MANIFEST}`")
