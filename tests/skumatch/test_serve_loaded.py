"""One model and one version of a gallery: opened, swapped, shared, filtered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.backend import backend
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import GalleryError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import create_from, remove_skus
from skumatch.images import load_pixels
from skumatch.search import Search
from skumatch.segment import NewView
from skumatch.serve.loaded import Loader, Opened, Views
from tests.skumatch.serving import FakeModels, make_gallery


@pytest.fixture
def gallery_path(patterns: Path, encoder: Encoder, tmp_path: Path) -> Path:
    return make_gallery(patterns, encoder, tmp_path / "gallery")


@pytest.fixture
def models(encoder: Encoder) -> FakeModels:
    return FakeModels(encoder)


@pytest.fixture
def loader(models: FakeModels, gallery_path: Path) -> Loader:
    return Loader(models, backend(gallery_path), Pipeline())


def test_nothing_new_is_the_same_object(loader: Loader, models: FakeModels) -> None:
    held = loader.load()
    assert loader.load(held) is held and models.opened == 1
    assert held.model == {"name": "fake", "digest": f"{0:064x}", "precision": "fp32"}


def test_a_new_version_shares_the_model_and_leaves_the_old_as_it_was(
    loader: Loader, models: FakeModels, gallery_path: Path, patterns: Path
) -> None:
    held = loader.load()
    remove_skus(open_gallery(gallery_path), ["sku-0"])
    new = loader.load(held)
    assert models.opened == 1 and new.matcher.encoder is held.matcher.encoder and new.views is held.views
    assert (held.gallery.version, new.gallery.version) == ("v000001", "v000002")
    crop = patterns / "test" / "sku-0" / "5.png"
    assert held.matcher.match([crop])[0].matches[0].sku == "sku-0"
    assert "sku-0" not in {match.sku for match in new.matcher.match([crop])[0].matches}


def test_another_model_needs_its_own_gallery(
    loader: Loader, models: FakeModels, gallery_path: Path, make_encoder: Callable[[int], Encoder]
) -> None:
    held = loader.load()
    models.encoder = make_encoder(1)
    with pytest.raises(SpecMismatch, match="built with another model"):
        loader.load(held)
    view = NewView("a", "", "", b"", np.eye(1, 32, dtype=np.float32)[0])
    create_from(gallery_path, models.encoder.spec, [view])
    new = loader.load(held)
    assert new.model["digest"] == f"{1:064x}" and list(new.gallery.skus) == ["a"] and len(held.gallery.skus) == 6


def test_filters_are_made_once(loader: Loader) -> None:
    held = loader.load()
    where = {"brand": "brand-1"}
    assert held.known({}) is held.matcher and held.known(where) is None
    made = held.among(where)
    assert held.known(where) is made is held.among(dict(where)) and made.gallery is held.gallery
    with pytest.raises(GalleryError, match="no SKU has brand=x"):
        held.among({"brand": "x"})


def test_the_oldest_filter_goes_first(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    held = loader.load()
    monkeypatch.setattr("skumatch.serve.loaded.FILTERS", 2)
    wheres = [{"sku": f"sku-{number}"} for number in range(3)]
    for where in wheres:
        held.among(where)
    assert [held.known(where) is None for where in wheres] == [True, False, False]


def test_views_are_made_in_float32(encoder: Encoder, make_encoder: Callable[[int], Encoder]) -> None:
    opened = [0]

    def for_views() -> Encoder:
        opened[0] += 1
        return encoder

    own = Views(Opened(encoder, None, Search(), for_views))
    assert own.encoder() is encoder and opened == [0]
    small = make_encoder(0)
    small.spec = replace(small.spec, precision="int8")  # type: ignore[misc]
    other = Views(Opened(small, None, Search(), for_views))
    assert other.encoder() is other.encoder() is encoder and opened == [1]


def test_a_pinned_pair_answers_as_a_matcher_does(loader: Loader, patterns: Path) -> None:
    held = loader.load()
    crops = sorted((patterns / "test").rglob("*.png"))
    pixels = np.stack([load_pixels(path, held.matcher.encoder.spec) for path in crops])
    found = held.matcher.answers(held.matcher.encoder.encode(pixels), 3)
    assert found == [crop.matches for crop in held.matcher.match(crops, 3)]
