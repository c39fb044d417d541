"""Why an answer was given, checked against the vectors of the gallery it came from."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.calibration import NOTHING, Calibration
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import GalleryError
from skumatch.explain import Explanation, Rival, explain
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import create_from, remove_skus
from skumatch.match import Match, Matcher
from skumatch.readers import open_dataset
from skumatch.segment import NewView

RULE = Calibration("", 0.0, (1.0, 1.0, 1.0), 0.9, 0.9, 0.2)


@pytest.fixture
def gallery(patterns: Path, encoder: Encoder, tmp_path: Path) -> Gallery:
    """Return a gallery of 6 SKUs with 4 views each; sku-5 has lost all but one."""
    rows = open_dataset(patterns).split("train").rows
    told = [replace(row, title=f"Title {row.sku[-1]}", extra={"brand": "b"}) for row in rows]
    kept = [row for row in told if row.sku != "sku-5" or row.path.name == "0.png"]
    build_gallery(tmp_path / "gallery", Supply.of(kept), encoder, Pipeline())
    return open_gallery(tmp_path / "gallery")


def answers(gallery: Gallery, encoder: Encoder, crop: Path) -> tuple[Match, ...]:
    (found,) = Matcher(encoder, gallery, Pipeline()).match([crop], 6)
    return found.matches


@pytest.mark.parametrize("sku", range(6))
def test_it_tells_what_the_vectors_say(gallery: Gallery, encoder: Encoder, patterns: Path, sku: int) -> None:
    best = answers(gallery, encoder, patterns / "test" / f"sku-{sku}" / "5.png")[0]
    told = explain(gallery, None, best)
    own = np.array(gallery.ids_of(best.sku))
    others = np.setdiff1d(gallery.ids, own)
    to_others = gallery.vectors_of(others) @ gallery.vectors_of(np.array([best.view]))[0]
    nearest = gallery.view(int(others[to_others.argmax()])).sku
    assert told.rival is not None and told.rival.cosine == pytest.approx(to_others.max(), abs=1e-5)
    assert told.rival == Rival(nearest, f"Title {nearest[-1]}", told.rival.cosine)
    assert (told.sku, told.score, told.view, told.source) == (best.sku, best.score, best.view, best.source)
    assert told.facts == {"title": best.title, "brand": "b"} and told.views == len(own) == (1 if sku == 5 else 4)
    with PILImage.open(BytesIO(told.picture)) as picture:
        assert picture.format == "JPEG" and picture.size == (64, 64)
    among = gallery.vectors_of(own) @ gallery.vectors_of(own).T - 9 * np.eye(len(own))
    expected = None if sku == 5 else pytest.approx(among.max(axis=1).mean(), abs=1e-5)
    assert told.cohesion == expected
    assert str(told) == told.words and told.thresholds is None and told.probability is None


def test_words_of_an_answer(gallery: Gallery) -> None:
    view = gallery.ids_of("sku-2")[1]
    source = gallery.view(view).source
    told = explain(gallery, None, Match("sku-2", "Title 2", 0.81234, 1, view, source, "review"))
    assert told.rival is not None and told.cohesion is not None
    assert told.words == (
        f"sku-2 scores 0.81 by view {view} ({source}), one of 4 views of it, whose cosine to the nearest sister is "
        f"{told.cohesion:.2f} on average. The other SKU most like this view is {told.rival.sku} "
        f"(cosine {told.rival.cosine:.2f}). There is no calibration, so every answer is for review."
    )
    (only,) = gallery.ids_of("sku-5")
    told = explain(gallery, None, Match("sku-5", "", 0.5, 1, only, "a.jpg", "review"))
    assert "by view" in told.words and "(a.jpg), the only view of it. The other" in told.words


@pytest.mark.parametrize(
    ("probability", "accept", "words"),
    [
        (0.97, 0.9, "It is accepted: probability 0.97 is at least 0.90."),
        (0.9, 0.9, "It is accepted: probability 0.90 is at least 0.90."),
        (0.89999, 0.9, "It is for review: probability 0.89999"),
        (0.5, 0.9, "It is for review: probability 0.50 is below 0.90, which acceptance needs."),
        (0.1999, 0.9, "The crop shows no known SKU: probability 0.1999 is below 0.2000."),
        (1.0, NOTHING, "It is for review: the calibration accepts no probability, not even 1.00."),
    ],
)
def test_the_decision_is_told_by_its_threshold(gallery: Gallery, probability: float, accept: float, words: str) -> None:
    rule = replace(RULE, accept=accept)
    view = gallery.ids_of("sku-0")[0]
    match = Match("sku-0", "", 0.9, 1, view, "a.jpg", rule.decide(probability), probability)
    told = explain(gallery, rule, match)
    assert words in told.words and told.thresholds == (accept, 0.2) and told.probability == probability
    assert told.decision == rule.decide(probability)


def test_a_lower_rank_has_no_probability_of_its_own(gallery: Gallery, encoder: Encoder, patterns: Path) -> None:
    second = answers(gallery, encoder, patterns / "test" / "sku-1" / "5.png")[1]
    told = explain(gallery, RULE, second)
    assert told.rank == 2 and told.sku != "sku-1" and told.probability is None
    assert told.words.endswith("This is answer 2; the decision, review, is about the best one.")


def test_a_copy_in_another_sku_is_the_rival(encoder: Encoder, tmp_path: Path) -> None:
    vector = np.eye(1, encoder.spec.dim, dtype=np.float32)[0]
    create_from(tmp_path / "g", encoder.spec, [NewView("a", "", "", b"", vector), NewView("b", "", "", b"", vector)])
    gallery = open_gallery(tmp_path / "g")
    for sku, other in (("a", "b"), ("b", "a")):
        (view,) = gallery.ids_of(sku)
        told = explain(gallery, None, Match(sku, "", 1.0, 1, view, "", "review"))
        assert told.rival is not None and told.rival.sku == other and told.rival.cosine == pytest.approx(1)
        assert told.picture == b"" and told.facts == {}


def test_a_gallery_of_one_sku_has_no_rival(gallery: Gallery) -> None:
    remove_skus(gallery, [f"sku-{number}" for number in range(5)])
    left = gallery.refreshed()
    told = explain(left, None, Match("sku-5", "", 0.5, 1, left.ids_of("sku-5")[0], "a.jpg", "review"))
    assert told.rival is None and "The gallery has no other SKU." in told.words


def test_a_view_that_went_or_is_of_another_sku_is_refused(gallery: Gallery) -> None:
    view = gallery.ids_of("sku-3")[0]
    match = Match("sku-3", "", 0.5, 1, view, "a.jpg", "review")
    assert isinstance(explain(gallery, None, match), Explanation)
    with pytest.raises(GalleryError, match=f"view {view} .* shows 'sku-3', not 'sku-4'"):
        explain(gallery, None, replace(match, sku="sku-4"))
    remove_skus(gallery, ["sku-3"])
    with pytest.raises(GalleryError, match=f"has no view {view}"):
        explain(gallery.refreshed(), None, match)
