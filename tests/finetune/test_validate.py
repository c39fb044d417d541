"""Validation during training: every layer at once, and which of them to serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.finetune.cache import open_cache
from skumatch.finetune.data import Split
from skumatch.finetune.parts import Served
from skumatch.finetune.validate import LAYERS, Pictures, Probe, Validation, choose_layer, validate, validated
from skumatch.readers import open_dataset
from skumatch.runtime.served import BOTH, FEATURES, HEAD, Layer
from skumatch.spec import ResizeMode

MEASURE = Served()


def answers(right_features: int, right_head: int, shared: int, count: int = 100) -> Validation:
    """Features and head right on so many queries, ``shared`` of them the same ones; both side by side never are."""
    features, head = np.zeros(count, bool), np.zeros(count, bool)
    features[:right_features] = True
    head[:shared] = True
    head[right_features : right_features + right_head - shared] = True
    return Validation({FEATURES: features, HEAD: head, BOTH: np.zeros(count, bool)})


def test_features_are_served_on_a_draw() -> None:
    assert choose_layer(MEASURE, answers(80, 80, 75)) == FEATURES
    assert choose_layer(MEASURE, answers(80, 85, 80)) == FEATURES  # 5 gained, none lost: p = 0.0625


def test_the_head_is_served_when_it_is_better_beyond_chance() -> None:
    assert choose_layer(MEASURE, answers(80, 86, 80)) == HEAD  # 6 gained, none lost: p = 0.03125


def test_a_clearly_worse_head_is_not_served() -> None:
    assert choose_layer(MEASURE, answers(90, 60, 60)) == FEATURES


def test_without_queries_features_are_served() -> None:
    nothing = Validation({layer: np.zeros(0, bool) for layer in LAYERS})
    assert nothing.top1 == dict.fromkeys(LAYERS)
    assert choose_layer(MEASURE, nothing) == FEATURES


@pytest.mark.parametrize("layer", LAYERS)
def test_a_recipe_may_decide(layer: Layer) -> None:
    assert choose_layer(Served(layer), answers(10, 90, 10)) == layer
    assert choose_layer(Served(layer), answers(90, 10, 10)) == layer


@pytest.mark.parametrize(("extra", "served"), [(-3, HEAD), (0, BOTH), (4, BOTH)])
def test_of_two_layers_that_beat_the_features_the_better_is_served(extra: int, served: Layer) -> None:
    found = answers(60, 80, 60).right
    found[BOTH][: 80 + extra] = True
    assert choose_layer(MEASURE, Validation(found)) == served


@pytest.fixture
def probe(make_encoder: Callable[[int], Encoder]) -> Probe:
    """Pooled pixels as features, and one of their channels alone as the head."""
    spec = replace(make_encoder(0).spec, dim=48)
    head = nn.Linear(48, 16, bias=False)
    head.weight.data = torch.eye(48)[:16].clone()
    return Probe(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), head, spec, torch.device("cpu"))


def rows(root: Path, split: str) -> tuple[Row, ...]:
    return open_dataset(root).split(split).rows


def pictures(probe: Probe, **how: Any) -> Pictures:
    return Pictures(probe.spec, Pipeline(**how), (), None)


def test_every_layer_is_measured_as_if_alone(probe: Probe, patterns: Path) -> None:
    gallery, queries = rows(patterns, "train"), rows(patterns, "test")
    found = validate(probe, gallery, queries, pictures(probe, batch=5, workers=2), 0.25)
    vectors = {}
    for name, side in (("views", gallery), ("queries", queries)):
        parts = [batch.vectors for batch in Pipeline().embed([row.path for row in side], probe)]
        vectors[name] = np.concatenate(parts)
    for layer, part in ((FEATURES, slice(0, 48)), (HEAD, slice(48, 64))):
        views, asked = vectors["views"][:, part], vectors["queries"][:, part]
        assert np.allclose(np.linalg.norm(views, axis=1), 1, atol=1e-5)
        expected = [
            gallery[int((views @ query).argmax())].sku == row.sku for query, row in zip(asked, queries, strict=True)
        ]
        assert found.right[layer].tolist() == expected
    features, head = (vectors["queries"][:, p] @ vectors["views"][:, p].T for p in (slice(0, 48), slice(48, 64)))
    best = (0.75 * features + 0.25 * head).argmax(1)
    assert found.right[BOTH].tolist() == [gallery[int(b)].sku == q.sku for b, q in zip(best, queries, strict=True)]
    assert found.top1[FEATURES] == 1.0


def test_without_queries_nothing_is_embedded(probe: Probe) -> None:
    missing = (Row(Path("nowhere.png"), "a", "train"),)
    assert validate(probe, missing, (), pictures(probe), 0.5).top1 == dict.fromkeys(LAYERS)


@pytest.mark.parametrize("side", ["train", "test"])
def test_unreadable_pictures_are_left_out(probe: Probe, store: Path, side: str) -> None:
    (store / side / "sku-0" / ("0.png" if side == "train" else "4.png")).write_bytes(b"broken")
    found = validate(probe, rows(store, "train"), rows(store, "test"), pictures(probe, batch=1, workers=1), 0.5)
    assert len(found.right[FEATURES]) == (12 if side == "train" else 11)
    assert found.top1[FEATURES] == 1.0


def test_a_gallery_that_cannot_be_read_is_right_about_nothing(probe: Probe, patterns: Path) -> None:
    broken = (Row(patterns / "absent.png", "sku-0", "train"),)
    found = validate(probe, broken, rows(patterns, "test"), pictures(probe), 0.5)
    assert found.top1 == dict.fromkeys(LAYERS, 0.0)


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_with_a_cache_files_are_read_once_and_look_the_same(
    probe: Probe, store: Path, tmp_path: Path, resize: ResizeMode
) -> None:
    spec = replace(probe.spec, resize=resize, crop_pct=0.8)
    (store / "train" / "sku-1" / "1.png").write_bytes(b"broken")
    split = Split(rows(store, "train"), rows(store, "train"), rows(store, "test"))
    shown = validated(split)
    plain = np.concatenate([pixels for _, pixels in Pictures(spec, Pipeline(), (), None).batches(shown)])
    kept = Pictures(spec, Pipeline(), shown, open_cache(tmp_path, shown, spec.size, True))
    kept.fill()
    for row in shown:
        row.path.unlink()
    again = list(kept.batches(shown))
    assert np.array_equal(np.concatenate([pixels for _, pixels in again]), plain)
    assert [row for group, _ in again for row in group] == [
        r for r in shown if r.path.name != "1.png" or r.sku != "sku-1"
    ]
    assert len(plain) == len(shown) - 1
