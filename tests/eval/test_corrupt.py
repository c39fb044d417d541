"""Corruptions of a picture: the same every time, worse with every strength, and as large as they say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.errors import ConfigError, ImageError
from skumatch.eval.corrupt import KINDS, STRENGTHS, VALUES, check, corrupt, examples, value_text
from skumatch.spec import Image

COVER_FORMS = 3


def pack(seed: int = 0, height: int = 240, width: int = 200) -> Image:
    """Draw a picture with large areas, edges and fine print, as a pack has them."""
    rng = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    picture[:] = rng.integers(60, 240, (6, 5, 3))[y * 6 // height, x * 5 // width]
    picture[(y // 3 + x // 5) % 7 == 0] //= 3
    return picture


def distance(a: Image, b: Image) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_is_hurt_in_the_same_way_whatever_the_order(kind: str) -> None:
    pictures = [pack(seed) for seed in range(6)]
    alone = [corrupt(picture, kind, 3, seed=5) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda picture: corrupt(picture.copy(), kind, 3, seed=5), pictures[::-1]))
    assert all(np.array_equal(a, b) for a, b in zip(alone, threaded[::-1], strict=True))


@pytest.mark.parametrize("kind", ["darkness", "occlusion", "rotation"])
def test_picture_and_seed_choose_place_and_noise(kind: str) -> None:
    assert len({corrupt(pack(), kind, 3, seed).tobytes() for seed in range(8)}) > 1
    flat = [np.full((60, 60, 3), value, np.uint8) for value in range(100, 116)]
    covered = {(corrupt(picture, "occlusion", 4) != picture).any(axis=2).tobytes() for picture in flat}
    assert len(covered) > COVER_FORMS  # forms, sides and, for hands, shapes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(240, 200), (90, 310), (700, 1100)])
def test_each_strength_is_farther_from_the_original(kind: str, shape: tuple[int, int]) -> None:
    for seed in range(3):
        picture = pack(seed, *shape)
        far = [distance(corrupt(picture, kind, strength, seed), picture) for strength in (0, *STRENGTHS)]
        assert far[0] == 0
        assert far == sorted(far) and len(set(far)) == len(far), far


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_handed_in_is_not_touched(kind: str) -> None:
    picture = pack()
    before = picture.copy()
    corrupt(picture, kind, 5)
    assert np.array_equal(picture, before)
    picture.flags.writeable = False  # as Pillow's arrays are
    assert corrupt(picture, kind, 5).shape == picture.shape
    assert corrupt(picture, kind, 0) is picture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 300), (2, 40_000), (40_000, 3), (1203, 541)])
def test_every_shape_is_kept(kind: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for strength in (1, 5):
        changed = corrupt(picture, kind, strength)
        assert changed.shape == picture.shape and changed.dtype == np.uint8 and changed.flags.c_contiguous


@pytest.mark.parametrize("kind", KINDS)
def test_views_into_larger_arrays_are_taken(kind: str) -> None:
    picture = pack(0, 200, 300)[::2, ::-1]
    assert np.array_equal(corrupt(picture, kind, 3), corrupt(np.ascontiguousarray(picture), kind, 3))


@pytest.mark.parametrize("kind", ["blur", "darkness", "jpeg"])
def test_a_large_picture_is_hurt_as_a_small_one_is(kind: str) -> None:
    small = np.asarray(PILImage.fromarray(pack(0, 48, 40)).resize((500, 600), PILImage.Resampling.BICUBIC))
    large = np.asarray(PILImage.fromarray(small).resize((1500, 1800), PILImage.Resampling.BICUBIC))
    near, far = (distance(corrupt(picture, kind, 4), picture) for picture in (small, large))
    assert far == pytest.approx(near, rel=0.15)


def test_rotation_turns_about_the_centre_and_leaves_no_black_corner() -> None:
    picture = np.full((201, 151, 3), 90, np.uint8)
    picture[98:103, 73:78] = 250
    for strength in STRENGTHS:
        turned = corrupt(picture, "rotation", strength)
        assert turned[99:102, 74:77].min() > 200
        assert turned[:95].min() >= 89 and turned[106:].min() >= 89
    line = np.full((201, 201, 3), 90, np.uint8)
    line[:, 100] = 250
    turned = corrupt(line, "rotation", 5)
    top, bottom = int(turned[20, :, 0].argmax()), int(turned[180, :, 0].argmax())
    angle = np.degrees(np.arctan2(abs(top - bottom), 160))
    assert angle == pytest.approx(VALUES["rotation"][4], abs=1)


def test_rotation_turns_to_both_sides() -> None:
    line = np.full((101, 101, 3), 90, np.uint8)
    line[:, 50] = 250
    sides = {int(corrupt(line, "rotation", 5, seed)[10, :, 0].argmax()) > 50 for seed in range(20)}
    assert sides == {True, False}


def test_occlusion_covers_the_stated_share_and_only_grows() -> None:
    picture = np.zeros((220, 180, 3), np.uint8)  # nothing drawn on a cover is black
    for seed in range(12):
        before = np.zeros(picture.shape[:2], bool)
        for strength in STRENGTHS:
            covered = corrupt(picture, "occlusion", strength, seed).any(axis=2)
            assert covered.mean() == pytest.approx(VALUES["occlusion"][strength - 1] / 100, abs=0.01)
            assert not np.any(before & ~covered)
            before = np.asarray(covered)


def test_darkness_takes_the_stated_light_and_leaves_noise() -> None:
    picture = np.full((200, 200, 3), 200, np.uint8)
    for strength in STRENGTHS:
        dark = corrupt(picture, "darkness", strength).astype(float)
        stops = np.log2((200 / 255) ** 2.2 / ((dark / 255) ** 2.2).mean())
        assert stops == pytest.approx(VALUES["darkness"][strength - 1], abs=0.05)
        assert dark.std() > 0.5
    assert corrupt(np.zeros((50, 50, 3), np.uint8), "darkness", 3).max() < 40


def test_low_resolution_leaves_a_small_picture_alone() -> None:
    picture = pack(0, 150, 60)
    assert np.array_equal(corrupt(picture, "low-resolution", 1), picture)
    assert not np.array_equal(corrupt(picture, "low-resolution", 5), picture)


@pytest.mark.parametrize("kind", KINDS)
def test_every_strength_says_what_it_means(kind: str) -> None:
    texts = [value_text(kind, strength) for strength in (0, *STRENGTHS)]
    assert len(set(texts)) == 6 and texts[0] == "unchanged"
    assert all(f"{value}" in text for value, text in zip(VALUES[kind], texts[1:], strict=True))


def test_the_table_in_the_docstring_is_the_one_in_use() -> None:
    import skumatch.eval.corrupt as module

    for kind, values in VALUES.items():
        (line,) = [line for line in str(module.__doc__).splitlines() if line.startswith(f"| {kind} ")]
        assert tuple(float(cell) for cell in line.split("|")[4:9]) == values


@pytest.mark.parametrize(("kind", "strength"), [("blurr", 1), ("fog", 1), ("blur", 6), ("blur", -1)])
def test_what_is_unknown_is_refused(kind: str, strength: int) -> None:
    with pytest.raises(ConfigError, match="blur"):
        check(kind, strength)
    with pytest.raises(ConfigError, match="blur"):
        corrupt(pack(), kind, strength)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(array: Image) -> None:
    with pytest.raises(ImageError, match="not an image"):
        corrupt(array, "blur", 1)


def test_examples_are_small_pictures_of_every_strength() -> None:
    shown = examples(pack(0, 400, 300), ("blur", "darkness"), (1, 5), side=100)
    assert list(shown) == ["blur", "darkness"]
    for row in shown.values():
        pictures = [PILImage.open(BytesIO(data)) for data in row]
        assert [(picture.format, picture.size) for picture in pictures] == [("JPEG", (75, 100))] * 2
    light = [float(np.asarray(PILImage.open(BytesIO(data))).mean()) for data in shown["darkness"]]
    assert light[1] < light[0] / 2
