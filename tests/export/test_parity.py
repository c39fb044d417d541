"""The gate: what an export may change, and that a changed one is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.export.parity import Answers, Parity, compare, thinned
from skumatch.spec import Pixels, Vectors


class Turned:
    """An encoder whose vectors are turned towards one direction: the more, the less they tell apart."""

    def __init__(self, encoder: Encoder, share: float, precision: str) -> None:
        self.encoder = encoder
        self.share = share
        self.spec = replace(encoder.spec, precision=precision)

    def encode(self, pixels: Pixels) -> Vectors:
        rows = (1 - self.share) * self.encoder.encode(pixels)
        rows[:, 0] += self.share
        turned: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return turned


@pytest.fixture
def sides(patterns: Path) -> tuple[list[Row], list[Row]]:
    def rows(split: str) -> list[Row]:
        return [Row(path, path.parent.name, split) for path in sorted((patterns / split).rglob("*.png"))]

    return rows("train"), rows("test")


def test_the_same_network_passes_and_a_turned_one_does_not(
    encoder: Encoder, sides: tuple[list[Row], list[Row]]
) -> None:
    gallery, queries = sides
    done: list[int] = []
    others = {
        "same": Turned(encoder, 0, "fp32"),
        "near": Turned(encoder, 0.01, "fp16"),
        "far": Turned(encoder, 0.9, "int8"),
    }
    found = compare(encoder, others, gallery, queries, Pipeline(batch=5), done.append)
    assert sum(done) == len(gallery) + len(queries) == 36
    same, near, far = (found[name] for name in ("same", "near", "far"))
    assert same.min_cosine > 0.999999 and same.answers is not None and same.answers.queries == 12
    assert same.answers.agreement == 1 and same.answers.before == same.answers.after > 0.5
    assert same.beyond() == [] and same.precision == "fp32" and same.pictures == 12
    assert 0.999 < near.min_cosine < 0.99999 and near.beyond() == []
    assert replace(near, precision="fp32").beyond() == [f"least cosine {near.min_cosine:.6f} is below 0.99999"]
    assert far.min_cosine < 0.9 and far.answers is not None and far.answers.points_lost > 8
    assert far.beyond() == [f"top-1 falls by {far.answers.points_lost:.1f} points, more than 0.5"]
    assert far.to_json()["beyond"] == far.beyond() and far.to_json()["answers"]["queries"] == 12


@pytest.mark.parametrize(
    ("queries", "right", "stays"),
    [(10, 9, True), (10, 8, False), (1000, 995, True), (1000, 994, False), (1000, 1001, True)],
)
def test_half_a_point_or_a_single_crop_may_be_lost(queries: int, right: int, stays: bool) -> None:
    parity = Parity("int8", queries, 0.9, 0.95, Answers(queries, 0.9, 1.0, right / queries))
    assert (parity.beyond() == []) == stays


def test_without_a_gallery_vectors_alone_are_compared(encoder: Encoder, sides: tuple[list[Row], list[Row]]) -> None:
    found = compare(encoder, {"same": encoder}, [], sides[1], Pipeline())
    assert found["same"].answers is None and found["same"].pictures == 12 and found["same"].beyond() == []


def test_unreadable_crops_are_left_out_and_none_is_an_error(
    encoder: Encoder, sides: tuple[list[Row], list[Row]], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    broken = Row(tmp_path / "broken.png", "sku-0", "test")
    assert compare(encoder, {"same": encoder}, sides[0], [broken, *sides[1]], Pipeline())["same"].pictures == 12
    with pytest.raises(DataError, match="no readable crop to compare the answers on"):
        compare(encoder, {"same": encoder}, sides[0], [broken], Pipeline())


def test_a_guarded_encoder_asks_with_its_own_rows(
    make_encoder: Callable[[int], Encoder], sides: tuple[list[Row], list[Row]]
) -> None:
    class Guarded:
        """Asks with rows that find nothing."""

        def asking(self, vectors: Vectors) -> Vectors:
            return -vectors

    other = make_encoder(0)
    other.guard = Guarded()  # type: ignore[attr-defined]
    found = compare(make_encoder(0), {"other": other}, *sides, Pipeline())["other"]
    assert found.min_cosine > 0.999999 and found.answers is not None and found.answers.agreement < 0.5


def test_thinning_is_even(sides: tuple[list[Row], list[Row]]) -> None:
    rows = sides[0]
    assert thinned(rows, 100) == rows
    few = thinned(rows, 5)
    assert few[0] == rows[0] and few[-1] == rows[-1] and len({row.path for row in few}) == 5
