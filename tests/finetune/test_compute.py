"""How the work is done changes nothing beyond rounding: parts of a batch, activations computed twice, torch.compile."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from skumatch.embed import Pipeline
from skumatch.errors import ConfigError, ModelError
from skumatch.finetune.augment import augment
from skumatch.finetune.curves import curves
from skumatch.finetune.data import ahead
from skumatch.finetune.memory import checkpointed
from skumatch.finetune.norms import standing
from skumatch.finetune.ranks import Ranks
from skumatch.finetune.recipe import recipe_from
from skumatch.finetune.run import CURVES, Job, Outcome, finetune
from skumatch.finetune.state import TrainState
from skumatch.finetune.step import Step
from skumatch.finetune.track import TensorBoard
from skumatch.finetune.trainer import Silent
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource, build

VIT = ModelSource("timm:test_vit", random_init=True, size=64)
NET = ModelSource("timm:test_efficientnet", random_init=True, size=32)
CLIP = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
SHORT: dict[str, Any] = {"epochs": 2, "head_epochs": 1, "batch": 8, "embedding": 16, "lr_transformer": 1e-3}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "arcface": {"objectives": {"arcface": 1.0, "retain": 0.5}},
    "supcon": {"objectives": {"arcface": 0.0, "supcon": 1.0}, "sampler": {"draw": "pk", "per_sku": 2}},
}


class Losses(Silent):
    """A Reporter that keeps the losses."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def step(self, loss: float, images: int) -> None:
        self.found.append(loss)


def losses(data: Path, out: Path, source: ModelSource, recipe: dict[str, Any], **compute: Any) -> np.ndarray:
    reporter = Losses()
    whole = recipe_from({**SHORT, **recipe, "compute": {"precision": "fp32", **compute}})
    finetune(Job(open_dataset(data), source, whole, out, "cpu", Pipeline(workers=1)), reporter=reporter)
    return np.array(reporter.found)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("source", [VIT, NET], ids=["transformer", "frozen norms"])
def test_parts_of_a_batch_have_the_losses_of_the_whole(
    objective: str, source: ModelSource, patterns: Path, tmp_path: Path
) -> None:
    recipe = {**OBJECTIVES[objective], "batch_norm": "frozen"}
    whole, parts = (losses(patterns, tmp_path / str(n), source, recipe, accumulate=n) for n in (1, 3))
    assert len(whole) == len(parts) == 6
    assert np.abs(whole - parts).max() < 1e-4 and np.ptp(whole) > 0.01


@pytest.mark.slow
def test_titles_are_contrasted_with_the_whole_batch(patterns: Path, tmp_path: Path) -> None:
    recipe = {"objectives": {"arcface": 1.0, "clip": 1.0}, "epochs": 1}
    whole, parts = (losses(patterns, tmp_path / str(n), CLIP, recipe, accumulate=n) for n in (1, 4))
    assert np.abs(whole - parts).max() < 1e-4


def test_standing_norms_normalise_by_the_batch_and_remember_nothing() -> None:
    image = build(NET).image.train()
    before = {name: tensor.clone() for name, tensor in image.state_dict().items() if tensor.is_floating_point()}
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with standing(image):
        seen = image(pictures)
    assert all(torch.equal(image.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(image(pictures), seen)
    assert not all(torch.equal(image.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("source", [VIT, CLIP], ids=["timm", "open_clip"])
def test_activations_computed_twice_are_the_same(source: ModelSource, patterns: Path, tmp_path: Path) -> None:
    plain, twice = (
        losses(patterns, tmp_path / str(on), source, OBJECTIVES["arcface"], checkpointing=on) for on in (False, True)
    )
    assert np.abs(plain - twice).max() < 1e-5


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="a batch of 8 in 5 parts leaves less than two pictures - raise batch or"):
        recipe_from({"batch": 8, "compute": {"accumulate": 5}})
    with pytest.raises(ConfigError, match="compute: precision is 'fp8' - choose auto, fp32"):
        recipe_from({"compute": {"precision": "fp8"}})


def test_too_little_gpu_memory_names_three_ways_out(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")

    monkeypatch.setattr(Step, "_losses", step)
    said = "not enough memory for a batch of 8 in {} parts at 32 px - {}--checkpointing or a smaller --size"
    with pytest.raises(ModelError, match=said.format(2, "--accumulate 4, ")):
        losses(patterns, tmp_path / "out", NET, {}, accumulate=2)
    with pytest.raises(ModelError, match=said.format(4, "")):  # a part of one picture would be refused
        losses(patterns, tmp_path / "out", NET, {}, accumulate=4)


def test_a_loss_that_is_no_number_names_step_and_pictures_and_the_run_goes_on(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe_from({**SHORT})
    job = Job(open_dataset(patterns), NET, whole, tmp_path / "out", "cpu", Pipeline(workers=1))
    calls = []

    def poisoned(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return augment(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr("skumatch.finetune.step.augment", poisoned)
    with pytest.raises(
        ModelError, match=r"the loss is nan in epoch 2, step 2, with .*png, .*png and 5 more - start anew"
    ):
        finetune(job)
    resumed = finetune(job, resume=True).folder
    again = Job(job.dataset, NET, whole, tmp_path / "again", "cpu", Pipeline(workers=1))
    assert (finetune(again).folder / "weights.safetensors").read_bytes() == (
        resumed / "weights.safetensors"
    ).read_bytes()


def test_a_gradient_that_is_no_number_stops_before_the_step(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe_from({**SHORT, "compute": {"precision": "fp32"}})
    job = Job(open_dataset(patterns), NET, whole, tmp_path / "out", "cpu", Pipeline(workers=1))

    def poisoned(state: TrainState, ranks: Ranks) -> torch.Tensor:
        if (state.epoch, state.step) == (1, 1):
            first = next(state.parameters())
            first.grad = torch.full_like(first, float("inf"))
        return clip(state, ranks)

    clip = TrainState.clip_gradients
    monkeypatch.setattr(TrainState, "clip_gradients", poisoned)
    with pytest.raises(ModelError, match=r"the gradient's norm is (inf|nan) in epoch 2, step 2, with .*png and 5 more"):
        finetune(job)


def test_what_is_made_ahead_is_not_waited_for_when_it_is_dropped() -> None:
    begun, going_on, ended = (threading.Event() for _ in range(3))

    def batches() -> Iterator[int]:
        yield 0
        begun.set()
        going_on.wait(10)
        ended.set()

    stream = ahead(batches())
    assert next(stream) == 0 and begun.wait(10)
    stream.close()
    assert not ended.is_set()
    going_on.set()
    assert ended.wait(10)


def test_what_is_made_ahead_comes_in_order_and_errors_come_through() -> None:
    def batches() -> Iterator[int | None]:
        yield from (1, None, 3)
        raise ModelError("no more", "stop")

    stream = ahead(batches())
    assert [next(stream), next(stream), next(stream)] == [1, None, 3]
    with pytest.raises(ModelError, match="no more"):
        next(stream)


@pytest.mark.gpu
@pytest.mark.parametrize("compute", [{}, {"accumulate": 3}, {"checkpointing": True}, {"cache": True}])
def test_a_gpu_learns_in_bf16_what_a_cpu_learns(compute: dict[str, Any], patterns: Path, tmp_path: Path) -> None:
    whole = recipe_from({**SHORT, **OBJECTIVES["arcface"], "compute": compute})
    reporter = Losses()
    finetune(Job(open_dataset(patterns), VIT, whole, tmp_path / "gpu", "cuda", Pipeline(workers=1)), reporter=reporter)
    there = losses(patterns, tmp_path / "cpu", VIT, OBJECTIVES["arcface"])
    assert np.abs(np.array(reporter.found) - there).max() < 0.1 * np.abs(there).max()


@pytest.mark.gpu
def test_a_gpu_without_room_says_what_helps(patterns: Path, tmp_path: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(ModelError, match=r"not enough memory for a batch of 8 at 64 px - --accumulate 2, --check"):
            finetune(Job(open_dataset(patterns), VIT, recipe_from(SHORT), tmp_path / "out", "cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("source", [VIT, NET], ids=["transformer", "network"])
def test_a_compiled_encoder_learns_the_same(source: ModelSource, patterns: Path, tmp_path: Path) -> None:
    recipe = {**OBJECTIVES["arcface"], "batch_norm": "frozen"}
    plain, compiled = (losses(patterns, tmp_path / str(on), source, recipe, compile=on) for on in (False, True))
    assert np.abs(plain - compiled).max() < 1e-3


def test_the_curves_lie_beside_the_model(patterns: Path, tmp_path: Path) -> None:
    whole = recipe_from({**SHORT, **OBJECTIVES["arcface"]})
    done: Outcome = finetune(Job(open_dataset(patterns), NET, whole, tmp_path / "out", "cpu", Pipeline(workers=1)))
    drawing = ElementTree.fromstring((done.folder / CURVES).read_text())
    said = " ".join(text for text in drawing.itertext())
    assert all(name in said for name in ("Loss", "all", "arcface", "retain", "Validation top-1", "features", "head"))
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}polyline")) == 3
    ElementTree.fromstring(curves([]))


def test_tracking_without_tensorboard_is_refused_before_anything_starts(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    job = Job(open_dataset(patterns), NET, recipe_from(SHORT), tmp_path / "out", "cpu", track=True)
    with pytest.raises(ConfigError, match=r"TensorBoard is not installed - pip install 'skumatch\[track\]', or leave"):
        finetune(job)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_cannot_checkpoint_says_so() -> None:
    said = "cannot checkpoint its activations - leave out --checkpointing"
    with pytest.raises(ModelError, match=said), checkpointed(torch.nn.Linear(2, 2), True):
        pass


def test_tensorboard_reads_what_was_written(patterns: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = Job(open_dataset(patterns), NET, recipe_from(SHORT), tmp_path / "out", "cpu", Pipeline(workers=1), track=True)
    finetune(job)
    found = event_accumulator.EventAccumulator(str(tmp_path / "out" / "runs" / "r000001" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/step")] == list(range(1, 7))
    reporter = TensorBoard(tmp_path / "out" / "runs" / "r000001" / "tensorboard")
    reporter.begin(6, 4)  # as if the run had been killed after step 6 and resumed from a checkpoint at 4
    for _ in range(2):
        reporter.step(0.5, 8)
    reporter.close()
    found.Reload()
    assert [event.step for event in found.Scalars("loss/step")] == list(range(1, 7))
    assert [event.value for event in found.Scalars("loss/step")][4:] == [0.5, 0.5]
    assert [event.step for event in found.Scalars("validation/features")][-1] == 3
