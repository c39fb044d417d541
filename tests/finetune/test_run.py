"""Whole fine-tunes of a tiny random network: they learn, repeat exactly, stop, resume and fail cleanly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from skumatch import artefact
from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.errors import ArtefactError, ConfigError, DataError, ModelError, SkumatchError
from skumatch.finetune.data import split_rows
from skumatch.finetune.parts import Augment, Compute, Course
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.run import Job, finetune, recorded_recipe, runs, unfinished
from skumatch.model import SKUS, open_bundle
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
RECIPE = Recipe(epochs=2, head_epochs=1, batch=6, embedding=16, lr_conv=5e-3)
STEPS = 3  # per epoch: 6 SKUs x 3 pictures (the fourth is held out) in batches of 6


def job(data: Path, out: Path, recipe: Recipe = RECIPE, source: ModelSource = TINY) -> Job:
    return Job(open_dataset(data), source, recipe, out, "cpu", Pipeline(workers=1))


class StopAfter:
    """Turns true once ``steps`` steps are done: the trainer asks before each."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(patterns: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the digest of an uninterrupted run and its model store (do not write to it)."""
    out = tmp_path_factory.mktemp("whole")
    return finetune(job(patterns, out)).spec.digest, out


def stickers(root: Path) -> Path:
    """Draw 6 SKUs told apart by the colour of a small sticker in the middle; the rest of the picture is noise."""
    rng = np.random.default_rng(0)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
    for sku, colour in enumerate(colours):
        for view in range(12):
            folder = root / ("train" if view < 8 else "val") / f"sku-{sku}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
            picture[11:21, 11:21] = colour
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{view}.png")
    return root


def test_it_learns_what_the_untouched_network_cannot_tell(tmp_path: Path) -> None:
    data = stickers(tmp_path / "stickers")
    how = Augment(min_scale=0.9, rotation=2, perspective=0, colour=0.1, blur=0, jpeg=0, occlusion=0)
    plain = {"head_epochs": 0, "batch": 12, "embedding": 16, "layer_decay": 1.0, "ema": 0.8}
    recipe = Recipe(epochs=12, lr_conv=1e-2, lr_head=1e-2, augment=how, **plain)  # type: ignore[arg-type]
    untouched = finetune(job(data, tmp_path / "untouched", Recipe(epochs=0, head_epochs=1, batch=12, lr_head=0)))
    tuned = finetune(job(data, tmp_path / "tuned", recipe))
    before, after = untouched.top1["features"], tuned.top1["features"]
    assert before is not None
    assert after is not None
    assert after >= before + 0.25
    assert after >= 0.7


def test_the_same_seed_gives_the_same_model(whole: tuple[str, Path], patterns: Path, tmp_path: Path) -> None:
    again = finetune(job(patterns, tmp_path / "again"))
    other = finetune(job(patterns, tmp_path / "other", Recipe(**{**vars(RECIPE), "seed": 1})))
    assert again.spec.digest == whole[0]
    assert other.spec.digest != whole[0]


def test_a_finished_run_publishes_a_model_with_its_history(whole: tuple[str, Path], patterns: Path) -> None:
    digest, out = whole
    bundle = open_bundle(out)
    assert bundle.spec.digest == digest
    assert bundle.document["interrupted"] is False
    assert bundle.document["recipe"] == RECIPE.to_json()
    assert bundle.document["data"]["train"] == 18
    assert bundle.document["validation"]["queries"] == 6
    assert open_encoder(out, "cpu").spec == bundle.spec
    run = runs(out)[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["stage"]) for line in lines] == [(1, "head"), (2, "all"), (3, "all")]
    assert all(np.isfinite(line["loss"]) and set(line["val_top1"]) == {"features", "head", "both"} for line in lines)
    assert not (run / "checkpoints").exists()


# In the middle of an epoch, in stage 1, at the end of stage 1, at an epoch's end, before the first step.
@pytest.mark.parametrize(
    "steps", [STEPS + 2, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, STEPS, 2 * STEPS, 0))]
)
def test_stop_and_resume_end_in_the_same_weights(
    whole: tuple[str, Path], patterns: Path, tmp_path: Path, steps: int
) -> None:
    task = job(patterns, tmp_path)
    stopped = finetune(task, should_stop=StopAfter(steps))
    assert stopped.interrupted
    assert stopped.current
    assert open_bundle(tmp_path).document["interrupted"] is True
    assert open_encoder(tmp_path, "cpu").spec.digest == stopped.spec.digest
    assert recorded_recipe(unfinished(tmp_path)) == RECIPE
    resumed = finetune(task, resume=True)
    assert not resumed.interrupted
    assert resumed.spec.digest == whole[0]
    assert len(runs(tmp_path)) == 1
    assert measured(tmp_path) == measured(whole[1])


def measured(store: Path) -> list[dict[str, Any]]:
    """What the only run wrote per epoch, but for the time it took."""
    (run,) = runs(store)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("images_per_s", "waited")} for record in records]


def test_how_the_work_is_done_may_change_on_the_way(whole: tuple[str, Path], patterns: Path, tmp_path: Path) -> None:
    finetune(job(patterns, tmp_path), should_stop=StopAfter(2))
    other = Recipe(**{**vars(RECIPE), "compute": Compute(cache=True)})
    resumed = finetune(job(patterns, tmp_path, other), resume=True)
    assert not resumed.interrupted
    assert open_bundle(resumed.folder).document["recipe"]["compute"]["cache"] is True
    assert [record["epoch"] for record in measured(tmp_path)] == [1, 2, 3]


def test_a_run_may_be_stopped_twice(whole: tuple[str, Path], patterns: Path, tmp_path: Path) -> None:
    task = job(patterns, tmp_path)
    finetune(task, should_stop=StopAfter(2))
    assert finetune(task, resume=True, should_stop=StopAfter(3)).interrupted
    assert finetune(task, resume=True).spec.digest == whole[0]


# A convolution net in channels_last, and a transformer (trained through a bf16 copy where the CPU has bf16).
@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("timm:test_resnet", 32), ("open_clip:skumatch-tiny-96", None)])
def test_other_networks_resume_exactly_too(patterns: Path, tmp_path: Path, name: str, size: int | None) -> None:
    source = ModelSource(name, random_init=True, size=size)
    recipe = Recipe(epochs=2, head_epochs=0, batch=6, embedding=16, lr_transformer=1e-3)
    straight = finetune(job(patterns, tmp_path / "straight", recipe, source))
    broken = job(patterns, tmp_path / "broken", recipe, source)
    stopped = finetune(broken, should_stop=StopAfter(4))
    assert stopped.interrupted
    assert stopped.spec.digest != straight.spec.digest
    assert finetune(broken, resume=True).spec.digest == straight.spec.digest


def test_an_interrupted_run_does_not_replace_a_finished_model(patterns: Path, tmp_path: Path) -> None:
    short = Recipe(**{**vars(RECIPE), "epochs": 1, "head_epochs": 0})
    first = finetune(job(patterns, tmp_path, short))
    stopped = finetune(job(patterns, tmp_path), should_stop=StopAfter(1))
    assert not stopped.current
    assert stopped.folder != first.folder
    assert open_bundle(tmp_path).spec.digest == first.spec.digest
    assert open_bundle(stopped.folder).document["interrupted"] is True


def test_resume_refuses_other_pictures(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    finetune(job(store, out), should_stop=StopAfter(1))
    (store / "train" / "sku-0" / "0.png").rename(store / "train" / "sku-1" / "9.png")
    with pytest.raises(DataError, match="the pictures changed"):
        finetune(job(store, out), resume=True)


@pytest.mark.parametrize(
    ("recipe", "source", "said"),
    [
        (Recipe(**{**vars(RECIPE), "epochs": 3}), TINY, "another recipe"),
        (RECIPE, ModelSource("timm:test_efficientnet", random_init=True, size=64), "the encoder changed"),
    ],
)
def test_resume_refuses_another_task(
    patterns: Path, tmp_path: Path, recipe: Recipe, source: ModelSource, said: str
) -> None:
    finetune(job(patterns, tmp_path), should_stop=StopAfter(1))
    with pytest.raises(ConfigError, match=said):
        finetune(job(patterns, tmp_path, recipe, source), resume=True)


def test_held_out_skus_are_written_down_and_not_trained_on(patterns: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "head_epochs": 0, "hold_out": 0.34})
    bundle = open_bundle(finetune(job(patterns, tmp_path, recipe)).folder)
    trained, held = bundle.skus()
    assert (len(trained), len(held)) == (4, 2) and trained | held == {f"sku-{n}" for n in range(6)}
    assert json.loads(bundle.file(SKUS) or b"") == {"trained": sorted(trained), "held_out": sorted(held)}
    data = bundle.document["data"]
    assert (data["skus"], data["held_out_skus"], data["train"], data["validation_queries"]) == (4, 2, 12, 4)
    assert bundle.document["recipe"]["hold_out"] == 0.34


def test_without_hold_out_all_skus_are_trained_on(whole: tuple[str, Path]) -> None:
    trained, held = open_bundle(whole[1]).skus()
    assert sorted(trained) == [f"sku-{n}" for n in range(6)] and not held


def test_pictures_of_held_out_skus_are_never_opened(store: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "hold_out": 0.34})
    held = split_rows(open_dataset(store), recipe).held_out
    sound = finetune(job(store, tmp_path / "sound", recipe))
    for sku in held:
        for path in (store / "train" / sku).iterdir():
            path.write_bytes(b"poison")
    poisoned = finetune(job(store, tmp_path / "poisoned", recipe))
    assert poisoned.failures == () and poisoned.spec.digest == sound.spec.digest


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.34), (0.34, 0.0), (0.34, 0.5)])
def test_resume_refuses_other_held_out_skus(patterns: Path, tmp_path: Path, before: float, after: float) -> None:
    finetune(job(patterns, tmp_path, Recipe(**{**vars(RECIPE), "hold_out": before})), should_stop=StopAfter(1))
    with pytest.raises(ConfigError, match="another recipe"):
        finetune(job(patterns, tmp_path, Recipe(**{**vars(RECIPE), "hold_out": after})), resume=True)


def test_a_run_with_held_out_skus_resumes_exactly(patterns: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(RECIPE), "hold_out": 0.34})
    straight = finetune(job(patterns, tmp_path / "straight", recipe))
    stopped = finetune(job(patterns, tmp_path / "broken", recipe), should_stop=StopAfter(3))
    assert open_bundle(stopped.folder).skus() == open_bundle(straight.folder).skus()
    resumed = finetune(job(patterns, tmp_path / "broken", recipe), resume=True)
    assert resumed.spec.digest == straight.spec.digest
    assert open_bundle(resumed.folder).skus() == open_bundle(straight.folder).skus()


def test_resume_needs_an_interrupted_run(whole: tuple[str, Path], patterns: Path, tmp_path: Path) -> None:
    for out in (tmp_path, whole[1]):
        with pytest.raises(ConfigError, match="no interrupted fine-tune"):
            finetune(job(patterns, out), resume=True)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"recipe": 3}'])
def test_a_corrupt_record_of_a_run_is_named(patterns: Path, tmp_path: Path, content: str) -> None:
    finetune(job(patterns, tmp_path), should_stop=StopAfter(1))
    (runs(tmp_path)[0] / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json"):
        recorded_recipe(unfinished(tmp_path))
    with pytest.raises(SkumatchError, match=r"run\.json|another recipe"):
        finetune(job(patterns, tmp_path), resume=True)


def test_an_unreadable_picture_is_reported_and_survived(store: Path, tmp_path: Path) -> None:
    for sku in range(6):  # one is held out per SKU, so that two broken ones leave one that trains
        for view in (0, 1):
            (store / "train" / f"sku-{sku}" / f"{view}.png").write_bytes(b"broken")
    outcome = finetune(job(store, tmp_path / "models"))
    assert not outcome.interrupted
    assert outcome.failures
    assert all("broken" not in text and "train" in text for text in outcome.failures)
    assert len(outcome.failures) == len(set(outcome.failures))


def test_no_readable_picture_at_all_is_an_error(store: Path, tmp_path: Path) -> None:
    for path in store.glob("train/*/*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(SkumatchError, match="png"):
        finetune(job(store, tmp_path / "models"))
    assert artefact.current(tmp_path / "models") is None


def test_an_impossible_size_is_refused_before_anything_starts(patterns: Path, tmp_path: Path) -> None:
    source = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
    with pytest.raises(ConfigError, match="takes multiples of 16 px, not 72"):
        finetune(job(patterns, tmp_path, Recipe(**{**vars(RECIPE), "schedule": Course(sizes="64,72")}), source))
    assert artefact.current(tmp_path) is None
    assert runs(tmp_path) == []


def test_a_full_disk_leaves_the_earlier_model(patterns: Path, tiny_disk: Path) -> None:
    store = tiny_disk / "models"
    (store / "v000001").mkdir(parents=True)
    artefact.set_current(store, "v000001")
    (tiny_disk / "filler").write_bytes(b"x" * 950_000)
    with pytest.raises(ArtefactError, match=r"free some space|no space"):
        finetune(job(patterns, store, Recipe(**{**vars(RECIPE), "epochs": 0})))
    assert artefact.current(store) == store / "v000001"
    assert artefact.versions(store) == ["v000001"]


def test_a_loss_that_is_not_a_number_names_epoch_and_step(patterns: Path, tmp_path: Path) -> None:
    weights = tmp_path / "nan.safetensors"
    save_poisoned(weights)
    source = ModelSource("timm:test_efficientnet", weights, size=32)
    with pytest.raises(ModelError, match=r"the loss is nan in epoch 1, step 1, with .*png and 3 more - start anew"):
        finetune(job(patterns, tmp_path / "models", RECIPE, source))
    assert torch.is_grad_enabled()
    assert artefact.current(tmp_path / "models") is None


def save_poisoned(path: Path) -> None:
    """Write a state dict of the tiny network with one weight that is not a number."""
    from safetensors.torch import save_file

    from skumatch.towers.build import build

    state: dict[str, Any] = dict(build(TINY).model.state_dict())
    name = "conv_head.weight"
    state[name] = state[name].clone()
    state[name][0] = float("nan")
    save_file(state, path)


def test_the_reporter_is_told_of_every_step_and_epoch(patterns: Path, tmp_path: Path) -> None:
    told: list[Any] = []

    class Listening:
        def begin(self, steps: int, done: int) -> None:
            told.append((steps, done))

        def step(self, loss: float, images: int) -> None:
            told.append(images)

        def epoch(self, record: dict[str, Any]) -> None:
            told.append(record["epoch"] * 100)

    stop: Callable[[], bool] = StopAfter(STEPS + 1)
    finetune(job(patterns, tmp_path), reporter=Listening(), should_stop=stop)
    assert told == [(9, 0), 6, 6, 6, 100, 6]
    told.clear()
    finetune(job(patterns, tmp_path), resume=True, reporter=Listening())
    assert told == [(9, 4), 6, 6, 200, 6, 6, 6, 300]
