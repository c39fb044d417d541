"""Telling regions: the map peaks where two SKUs differ, and the overlay keeps that place in colour."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from skumatch.dataset import Row
from skumatch.encoder import Encoder
from skumatch.eval.lookalikes import Group, Pair
from skumatch.eval.regions import overlay, seen, telling_map, telling_overlays
from skumatch.eval.views import Views
from skumatch.images import to_pixels
from skumatch.spec import Image, Preprocess, Vectors

HALF = (0.5, 0.5, 0.5)


def twins(row: int, column: int, seed: int) -> tuple[Image, Image]:
    """Return two 4 x 4 patterns of 64 px that differ in one cell: magenta in one, green in the other."""
    one = np.random.default_rng(seed).integers(60, 196, (4, 4, 3)).astype(np.uint8)
    two = one.copy()
    one[row, column], two[row, column] = (235, 20, 235), (20, 235, 20)
    return one.repeat(16, 0).repeat(16, 1), two.repeat(16, 0).repeat(16, 1)


def vectors(encoder: Encoder, picture: Image) -> Vectors:
    return encoder.encode(to_pixels(picture, encoder.spec)[None])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 1), (3, 3)])
def test_the_map_peaks_in_the_one_cell_that_differs(encoder: Encoder, row: int, column: int, seed: int) -> None:
    one, two = twins(row, column, seed)
    evidence = telling_map(encoder, one, vectors(encoder, one), vectors(encoder, two), cells=4)
    assert evidence.shape == (4, 4)
    assert evidence.dtype == np.float32
    assert evidence.argmax() == 4 * row + column
    assert evidence.max() > 0


def test_the_other_skus_regions_count_against(encoder: Encoder) -> None:
    one, two = twins(1, 2, 0)
    own, other = vectors(encoder, one), vectors(encoder, two)
    towards, against = (telling_map(encoder, one, *pair, cells=4) for pair in ((own, other), (other, own)))
    assert towards == pytest.approx(-against)


def test_a_sku_against_itself_has_no_telling_region(encoder: Encoder) -> None:
    one, _ = twins(1, 2, 0)
    own = vectors(encoder, one)
    assert not telling_map(encoder, one, own, own).any()


def test_of_several_rows_the_nearest_counts(encoder: Encoder) -> None:
    one, two = twins(1, 2, 0)
    own, other = vectors(encoder, one), vectors(encoder, two)
    assert telling_map(encoder, one, np.concatenate([-own, own]), other) == pytest.approx(
        telling_map(encoder, one, own, other)
    )


@pytest.mark.parametrize("cells", [1, 65])
def test_impossible_cells_are_refused(encoder: Encoder, cells: int) -> None:
    one, _ = twins(0, 0, 0)
    with pytest.raises(ValueError, match="cells on 64 pixels"):
        telling_map(encoder, one, vectors(encoder, one), vectors(encoder, one), cells)


@pytest.mark.parametrize(("resize", "size"), [("squash", (64, 32)), ("crop", (64, 64)), ("pad", (64, 64))])
def test_what_is_seen_has_the_maps_extent(resize: str, size: tuple[int, int]) -> None:
    how = Preprocess(64, HALF, HALF, resize, 1.0, "bicubic")  # type: ignore[arg-type]
    tall = np.zeros((200, 100, 3), np.uint8)
    tall[:100] = 255
    view = seen(tall, how)
    assert view.shape == (*size, 3)
    assert view[8, view.shape[1] // 2].min() > 240
    assert view[-8].max() < 240 or resize == "pad"


def read(jpeg: bytes) -> NDArray[np.float64]:
    return np.asarray(PILImage.open(BytesIO(jpeg))).astype(np.float64)


def test_the_overlay_keeps_colour_where_the_evidence_is() -> None:
    picture = np.full((40, 80, 3), (200, 40, 40), np.uint8)
    evidence = np.full((4, 4), -1.0, np.float32)
    evidence[1, 3] = 2.0
    shown = read(overlay(picture, evidence, side=160))
    assert shown.shape == (80, 160, 3)
    spread = shown.max(axis=2) - shown.min(axis=2)
    assert spread[30, 140] > 100  # the middle of the cell
    assert spread[:, :80].max() < 20
    assert spread[21, 140] > 100  # its frame
    assert shown[21, 140, 1] > 100  # which is orange, not red


def test_a_map_without_evidence_is_grey_all_over() -> None:
    picture = np.full((40, 40, 3), (200, 40, 40), np.uint8)
    shown = read(overlay(picture, np.zeros((7, 7), np.float32)))
    assert (shown.max(axis=2) - shown.min(axis=2)).max() < 10


def test_overlays_come_in_both_directions_and_skip_what_cannot_be_read(encoder: Encoder, tmp_path: Path) -> None:
    rows, found = [], []
    for sku, picture in zip("ab", twins(2, 1, 0), strict=True):
        PILImage.fromarray(picture).save(tmp_path / f"{sku}.png")
        rows.append(Row(tmp_path / f"{sku}.png", sku, "train"))
        found.append(vectors(encoder, picture))
    gallery = Views(tuple(rows), np.concatenate(found))
    groups = [Group(("a", "b"), (Pair("a", "b", 0.9, 0),), 0.0)]
    done: list[int] = []
    made = dict(telling_overlays(encoder, gallery, groups, progress=done.append))
    assert list(made) == [("a", "b"), ("b", "a")]
    assert sum(done) == 2
    (tmp_path / "a.png").unlink()
    assert list(dict(telling_overlays(encoder, gallery, groups))) == [("b", "a")]
