"""The reference systems: recipes, the plain softmax against float64, tiny trainings, and the autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from skumatch.encoder import open_encoder
from skumatch.errors import ConfigError, DataError, ImageError, ModelError
from skumatch.finetune.augment import DRAWS
from skumatch.finetune.autoencoder import Autoencoder, AutoencoderHow, train_autoencoder
from skumatch.finetune.batches import Lookalikes
from skumatch.finetune.objectives.arcface import LinearSoftmax
from skumatch.finetune.objectives.base import Seen
from skumatch.finetune.parts import Softmax
from skumatch.finetune.recipe import Recipe, recipe_from
from skumatch.finetune.references import (
    BASE,
    SYSTEMS,
    System,
    grouped_pictures,
    reference_recipe,
    small_pixels,
    train_reference,
)
from skumatch.finetune.sampler import order_for
from skumatch.model import open_bundle
from skumatch.spec import Ids, Pixels
from skumatch.towers.build import ModelSource

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
RECIPE = Recipe(epochs=3, head_epochs=0, batch=6, embedding=16, lr_conv=5e-3, val_views=2)
HOW = AutoencoderHow(epochs=25, size=32, width=4, batch=8, lr=1e-2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(patterns: Path) -> tuple[list[Path], list[str]]:
    """Return the training pictures and the group of each."""
    paths = sorted(path for path in patterns.rglob("*.png") if "train" in path.parts)
    return paths, [path.parent.name for path in paths]


def test_the_systems_differ_in_loss_and_draw_alone() -> None:
    base = replace(BASE, seed=7, epochs=2)
    found = {system: reference_recipe(system, base) for system in SYSTEMS}
    said = {s: (bool(r.objectives.softmax), bool(r.objectives.arcface), r.sampler.alpha) for s, r in found.items()}
    assert said == {
        "softmax": (True, False, 1.0),
        "softmax+sampler": (True, False, 0.0),
        "arcface": (False, True, 1.0),
        "arcface+sampler": (False, True, 0.0),
    }
    first = found["softmax"]
    for recipe in found.values():
        assert replace(recipe, name="", objectives=first.objectives, sampler=first.sampler) == replace(first, name="")
        assert (recipe.seed, recipe.epochs, recipe.serve.layer) == (7, 2, "head")
        assert not recipe.softmax.normalised and recipe.arcface.sub_centres == 1
        assert recipe_from(recipe.to_json()) == recipe


def test_unknown_systems_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no reference system 'cosface' - choose softmax, softmax\+sampler"):
        reference_recipe("cosface")  # type: ignore[arg-type]


def test_the_sampler_shows_groups_equally_often_and_without_it_pictures_once() -> None:
    labels: Ids = np.repeat(np.arange(4), [90, 20, 6, 4])
    plain = order_for(labels, reference_recipe("softmax"), Lookalikes(), 1)
    assert sorted(plain.tolist()) == list(range(120))
    even = order_for(labels, reference_recipe("softmax+sampler"), Lookalikes(), 1)
    assert np.bincount(labels[even]).tolist() == [30, 30, 30, 30]


def seen(embeddings: Tensor, labels: Tensor) -> Seen:
    n = len(labels)
    return Seen(embeddings, embeddings, labels, torch.zeros(n, 3, 8, 8), 1.0, torch.zeros(n, DRAWS).double())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_plain_softmax_and_its_gradients_against_float64(smoothing: float) -> None:
    torch.manual_seed(3)
    loss = LinearSoftmax(5, 8, Softmax(normalised=False, label_smoothing=smoothing))
    with torch.no_grad():
        loss.classes.bias.normal_()
    rows, labels = torch.randn(6, 8, requires_grad=True), torch.tensor([0, 4, 2, 2, 1, 3])
    value = loss(seen(rows, labels))
    value.backward()
    weight = loss.classes.weight.detach().double().requires_grad_()
    bias, exact = loss.classes.bias.detach().double().requires_grad_(), rows.detach().double().requires_grad_()
    wanted = torch.zeros((), dtype=torch.float64)
    for row, label in zip(exact, labels.tolist(), strict=True):
        logits = torch.stack([(row * w).sum() + b for w, b in zip(weight, bias, strict=True)])
        share = logits - logits.exp().sum().log()
        wanted = wanted - ((1 - smoothing) * share[label] + smoothing * share.mean()) / len(labels)
    wanted.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for own, other in ((rows, exact), (loss.classes.weight, weight), (loss.classes.bias, bias)):
        assert own.grad is not None and other.grad is not None
        assert torch.allclose(own.grad.double(), other.grad, atol=1e-6)


@pytest.mark.parametrize("system", ["softmax", "arcface+sampler"])
def test_a_reference_trains_and_opens_as_an_encoder(system: System, patterns: Path, tmp_path: Path) -> None:
    paths, groups = pictures(patterns)
    dataset = grouped_pictures(patterns, paths, groups)
    folder = train_reference(system, dataset, TINY, tmp_path / "one", RECIPE)
    bundle = open_bundle(folder)
    assert bundle.document["reference"] == system
    assert bundle.document["recipe"]["name"] == system
    assert bundle.document["data"] == {
        "format": "postings",
        "skus": 6,
        "held_out_skus": 0,
        "train": 18,
        "validation_gallery": 12,
        "validation_queries": 6,
    }
    losses = [record["loss"] for record in bundle.document["history"]]
    assert len(losses) == 3 and (system != "softmax" or losses[-1] < losses[0])  # ArcFace's margin rises meanwhile
    encoder = open_encoder(folder, "cpu")
    assert (encoder.spec.layer, encoder.spec.dim) == ("head", 16)
    again = train_reference(system, dataset, TINY, tmp_path / "two", RECIPE)
    assert open_bundle(again).spec.digest == bundle.spec.digest


@pytest.mark.slow
def test_a_large_backbone_of_timm_trains_too(patterns: Path, tmp_path: Path) -> None:
    paths, groups = pictures(patterns)
    source = ModelSource("timm:efficientnet_b3", random_init=True, size=32)
    base = replace(RECIPE, epochs=1)
    folder = train_reference(
        "arcface+sampler", grouped_pictures(patterns, paths, groups), source, tmp_path / "out", base
    )
    rows = open_encoder(folder, "cpu").encode(small_pixels(paths[:2], 32))
    assert rows.shape == (2, 16) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_the_plain_softmax_learns_another_model_than_the_normalised_one(patterns: Path, tmp_path: Path) -> None:
    from skumatch.finetune.run import Job, finetune

    dataset = grouped_pictures(patterns, *pictures(patterns))
    plain = replace(reference_recipe("softmax", RECIPE), epochs=1)
    cosine = replace(plain, softmax=Softmax())
    digests = {finetune(Job(dataset, TINY, r, tmp_path / str(i))).spec.digest for i, r in enumerate((plain, cosine))}
    assert len(digests) == 2


def test_no_pictures_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in"):
        grouped_pictures(tmp_path, [], [])
    with pytest.raises(ValueError, match="shorter"):
        grouped_pictures(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], ["a"])


def test_small_pixels_are_the_pictures_in_order(patterns: Path) -> None:
    paths, _ = pictures(patterns)
    found = small_pixels(paths, 16)
    assert found.shape == (24, 3, 16, 16) and found.dtype == np.uint8
    for picture, path in zip(found, paths, strict=True):
        with Image.open(path) as opened:
            whole = np.asarray(opened.convert("RGB"), np.float64)
        blocks = whole.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        assert np.abs(picture.astype(np.float64) - blocks).mean() < 10


def test_a_broken_picture_is_named(patterns: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        small_pixels([pictures(patterns)[0][0], tmp_path / "broken.png"], 16)
    assert small_pixels([], 16).shape == (0, 3, 16, 16)


@pytest.fixture(scope="module")
def pixels(patterns: Path) -> Pixels:
    """Return the 24 training pictures at 32 px, four of each of six patterns in turn."""
    return small_pixels(pictures(patterns)[0], HOW.size)


@pytest.fixture(scope="module")
def trained(pixels: Pixels) -> Autoencoder:
    return train_autoencoder(pixels, HOW)


def test_the_autoencoder_learns_to_redraw(trained: Autoencoder, pixels: Pixels) -> None:
    assert len(trained.losses) == HOW.epochs
    assert trained.losses[-1] < trained.losses[0] / 2
    pictures = torch.from_numpy(pixels).float() / 255
    with torch.inference_mode():
        left = trained.network(pictures)
    assert left.shape == pictures.shape
    mean_picture = float((pictures - pictures.mean(0)).square().mean())
    assert float((left - pictures).square().mean()) < mean_picture


def test_its_codes_bring_pictures_of_one_kind_together(trained: Autoencoder, pixels: Pixels) -> None:
    codes = trained.encode(pixels)
    assert codes.shape == (24, HOW.dim) and codes.dtype == np.float32 and np.isfinite(codes).all()
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    kind = np.arange(24) // 4
    assert (kind[distances.argmin(axis=1)] == kind).mean() > 0.8


def test_the_same_seed_gives_the_same_codes_and_leaves_the_callers_numbers_alone(
    trained: Autoencoder, pixels: Pixels, tmp_path: Path
) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "pixels.npy", "w+", pixels.dtype, pixels.shape)
    mapped[:] = pixels
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    again = train_autoencoder(mapped, HOW)
    assert torch.equal(torch.rand(3), wanted)
    assert again.losses == trained.losses
    assert np.array_equal(again.encode(pixels), trained.encode(pixels))
    assert train_autoencoder(pixels, replace(HOW, seed=1)).losses != trained.losses


def test_codes_do_not_depend_on_what_they_are_encoded_with(trained: Autoencoder, pixels: Pixels) -> None:
    many = np.tile(pixels, (12, 1, 1, 1))  # more than a block
    assert trained.encode(many)[-24:] == pytest.approx(trained.encode(pixels), abs=1e-5)
    assert trained.encode(pixels[:0]).shape == (0, HOW.dim)


def test_each_epoch_is_told(pixels: Pixels) -> None:
    heard: list[tuple[int, float]] = []
    found = train_autoencoder(pixels, replace(HOW, epochs=2), lambda epoch, loss: heard.append((epoch, loss)))
    assert heard == list(enumerate(found.losses, 1))


def test_what_no_autoencoder_can_take_is_said(trained: Autoencoder, pixels: Pixels) -> None:
    with pytest.raises(DataError, match="1 pictures are too few"):
        train_autoencoder(pixels[:1], HOW)
    with pytest.raises(ModelError, match=r"give uint8 \(N, 3, 64, 64\)"):
        train_autoencoder(pixels, replace(HOW, size=64))
    with pytest.raises(ModelError, match=r"give uint8 \(N, 3, 32, 32\)"):
        trained.encode(pixels.astype(np.float32))
    with pytest.raises(ConfigError, match="size is 40 - choose a multiple of 16"):
        AutoencoderHow(size=40)
    with pytest.raises(ConfigError, match="epochs is 0"):
        AutoencoderHow(epochs=0)
