"""Which SKU does a crop show: the whole way from files to answers, with the fake encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.embed import Pipeline, Source
from skumatch.encoder import Encoder
from skumatch.enrol import build_gallery
from skumatch.errors import GalleryError, ImageError, ModelError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.images import read_image
from skumatch.match import CropMatches, Match, Matcher
from skumatch.readers import open_dataset


@pytest.fixture
def gallery_path(patterns: Path, encoder: Encoder, tmp_path: Path) -> Path:
    rows = open_dataset(patterns).split("train").rows
    build_gallery(tmp_path / "gallery", rows, encoder, Pipeline())
    return tmp_path / "gallery"


@pytest.fixture
def matcher(encoder: Encoder, gallery_path: Path) -> Matcher:
    return Matcher(encoder, open_gallery(gallery_path), Pipeline(batch=4, workers=2))


def crops(patterns: Path) -> list[Source]:
    return [*sorted((patterns / "test").rglob("*.png"))]


def answer(sku: str, score: float) -> Match:
    return Match(sku, "", score, 1, 0, "x.jpg", "review")


def test_fresh_views_are_recognised(matcher: Matcher, patterns: Path) -> None:
    found = matcher.match(crops(patterns), k=3)
    assert [crop.crop for crop in found] == crops(patterns)
    for crop in found:
        assert crop.error is None and isinstance(crop.crop, Path)
        best = crop.matches[0]
        assert best.sku == crop.crop.parent.name and best.source.startswith(str(patterns / "train" / best.sku))
        assert [match.rank for match in crop.matches] == [1, 2, 3] and len({m.sku for m in crop.matches}) == 3
        assert -1 <= crop.matches[-1].score <= best.score <= 1.00001
        assert matcher.gallery.view(best.view).sku == best.sku
        assert crop.decision == best.decision == crop.matches[2].decision


def test_a_view_of_the_gallery_finds_itself(matcher: Matcher, patterns: Path) -> None:
    (found,) = matcher.match([patterns / "train" / "sku-2" / "1.png"], k=1)
    assert found.matches[0].source == str(patterns / "train" / "sku-2" / "1.png")
    assert found.matches[0].score == pytest.approx(1, abs=1e-5) and found.decision == "accept"


def test_something_else_is_not_accepted(matcher: Matcher) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    (found,) = matcher.match([noise])
    assert found.decision != "accept"


def test_paths_text_bytes_arrays_and_pillow_images_give_the_same_answer(matcher: Matcher, patterns: Path) -> None:
    for path in sorted((patterns / "test").rglob("*.png"))[:3]:
        pillow = PILImage.fromarray(read_image(path))
        shown: list[Source] = [path, str(path), path.read_bytes(), read_image(path), pillow]
        found = matcher.match(shown, k=4)
        for crop in found[1:]:  # the last is in a batch of its own: rounding may differ
            assert [(m.sku, m.view, m.decision) for m in crop.matches] == [
                (m.sku, m.view, m.decision) for m in found[0].matches
            ]
            assert [m.score for m in crop.matches] == pytest.approx([m.score for m in found[0].matches], abs=1e-5)


def test_errors_stand_in_their_place(matcher: Matcher, patterns: Path, tmp_path: Path) -> None:
    good = crops(patterns)[0]
    wrong = np.zeros((4, 4), np.uint8)
    found = matcher.match([b"no picture", good, tmp_path / "missing.jpg", wrong, good, b""], k=2)
    assert [crop.error is not None for crop in found] == [True, False, True, True, False, True]
    assert [crop.decision == "error" for crop in found] == [True, False, True, True, False, True]
    assert isinstance(found[2].error, ImageError) and "missing.jpg" in str(found[2].error)
    assert found[0].matches == () and found[1].matches == found[4].matches


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one(matcher: Matcher, patterns: Path, k: int) -> None:
    with pytest.raises(GalleryError, match=f"k is {k}"):
        matcher.match(crops(patterns), k)


def test_k_larger_than_the_gallery(matcher: Matcher, patterns: Path) -> None:
    (found,) = matcher.match(crops(patterns)[:1], k=100)
    assert sorted(match.sku for match in found.matches) == [f"sku-{i}" for i in range(6)]


def test_no_crops_no_answers(matcher: Matcher) -> None:
    assert matcher.match([]) == []


def test_streaming_answers_before_the_end(matcher: Matcher, patterns: Path) -> None:
    path = crops(patterns)[0]
    done: list[int] = []

    def endless() -> Iterator[Source]:
        while True:
            yield path

    stream = matcher.stream(endless(), 1, done.append)
    first = [next(stream) for _ in range(9)]
    assert {crop.matches[0].sku for crop in first} == {"sku-0"} and done == [4, 4]


def test_a_gallery_of_another_encoder_is_refused(gallery_path: Path, make_encoder: Callable[[int], Encoder]) -> None:
    with pytest.raises(SpecMismatch):
        Matcher(make_encoder(1), open_gallery(gallery_path))


def test_opening_says_what_is_missing(gallery_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Matcher.open(tmp_path / "no-model", gallery_path, "cpu")


def test_opening_a_saved_model_and_its_gallery(patterns: Path, tmp_path: Path) -> None:
    from skumatch.encoder import open_encoder
    from skumatch.model import Contents, save_bundle
    from skumatch.towers.build import ModelSource

    encoder = open_encoder(ModelSource("timm:test_efficientnet", random_init=True, size=64, resize="squash"), "cpu")
    tower = encoder.tower
    save_bundle(tmp_path / "models", tower, None, encoder.spec, Contents({}, tower.model.state_dict()))
    rows = open_dataset(patterns).split("train").rows
    build_gallery(tmp_path / "g", rows, encoder, Pipeline())
    matcher = Matcher.open(tmp_path / "models", str(tmp_path / "g"), "cpu")
    (found,) = matcher.match([rows[7].path], k=1)
    assert found.matches[0].source == str(rows[7].path)


def test_nonsense_is_refused_where_it_is_made() -> None:
    for pair in ((answer("a", 0.1), answer("b", 0.2)), (answer("a", 0.2), answer("a", 0.1))):
        with pytest.raises(GalleryError, match="not sorted or name a SKU twice"):
            CropMatches("x.jpg", pair)


def test_the_decision_does_not_depend_on_how_many_answers_are_asked_for(matcher: Matcher, patterns: Path) -> None:
    found = crops(patterns)
    one, five = matcher.match(found, 1), matcher.match(found, 5)
    assert all(len(result.matches) == 1 for result in one)
    assert [result.decision for result in one] == [result.decision for result in five]
