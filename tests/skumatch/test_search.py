"""How a model looks crops up: kept in the bundle, used by the matcher, refused when broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch import techniques
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import ModelError
from skumatch.gallery import Gallery
from skumatch.images import load_pixels
from skumatch.match import Matcher
from skumatch.readers import open_dataset
from skumatch.search import Search, search_of
from skumatch.spec import Vectors
from skumatch.techniques import NEAREST, Technique
from skumatch.testviews import with_views

PIPELINE = Pipeline(batch=5, workers=2)
TRIED = [
    Technique("vote", neighbours=5),
    Technique("prototype", strength=0.7),
    Technique("expand", neighbours=2),
    Technique("augment", neighbours=3),
    Technique("reciprocal", neighbours=4, candidates=20),
]


@pytest.fixture
def gallery(patterns: Path, tmp_path: Path, encoder: Encoder) -> Gallery:
    rows = open_dataset(patterns).split("train").rows
    return build_gallery(tmp_path / "gallery", Supply.of(rows), encoder, PIPELINE).gallery


def test_it_comes_back_as_it_was() -> None:
    search = Search(Technique("vote", neighbours=7), "flip", {"queries": 3})
    assert Search.read(search.to_bytes()) == search
    assert not search.plain
    assert Search.read(Search().to_bytes()).plain
    assert not Search(views="scale").plain


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"technique": {"name": "magic"}},
        {"technique": {"name": "vote", "neighbours": 0}},
        {"views": "upside-down"},
        {"facts": 3},
        {"technique": None},
    ],
)
def test_what_another_version_wrote_is_refused(change: dict[str, object]) -> None:
    document = {**json.loads(Search().to_bytes()), **change}
    with pytest.raises(ModelError, match=r"search\.json was written by another version"):
        Search.read(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe", b"null"])
def test_what_is_no_search_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"search\.json"):
        Search.read(data)


def test_a_model_that_does_not_say_searches_plainly(tmp_path: Path) -> None:
    assert search_of(None).plain
    assert search_of("open_clip:ViT-B-32/openai").plain
    assert search_of(tmp_path / "nowhere").plain


@pytest.mark.parametrize("technique", TRIED, ids=lambda technique: technique.name)
def test_the_matcher_answers_with_the_technique(
    technique: Technique, gallery: Gallery, patterns: Path, encoder: Encoder
) -> None:
    crops = [row.path for row in open_dataset(patterns).split("test")]
    found = Matcher(encoder, gallery, PIPELINE, search=Search(technique)).match(crops, 3)
    vectors = encoder.encode(np.stack([load_pixels(crop, encoder.spec) for crop in crops]))
    from skumatch.index.exact import ExactIndex

    store = techniques.prepared(technique, gallery, gallery.ids, lambda: ExactIndex(gallery.spec.dim))
    expected = techniques.search(technique, store, vectors, 3)
    said = [[gallery.skus.index(match.sku) for match in one.matches] for one in found]
    assert said == expected.skus.tolist()
    assert np.allclose([[match.score for match in one.matches] for one in found], expected.scores, atol=1e-5)
    plain = Matcher(encoder, gallery, PIPELINE).match(crops, 3)
    assert [one.matches[0].sku for one in found] == [one.matches[0].sku for one in plain]  # these crops are easy
    assert [one.matches[0].score for one in found] != [one.matches[0].score for one in plain]


def test_the_matcher_embeds_crops_in_test_time_views(gallery: Gallery, patterns: Path, encoder: Encoder) -> None:
    crop = open_dataset(patterns).split("test").rows[0].path
    best = Matcher(encoder, gallery, PIPELINE, search=Search(views="flip")).match([crop], 1)[0].matches[0]
    vector = with_views(encoder, "flip").encode(load_pixels(crop, encoder.spec)[None])
    assert best.score == pytest.approx(float(gallery.search(vector, 1).scores[0, 0]), abs=1e-5)
    plain = encoder.encode(load_pixels(crop, encoder.spec)[None])
    assert best.score != pytest.approx(float(gallery.search(plain, 1).scores[0, 0]), abs=1e-4)


def test_prototypes_are_the_mean_of_each_skus_views(gallery: Gallery, make_encoder: Callable[[int], Encoder]) -> None:
    vectors, codes = gallery.prototypes()
    assert codes.tolist() == list(range(len(gallery.skus)))
    for vector, code in zip(vectors, codes, strict=True):
        views: Vectors = gallery.vectors_of(np.array(gallery.ids_of(gallery.skus[int(code)])))
        mean = views.mean(axis=0)
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_nothing_is_prepared_for_the_plain_search(gallery: Gallery, encoder: Encoder) -> None:
    assert Matcher(encoder, gallery)._held.store.index is gallery.index
    assert Search().technique == NEAREST
