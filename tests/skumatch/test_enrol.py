"""From pictures to a gallery: every readable one becomes a view, others are reported, none is embedded twice."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch import enrol, lock
from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Enrolled, KnownViews, Supply, build_gallery, extend_gallery, replace_in_gallery
from skumatch.errors import GalleryError, LockedError, SpecMismatch
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import create_from
from skumatch.gallery_versions import prune
from skumatch.images import load_pixels
from skumatch.readers import open_dataset
from skumatch.segment import NewView
from skumatch.spec import Pixels, Vectors

PIPELINE = Pipeline(batch=5, workers=2)


class Watched:
    """An encoder that counts what it embeds, and is interrupted once it has embedded ``stop`` pictures."""

    def __init__(self, encoder: Encoder, stop: int | None = None) -> None:
        self.spec = encoder.spec
        self.encoder = encoder
        self.stop = stop
        self.count = 0

    def encode(self, pixels: Pixels) -> Vectors:
        if self.stop is not None and self.count >= self.stop:
            raise KeyboardInterrupt
        self.count += len(pixels)
        vectors: Vectors = self.encoder.encode(pixels)
        return vectors


@pytest.fixture
def rows(store: Path) -> list[Row]:
    """Return 24 pictures of 6 SKUs, which the test may change."""
    return list(open_dataset(store).split("train").rows)


@pytest.fixture
def fresh(store: Path) -> list[Row]:
    """Return 12 further pictures of the same SKUs."""
    return list(open_dataset(store).split("test").rows)


def build(store: Path, rows: Sequence[Row], encoder: Encoder) -> Gallery:
    return build_gallery(store, Supply.of(rows), encoder, PIPELINE).gallery


def kept(gallery: Gallery) -> list[tuple[str, str]]:
    return [(view.sku, view.source) for view in gallery.views()]


def pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.sku, str(row.path)) for row in rows]


def test_every_picture_becomes_a_view_of_its_sku(rows: list[Row], encoder: Encoder, tmp_path: Path) -> None:
    done: list[int] = []
    made = build_gallery(tmp_path / "g", Supply.of(rows), encoder, PIPELINE, done.append)
    assert (made.failures, made.unreadable, made.known, made.resumed, sum(done)) == ([], 0, 0, 0, 24)
    gallery = open_gallery(tmp_path / "g")
    assert gallery.counts() == {f"sku-{i}": 4 for i in range(6)} and kept(gallery) == pairs(rows)
    for view in gallery.views():
        assert view.sha256 == hashlib.sha256(Path(view.source).read_bytes()).hexdigest()
        assert PILImage.open(BytesIO(gallery.thumb(view.id))).format == "JPEG"
    vectors = encoder.encode(np.stack([load_pixels(row.path, encoder.spec) for row in rows]))
    found = gallery.search(vectors, 1)
    assert found.views[:, 0].tolist() == list(range(24)) and np.allclose(found.scores, 1, atol=1e-5)
    assert list((tmp_path / "g" / "pending").glob("*")) == []


def test_unreadable_pictures_are_reported_and_the_rest_enrolled(
    rows: list[Row], encoder: Encoder, tmp_path: Path
) -> None:
    rows[2].path.write_bytes(b"not a picture")
    rows[11].path.unlink()
    made = build_gallery(tmp_path / "g", Supply.of(rows), encoder, PIPELINE)
    assert len(made.gallery) == 22 and made.unreadable == 2
    assert [str(rows[i].path) in error for i, error in zip((2, 11), made.failures, strict=True)] == [True, True]
    assert kept(made.gallery) == pairs([row for i, row in enumerate(rows) if i not in (2, 11)])


def test_of_very_many_unreadable_pictures_the_first_thousand_are_named(
    rows: list[Row], encoder: Encoder, tmp_path: Path
) -> None:
    missing = [Row(tmp_path / f"{i}.jpg", "a", "train") for i in range(enrol.LISTED + 20)]
    made = build_gallery(tmp_path / "g", Supply.of([*missing, *rows]), encoder, Pipeline(batch=64, workers=2))
    assert (len(made.gallery), made.unreadable, len(made.failures)) == (24, enrol.LISTED + 20, enrol.LISTED)
    assert "/999.jpg" in made.failures[-1] and "a" not in made.gallery.skus


def test_files_that_the_sku_has_already_are_skipped(
    rows: list[Row], fresh: list[Row], encoder: Encoder, tmp_path: Path
) -> None:
    gallery = build(tmp_path / "g", rows[:20], encoder)
    made = extend_gallery(gallery, Supply.of([*rows, *fresh, *fresh]), encoder, PIPELINE)
    assert (len(made.gallery), made.known, made.gallery.version) == (36, 32, "v000002")
    again = extend_gallery(made.gallery, Supply.of([*rows, *fresh]), encoder, PIPELINE)
    assert (again.known, again.gallery) == (36, made.gallery)
    assert open_gallery(tmp_path / "g").version == "v000002"
    copied = extend_gallery(made.gallery, Supply.of([replace(rows[0], sku="other")]), encoder, PIPELINE)
    assert (copied.known, copied.gallery.counts()["other"]) == (0, 1)  # the same file under another SKU is news


def test_known_views_are_known_by_sku_and_file(tmp_path: Path, encoder: Encoder) -> None:
    vector = np.eye(1, 32, dtype=np.float32)[0]
    given = [
        NewView("a", "", "ab" * 32, b"", vector),
        NewView("b", "", "", b"", vector),
        NewView("", "", "00" * 32, b"", vector),
    ]
    known = KnownViews(create_from(tmp_path / "g", encoder.spec, given))
    asked = [("a", "ab" * 32), ("b", "ab" * 32), ("b", "ab" * 32), ("a", "cd" * 32), ("a", "AB" * 32), ("c", "")]
    assert [known.add(*one) for one in asked] == [False, True, False, True, False, True]
    assert known.add("b", "") and known.add("b", "")  # what file it is nobody knows


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_an_interrupted_build_goes_on_where_it_was(
    chunk: int, rows: list[Row], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol, "CHUNK", chunk)
    rows[3].path.write_bytes(b"not a picture")
    supply = Supply.of(rows)
    first, second = Watched(encoder, 10), Watched(encoder)
    with pytest.raises(KeyboardInterrupt):
        build_gallery(tmp_path / "g", supply, first, PIPELINE)
    with pytest.raises(GalleryError, match="there is no gallery"):
        open_gallery(tmp_path / "g")
    told: list[int] = []
    made = build_gallery(tmp_path / "g", supply, second, PIPELINE, told.append)
    assert first.count + second.count == 23 and made.resumed >= first.count >= 10  # the rest, and nothing twice
    assert sum(told) == 24 and told[0] == made.resumed
    assert (made.unreadable, len(made.failures)) == (1, 1) and str(rows[3].path) in made.failures[0]
    assert kept(made.gallery) == pairs([row for row in rows if row is not rows[3]])
    assert list((tmp_path / "g" / "pending").iterdir()) == []


def test_an_interrupted_addition_knows_what_it_has_added(
    rows: list[Row], fresh: list[Row], encoder: Encoder, tmp_path: Path
) -> None:
    gallery = build(tmp_path / "g", rows, encoder)
    twins = [replace(row, path=Path(shutil.copy(row.path, tmp_path / f"{i}.png"))) for i, row in enumerate(fresh)]
    supply = Supply.of([*fresh, *rows[:5], *twins])
    with pytest.raises(KeyboardInterrupt):
        extend_gallery(gallery, supply, Watched(encoder, 10), PIPELINE)
    assert open_gallery(tmp_path / "g").version == "v000001"
    prune(tmp_path / "g", 1)  # leaves what is under way
    second = Watched(encoder)
    made = extend_gallery(gallery, supply, second, PIPELINE)
    assert (len(made.gallery), made.known, made.resumed, second.count) == (36, 17, 10, 19)
    assert kept(made.gallery)[24:] == pairs(fresh) and made.gallery.version == "v000002"
    assert made.gallery.published.facts["reason"] == "add 12 views"


def test_a_job_whose_segments_are_gone_begins_anew(rows: list[Row], encoder: Encoder, tmp_path: Path) -> None:
    supply = Supply.of(rows)
    with pytest.raises(KeyboardInterrupt):
        build_gallery(tmp_path / "g", supply, Watched(encoder, 10), PIPELINE)
    shutil.rmtree(tmp_path / "g" / "segments")
    again = Watched(encoder)
    made = build_gallery(tmp_path / "g", supply, again, PIPELINE)
    assert (made.resumed, again.count, len(made.gallery)) == (0, 24, 24)


def test_other_rows_or_another_encoder_are_another_job(
    rows: list[Row], make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_gallery(tmp_path / "g", Supply.of(rows), Watched(make_encoder(0), 10), PIPELINE)
    others = [replace(rows[0], sku="other"), *rows[1:]]
    assert build_gallery(tmp_path / "g", Supply.of(others), make_encoder(0), PIPELINE).resumed == 0
    assert build_gallery(tmp_path / "g", Supply.of(rows), make_encoder(1), PIPELINE).resumed == 0
    assert build_gallery(tmp_path / "g", Supply.of(rows), make_encoder(0), PIPELINE).resumed == 10


def test_what_was_embedded_is_kept_when_another_writer_holds_the_lock(
    rows: list[Row], fresh: list[Row], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = build(tmp_path / "g", rows, encoder)
    monkeypatch.setattr(lock, "WAIT", 0.0)
    with lock.writing(tmp_path / "g", "other"), pytest.raises(LockedError, match="other"):
        extend_gallery(gallery, Supply.of(fresh), encoder, PIPELINE)
    again = Watched(encoder)
    made = extend_gallery(gallery, Supply.of(fresh), again, PIPELINE)
    assert (made.resumed, again.count, len(made.gallery)) == (12, 0, 36)


def test_rows_stand_for_all_views_that_their_skus_had(
    rows: list[Row], fresh: list[Row], encoder: Encoder, tmp_path: Path
) -> None:
    gallery = build(tmp_path / "g", [replace(row, title="Old", group="g") for row in rows], encoder)
    fresh[4].path.write_bytes(b"not a picture")  # SKU 2 keeps one new view, SKU 3 has no readable one
    fresh[6].path.unlink()
    fresh[7].path.unlink()
    given = [*(replace(row, title="New") for row in fresh[:8]), replace(rows[0], sku="other")]
    made = replace_in_gallery(gallery, Supply.of(given), encoder, PIPELINE)
    assert made.gallery.counts() == {"sku-0": 2, "sku-1": 2, "sku-2": 1, "sku-3": 4, "sku-4": 4, "sku-5": 4, "other": 1}
    assert made.unreadable == 3 and made.gallery.ids.tolist() == [*range(12, 30)]
    assert made.gallery.facts.of("sku-1") == {"title": "New", "group": "g"}
    again = replace_in_gallery(made.gallery, Supply.of([rows[0], rows[0]]), encoder, PIPELINE)
    assert again.gallery.counts()["sku-0"] == 2 and again.known == 0


def test_another_encoder_is_refused_before_any_work(
    rows: list[Row], make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    gallery = build(tmp_path / "g", rows, make_encoder(0))
    other = Watched(make_encoder(1))
    for change in (extend_gallery, replace_in_gallery):
        with pytest.raises(SpecMismatch):
            change(gallery, Supply.of(rows), other, PIPELINE)
    assert open_gallery(tmp_path / "g").version == "v000001" and other.count == 0


def test_a_failed_build_or_addition_leaves_the_old_version(rows: list[Row], encoder: Encoder, tmp_path: Path) -> None:
    gallery = build(tmp_path / "g", rows, encoder)
    missing = Supply.of([Row(tmp_path / "none.jpg", "a", "train", "Title")])
    calls: list[Callable[[], Enrolled[Gallery]]] = [
        lambda: build_gallery(tmp_path / "g", missing, encoder, PIPELINE),
        lambda: build_gallery(tmp_path / "g", Supply.of([]), encoder, PIPELINE),
        lambda: extend_gallery(gallery, missing, encoder, PIPELINE),
        lambda: replace_in_gallery(gallery, missing, encoder, PIPELINE),
    ]
    for call in calls:
        with pytest.raises(GalleryError, match="no view could be read"):
            call()
    after = open_gallery(tmp_path / "g", full=True)
    assert (after.version, len(after)) == ("v000001", 24) and not list((tmp_path / "g" / "pending").glob("*"))


def test_facts_and_odd_names(rows: list[Row], encoder: Encoder, tmp_path: Path) -> None:
    odd = tmp_path / "odd \N{SNOWMAN} name'\n.png"
    odd.write_bytes(rows[0].path.read_bytes())
    given = [Row(odd, "a", "train"), Row(rows[0].path, "a", "train", "Apple", extra={"brand": "Acme", "size": ""})]
    given += [Row(rows[0].path, "a", "train", "Pear", "fruit"), Row(rows[1].path, "b", "train", "Caf\udce9")]
    gallery = build(tmp_path / "g", given, encoder)
    assert gallery.facts.of("a") == {"title": "Apple", "brand": "Acme", "group": "fruit"}  # the first word counts
    assert gallery.facts.of("b") == {"title": r"Caf\xe9"}  # a table in Latin-1
    assert gallery.view(0).source == str(odd)
    told = [replace(given[1], title="Apfel", extra={"size": "1 l"})]
    made = extend_gallery(gallery, Supply.of(told), encoder, PIPELINE)
    assert (made.known, len(made.gallery), made.gallery.published.facts["reason"]) == (1, 4, "update facts of 1 SKU")
    assert made.gallery.facts.of("a") == {"title": "Apfel", "brand": "Acme", "group": "fruit", "size": "1 l"}
    again = extend_gallery(made.gallery, Supply.of(told), encoder, PIPELINE)
    assert again.gallery is made.gallery  # no news, no version
