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
import torch
from ablate_shop import Hits, Shop, nearest, percent

from skumatch.dataset import Row
from skumatch.finetune.after import mix
from skumatch.finetune.norms import reestimate
from skumatch.finetune.recipe import Recipe, load_recipe
from skumatch.images import load_pixels
from skumatch.model import open_bundle
from skumatch.runtime.torch import Network, TorchEncoder
from skumatch.towers.build import build

FOLDS = (1, 2)  # two of the four; the seed is the fold's number
BASE: dict[str, Any] = {
    "epochs": 4,
    "schedule": {"sizes": "0.57"},
    "serve": {"layer": "features", "guard": False},
    "after": {"wise_ft": [], "soup": 0},
    "val_views": 2,
    "min_steps": 0,
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
    "arcface, adaptive margin": {"objectives": PLAIN, "arcface": {"margin": "adaptive", "margin_to": 0.5}},
    "supcon, 8 x 4": {"objectives": {"arcface": 0.0, "supcon": 1.0, "retain": 0.0}, "sampler": {"draw": "pk"}},
    "arcface + look-alike batches": {"objectives": PLAIN, "sampler": {"refresh": True}},
    "default": {},
    "retain 3": {"objectives": {"retain": 3.0}},
    "retain 10": {"objectives": {"retain": 10.0}},
    "retain 40": {"objectives": {"retain": 40.0}},
    "default, mode head": {"mode": "head", "serve": {"layer": "head"}},
    "default, mode projection": {"mode": "projection"},
    "default, mode lora": {"mode": "lora"},
    "default, nothing frozen": {"freeze": 0.0},
    "default, mirror": {"augment": {"mirror": 0.5}},
    "default, more shelf noise": {"augment": NOISE},
    "default, no cut-outs": {"augment": {"cut_out": 0.0}},
    "default, squash": {"resize": "squash"},
    "default, pad": {"resize": "pad"},
}
FEW = 4  # pictures per SKU
SHOWN = {"min_steps": load_recipe("default").min_steps}  # the others here are shorter than the default recipe
SCARCE: dict[str, dict[str, Any]] = {
    "4 pictures per SKU, 4 epochs": {"on": "few"},
    "4 pictures per SKU, 240 steps": {"on": "few"} | SHOWN,
    "4 pictures per SKU, 240 steps, softmax": {"on": "few", "objectives": SOFTMAX} | SHOWN,
    "catalogue pictures only": {"on": "catalogue"} | SHOWN,
    "catalogue pictures only, other backgrounds": {"on": "catalogue", "augment": {"background": 0.5}} | SHOWN,
}
ALPHAS = (0.25, 0.5, 0.75)
REESTIMATE = 512  # pictures that batch statistics are estimated on
MIXED = "default"  # the variant whose weights are mixed with the untouched ones


def measure(shop: Shop, rung: Callable[[str, Callable[[], Any]], Any]) -> dict[str, Any]:
    """Run every variant that is not finished and return top-1 with intervals, pooled over the folds."""
    every = VARIANTS | SCARCE
    names = list(every)[:1] if shop.quick else list(every)
    runs: dict[str, Any] = {}
    for name in () if shop.quick else ("untouched", "4 pictures per SKU, untouched"):
        few = name != "untouched"
        runs[name] = _folds(shop, rung, name, lambda fold, few=few: tested(shop, None, fold, few))
    for name in names:
        few = every[name].get("on") == "few"
        runs[name] = _folds(
            shop, rung, name, lambda fold, name=name, few=few: tested(shop, trained(shop, name, fold), fold, few)
        )
    for alpha in () if shop.quick else ALPHAS:
        name = f"{MIXED}, WiSE-FT {alpha}"
        runs[name] = _folds(shop, rung, name, lambda fold, alpha=alpha: tested(shop, mixed(shop, fold, alpha), fold))
    return {
        name: {place: percent([_hits(run[place]) for run in found]) for place in found[0]}
        for name, found in runs.items()
    }


def _folds(shop: Shop, rung: Any, name: str, run: Callable[[int], Any]) -> list[Any]:
    folds = FOLDS[:1] if shop.quick else FOLDS
    return [rung(f"grid-{name}-{fold}", lambda fold=fold: run(fold)) for fold in folds]


def _hits(run: dict[str, list[float]]) -> Hits:
    return np.array(run["right"]), np.array(run["skus"], np.int64)


def trained(shop: Shop, name: str, fold: int) -> Path:
    """Fine-tune one variant without one fold."""
    changes = dict((VARIANTS | SCARCE)[name])
    source, on = replace(shop.source, resize=changes.pop("resize", None)), changes.pop("on", None)
    rows = _rows(shop, fold, on == "few")[0]
    if on == "catalogue":
        rows = [replace(row, split="train") for row in shop.catalogue]
    return shop.train(f"grid/{name}-{fold}", recipe_of(changes, fold, shop.quick), rows, source).store


def mixed(shop: Shop, fold: int, alpha: float) -> TorchEncoder:
    """Return the encoder ``alpha`` of the way from the untouched to the trained weights, batch statistics anew."""
    tower, _, _ = open_bundle(trained(shop, MIXED, fold)).load()
    before = build(shop.source)
    tower.image.load_state_dict(mix(before.image.state_dict(), tower.image.state_dict(), alpha))
    network, rows = Network(tower.image, tower.preprocess), _rows(shop, fold)[0]
    pixels = [load_pixels(row.path, tower.preprocess) for row in rows[:: max(1, len(rows) // REESTIMATE)]]
    batches = [np.stack(pixels[start : start + 32]) for start in range(0, len(pixels) - 1, 32)]
    reestimate(tower.image, (network.scaled(torch.from_numpy(batch)) for batch in batches))
    return TorchEncoder(tower, None, "cpu")


def recipe_of(changes: dict[str, Any], seed: int, quick: bool) -> Recipe:
    """Return the default recipe, made short, with ``changes``."""
    merged = dict(BASE) | {"seed": seed} | ({"epochs": 1, "schedule": {"sizes": "64"}} if quick else {})
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return load_recipe("default", **merged)


def _rows(shop: Shop, fold: int, few: bool = False) -> tuple[list[Row], list[Row]]:
    """Return what is trained on and the photos of the fold: with the split val, or ``FEW`` photos of each SKU."""
    rows = shop.rows("train", True)
    folds = shop.folds(rows)
    seen = [row for row, number in zip(rows, folds, strict=True) if number != fold]
    if few:
        mixed_up = [seen[int(place)] for place in np.random.default_rng(fold).permutation(len(seen))]
        seen = [row for sku in sorted({r.sku for r in seen}) for row in [r for r in mixed_up if r.sku == sku][:FEW]]
    return seen + ([] if few else shop.rows("val", True)), [
        row for row, number in zip(rows, folds, strict=True) if number == fold
    ]


def tested(shop: Shop, model: Path | TorchEncoder | None, fold: int, few: bool = False) -> dict[str, Any]:
    """Return right or wrong per query: packages (the fold left out), also by catalogue pictures, fruit and clothes."""
    seen, queries = _rows(shop, fold, few)
    fruit = shop.rows("train", False)[:: 9 if shop.quick else 3]
    own = shop.folds(fruit) == fold
    sides = {
        "packaged": ([row for row in seen if row.split == "train"], queries),
        "catalogue": (shop.catalogue, queries),
        "fruit": (
            [r for r, out in zip(fruit, own, strict=True) if not out],
            [r for r, out in zip(fruit, own, strict=True) if out],
        ),
        "clothes": tuple([row for row in shop.chosen_clothes if row.split == side] for side in ("train", "test")),
    }
    found = {}
    for name, (gallery, asked) in sides.items():
        known = {row.sku for row in gallery}
        right, skus = nearest(*shop.sides(model, gallery, [row for row in asked if row.sku in known]))
        found[name] = {"right": right.tolist(), "skus": skus.tolist()}
    return found
