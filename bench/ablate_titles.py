"""Titles as teachers: an open_clip model with a text tower on the synthetic store, two crops of each SKU."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate_shop import nearest, percent

from skumatch.dataset import Dataset, Row
from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.eval.views import embed_rows
from skumatch.finetune.recipe import Recipe, load_recipe
from skumatch.finetune.run import Job, finetune
from skumatch.readers import open_dataset
from skumatch.synth import write_store
from skumatch.towers.build import ModelSource

MODEL = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
SKUS, VIEWS, TEST_VIEWS = 120, 2, 4
SEEDS = (0, 1, 2)
EPOCHS = 60
TEXT = {"lr_text": 1e-3, "templates": ["{}"]}
OBJECTIVES = {"arcface": {"arcface": 1.0}, "arcface + clip": {"arcface": 1.0, "clip": 1.0}}


def measure(work: Path, quick: bool) -> dict[str, Any]:
    """Train with and without titles from the same random start and return top-1 on fresh crops, per seed."""
    skus, epochs, seeds = (12, 1, SEEDS[:1]) if quick else (SKUS, EPOCHS, SEEDS)
    found: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    for seed in seeds:
        data = _titled(write_store(work / f"store-{seed}", skus, VIEWS, TEST_VIEWS, seed, 96))
        for name, weights in OBJECTIVES.items():
            recipe = load_recipe("scratch", epochs=epochs, seed=seed, objectives=weights, clip=TEXT)
            found[name].append(_top1(data, recipe, work / f"{name.replace(' ', '')}-{seed}"))
    return {"top1": found, "mean": {name: sum(values) / len(values) for name, values in found.items()}}


def _titled(store: Path) -> Dataset:
    with (store / "products.csv").open(newline="", encoding="utf-8") as file:
        titles = {line["sku"]: line["title"] for line in csv.DictReader(file)}
    data = open_dataset(store)
    return data.with_rows([replace(row, title=titles[row.sku]) for row in data])


def _top1(data: Dataset, recipe: Recipe, out: Path) -> float:
    rows = [row for row in data if row.split == "train"]
    store = finetune(Job(data.with_rows(rows), MODEL, recipe, out, "cpu")).folder
    encoder = open_encoder(store, "cpu")
    gallery, queries = (_embedded(encoder, data, split) for split in ("train", "test"))
    return percent([nearest(gallery, queries)])["top1"]


def _embedded(encoder: Any, data: Dataset, split: str) -> Any:
    rows: list[Row] = [row for row in data if row.split == split]
    return embed_rows(rows, encoder, Pipeline())[0]
