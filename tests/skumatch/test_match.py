"""Which SKU does a crop show: the whole way from files to answers, with the fake encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.calibration import FILE, Calibration
from skumatch.embed import Pipeline, Source
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import GalleryError, ImageError, ModelError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.images import read_image
from skumatch.match import CropMatches, Match, Matcher, calibration_of
from skumatch.model import open_bundle, with_files
from skumatch.readers import open_dataset

NOISE = np.random.default_rng(3).integers(0, 256, (80, 80, 3)).astype(np.uint8)


@pytest.fixture
def gallery_path(patterns: Path, encoder: Encoder, tmp_path: Path) -> Path:
    rows = open_dataset(patterns).split("train").rows
    build_gallery(
        tmp_path / "gallery",
        Supply.of([replace(row, title=f"Title {row.sku[-1]}") for row in rows]),
        encoder,
        Pipeline(),
    )
    return tmp_path / "gallery"


@pytest.fixture
def matcher(encoder: Encoder, gallery_path: Path) -> Matcher:
    return Matcher(encoder, open_gallery(gallery_path), Pipeline(batch=4, workers=2))


@pytest.fixture
def calibrated(matcher: Matcher, encoder: Encoder) -> Matcher:
    """Return the matcher with a rule that accepts the fresh views of ``patterns`` and knows noise as unknown."""
    rule = Calibration(encoder.spec.digest, -25.0, (20.0, 15.0, 5.0), 0.98, 0.9, 0.2)
    return Matcher(encoder, matcher.gallery, matcher.pipeline, rule)


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
        assert best.title == f"Title {best.sku[-1]}"
        assert best.sku == crop.crop.parent.name and best.source.startswith(str(patterns / "train" / best.sku))
        assert [match.rank for match in crop.matches] == [1, 2, 3] and len({m.sku for m in crop.matches}) == 3
        assert -1 <= crop.matches[-1].score <= best.score <= 1.00001
        assert matcher.gallery.view(best.view).sku == best.sku
        assert crop.decision == best.decision == crop.matches[2].decision


def test_a_view_of_the_gallery_finds_itself(matcher: Matcher, patterns: Path) -> None:
    (found,) = matcher.match([patterns / "train" / "sku-2" / "1.png"], k=1)
    assert found.matches[0].source == str(patterns / "train" / "sku-2" / "1.png")
    assert found.matches[0].score == pytest.approx(1, abs=1e-5)


def test_without_a_calibration_every_answer_is_for_review(matcher: Matcher, patterns: Path) -> None:
    found = matcher.match([*crops(patterns), NOISE, b"broken"])
    assert [crop.decision for crop in found] == ["review"] * 13 + ["error"]
    assert {match.probability for crop in found for match in crop.matches} == {None}


def test_a_calibration_decides(matcher: Matcher, calibrated: Matcher, patterns: Path) -> None:
    asked = [*crops(patterns), NOISE, b"broken"]
    found = calibrated.match(asked, k=3)
    assert [crop.decision for crop in found] == ["accept"] * 12 + ["unknown", "error"]
    for crop, plain in zip(found[:-1], matcher.match(asked, k=3), strict=False):
        first, *others = crop.matches
        assert calibrated.calibration is not None and first.probability is not None
        assert calibrated.calibration.decide(first.probability) == crop.decision
        assert {match.probability for match in others} == {None} and {m.decision for m in others} == {crop.decision}
        assert [(m.sku, m.score, m.view) for m in crop.matches] == [(m.sku, m.score, m.view) for m in plain.matches]
    assert calibrated.match([b"broken", b""])[0].decision == "error"


def test_a_decision_changes_at_the_probability_itself(calibrated: Matcher, patterns: Path) -> None:
    rule = calibrated.calibration
    path = crops(patterns)[0]
    (found,) = calibrated.match([path], 1)
    exact = found.matches[0].probability
    assert rule is not None and exact is not None and 0 < exact < 1
    above = float(np.nextafter(exact, 2))
    for accept, unknown, decision in ((exact, 0.0, "accept"), (above, 0.0, "review"), (above, above, "unknown")):
        other = replace(rule, accept=accept, unknown=unknown)
        (answer,) = Matcher(calibrated.encoder, calibrated.gallery, None, other).match([path], 1)
        assert (answer.decision, answer.matches[0].probability) == (decision, exact)


def test_a_gallery_of_one_sku_is_decided_on_too(encoder: Encoder, patterns: Path, tmp_path: Path) -> None:
    rows = [row for row in open_dataset(patterns).split("train").rows if row.sku == "sku-3"]
    gallery = build_gallery(tmp_path / "one", Supply.of(rows), encoder, Pipeline()).gallery
    rule = Calibration(encoder.spec.digest, -25.0, (20.0, 15.0, 5.0), 0.98, 0.9, 0.2)
    own, noise = Matcher(encoder, gallery, calibration=rule).match([patterns / "test" / "sku-3" / "5.png", NOISE])
    assert own.decision == "accept" and len(own.matches) == 1 and noise.decision == "unknown"


def test_a_calibration_of_another_encoder_is_refused(
    encoder: Encoder, gallery_path: Path, make_encoder: Callable[[int], Encoder]
) -> None:
    rule = Calibration(make_encoder(1).spec.digest, 0.0, (1.0, 1.0, 1.0), 0.9, 0.9, 0.2)
    with pytest.raises(SpecMismatch, match="another model - run `skumatch calibrate` again"):
        Matcher(encoder, open_gallery(gallery_path), calibration=rule)


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
    build_gallery(tmp_path / "g", Supply.of(rows), encoder, Pipeline())
    matcher = Matcher.open(tmp_path / "models", str(tmp_path / "g"), "cpu")
    (found,) = matcher.match([rows[7].path], k=1)
    assert found.matches[0].source == str(rows[7].path)
    assert found.decision == "review" and calibration_of(tmp_path / "models") is None

    rule = Calibration(encoder.spec.digest, 3.0, (1.0, 1.0, 1.0), 0.9, 0.9, 0.2)
    made = with_files(open_bundle(tmp_path / "models"), {FILE: rule.to_bytes()})
    assert calibration_of(tmp_path / "models") == calibration_of(str(made)) == rule
    (sure,) = Matcher.open(tmp_path / "models", tmp_path / "g", "cpu").match([rows[7].path], k=1)
    assert sure.decision == "accept" and sure.matches[0].probability is not None

    other = with_files(open_bundle(made), {FILE: replace(rule, spec_digest="another").to_bytes()})
    with pytest.raises(SpecMismatch):
        Matcher.open(other, tmp_path / "g", "cpu")
    broken = with_files(open_bundle(made), {FILE: b"{}"})
    with pytest.raises(ModelError, match=r"calibration\.json is broken"):
        Matcher.open(broken, tmp_path / "g", "cpu")


def test_an_encoder_by_name_has_no_calibration(tmp_path: Path) -> None:
    assert calibration_of("timm:test_efficientnet") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        calibration_of(tmp_path / "empty")


def test_nonsense_is_refused_where_it_is_made() -> None:
    for pair in ((answer("a", 0.1), answer("b", 0.2)), (answer("a", 0.2), answer("a", 0.1))):
        with pytest.raises(GalleryError, match="not sorted or name a SKU twice"):
            CropMatches("x.jpg", pair)


def test_the_decision_does_not_depend_on_how_many_answers_are_asked_for(calibrated: Matcher, patterns: Path) -> None:
    found = [*crops(patterns), NOISE]
    one, five = calibrated.match(found, 1), calibrated.match(found, 5)
    assert all(len(result.matches) == 1 for result in one)
    assert [result.decision for result in one] == [result.decision for result in five]
    stated = [result.matches[0].probability for result in one]
    assert stated == pytest.approx([result.matches[0].probability for result in five], abs=1e-6)
