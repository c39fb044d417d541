"""The bars of fine-tuning on real photos: at home, catalogue pictures, elsewhere, SKUs never trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ablate_shop import Shop, Trained, nearest, percent

from skumatch.dataset import Row
from skumatch.encoder import open_encoder
from skumatch.finetune.recipe import load_recipe

SEEDS = (0, 1, 2)
HALVES = (0, 1, 2, 3)
HOME_RECIPES = ("default", "thorough")
Rung = Callable[[str, Callable[[], Any]], Any]


def measure(shop: Shop, rung: Rung) -> dict[str, Any]:
    """Run what is not finished yet and return every figure."""
    halves = HALVES[:1] if shop.quick else HALVES
    found: dict[str, Any] = {"halves": [rung(f"half-{seed}", lambda seed=seed: half(shop, seed)) for seed in halves]}
    if shop.quick:
        return found
    found["untouched"] = rung("untouched", lambda: untouched(shop))
    for recipe in HOME_RECIPES:
        name = f"all, {recipe}"
        found[name] = [rung(f"{name}-{seed}", lambda s=seed, r=recipe: everything(shop, s, r)) for seed in SEEDS]
    found["packaged only"] = [rung(f"packaged-{seed}", lambda seed=seed: one_side(shop, seed, True)) for seed in SEEDS]
    found["fruit only"] = [rung(f"fruit-{seed}", lambda seed=seed: one_side(shop, seed, False)) for seed in SEEDS]
    return found


def trained(shop: Shop, name: str, seed: int, rows: list[Row], recipe: str = "default") -> Trained:
    """Fine-tune with a recipe that ships."""
    short = {"epochs": 1, "min_steps": 0, "schedule": {"sizes": "64"}} if shop.quick else {}
    return shop.train(name, load_recipe(recipe, seed=seed, **short), rows)


def untouched(shop: Shop) -> dict[str, Any]:
    """The encoder as it is published, at home, on catalogue pictures and on clothes."""
    return _home(shop, None) | {"clothes": _clothes(shop, None)}


def everything(shop: Shop, seed: int, recipe: str) -> dict[str, Any]:
    """Trained on all 81 classes."""
    model = trained(shop, f"all-{recipe}-{seed}", seed, shop.rows("train") + shop.rows("val"), recipe)
    return _home(shop, model) | _facts(model)


def one_side(shop: Shop, seed: int, packaged: bool) -> dict[str, Any]:
    """Trained on the packaged classes, or on the others: each side against its own gallery, and clothes."""
    name = f"{'packaged' if packaged else 'fruit'}-{seed}"
    model = trained(shop, name, seed, shop.rows("train", packaged) + shop.rows("val", packaged))
    return _home(shop, model) | {"clothes": _clothes(shop, model)} | _facts(model)


def half(shop: Shop, seed: int) -> dict[str, Any]:
    """Trained on half of the packaged SKUs, measured on the other half against its own gallery."""
    train, test = shop.rows("train", True), shop.rows("test", True)
    skus = np.array(sorted({row.sku for row in train}))
    known = set(np.random.default_rng(seed).permutation(skus)[: len(skus) // 2].tolist())
    model = trained(shop, f"half-{seed}", seed, [r for r in train + shop.rows("val", True) if r.sku in known])
    sides = [[row for row in rows if row.sku not in known] for rows in (train, test)]
    found = {
        name: percent([nearest(*shop.sides(store, *sides))])
        for name, store in (("tuned", model.store), ("untouched", None))
    }
    return found | {"gain": found["tuned"]["top1"] - found["untouched"]["top1"]}


def _home(shop: Shop, model: Trained | None) -> dict[str, Any]:
    store = model.store if model else None
    encoder = open_encoder(store, "cpu") if store else None
    gallery, queries = shop.sides(encoder, shop.rows("train"), shop.rows("test"))
    found = {"all": percent([nearest(gallery, queries)])}
    catalogue = shop.vectors(encoder, shop.catalogue)
    for name, packaged in (("packaged", True), ("fruit", False)):
        g, q = (
            v.take(np.array([(row.value("department") == "packages") == packaged for row in v.rows]))
            for v in (gallery, queries)
        )
        found[name] = percent([nearest(g, q)])
        if packaged:
            found["catalogue"] = percent([nearest(catalogue, q)])
    return found


def _clothes(shop: Shop, model: Trained | None) -> dict[str, float]:
    store = model.store if model else None
    sides = ([row for row in shop.clothes if row.split == split] for split in ("train", "test"))
    return percent([nearest(*shop.sides(store, *sides))])


def _facts(model: Trained) -> dict[str, Any]:
    document = model.document
    return {"seconds": model.seconds, "layer": document["spec"]["layer"], "validation": document["validation"]}
