"""Augmentation: keyed by picture alone, the identity at zero strength, never mirrored, within bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from skumatch.finetune.augment import DRAWS, JPEG_DRAW, JPEG_QUALITY_DRAW, augment, blur, draws, jpeg_quality
from skumatch.finetune.parts import Augment

OFF = Augment(min_scale=1, rotation=0, perspective=0, colour=0, blur=0, jpeg=0, occlusion=0)
STRONG = Augment(min_scale=0.2, rotation=20, perspective=0.2, colour=0.5, blur=1, jpeg=0, occlusion=1)
SIZE, CANVAS = 64, 90


def canvases(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (CANVAS, CANVAS), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(draws(seed, 0, np.arange(count)))


def test_draws_depend_on_seed_epoch_and_picture_alone() -> None:
    together = draws(1, 2, np.array([5, 9, 7]))
    assert together.shape == (3, DRAWS)
    assert np.array_equal(together[2], draws(1, 2, np.array([7]))[0])
    assert not np.array_equal(draws(1, 2, np.array([7])), draws(1, 3, np.array([7])))
    assert not np.array_equal(draws(1, 2, np.array([7])), draws(2, 2, np.array([7])))
    assert together.min() >= 0
    assert together.max() < 1


@pytest.mark.parametrize("how", [Augment(), STRONG])
def test_a_picture_is_changed_the_same_way_in_any_batch(how: Augment) -> None:
    pictures, aspects, u = canvases(4), torch.tensor([0.5, 1.0, 1.7, 3.0], dtype=torch.float64), uniform(4)
    together = augment(pictures, aspects, u, SIZE, how)
    for i in range(4):
        alone = augment(pictures[i : i + 1], aspects[i : i + 1], u[i : i + 1], SIZE, how)
        assert torch.allclose(alone[0], together[i], atol=1e-3)


def test_another_draw_gives_another_picture() -> None:
    pictures, aspects = canvases(2), torch.ones(2, dtype=torch.float64)
    one, two = (augment(pictures, aspects, uniform(2, seed), SIZE, Augment()) for seed in (0, 1))
    assert float((one - two).abs().mean()) > 2


def test_without_strength_it_is_a_plain_resize() -> None:
    pictures, u = canvases(3), uniform(3)
    u[:, 1] = 0.5  # aspect ratio 1: with the full area, the crop is the whole picture
    plain = F.interpolate(pictures.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
    changed = augment(pictures, torch.ones(3, dtype=torch.float64), u, SIZE, OFF)
    assert float((changed - plain).abs().mean()) < 1


def test_a_crop_keeps_the_proportions_of_the_real_picture() -> None:
    # A wide picture of vertical stripes, squashed to the canvas: aspect 4 means each canvas column is 4 px wide.
    picture = torch.zeros(1, 3, CANVAS, CANVAS, dtype=torch.uint8)
    picture[:, :, :, 40:50] = 255
    u = uniform(1)
    u[:, 0], u[:, 1:4] = 0.0, 0.5
    how = Augment(min_scale=0.25, rotation=0, perspective=0, colour=0, blur=0, jpeg=0, occlusion=0)
    seen = augment(picture, torch.tensor([4.0], dtype=torch.float64), u, SIZE, how)[0, 0, SIZE // 2] > 127
    # A quarter of the area at ratio 1 is a square of side 2h / 2 = h of a 4h x h picture: 1/4 of its width.
    assert int(seen.sum()) == pytest.approx(10 / CANVAS * 4 * SIZE, abs=2)


def test_nothing_is_ever_mirrored() -> None:
    picture = torch.zeros(1, 3, CANVAS, CANVAS, dtype=torch.uint8)
    picture[:, 0, :, : CANVAS // 2] = 255  # left: red
    picture[:, 2, :, CANVAS // 2 :] = 255  # right: blue
    picture[:, 1, : CANVAS // 2] = 255  # top: green as well
    count, how = 200, Augment(min_scale=0.35, rotation=8, perspective=0.08, colour=0, blur=0, jpeg=0, occlusion=0)
    seen = augment(picture.repeat(count, 1, 1, 1), torch.ones(count, dtype=torch.float64), uniform(count), SIZE, how)
    place = torch.arange(SIZE, dtype=torch.float32)
    red, green, blue = (seen[:, c] > 127 for c in range(3))
    both = (red.float().mean((1, 2)) > 0.1) & (blue.float().mean((1, 2)) > 0.1)
    assert int(both.sum()) > 100

    def centre(mask: torch.Tensor, axis: int) -> torch.Tensor:
        weight = mask.float().sum(axis)
        return (weight * place).sum(1) / weight.sum(1)

    assert bool((centre(red, 1)[both] < centre(blue, 1)[both]).all())
    upright = (green.float().mean((1, 2)) > 0.1) & (green.float().mean((1, 2)) < 0.9)
    assert bool((centre(green, 2)[upright] < centre(~green, 2)[upright]).all())


def test_values_stay_within_0_and_255() -> None:
    how = Augment(colour=0.9, blur=0.5, occlusion=0.5)
    seen = augment(canvases(8), torch.ones(8, dtype=torch.float64), uniform(8), SIZE, how)
    assert seen.shape == (8, 3, SIZE, SIZE)
    assert seen.dtype == torch.float32
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 255


def test_blur_smooths_and_only_the_share_that_is_asked_for() -> None:
    noise = torch.randint(0, 256, (60, 3, 128, 128), generator=torch.Generator().manual_seed(1)).float()
    u = uniform(60)
    seen = blur(noise, u, Augment(blur=0.4))
    changed = (seen - noise).abs().amax((1, 2, 3)) > 0.5
    assert changed.tolist() == (u[:, 19] < 0.4).tolist()
    assert bool((seen[changed].std((1, 2, 3)) < 0.98 * noise[changed].std((1, 2, 3))).all())
    assert torch.allclose(seen.mean((1, 2, 3)), noise.mean((1, 2, 3)), atol=1)


def test_occlusion_covers_its_share_of_pictures_and_at_most_a_quarter_of_each() -> None:
    pictures, u = canvases(1).repeat(300, 1, 1, 1), uniform(300)
    plain = augment(pictures, torch.ones(300, dtype=torch.float64), u, SIZE, OFF)
    covered = augment(
        pictures, torch.ones(300, dtype=torch.float64), u, SIZE, Augment(**{**vars(OFF), "occlusion": 0.4})
    )
    area = ((plain - covered).abs().amax(1) > 0).float().mean((1, 2))
    assert float((area > 0).float().mean()) == pytest.approx(0.4, abs=0.1)
    assert float(area.max()) <= 0.25 + 1 / SIZE
    assert float(area[area > 0].min()) > 0.005


def test_jpeg_quality_is_25_to_90_on_its_share_of_pictures() -> None:
    found = [jpeg_quality(draw, Augment(jpeg=0.5)) for draw in draws(0, 0, np.arange(400))]
    qualities = [quality for quality in found if quality is not None]
    assert len(qualities) / 400 == pytest.approx(0.5, abs=0.1)
    assert 25 <= min(qualities) < 35
    assert 80 < max(qualities) <= 90
    first = draws(0, 0, np.array([0]))[0]
    first[JPEG_DRAW], first[JPEG_QUALITY_DRAW] = 0.0, 0.5
    assert jpeg_quality(first, Augment(jpeg=0.1)) == 57
    assert jpeg_quality(first, Augment(jpeg=0)) is None
