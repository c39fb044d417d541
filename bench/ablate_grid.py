"""What each part of a fine-tune is worth: one change at a time, on folds of the packaged classes' training photos.

The photos of fruit and clothes, which are never trained on here, show what a change costs elsewhere. Without the guard,
which would hide it. The split test is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ablate_shop import Hits, Shop, nearest, percent

from skumatch.dataset import Row
from skumatch.finetune.recipe import Recipe, load_recipe

FOLDS = (1, 2)  # two of the four; the seed is the fold's number
BASE: dict[str, Any] = {
    "epochs": 4,
    "schedule": {"sizes": "0.57"},
    "serve": {"layer": "features", "guard": False},
    "after": {"wise_ft": [], "soup": 0},
    "val_views": 2,
}
SOFTMAX = {"arcface": 0.0, "softmax": 1.0, "retain": 0.0}
PLAIN = {"retain": 0.0}
EVEN, AS_IT_IS = {"alpha": 0.5}, {"alpha": 1.0}
NOISE = {"motion": 0.2, "low_res": 0.2, "glare": 0.2, "shadow": 0.2, "bleed": 0.2}
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"objectives": SOFTMAX, "sampler": AS_IT_IS},
    "softmax + weighted sampler": {"objectives": SOFTMAX, "sampler": EVEN},
    "arcface": {"objectives": PLAIN, "sampler": AS_IT_IS},
    "arcface + weighted sampler": {"objectives": PLAIN, "sampler": EVEN},
    "arcface, one centre": {"objectives": PLAIN, "arcface": {"sub_centres": 1}},
    "arcface, adaptive margin": {"objectives": PLAIN, "arcface": {"margin": "adaptive", "margin_to": 0.5}},
    "supcon, 8 x 4": {"objectives": {"arcface": 0.0, "supcon": 1.0, "retain": 0.0}, "sampler": {"draw": "pk"}},
    "arcface + look-alike batches": {"objectives": PLAIN, "sampler": {"refresh": True}},
    "retain 3": {"objectives": {"retain": 3.0}},
    "retain 10": {"objectives": {"retain": 10.0}},
    "retain 40": {"objectives": {"retain": 40.0}},
    "retain 10, mode head": {"objectives": {"retain": 10.0}, "mode": "head", "serve": {"layer": "head"}},
    "retain 10, mode projection": {"objectives": {"retain": 10.0}, "mode": "projection"},
    "retain 10, mode lora": {"objectives": {"retain": 10.0}, "mode": "lora"},
    "retain 10, nothing frozen": {"objectives": {"retain": 10.0}, "freeze": 0.0},
    "retain 10, mirror": {"objectives": {"retain": 10.0}, "augment": {"mirror": 0.5}},
    "retain 10, more shelf noise": {"objectives": {"retain": 10.0}, "augment": NOISE},
    "retain 10, squash": {"objectives": {"retain": 10.0}, "resize": "squash"},
    "retain 10, pad": {"objectives": {"retain": 10.0}, "resize": "pad"},
}
ALPHAS = (0.25, 0.5, 0.75)
MIXED = "retain 10"  # the variant whose weights are mixed with the untouched ones


def measure(shop: Shop, rung: Callable[[str, Callable[[], Any]], Any]) -> dict[str, Any]:
    """Run every variant that is not finished and return top-1 with intervals, pooled over the folds."""
    names = list(VARIANTS)[:1] if shop.quick else list(VARIANTS)
    folds = FOLDS[:1] if shop.quick else FOLDS
    found = {
        "untouched": [rung(f"grid-untouched-{fold}", lambda fold=fold: tested(shop, None, fold)) for fold in folds]
    }
    for name in names:
        found[name] = [
            rung(f"grid-{name}-{fold}", lambda fold=fold, name=name: one(shop, name, fold)) for fold in folds
        ]
        if name == MIXED:
            for alpha in ALPHAS:
                runs = [rung(f"grid-mix-{alpha}-{fold}", lambda f=fold, a=alpha: mixed(shop, f, a)) for fold in folds]
                found[f"{name}, WiSE-FT {alpha}"] = runs
    return {
        name: {place: percent([_hits(run[place]) for run in runs]) for place in runs[0]} for name, runs in found.items()
    }


def _hits(run: dict[str, list[float]]) -> Hits:
    return np.array(run["right"]), np.array(run["skus"], np.int64)


def one(shop: Shop, name: str, fold: int) -> dict[str, Any]:
    """Fine-tune one variant without one fold and measure it there."""
    changes = dict(VARIANTS[name])
    resize = changes.pop("resize", None)
    source = replace(shop.source, resize=resize)
    return tested(
        shop,
        shop.train(f"grid/{name}-{fold}", recipe_of(changes, fold, shop.quick), _rows(shop, fold)[0], source).store,
        fold,
    )


def recipe_of(changes: dict[str, Any], seed: int, quick: bool) -> Recipe:
    """Return the default recipe, made short, with ``changes``."""
    merged = dict(BASE) | {"seed": seed} | ({"epochs": 1, "schedule": {"sizes": "64"}} if quick else {})
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return load_recipe("default", **merged)


def _rows(shop: Shop, fold: int) -> tuple[list[Row], list[Row]]:
    rows = shop.rows("train", True)
    folds = shop.folds(rows)
    seen = [row for row, number in zip(rows, folds, strict=True) if number != fold]
    return seen + shop.rows("val", True), [row for row, number in zip(rows, folds, strict=True) if number == fold]


def tested(shop: Shop, model: Path | None, fold: int) -> dict[str, Any]:
    """Return right or wrong per query for packages (the fold left out), fruit and clothes."""
    seen, queries = _rows(shop, fold)
    sides = {"packaged": ([row for row in seen if row.split == "train"], queries)}
    fruit = shop.rows("train", False)[::3]
    number = shop.folds(fruit)
    sides["fruit"] = tuple(
        [r for r, n in zip(fruit, number, strict=True) if (n == fold) == own] for own in (False, True)
    )
    sides["clothes"] = tuple([row for row in shop.chosen_clothes if row.split == side] for side in ("train", "test"))
    found = {}
    for name, (gallery, asked) in sides.items():
        known = {row.sku for row in gallery}
        right, skus = nearest(shop.vectors(model, gallery), shop.vectors(model, [r for r in asked if r.sku in known]))
        found[name] = {"right": right.tolist(), "skus": skus.tolist()}
    return found


def mixed(shop: Shop, fold: int, alpha: float) -> dict[str, Any]:
    """Measure the way from the untouched to the trained weights, with batch statistics estimated anew."""
    changes = {**VARIANTS[MIXED], "after": {"wise_ft": [alpha], "forced": True}}
    raise NotImplementedError
