"""Labelled pictures with vectors: readable ones kept in order, parts of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.eval.views import Views, codes_in, embed_rows
from skumatch.images import load_pixels
from skumatch.readers import open_dataset
from skumatch.spec import Image

ROWS = tuple(Row(Path(f"{sku}{number}.png"), sku, "train") for number, sku in enumerate("cabca"))


def test_skus_are_sorted_and_codes_point_into_them() -> None:
    views = Views(ROWS, np.eye(5, dtype=np.float32))
    assert views.skus == ["a", "b", "c"]
    assert [views.skus[code] for code in views.codes] == [row.sku for row in ROWS]
    assert codes_in(ROWS, ["b", "c"]).tolist() == [1, -1, 0, 1, -1]
    assert codes_in([], ["b"]).tolist() == []


def test_take_keeps_rows_and_vectors_together() -> None:
    views = Views(ROWS, np.eye(5, dtype=np.float32))
    for part in (views.take(np.array([3, 1])), views.take(np.array([False, True, False, True, False]))):
        assert len(part) == 2
        assert [views.rows[int(row.argmax())] for row in part.vectors] == list(part.rows)
    assert [row.sku for row in views.take(np.array([3, 1])).rows] == ["c", "a"]
    assert len(views.take(np.zeros(5, bool))) == 0


def test_rows_without_their_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="5 rows but vectors"):
        Views(ROWS, np.eye(4, dtype=np.float32))
    with pytest.raises(DataError, match="5 rows but vectors"):
        Views(ROWS, np.zeros(5, np.float32))


def test_readable_rows_keep_their_vectors_whatever_fails_between(store: Path, encoder: Encoder) -> None:
    rows = open_dataset(store).rows
    for number in (0, 4, 5, 17):
        rows[number].path.write_bytes(b"broken")
    done: list[int] = []
    views, problems = embed_rows(rows, encoder, Pipeline(batch=3, workers=2), done.append)
    assert [row.path for row in views.rows] == [row.path for i, row in enumerate(rows) if i not in (0, 4, 5, 17)]
    expected = encoder.encode(np.stack([load_pixels(row.path, encoder.spec) for row in views.rows]))
    assert np.allclose(views.vectors, expected, atol=1e-6)
    assert len(problems) == 4 and all(
        str(rows[i].path) in text for i, text in zip((0, 4, 5, 17), problems, strict=True)
    )
    assert sum(done) == len(rows)


def test_nothing_readable_is_no_views(store: Path, encoder: Encoder) -> None:
    views, problems = embed_rows([Row(store / "missing.png", "a", "test")], encoder, Pipeline(workers=1))
    assert views.vectors.shape == (0, encoder.spec.dim) and views.skus == [] and len(problems) == 1


def test_a_change_is_applied_to_every_picture(patterns: Path, encoder: Encoder) -> None:
    def negative(image: Image) -> Image:
        return 255 - image

    rows = open_dataset(patterns).rows[:5]
    plain, _ = embed_rows(rows, encoder, Pipeline(workers=1))
    changed, _ = embed_rows(rows, encoder, Pipeline(workers=1), change=negative)
    # The fake encoder is odd around grey: a negative's vector points the other way.
    assert (np.sum(plain.vectors * changed.vectors, axis=1) < -0.99).all()
