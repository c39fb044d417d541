"""Each noise does what it says to the pictures that are drawn, and nothing to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

from skumatch.dataset import Row
from skumatch.errors import DataError
from skumatch.finetune.augment import DRAWS, augment, draws, warp_grid
from skumatch.finetune.noise import cut_out, glare, low_res, motion, shadow, shelf_noise
from skumatch.finetune.parts import Augment
from skumatch.finetune.preview import GAP, TILE, preview
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.studio import background_mask, beside, is_studio, replace_background
from skumatch.readers import open_dataset

SIZE = 48
QUIET = Augment(1.0, 0, 0, 0, blur=0, jpeg=0, occlusion=0)
ALL = Augment(motion=0.5, low_res=0.5, glare=0.5, shadow=0.5, cut_out=0.5, mirror=0.5)


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 200 + 20


def drawn(count: int = 6, **columns: float) -> Tensor:
    found = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1)).double()
    for name, value in columns.items():
        found[:, int(name[1:])] = value
    return found


Noise = Callable[[Tensor, Tensor, float], Tensor]


@pytest.mark.parametrize(("noise", "column"), [(motion, 32), (low_res, 35), (glare, 37), (shadow, 44), (cut_out, 60)])
def test_only_the_pictures_that_are_drawn_change(noise: Noise, column: int) -> None:
    images, u = pictures(), drawn()
    u[:, column] = torch.tensor([0.0, 0.9, 0.1, 0.9, 0.2, 0.9])
    changed = (noise(images, u, 0.5) != images).flatten(1).any(1)
    assert changed.tolist() == [True, False, True, False, True, False]
    assert torch.equal(noise(images, u, 0.0), images)


@pytest.mark.parametrize("noise", [motion, low_res, glare, shadow, cut_out])
def test_a_picture_is_changed_alike_in_any_batch(noise: Noise) -> None:
    images, u = pictures(), drawn()
    whole = noise(images, u, 1.0)
    alone = torch.cat([noise(images[i : i + 1], u[i : i + 1], 1.0) for i in range(len(images))])
    assert torch.allclose(whole, alone, atol=1e-3)
    assert whole.isfinite().all() and whole.dtype == torch.float32 and whole.shape == images.shape


def test_motion_blurs_along_its_line_and_not_across() -> None:
    dot = torch.zeros(2, 3, SIZE, SIZE)
    dot[:, :, 24, 24] = 255
    u = drawn(2, c32=0.0, c33=0.999)
    u[:, 34] = torch.tensor([0.0, 0.5]).double()  # along x, along y
    moved = motion(dot, u, 1.0)[:, 0]
    assert moved.sum((1, 2)).tolist() == pytest.approx([255, 255], rel=1e-4)
    assert torch.allclose(moved[0], moved[1].T, atol=1e-4)
    assert float(moved[0].sum(0)[:20].sum()) < 1e-3 and float(moved[0, 24].sum()) == pytest.approx(255, rel=1e-4)
    assert (moved[0, 24] > 1).sum() >= 3


def test_motion_and_few_pixels_keep_the_mean_and_lose_detail() -> None:
    images, u = pictures(), drawn()
    for noise in (motion, low_res):
        found = noise(images, u, 1.0)
        assert torch.allclose(found.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=2)
        assert (found.std((2, 3)) < 0.96 * images.std((2, 3))).all()


def test_glare_only_brightens_and_shadow_only_darkens() -> None:
    images, u = pictures(), drawn()
    bright, dark = glare(images, u, 1.0), shadow(images, u, 1.0)
    assert (bright >= images - 1e-3).all() and bright.max() <= 255
    assert (dark <= images + 1e-3).all() and (dark >= 0.3 * images).all()
    assert (dark < 0.8 * images).flatten(1).any(1).all() and (bright > images + 20).flatten(1).any(1).all()


def test_a_cut_out_picture_is_whole_in_the_middle_and_white_around() -> None:
    images = pictures()
    seen = cut_out(images, drawn(c60=0.0, c61=0.5, c62=1.0, c63=0.0), 1.0)
    rim = torch.cat([seen[:, :, 0], seen[:, :, -1], seen[:, :, :, 0], seen[:, :, :, -1]], 2)
    assert torch.allclose(rim, torch.full_like(rim, 255.0))
    side = round(0.75 * SIZE)
    smaller = F.interpolate(images, side, mode="bilinear", align_corners=False)
    start = (SIZE - side) // 2
    middle = slice(start + 4, start + side - 4)
    assert torch.allclose(seen[:, :, middle, middle], smaller[:, :, 4:-4, 4:-4], atol=1e-2)


def test_the_mirror_turns_what_the_crop_would_have_shown() -> None:
    u, aspect = drawn(3, c49=0.1), torch.ones(3, dtype=torch.float64)
    canvas = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    plain, turned = (augment(canvas, aspect, u, SIZE, replace(QUIET, mirror=mirror)) for mirror in (0.0, 0.5))
    assert torch.allclose(turned, plain.flip(3), atol=0.5)
    crop = Augment(mirror=0.5)
    assert torch.allclose(warp_grid(aspect, u, 8, crop).flip(2), warp_grid(aspect, u, 8, Augment()), atol=1e-5)


def test_new_noises_at_zero_change_nothing_and_old_draws_are_the_first_of_the_new() -> None:
    old = np.stack([np.random.default_rng((3, 1, i, 2)).random(32) for i in (0, 5)])
    new = draws(3, 1, np.array([0, 5]))
    assert new.shape == (2, DRAWS) and np.array_equal(new[:, :32], old)
    again = draws(3, 1, np.array([0, 5]), 1)
    assert not np.isclose(again, new).any()


def test_everything_at_once_stays_in_range() -> None:
    torch.manual_seed(354)  # rounding past 255 shows in it
    canvas = torch.randint(0, 256, (8, 3, 60, 60), dtype=torch.uint8)
    aspect = torch.tensor([0.03, 0.2, 1.0, 1.0, 1.5, 4.0, 30.0, 0.7], dtype=torch.float64)
    seen = augment(canvas, aspect, drawn(8), SIZE, ALL)
    assert seen.shape == (8, 3, SIZE, SIZE) and seen.isfinite().all()
    assert seen.min() >= 0 and seen.max() <= 255


@pytest.mark.parametrize(("part", "changed"), [("jpeg", [1, 1]), ("background", [1, 0]), ("bleed", [1, 1])])
def test_the_transform_does_what_is_done_to_decoded_pictures_too(part: str, changed: list[int]) -> None:
    textured = torch.randint(0, 256, (3, 120, 100), dtype=torch.uint8)  # not from a studio
    images = torch.stack([torch.from_numpy(pack()).permute(2, 0, 1), textured])

    def seen(batch: Tensor, share: float) -> Tensor:
        torch.manual_seed(1)
        noisy: Tensor = shelf_noise(replace(QUIET, **{part: share}))(batch)
        return noisy

    assert (seen(images, 1.0) != seen(images, 0.0)).flatten(1).any(1).tolist() == changed
    if part == "bleed":  # nobody is beside it
        assert torch.equal(seen(images[0], 1.0), seen(images[0], 0.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(3, 40, 60), (4, 3, 60, 40)])
def test_it_is_a_torchvision_transform(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, shape).to(dtype)
    transform = shelf_noise(ALL, 32)
    torch.manual_seed(5)
    one = transform(images)
    other = transform(images)
    torch.manual_seed(5)
    assert torch.equal(transform(images), one) and not torch.equal(one, other)
    assert one.shape == (*shape[:-2], 32, 32) and one.dtype == dtype
    assert shelf_noise(QUIET)(images).shape == (*shape[:-2], 40, 40)


def pack(background: int = 250) -> np.ndarray:
    """A white pack with a dark outline on a plain background."""
    image = np.full((120, 100, 3), background, np.uint8)
    image[20:100, 30:70] = 20
    image[24:96, 34:66] = 250
    return image


def test_the_background_is_found_from_the_border_only() -> None:
    mask = background_mask(pack())
    assert mask.shape == (120, 100) and mask[:15].min() > 0.95 and mask[:, :25].min() > 0.95
    assert mask[28:92, 38:62].max() < 0.05  # as white as the background, but inside the outline
    assert is_studio(pack()) and is_studio(pack(30))
    assert not is_studio(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))


def test_another_background_keeps_the_pack() -> None:
    draw = np.random.default_rng(0).random(DRAWS)
    other = np.full((50, 80, 3), (10, 90, 200), np.uint8)
    found = replace_background(pack(), draw, other)
    assert np.array_equal(found[28:92, 38:62], pack()[28:92, 38:62])
    assert np.abs(found[:12].astype(int) - (10, 90, 200)).max() <= 12
    plain = replace_background(pack(), draw, None)
    assert np.array_equal(plain[28:92, 38:62], pack()[28:92, 38:62]) and (plain[0] != pack()[0]).any()


@pytest.mark.parametrize(("side", "columns"), [(0.1, slice(None, 8)), (0.9, slice(-8, None))])
def test_a_neighbour_stands_at_one_edge(side: float, columns: slice) -> None:
    draw = np.full(DRAWS, 0.5)
    draw[51], draw[52] = side, 0.0
    neighbour = np.full((30, 200, 3), (0, 0, 255), np.uint8)
    found = beside(pack(), draw, neighbour)
    assert (found[:, columns] == (0, 0, 255)).all() and np.array_equal(found[:, 10:90], pack()[:, 10:90])


def test_the_preview_shows_originals_beside_variants(patterns: Path, tmp_path: Path) -> None:
    rows = open_dataset(patterns).split("train").rows
    preview(rows, Recipe(augment=ALL), tmp_path / "one.png", variants=3, pictures=2)
    preview(rows, Recipe(augment=ALL), tmp_path / "two.png", variants=3, pictures=2)
    preview(rows, Recipe(augment=ALL, seed=1), tmp_path / "other.png", variants=3, pictures=2)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    with PILImage.open(tmp_path / "one.png") as sheet:
        assert sheet.width == 4 * (TILE + GAP) + GAP


def test_a_preview_of_broken_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the pictures to preview can be read"):
        preview([Row(tmp_path / "a.png", "a", "train")], Recipe(), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
