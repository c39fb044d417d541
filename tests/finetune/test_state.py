"""Checkpoints: everything comes back, the newest alone is kept, a flipped byte is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from skumatch import artefact
from skumatch.errors import ArtefactError
from skumatch.finetune.objectives.base import Seen, Setting
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.state import TENSORS, TrainState
from skumatch.towers.build import ModelSource, build

RECIPE = Recipe(batch=4, embedding=16, ema=0.9)
NET = "timm:test_efficientnet"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh(seed: int = 0, recipe: Recipe = RECIPE) -> TrainState:
    tower = build(ModelSource(NET, random_init=True, seed=seed, size=32))
    counts = np.array([5, 3, 1], np.int64)
    return TrainState(Setting(recipe, counts, ("a tin", "a box", "a bag"), tower, torch.device("cpu")))


def train(state: TrainState, steps: int) -> None:
    state.set_stage(head_only=False)
    generator = torch.Generator().manual_seed(state.step)
    for _ in range(steps):
        pictures = torch.rand(4, 3, 32, 32, generator=generator) * 255
        features = state.network.features(pictures.contiguous(memory_format=torch.channels_last))
        labels, drawn = torch.tensor([0, 1, 2, 0]), torch.rand(4, 64, generator=generator).double()
        loss, _ = state.objectives(Seen(features, state.head(features), labels, pictures, 0.1, drawn))
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.update_average()
        state.step += 1


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    modules = {"image": state.image, "head": state.head, "objectives": state.objectives, "average": state.average}
    found = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for position, parameter in enumerate(state.parameters()):
        found |= {f"{position}.{key}": t for key, t in state.optimizer.state[parameter].items()}
    return {key: t.detach().clone() for key, t in found.items()}


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    different = [key for key in one if not torch.equal(one[key], two[key])]
    assert not different


def test_everything_comes_back(tmp_path: Path) -> None:
    state = fresh()
    train(state, 3)
    state.keep_if_best(0.5)
    state.epoch, state.history = 2, [{"epoch": 1, "loss": 0.5}]
    train(state, 1)
    state.save(tmp_path)
    back = fresh(seed=1)
    assert back.restore(tmp_path)
    assert_equal(tensors(state), tensors(back))
    assert (back.epoch, back.step, back.updates) == (2, 4, 4)
    assert back.history == [{"epoch": 1, "loss": 0.5}]
    assert back.best_score == 0.5
    assert state.best is not None
    assert back.best is not None
    assert_equal(state.best, back.best)


def test_training_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    state = fresh()
    train(state, 2)
    state.save(tmp_path)
    back = fresh(seed=1)
    back.restore(tmp_path)
    train(state, 3)
    train(back, 3)
    assert_equal(tensors(state), tensors(back))


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    state = fresh()
    before = tensors_of_image(state)
    assert not state.restore(tmp_path / "absent")
    assert_equal(before, tensors_of_image(state))


def tensors_of_image(state: TrainState) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in state.image.state_dict().items()}


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    state = fresh()
    for _ in range(3):
        train(state, 1)
        state.save(tmp_path)
    assert artefact.versions(tmp_path) == ["v000003"]
    back = fresh()
    back.restore(tmp_path)
    assert back.step == 3


def test_a_checkpoint_from_before_losses_were_kept_goes_on(tmp_path: Path) -> None:
    state = fresh()
    train(state, 1)
    state.count({"loss": 2.0})
    state.save(tmp_path)
    facts = artefact.read_manifest(tmp_path / "v000001", "checkpoint.json")
    assert facts.pop("losses") == {"loss": 2.0} and facts.pop("counted") == 1
    facts = {name: value for name, value in facts.items() if name not in ("files", "manifest_digest")}
    (tmp_path / "v000001" / "checkpoint.json").unlink()
    artefact.seal(tmp_path / "v000001", "checkpoint.json", facts)
    back = fresh()
    assert back.restore(tmp_path)
    assert back.step == 1 and (back.losses, back.counted) == ({}, 0)


@pytest.mark.parametrize("file", [TENSORS, "checkpoint.json"])
def test_a_flipped_byte_is_noticed(tmp_path: Path, file: str) -> None:
    state = fresh()
    train(state, 1)
    state.save(tmp_path)
    path = tmp_path / "v000001" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{file} is corrupt"):
        fresh().restore(tmp_path)


def test_a_full_disk_keeps_the_checkpoint_before(tiny_disk: Path) -> None:
    (tiny_disk / "filler").write_bytes(b"x" * 900_000)
    with pytest.raises(ArtefactError):
        fresh().save(tiny_disk / "checkpoints")
    assert artefact.versions(tiny_disk / "checkpoints") == []
    assert [path.name for path in (tiny_disk / "checkpoints").iterdir()] == []


def test_the_average_moves_slowly_after_a_quick_start() -> None:
    state = fresh()
    parameter, averaged = next(state.head.parameters()), next(state.average["head"].parameters())
    parameter.data.fill_(0)
    averaged.data.fill_(1)
    state.update_average()
    assert float(averaged.flatten()[0]) == pytest.approx(2 / 11)
    for _ in range(200):
        state.update_average()
    averaged.data.fill_(1)
    state.update_average()
    assert float(averaged.flatten()[0]) == pytest.approx(0.9)


def test_the_best_average_is_taken_back() -> None:
    state = fresh()
    weight = next(state.average["head"].parameters())
    scores = []
    for value, score in ((1.0, 0.5), (2.0, 0.8), (3.0, 0.7)):
        weight.data.fill_(value)
        state.keep_if_best(score)
        scores.append(state.best_score)
    state.take_best()
    assert scores == [0.5, 0.8, 0.8]
    assert float(weight.flatten()[0]) == 2.0


def test_without_scores_the_newest_average_is_best() -> None:
    state = fresh()
    weight = next(state.average["head"].parameters())
    for value in (1.0, 2.0):
        weight.data.fill_(value)
        state.keep_if_best(None)
    weight.data.fill_(3.0)
    state.take_best()
    assert float(weight.flatten()[0]) == 2.0


def test_stage_1_leaves_the_image_tower_alone() -> None:
    state = fresh()
    state.set_stage(head_only=True)
    assert not any(p.requires_grad for p in state.image.parameters())
    assert not state.image.training
    state.set_stage(head_only=False)
    assert all(p.requires_grad for p in state.image.parameters())
    assert state.image.training


def test_rates_are_scaled_from_their_base() -> None:
    state = fresh()
    base = [group["lr"] for group in state.optimizer.param_groups]
    for factor in (0.5, 0.25):
        state.scale_lr(factor)
        assert [g["lr"] for g in state.optimizer.param_groups] == pytest.approx([lr * factor for lr in base])
