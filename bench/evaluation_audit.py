"""The label audit on real photos: labels of the train split flipped at random, and where they stand in its ranking.

Part of ``evaluation.py``: ``measure`` returns figures and claims no bars itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from skumatch.eval.views import Views

FLIPPED, TOP = 0.05, 0.1  # share of labels made wrong; share of crops a person looks at
SEEDS = (0, 1, 2, 3, 4)
QUICK = {"department": "packages"}


def measure(
    photos: Path, weights: Path, seeds: Sequence[int] = SEEDS, quick: bool = False, model: Path | None = None
) -> dict[str, Any]:
    """Flip 5 % of the ``train`` labels per seed; return the share found in the top 10 % and in as many as were flipped.

    ``photos``: the Grocery Store folder. The encoder is MobileNetV2 with ``weights``, untouched: it has seen none of
    the labels. ``model``: a fine-tuned model instead; trained on the clean labels, it flatters the audit. ``quick``:
    packaged classes and the first seed alone.
    """
    views = embed(photos, weights, QUICK if quick else {}, model)
    found = {str(seed): flipped(views, seed) for seed in (seeds[:1] if quick else seeds)}
    mean = {key: float(np.mean([figures[key] for figures in found.values()])) for key in next(iter(found.values()))}
    return {"crops": len(views), "skus": len(views.skus), "mean": mean, "seeds": found, "clean": clean(views)}


def embed(photos: Path, weights: Path, where: dict[str, str], model: Path | None) -> Views:
    """Return the train split with its vectors."""
    from skumatch.embed import Pipeline
    from skumatch.encoder import open_encoder
    from skumatch.eval.views import embed_rows
    from skumatch.readers import open_dataset
    from skumatch.towers.build import ModelSource

    rows = open_dataset(photos, "grocery-store").where(where).split("train").rows
    encoder = open_encoder(model or ModelSource("timm:mobilenetv2_100", weights), "auto")
    return embed_rows(rows, encoder, Pipeline())[0]


def flipped(views: Views, seed: int) -> dict[str, float]:
    """Return what the audit makes of ``views`` with 5 % of the labels flipped to any other SKU, all alike likely."""
    from skumatch.eval.audit import label_scores, suspects
    from skumatch.eval.views import Views

    rng = np.random.default_rng(seed)
    n, skus = len(views), len(views.skus)
    wrong = rng.choice(n, round(FLIPPED * n), replace=False)
    labels = (views.codes[wrong] + rng.integers(1, skus, len(wrong))) % skus
    rows = list(views.rows)
    for at, code in zip(wrong, labels, strict=True):
        rows[at] = replace(rows[at], sku=views.skus[code])
    noisy = Views(tuple(rows), views.vectors)
    scores = label_scores(noisy)
    ranked = scores.ranked()
    truth = {views.rows[at].path: views.rows[at].sku for at in wrong}
    relabel = [s for s in suspects(noisy, n, scores) if s.kind == "relabel"]
    right = sum(truth.get(s.row.path) == s.proposed for s in relabel)
    return {
        "found in the top 10 %": float(np.isin(wrong, ranked[: round(TOP * n)]).mean()),
        "found in the top 5 %": float(np.isin(wrong, ranked[: len(wrong)]).mean()),
        "relabelled rightly": right / len(wrong),
        "relabellings that are right": right / max(1, len(relabel)),
    }


def clean(views: Views) -> dict[str, int]:
    """Return how much the audit reports on the labels as they came."""
    from skumatch.eval.audit_page import examine

    found = examine(views)
    relabel = sum(suspect.kind == "relabel" for suspect in found.suspects)
    return {
        "suspected": found.suspected,
        "relabel": relabel,
        "same product": len(found.pairs),
        "two products": len(found.splits),
    }
