"""What training pictures look like: originals beside the variants that the trainer would make of them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from skumatch import images
from skumatch.artefact import write_file
from skumatch.dataset import Row
from skumatch.errors import DataError, ImageError
from skumatch.finetune.augment import augment
from skumatch.finetune.data import Canvases
from skumatch.finetune.recipe import Recipe
from skumatch.spec import Image, Preprocess

TILE, GAP, CAPTION = 160, 6, 18


def preview(rows: Sequence[Row], recipe: Recipe, path: Path, variants: int = 8, pictures: int = 6) -> None:
    """Write a PNG to ``path``: up to ``pictures`` originals, spread over ``rows``, each beside ``variants`` variants.

    Variant e is what epoch e shows of that picture. Raises DataError when none of the pictures can be read.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(pictures, len(rows))).round().astype(np.int64))
    lines = [(rows[int(place)], _line(rows, int(place), recipe, variants)) for place in places]
    readable = [(row, line) for row, line in lines if line]
    if not readable:
        raise DataError("none of the pictures to preview can be read", "see `skumatch data check`")
    width = (variants + 1) * (TILE + GAP) + GAP
    sheet = PILImage.new("RGB", (width, len(readable) * (TILE + GAP + CAPTION) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, line) in enumerate(readable):
        top = GAP + number * (TILE + GAP + CAPTION)
        draw.text((GAP, top), f"{row.sku[:60]}: the original, then {variants} variants", fill="black")
        for place, tile in enumerate(line):
            sheet.paste(PILImage.fromarray(tile), (GAP + place * (TILE + GAP), top + CAPTION))
    stream = BytesIO()
    sheet.save(stream, "PNG")
    write_file(path, stream.getvalue())


def _line(rows: Sequence[Row], place: int, recipe: Recipe, variants: int) -> list[Image]:
    """Return the original and its variants as tiles; empty where the picture cannot be read."""
    try:
        original = images.read_image(rows[place].path)
    except ImageError:
        return []
    how = Preprocess(TILE, (0.5,) * 3, (0.5,) * 3, "pad", 1.0, "bicubic")
    tiles: list[Image] = [images.to_pixels(original, how).transpose(1, 2, 0)]
    source = Canvases(tuple(rows), np.arange(len(rows), dtype=np.int64), recipe, 1)
    for epoch in range(variants):
        batch = source.one(place, epoch, TILE)
        if batch is None:
            return []
        seen = augment(batch.canvases, batch.aspects, batch.draws, TILE, recipe.augment)
        tiles.append(seen[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    return tiles
