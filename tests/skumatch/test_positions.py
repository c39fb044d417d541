"""Transformers at other picture sizes: positions are resampled, learn, and are untouched at the own size."""

from __future__ import annotations

import copy

import pytest
import torch

from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build, rebuild
from skumatch.towers.positions import resampled

VITS = ["timm:vit_tiny_patch16_224", "open_clip:skumatch-tiny-96", "timm:deit_tiny_distilled_patch16_224"]


def tower_of(name: str, size: int | None = None) -> Tower:
    tower = build(ModelSource(name, random_init=True, size=size))
    tower.image.eval()
    return tower


def pictures(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_own_grid_is_left_exactly_as_it_is() -> None:
    positions = torch.randn(1 + 16, 8)
    assert torch.equal(resampled(positions, (4, 4), 1)[:1], positions[:1])
    assert torch.allclose(resampled(positions, (4, 4), 1), positions, atol=1e-6)


def test_a_linear_slope_stays_a_slope() -> None:
    """Columns numbered 0..7 become columns whose numbers rise evenly: the middle of each new patch."""
    slope = torch.arange(8.0).repeat(8, 1).reshape(64, 1)
    found = resampled(slope, (4, 4), 0).reshape(4, 4)
    assert torch.allclose(found[:, 1:3], torch.tensor([2.5, 4.5]).repeat(4, 1), atol=0.1)
    assert torch.allclose(found, found[:1].repeat(4, 1), atol=1e-5)


@pytest.mark.parametrize("name", VITS)
def test_sizes_other_than_the_own_run(name: str) -> None:
    tower = tower_of(name)
    own = tower.preprocess.size
    assert tower.resizable and own % tower.patch == 0
    large = pictures(own)
    small = torch.nn.functional.interpolate(large, own - 2 * tower.patch, mode="bicubic", antialias=True)
    with torch.no_grad():
        one, other = tower.image(large), tower.image(small)
    assert one.shape == other.shape == (2, tower.dim)
    assert not torch.equal(one, other)


def test_the_answer_at_the_own_size_is_that_of_the_plain_library() -> None:
    import open_clip
    import timm

    vit = tower_of(VITS[0])
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    plain.load_state_dict(vit.image.state_dict())
    clip = tower_of(VITS[1])
    bare = copy.deepcopy(clip.image)
    bare.__class__ = open_clip.transformer.VisionTransformer
    with torch.no_grad():
        assert torch.equal(vit.image(pictures(224)), plain(pictures(224)))
        assert torch.equal(clip.image(pictures(96)), bare(pictures(96)))


@pytest.mark.parametrize("name", VITS)
def test_positions_learn_while_pictures_are_small(name: str) -> None:
    tower = tower_of(name)
    tower.image(pictures(tower.preprocess.size - tower.patch)).square().mean().backward()
    named = dict(tower.image.named_parameters())
    positions = next(p for key, p in named.items() if "pos" in key and "embed" in key)
    assert positions.grad is not None and float(positions.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", VITS)
def test_keys_stay_and_a_copy_works_too(name: str, tmp_path: object) -> None:
    tower = tower_of(name)
    again = rebuild(tower.architecture, tmp_path)  # type: ignore[arg-type]
    again.model.load_state_dict(tower.model.state_dict())
    again.image.eval()
    size = tower.preprocess.size - tower.patch
    with torch.no_grad():
        wanted = tower.image(pictures(size))
        assert torch.equal(again.image(pictures(size)), wanted)
        assert torch.equal(copy.deepcopy(tower.image)(pictures(size)), wanted)


def test_networks_without_a_way_keep_their_size() -> None:
    assert not tower_of("open_clip:RN50").resizable  # its attention pooling has a position per cell
    conv = tower_of("timm:mobilenetv2_050")
    assert conv.resizable and conv.patch == 1
