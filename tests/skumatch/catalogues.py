"""A made-up catalogue: postings with drawn pictures and titles, some of them of the same product."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.conftest import draw

WORDS = ("milk", "juice", "bread", "cheese", "tea", "coffee", "rice", "honey", "pasta", "oil", "salt", "beans")
BRANDS = ("alba", "corso", "dana", "elm", "fjord", "gusto")


def title(product: int, rng: np.random.Generator) -> str:
    """Return what a seller writes about a product: brand, word, size, some of it missing, and noise."""
    size = ("250 g", "500 g", "1 l", "330 ml")[product % 4]
    words = [BRANDS[product % 6], WORDS[product % 12], f"no{product}", size]
    kept = [word for word in words if rng.random() > 0.15] or words[:1]
    noise = ["NEW!!", "sale", "original", ""][int(rng.integers(4))]
    return " ".join([*rng.permutation(kept).tolist(), noise]).strip()


def write_catalogue(folder: Path, sizes: Sequence[int], seed: int = 0, labels: bool = True) -> Path:
    """Write catalogue.csv and pictures for products with ``sizes`` postings each, in random order; return the table."""
    rng = np.random.default_rng(seed)
    postings = [(product, view) for product, size in enumerate(sizes) for view in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    header = ["posting_id", "image", "title", *(["label_group"] if labels else [])]
    with (folder / "catalogue.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        for product, view in rng.permutation(np.array(postings)).tolist():
            name = f"{product}-{view}.png"
            draw(product, view).save(folder / name)
            row = [f"p{product:03d}x{view}", name, title(product, rng), *([f"g{product}"] if labels else [])]
            table.writerow(row)
    return folder / "catalogue.csv"
