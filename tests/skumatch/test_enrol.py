"""From pictures to a gallery: every readable one becomes a view, every other one is reported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.dataset import Dataset, Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Enrolled, build_gallery, extend_gallery, titles_of
from skumatch.errors import GalleryError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.images import load_pixels
from skumatch.readers import open_dataset

PIPELINE = Pipeline(batch=5, workers=2)


@pytest.fixture
def data(store: Path) -> Dataset:
    return open_dataset(store)


def test_every_picture_becomes_a_view_of_its_sku(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    done: list[int] = []
    rows = data.split("train").rows
    made = build_gallery(tmp_path / "g", rows, encoder, PIPELINE, done.append)
    assert (made.failures, made.known, sum(done)) == ([], 0, 24)
    gallery = open_gallery(tmp_path / "g")
    assert data.format == "rp2k" and gallery.counts() == {f"sku-{i}": 4 for i in range(6)}
    assert [(view.sku, view.source) for view in gallery.views()] == [(row.sku, str(row.path)) for row in rows]
    for view in gallery.views():
        assert view.sha256 == hashlib.sha256(Path(view.source).read_bytes()).hexdigest()
        assert PILImage.open(BytesIO(gallery.thumb(view.id))).format == "JPEG"
    vectors = encoder.encode(np.stack([load_pixels(row.path, encoder.spec) for row in rows]))
    found = gallery.search(vectors, 1)
    assert found.views[:, 0].tolist() == list(range(24)) and np.allclose(found.scores, 1, atol=1e-5)


def test_unreadable_pictures_are_reported_and_the_rest_enrolled(
    data: Dataset, encoder: Encoder, tmp_path: Path
) -> None:
    rows = list(data.split("train").rows)
    rows[2].path.write_bytes(b"not a picture")
    rows[11].path.unlink()
    made = build_gallery(tmp_path / "g", rows, encoder, PIPELINE)
    assert len(made.gallery) == 22
    assert [str(rows[i].path) in str(error) for i, error in zip((2, 11), made.failures, strict=True)] == [True, True]
    kept = [row for i, row in enumerate(rows) if i not in (2, 11)]
    assert [view.source for view in made.gallery.views()] == [str(row.path) for row in kept]
    assert [view.sku for view in made.gallery.views()] == [row.sku for row in kept]


def test_files_that_the_sku_has_already_are_skipped(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    train, test = data.split("train").rows, data.split("test").rows
    gallery = build_gallery(tmp_path / "g", train[:20], encoder, PIPELINE).gallery
    made = extend_gallery(gallery, [*train, *test, *test], encoder, PIPELINE)
    assert (len(made.gallery), made.known, made.gallery.version) == (36, 32, "v000002")
    again = extend_gallery(made.gallery, [*train, *test], encoder, PIPELINE)
    assert (again.known, again.gallery.version) == (36, "v000002")
    assert open_gallery(tmp_path / "g").version == "v000002"
    copied = extend_gallery(made.gallery, [replace(train[0], sku="other")], encoder, PIPELINE)
    assert (copied.known, copied.gallery.counts()["other"]) == (0, 1)  # the same file under another SKU is news


def test_skipping_begins_after_whole_batches_of_known_files(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    train, test = data.split("train").rows, data.split("test").rows
    gallery = build_gallery(tmp_path / "g", train, encoder, PIPELINE).gallery
    made = extend_gallery(gallery, [*train[:12], *test[:1]], encoder, PIPELINE)
    assert (len(made.gallery), made.known) == (25, 12)


def test_another_encoder_is_refused_before_any_work(
    data: Dataset, make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    rows = data.split("train").rows
    gallery = build_gallery(tmp_path / "g", rows, make_encoder(0), PIPELINE).gallery
    with pytest.raises(SpecMismatch):
        extend_gallery(gallery, rows, make_encoder(1), PIPELINE)
    assert open_gallery(tmp_path / "g").version == "v000001"


def test_a_failed_build_or_addition_leaves_the_old_version(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    gallery = build_gallery(tmp_path / "g", data.split("train").rows, encoder, PIPELINE).gallery
    missing = [Row(tmp_path / "none.jpg", "a", "train")]
    calls: list[Callable[[], Enrolled]] = [
        lambda: build_gallery(tmp_path / "g", missing, encoder, PIPELINE),
        lambda: build_gallery(tmp_path / "g", [], encoder, PIPELINE),
        lambda: extend_gallery(gallery, missing, encoder, PIPELINE),
    ]
    for call in calls:
        with pytest.raises(GalleryError, match="no view could be read"):
            call()
    after = open_gallery(tmp_path / "g", full=True)
    assert (after.version, len(after)) == ("v000001", 24)


def test_titles_and_odd_names(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    row = data.rows[0]
    odd = tmp_path / "odd \N{SNOWMAN} name'\n.png"
    odd.write_bytes(row.path.read_bytes())
    rows = [Row(odd, "a", "train"), Row(row.path, "a", "train", "Apple"), Row(row.path, "a", "train", "Pear")]
    assert titles_of(rows) == {"a": "Apple"}
    gallery = build_gallery(tmp_path / "g", rows, encoder, PIPELINE).gallery
    assert gallery.titles == {"a": "Apple"}
    assert "odd \N{SNOWMAN} name'" in gallery.view(0).source
