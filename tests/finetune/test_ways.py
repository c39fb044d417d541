"""Every way to train, end to end on a tiny network: it ends in a model, and a resumed run in the same one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.errors import ModelError
from skumatch.finetune.recipe import Recipe, recipe_from
from skumatch.finetune.run import Job, Outcome, finetune
from skumatch.model import open_bundle
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource, build

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
CLIP = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
SHORT: dict[str, Any] = {"epochs": 2, "head_epochs": 0, "batch": 6, "embedding": 16, "lr_conv": 5e-3}
WAYS: dict[str, dict[str, Any]] = {
    "head": {"mode": "head"},
    "projection": {"mode": "projection"},
    "lora": {"mode": "lora", "lora": {"rank": 2}},
    "frozen blocks": {"freeze": 0.5},
    "frozen norms": {"batch_norm": "frozen"},
    "guard": {"freeze": 0.5, "serve": {"guard": True}},
    "guarded head": {"mode": "head", "serve": {"guard": True, "layer": "head"}},
    "both, whitened": {"serve": {"layer": "both", "pca": 8}},
    "softmax and supcon": {
        "objectives": {"arcface": 0.0, "softmax": 1.0, "supcon": 0.5},
        "sampler": {"draw": "pk", "per_sku": 2},
    },
    "retain": {"objectives": {"retain": 5.0}},
    "look-alikes": {"sampler": {"refresh": True, "group": 2}},
    "mixes": {"after": {"wise_ft": [0.5, 1.0], "soup": 2, "batch_norm": 12}, "hold_out": 0.34},
    "restarts": {"schedule": {"kind": "restarts", "cycle_len": 1, "sizes": "32,64"}},
    "noise": {
        "augment": dict.fromkeys(
            ("motion", "low_res", "glare", "shadow", "bleed", "background", "cut_out", "mirror"), 0.5
        )
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe_of(way: dict[str, Any]) -> Recipe:
    return recipe_from({**SHORT, **way})


def run(data: Path, out: Path, recipe: Recipe, source: ModelSource = TINY, **how: Any) -> Outcome:
    return finetune(Job(open_dataset(data), source, recipe, out, "cpu", Pipeline(workers=1)), **how)


class StopAfter:
    """Turns true once ``steps`` steps are done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


QUICK = ("lora", "guarded head", "both, whitened", "mixes", "noise")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WAYS])
def test_it_ends_in_a_model_and_resumes_exactly(name: str, patterns: Path, tmp_path: Path) -> None:
    recipe = recipe_of(WAYS[name])
    straight = run(patterns, tmp_path / "straight", recipe)
    stopped = run(patterns, tmp_path / "broken", recipe, should_stop=StopAfter(4 if not recipe.hold_out else 3))
    assert stopped.interrupted
    resumed = run(patterns, tmp_path / "broken", recipe, resume=True)
    assert resumed.spec.digest == straight.spec.digest
    encoder = open_encoder(straight.folder, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    assert np.allclose(np.linalg.norm(encoder.encode(pixels), axis=1), 1, atol=1e-4)


def tensors(outcome: Outcome) -> dict[str, torch.Tensor]:
    tower, _, _ = open_bundle(outcome.folder).load()
    return tower.image.state_dict()


def changed(outcome: Outcome) -> set[str]:
    before = build(TINY).image.state_dict()
    return {
        name
        for name, tensor in tensors(outcome).items()
        if tensor.is_floating_point() and not torch.equal(tensor, before[name])
    }


def test_only_what_the_mode_trains_changes(patterns: Path, tmp_path: Path) -> None:
    found = {
        name: changed(run(patterns, tmp_path / name, recipe_of(WAYS[name])))
        for name in ("head", "projection", "lora", "frozen blocks")
    }
    every = changed(run(patterns, tmp_path / "full", recipe_of({})))
    assert found["head"] == set()
    assert found["projection"] and found["projection"] < every
    assert found["lora"] and not any("bn" in name for name in found["lora"])
    assert "conv_stem.weight" in every and "conv_stem.weight" not in found["frozen blocks"]
    assert not any(name.startswith("bn1") for name in found["frozen blocks"])


def test_norms_stand_still_where_asked(patterns: Path, tmp_path: Path) -> None:
    frozen = changed(run(patterns, tmp_path, recipe_of(WAYS["frozen norms"])))
    assert frozen and not any("running" in name for name in frozen)


def test_mixes_are_recorded_with_the_skus_held_out(patterns: Path, tmp_path: Path) -> None:
    document = open_bundle(run(patterns, tmp_path, recipe_of(WAYS["mixes"])).folder).document
    assert [one["name"] for one in document["after"]] == ["trained", "WiSE-FT 0.5"]  # one validated epoch: no soup
    assert sum(one["kept"] for one in document["after"]) == 1
    assert all(one["unseen_top1"] is not None for one in document["after"])
    assert document["validation"]["unseen_queries"] == 2
    assert document["validation"]["untouched_top1"] is not None


def test_statistics_of_frozen_blocks_stand_still_in_mixes_too(patterns: Path, tmp_path: Path) -> None:
    way = {"freeze": 0.5, "after": {"wise_ft": [0.5], "batch_norm": 12}, "serve": {"guard": True}}
    outcome = run(patterns, tmp_path, recipe_of(way))
    found = changed(outcome)
    assert found and not any(name.startswith(("bn1", "conv_stem", "blocks.0.")) for name in found)
    _, served, _ = open_bundle(outcome.folder).load()
    assert served.guard is not None and len(served.guard.blocks) > 1 and set(served.guard.differing) == found


def test_few_pictures_are_trained_for_more_epochs(patterns: Path, tmp_path: Path) -> None:
    outcome = run(patterns, tmp_path, recipe_of({"min_steps": 11}))
    history = open_bundle(outcome.folder).document["history"]
    assert len(history) == 4  # of three steps each
    assert open_bundle(outcome.folder).document["recipe"]["epochs"] == 2


def test_patience_ends_a_training_that_gains_nothing(patterns: Path, tmp_path: Path) -> None:
    still = {
        "epochs": 30,
        "lr_head": 0.0,
        "lr_conv": 0.0,
        "schedule": {"patience": 2},
        "val_views": 1,
        "val_queries": 1,
    }
    history = open_bundle(run(patterns, tmp_path, recipe_of(still)).folder).document["history"]
    assert len(history) < 30


@pytest.mark.slow
def test_titles_teach_where_the_encoder_reads(patterns: Path, tmp_path: Path) -> None:
    way = {"objectives": {"clip": 1.0}, "clip": {"lr_text": 1e-3}, "lr_transformer": 1e-3}
    outcome = run(patterns, tmp_path / "a", recipe_of(way), CLIP)
    stopped = run(patterns, tmp_path / "b", recipe_of(way), CLIP, should_stop=StopAfter(4))
    resumed = run(patterns, tmp_path / "b", recipe_of(way), CLIP, resume=True)
    assert stopped.interrupted and resumed.spec.digest == outcome.spec.digest
    one, other, before = (
        {k: v for k, v in model.state_dict().items() if k.startswith("transformer.")}
        for model in (*(open_bundle(o.folder).load()[0].model for o in (outcome, resumed)), build(CLIP).model)
    )
    assert one and all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], before[name]) for name in one)  # the text tower has learned
    history = open_bundle(outcome.folder).document["history"]
    assert set(history[-1]["parts"]) == {"arcface", "clip"}
    with pytest.raises(ModelError, match="has no text tower"):
        run(patterns, tmp_path / "c", recipe_of(way))


def test_a_larger_encoder_teaches(patterns: Path, tmp_path: Path) -> None:
    teacher = run(
        patterns, tmp_path / "teacher", recipe_of({}), ModelSource("timm:test_resnet", random_init=True, size=64)
    )
    way = {"objectives": {"distil": 1.0}, "distil": {"teacher": str(teacher.folder)}}
    history = open_bundle(run(patterns, tmp_path / "taught", recipe_of(way)).folder).document["history"]
    assert np.isfinite(history[-1]["parts"]["distil"])
