"""The perceptual hash, the search over hashes, and the pixel check."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from skumatch import phash
from skumatch.errors import ImageError
from skumatch.eval.leaks import SAME_AGREEMENT, SAME_WORST

Change = Callable[[PILImage.Image], PILImage.Image]


def scene(seed: int, width: int = 300, height: int = 240) -> PILImage.Image:
    """Draw a made-up shelf: a background in one of many lights and forty coloured shapes, some with lettering."""
    rng = np.random.default_rng(seed)
    picture = PILImage.new("RGB", (width, height), tuple(int(v) for v in rng.integers(60, 200, 3)))
    pen = ImageDraw.Draw(picture)
    for number in range(40):
        x, y = int(rng.integers(-20, width)), int(rng.integers(-20, height))
        box = (x, y, x + int(rng.integers(20, 80)), y + int(rng.integers(20, 80)))
        colour = tuple(int(v) for v in rng.integers(20, 230, 3))
        (pen.ellipse if number % 2 else pen.rectangle)(box, fill=colour)
        pen.text((x + 4, y + 4), f"No {number}", fill=(240, 240, 240))
    return picture


def saved(picture: PILImage.Image, quality: int = 90) -> bytes:
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def cut(left: float, top: float, right: float, bottom: float) -> Change:
    def change(picture: PILImage.Image) -> PILImage.Image:
        width, height = picture.size
        return picture.crop(
            (round(left * width), round(top * height), round(width - right * width), round(height - bottom * height))
        )

    return change


def brighter(factor: float) -> Change:
    return lambda picture: picture.point(lambda value: min(255, int(value * factor)))


def smaller(scale: float) -> Change:
    return lambda picture: picture.resize((round(picture.width * scale), round(picture.height * scale)))


def same(view: bytes, query: bytes) -> bool:
    laid = phash.overlay(phash.plane(view), phash.plane(query))
    return laid.agreement >= SAME_AGREEMENT and laid.worst >= SAME_WORST


COPIES: dict[str, Change] = {
    "cut on all sides": cut(0.05, 0.05, 0.05, 0.05),
    "cut more on one side": cut(0.08, 0, 0, 0.03),
    "brighter": brighter(1.2),
    "darker": brighter(0.7),
    "half the size": smaller(0.5),
    "cut and darker": lambda picture: brighter(0.8)(cut(0.06, 0.06, 0.06, 0.06)(picture)),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_changed_copy_is_the_same_photo_whichever_side_it_is_on(change: Change, seed: int) -> None:
    original, copy = saved(scene(seed)), saved(change(scene(seed)), quality=60)
    assert same(original, copy) and same(copy, original)


def test_small_crops_are_compared_at_the_detail_they_have() -> None:
    original = scene(3).resize((80, 64))
    assert same(saved(original), saved(smaller(0.6)(original), quality=80))
    assert phash.plane(saved(original)).detail == 64


def test_another_scene_is_not_the_same_photo() -> None:
    planes = [phash.plane(saved(scene(seed))) for seed in range(8)]
    for first in range(8):
        for second in range(first):
            assert phash.overlay(planes[first], planes[second]).agreement < 0.5


def test_a_scene_with_something_moved_is_not_the_same_photo() -> None:
    moved = scene(0)
    moved.paste(moved.crop((0, 0, 90, 90)), (150, 120))
    laid = phash.overlay(phash.plane(saved(scene(0))), phash.plane(saved(moved)))
    assert laid.agreement > 0.7 and laid.worst < SAME_WORST


def test_the_overlap_is_the_share_in_common() -> None:
    laid = phash.overlay(phash.plane(saved(scene(0))), phash.plane(saved(cut(0, 0, 0.1, 0)(scene(0)))))
    assert laid.overlap == pytest.approx(1.0, abs=0.02)  # the cut query lies within the view
    laid = phash.overlay(phash.plane(saved(cut(0, 0, 0.1, 0)(scene(0)))), phash.plane(saved(scene(0))))
    assert laid.overlap == pytest.approx(0.9, abs=0.02)


@pytest.mark.filterwarnings("error")
def test_blank_pictures_tell_nothing() -> None:
    white, black = (phash.plane(saved(PILImage.new("RGB", (64, 64), colour))) for colour in ("white", "black"))
    for view, query in ((white, white), (white, black), (white, phash.plane(saved(scene(0))))):
        assert phash.overlay(view, query).agreement <= 0


def test_the_hash_survives_encoding_size_and_light_and_tells_scenes_apart() -> None:
    bits = [phash.fingerprint(saved(scene(seed))).bits for seed in range(10)]
    for seed, own in enumerate(bits):
        for copy in (saved(scene(seed), 40), saved(smaller(0.5)(scene(seed))), saved(brighter(0.8)(scene(seed)))):
            assert (own ^ phash.fingerprint(copy).bits).bit_count() <= 6
        assert min((own ^ other).bit_count() for other in bits if other is not own) > 12
        assert (own ^ phash.plane(saved(scene(seed))).bits).bit_count() <= 4


def test_the_hash_is_that_of_the_paper() -> None:
    """A picture that is one cosine wave has one large coefficient; its sign is the bit at that frequency."""
    wave = np.cos(np.pi * (2 * np.arange(32) + 1) * 3 / 64)
    grey = (128 + 100 * np.outer(np.cos(np.pi * (2 * np.arange(32) + 1) * 2 / 64), wave)).astype(np.float32)
    place = 1 << (63 - (8 * (2 - 1) + (3 - 1)))  # row 2, column 3, from 1; the first bit is the highest
    assert phash.hash_bits(grey) & place and not phash.hash_bits(256 - grey) & place


def test_an_unreadable_picture_is_an_image_error() -> None:
    for function in (phash.fingerprint, phash.plane):
        with pytest.raises(ImageError, match="not a JPEG"):
            function(b"text")
    with pytest.raises(ImageError, match="more than 100 pixels"):
        phash.fingerprint(saved(scene(0)), max_pixels=100)


@pytest.mark.parametrize("block", [1 << 7, 1 << 22])
def test_hashes_are_searched_as_by_hand(block: int) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 1 << 8, 90).astype(np.uint64)
    queries = rng.integers(0, 1 << 8, 130).astype(np.uint64)
    far = np.bitwise_count(queries[:, None] ^ gallery[None, :]).astype(np.int64)
    expected = []
    for query, row in enumerate(far):
        order = [int(view) for view in np.argsort(row, kind="stable") if row[view] <= 2]
        expected += [(query, view) for view in order[:3]]
    rows, views = phash.nearest_hashes(queries, gallery, 2, 3, block)
    assert list(zip(rows.tolist(), views.tolist(), strict=True)) == expected
    assert len(phash.nearest_hashes(queries[:0], gallery, 2, 3)[0]) == 0
    assert len(phash.nearest_hashes(queries, gallery[:0], 2, 3)[0]) == 0
