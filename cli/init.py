"""``skumatch init``: write skumatch.toml for a folder of data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import note

if TYPE_CHECKING:
    from skumatch.workspace import ModelConfig


def init(
    data: Annotated[Path, typer.Option("--data", help="Folder or manifest with the pictures.")],
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for the workspace.")] = Path(),
    format: Annotated[str, typer.Option(help="auto, or a format of docs/data-formats.md.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Pretrained encoder: open_clip:..., timm:... or hf:...")] = None,
    weights: Annotated[Path | None, typer.Option(help="Local state dict for the encoder.")] = None,
    random_init: Annotated[bool, typer.Option("--random-init", help="Start from random values.")] = False,
    resize: Annotated[str | None, typer.Option(help="crop, squash or pad.", show_default="as published")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures.", show_default="as published")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Share kept by crop.", show_default="as published")] = None,
) -> None:
    """Look at the data and write skumatch.toml; every other command then works without arguments."""
    from skumatch.errors import ModelError
    from skumatch.readers import detect_format, open_dataset
    from skumatch.towers.build import DEFAULT_MODEL, check_name
    from skumatch.workspace import DataConfig, ModelConfig, Workspace, require_pairs

    if weights is not None and not weights.is_file():
        raise ModelError(f"weights file {weights} does not exist", "give a .safetensors or .pt file")
    dataset = open_dataset(data, format)
    require_pairs(dataset)
    name = model or DEFAULT_MODEL
    check_name(name)
    chosen = format if format != "auto" else detect_format(data)
    settings = ModelConfig(name, _relative(weights, folder) if weights else None, random_init, resize, size, crop_pct)
    workspace = Workspace(folder.absolute(), DataConfig(_relative(data, folder), chosen), settings)
    _check_preprocessing(settings)
    path = workspace.write()
    splits = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
    note(f"{len(dataset):,} pictures of {len(dataset.skus):,} SKUs ({chosen}: {splits})")
    typer.echo(f"wrote {path} - next: skumatch eval, skumatch finetune, skumatch match CROPS")


def _check_preprocessing(settings: ModelConfig) -> None:
    """Refuse resize, size and crop_pct out of range before anything is written."""
    from skumatch.spec import Preprocess
    from skumatch.towers.build import override

    any_mean = (0.5, 0.5, 0.5)
    override(Preprocess(224, any_mean, any_mean, "crop", 1.0, "bicubic"), settings)


def _relative(path: Path, folder: Path) -> str:
    """Return ``path`` relative to the workspace where it lies inside, absolute elsewhere."""
    whole, base = Path(os.path.normpath(path.absolute())), Path(os.path.normpath(folder.absolute()))
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)
