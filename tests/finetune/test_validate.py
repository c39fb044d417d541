"""Validation during training: both layers at once, and which of them to serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.finetune.validate import BothLayers, Validation, choose_layer, validate
from skumatch.readers import open_dataset
from skumatch.runtime.torch import FEATURES, HEAD, Network


def answers(right_features: int, right_head: int, shared: int, count: int = 100) -> Validation:
    """Features and head right on so many queries, ``shared`` of them the same ones."""
    features, head = np.zeros(count, bool), np.zeros(count, bool)
    features[:right_features] = True
    head[:shared] = True
    head[right_features : right_features + right_head - shared] = True
    return Validation({FEATURES: features, HEAD: head})


def test_features_are_served_on_a_draw() -> None:
    assert choose_layer("measure", answers(80, 80, 75)) == FEATURES
    assert choose_layer("measure", answers(80, 85, 80)) == FEATURES  # 5 gained, none lost: p = 0.0625


def test_the_head_is_served_when_it_is_better_beyond_chance() -> None:
    assert choose_layer("measure", answers(80, 86, 80)) == HEAD  # 6 gained, none lost: p = 0.03125


def test_a_clearly_worse_head_is_not_served() -> None:
    assert choose_layer("measure", answers(90, 60, 60)) == FEATURES


def test_without_queries_features_are_served() -> None:
    nothing = Validation({FEATURES: np.zeros(0, bool), HEAD: np.zeros(0, bool)})
    assert nothing.top1 == {FEATURES: None, HEAD: None}
    assert choose_layer("measure", nothing) == FEATURES


@pytest.mark.parametrize("layer", [FEATURES, HEAD])
def test_a_recipe_may_decide(layer: str) -> None:
    assert choose_layer(layer, answers(10, 90, 10)) == layer
    assert choose_layer(layer, answers(90, 10, 10)) == layer


@pytest.fixture
def both(make_encoder: Callable[[int], Encoder]) -> BothLayers:
    """Pooled pixels as features, and one of their channels alone as the head."""
    spec = replace(make_encoder(0).spec, dim=48)
    head = nn.Linear(48, 16, bias=False)
    head.weight.data = torch.eye(48)[:16].clone()
    network = Network(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), spec)
    return BothLayers(network, head, spec, torch.device("cpu"))


def rows(root: Path, split: str) -> tuple[Row, ...]:
    return open_dataset(root).split(split).rows


def test_both_layers_are_measured_as_if_alone(both: BothLayers, patterns: Path) -> None:
    gallery, queries = rows(patterns, "train"), rows(patterns, "test")
    found = validate(both, gallery, queries, Pipeline(batch=5, workers=2))
    vectors = {}
    for name, side in (("views", gallery), ("queries", queries)):
        parts = [batch.vectors for batch in Pipeline().embed([row.path for row in side], both)]
        vectors[name] = np.concatenate(parts)
    for layer, part in ((FEATURES, slice(0, 48)), (HEAD, slice(48, 64))):
        views, asked = vectors["views"][:, part], vectors["queries"][:, part]
        assert np.allclose(np.linalg.norm(views, axis=1), 1, atol=1e-5)
        expected = [
            gallery[int((views @ query).argmax())].sku == row.sku for query, row in zip(asked, queries, strict=True)
        ]
        assert found.right[layer].tolist() == expected
    assert found.top1[FEATURES] == 1.0


def test_without_queries_nothing_is_embedded(both: BothLayers) -> None:
    missing = (Row(Path("nowhere.png"), "a", "train"),)
    assert validate(both, missing, (), Pipeline()).top1 == {FEATURES: None, HEAD: None}


@pytest.mark.parametrize("side", ["train", "test"])
def test_unreadable_pictures_are_left_out(both: BothLayers, store: Path, side: str) -> None:
    (store / side / "sku-0" / ("0.png" if side == "train" else "4.png")).write_bytes(b"broken")
    found = validate(both, rows(store, "train"), rows(store, "test"), Pipeline(batch=1, workers=1))
    assert len(found.right[FEATURES]) == (12 if side == "train" else 11)
    assert found.top1[FEATURES] == 1.0


def test_a_gallery_that_cannot_be_read_is_right_about_nothing(both: BothLayers, patterns: Path) -> None:
    broken = (Row(patterns / "absent.png", "sku-0", "train"),)
    found = validate(both, broken, rows(patterns, "test"), Pipeline())
    assert found.top1 == {FEATURES: 0.0, HEAD: 0.0}
