"""The leak guard on real photos: 200 planted near-duplicates among 2,000 queries against 2,000 Grocery Store photos.

Gallery and queries are drawn from all splits at once, so that shots of one shelf stand on both sides: the hard case for
false alarms. ``measure`` is called by ``evaluation.py``; on its own the script prints its figures.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, arguments
from PIL import Image as PILImage

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.eval.leaks import Leak, find_leaks
from skumatch.eval.leaks_page import write_leaks_page
from skumatch.eval.views import embed_rows
from skumatch.images import DEFAULT_MAX_PIXELS, read_image
from skumatch.readers_lists import read_grocery
from skumatch.towers.build import ModelSource

MODEL = "timm:mobilenetv2_100"
KINDS = ("re-encoded", "resized", "cropped", "brightened")
EACH = 50
PHOTOS = 2000
CUT = 0.05


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    page = options.work / "leaks.html" if options.work else None
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
    found = measure(options.data / "grocery-store", options.weights, 0, options.quick, page)
    result.figures = found
    for name, value in found.items():
        print(f"{name:32} {value}")
    result.bar("planted near-duplicates found, %", 100 * found["found"], 95, "least")
    result.bar("other queries reported, %", 100 * found["false"], 1, "most")
    result.write(options.json)


def measure(photos: Path, weights: Path, seed: int, quick: bool, page: Path | None = None) -> dict[str, Any]:
    """Return the share of planted near-duplicates found and of other queries reported, both 0..1, and details.

    A planted one is found when the very photo that it was made of is named. Each other report is listed;
    ``false_but_identical`` of them are the same picture pixel by pixel (a mean difference of at most 2 of 255).
    """
    each = EACH // 10 if quick else EACH
    count = PHOTOS // 10 if quick else PHOTOS
    rng = np.random.default_rng(seed)
    rows = read_grocery(photos)
    drawn = [rows[int(place)] for place in rng.permutation(len(rows))]
    gallery = drawn[:count]
    others = drawn[count : 2 * count - len(KINDS) * each]
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(gallery[: len(KINDS) * each], Path(folder), rng)
        started = time.perf_counter()
        pipeline = Pipeline(batch=32)
        encoder = open_encoder(ModelSource(MODEL, weights), "cpu")
        sides = [embed_rows(side, encoder, pipeline)[0] for side in (gallery, [*others, *(row for row, _ in planted)])]
        embedded = time.perf_counter()
        leaks = find_leaks(sides[0], sides[1], 0, DEFAULT_MAX_PIXELS)
        ended = time.perf_counter()
        if page is not None:
            write_leaks_page(page, leaks, {"data": "Grocery Store", "planted": f"{len(planted):,}"})
    return figures(leaks, planted, len(others)) | {
        "gallery": len(gallery),
        "queries": len(others) + len(planted),
        "seconds_embedding": embedded - started,
        "seconds_leaks": ended - embedded,
    }


def plant(rows: list[Row], folder: Path, rng: np.random.Generator) -> list[tuple[Row, Path]]:
    """Write one near-duplicate per row, the kinds in turn; return their rows and what they were made of."""
    made = []
    for number, row in enumerate(rows):
        kind = KINDS[number % len(KINDS)]
        picture = PILImage.fromarray(read_image(row.path))
        quality = 95
        width, height = picture.size
        if kind == "re-encoded":
            quality = int(rng.integers(40, 71))
        elif kind == "resized":
            scale = rng.uniform(0.5, 0.8)
            picture = picture.resize((round(width * scale), round(height * scale)), PILImage.Resampling.BICUBIC)
        elif kind == "cropped":  # 5 % of the side off every side: 81 % of the picture is left
            picture = picture.crop(
                (round(CUT * width), round(CUT * height), round((1 - CUT) * width), round((1 - CUT) * height))
            )
        else:
            factor = rng.uniform(0.7, 1.3)
            picture = PILImage.fromarray((np.asarray(picture) * factor).clip(0, 255).astype(np.uint8))
        path = folder / f"{kind}-copy{chr(97 + number % 26)}.{number}.jpg"
        picture.save(path, quality=quality)
        made.append((replace(row, path=path), row.path))
    return made


def figures(leaks: list[Leak], planted: list[tuple[Row, Path]], others: int) -> dict[str, Any]:
    """Return shares and the list of false reports."""
    source = {row.path: path for row, path in planted}
    right = [leak for leak in leaks if source.get(leak.query.path) == leak.view.path]
    by_kind = Counter(leak.query.path.name.partition("-copy")[0] for leak in right)
    false = [leak for leak in leaks if leak.query.path not in source]
    return {
        "found": len(right) / len(planted),
        "false": len(false) / others,
        "found_by_kind": {kind: by_kind[kind] * len(KINDS) / len(planted) for kind in KINDS},
        "lowest_scores": sorted(round(leak.score, 3) for leak in right)[:5],
        "missed": sorted(path.name for path in set(source) - {leak.query.path for leak in right}),
        "false_but_identical": sum(identical_pixels(leak) for leak in false),
        "false_reports": [[leak.kind, leak.query.path.name, leak.view.path.name, leak.evidence] for leak in false],
    }


def identical_pixels(leak: Leak) -> bool:
    """Return whether both pictures have one size and differ by at most 2 of 255 on average."""
    query, view = (read_image(row.path).astype(np.float32) for row in (leak.query, leak.view))
    return query.shape == view.shape and float(np.abs(query - view).mean()) <= 2


if __name__ == "__main__":
    main()
