"""A gallery seen through a filter: every technique answers as if the other SKUs were not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch import techniques
from skumatch.encoder import Encoder
from skumatch.errors import GalleryError
from skumatch.gallery import Gallery
from skumatch.gallery_changes import add_views, create_from, remove_views
from skumatch.index.exact import ExactIndex
from skumatch.nearest import nearest_skus
from skumatch.segment import NewView
from skumatch.selection import Restricted, Selection, select
from skumatch.spec import Ids, Vectors
from skumatch.techniques import NEAREST, Technique
from tests.skumatch.made_up import unit

SKUS = 24
TRIED = [
    NEAREST,
    Technique("vote", neighbours=5),
    Technique("prototype", strength=0.7, candidates=30),
    Technique("expand", neighbours=2),
    Technique("augment", neighbours=3),
    Technique("reciprocal", neighbours=4, candidates=20),
]


def brand(sku: int) -> str:
    return f"brand-{sku % 3}"


@pytest.fixture
def gallery(tmp_path: Path, encoder: Encoder) -> Gallery:
    """Return 24 SKUs of 3 brands and 2 stores with 1 to 9 views in two segments, some of them removed."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(np.repeat(np.arange(SKUS), 6))
    views = [NewView(f"{sku}", "", "", b"", vector) for sku, vector in zip(chosen, unit(rng, len(chosen)), strict=True)]
    facts = {f"{sku}": {"brand": brand(sku), "store": f"{sku % 2}"} for sku in range(SKUS)}
    made = add_views(create_from(tmp_path / "g", encoder.spec, views[:100], facts), views[100:])
    return remove_views(made, rng.choice(len(views), 30, replace=False).tolist())


def alone(gallery: Gallery, skus: set[str]) -> tuple[Ids, Vectors]:
    """Return ids and vectors of the views of ``skus``, one by one."""
    ids = np.array([view.id for view in gallery.views() if view.sku in skus])
    return ids, gallery.vectors_of(ids)


@pytest.mark.parametrize("filters", [{"brand": "brand-1"}, {"brand": "brand-0", "store": "1"}, {"sku": "7"}, {}])
def test_a_search_through_a_filter_is_that_of_brute_force(filters: dict[str, str], gallery: Gallery) -> None:
    said = {f"{s}": {"sku": f"{s}", "brand": brand(s), "store": f"{s % 2}"} for s in range(SKUS)}
    skus = {sku for sku, facts in said.items() if filters.items() <= facts.items()}
    ids, rows = alone(gallery, skus)
    chosen = select(gallery, filters)
    assert chosen.ids.tolist() == ids.tolist() and len(chosen.index) == len(ids)
    queries = unit(np.random.default_rng(1), 20)
    scores = queries @ rows.T
    for k in (1, 3, 50):
        found = nearest_skus(chosen.index, chosen.codes, queries, k)
        for line in range(len(queries)):
            best: dict[str, int] = {}
            for place in np.argsort(-scores[line], kind="stable"):
                best.setdefault(gallery.view(int(ids[place])).sku, int(ids[place]))
            there = found.skus[line] >= 0
            answers = [
                (gallery.skus[int(code)], int(view))
                for code, view in zip(found.skus[line][there], found.views[line][there], strict=True)
            ]
            assert answers == list(best.items())[:k]
            expected = np.sort(scores[line][np.isin(ids, found.views[line])])[::-1]
            assert np.allclose(found.scores[line][there], expected, atol=1e-6)


@pytest.mark.parametrize("technique", TRIED, ids=lambda technique: technique.name)
def test_every_technique_answers_as_if_the_others_were_not_there(
    technique: Technique, gallery: Gallery, tmp_path: Path, encoder: Encoder
) -> None:
    chosen = select(gallery, {"brand": "brand-2"})
    ids, rows = alone(gallery, {f"{sku}" for sku in range(SKUS) if sku % 3 == 2})
    given = [NewView(gallery.view(int(i)).sku, "", "", b"", row) for i, row in zip(ids, rows, strict=True)]
    small = create_from(tmp_path / "small", encoder.spec, given)
    queries = unit(np.random.default_rng(2), 15)
    answers = []
    for opened, store, theirs in ((gallery, chosen, chosen.ids), (small, small, small.ids)):
        prepared = techniques.prepared(technique, store, theirs, lambda: ExactIndex(32))
        found = techniques.search(technique, prepared, queries, 4)
        answers.append(([[opened.skus[int(code)] for code in line] for line in found.skus], found.scores))
    assert answers[0][0] == answers[1][0] and np.allclose(answers[0][1], answers[1][1], atol=1e-5)


def test_prototypes_are_the_gallerys_own_of_those_selected(gallery: Gallery) -> None:
    vectors, codes = select(gallery, {"store": "1"}).prototypes()
    all_vectors, _ = gallery.prototypes()
    assert sorted(int(gallery.skus[int(code)]) for code in codes) == list(range(1, SKUS, 2))
    assert np.array_equal(vectors, all_vectors[codes])


def test_without_filters_all_of_the_gallery_answers(gallery: Gallery) -> None:
    chosen = select(gallery, {})
    assert chosen.index is gallery.index and chosen.ids is gallery.ids
    assert np.array_equal(chosen.vectors_of(chosen.ids[:3]), gallery.vectors_of(gallery.ids[:3]))


def test_a_filter_that_leaves_nothing_is_refused(gallery: Gallery) -> None:
    cases = [
        ({"brand": "brand-9"}, r"no SKU has brand=brand-9 - nearest values are brand: brand-\d, brand-\d, brand-\d"),
        ({"brand": "brand-1", "store": "7"}, r"store: no similar value"),
        ({"colour": "red"}, r"no column 'colour' - its columns are: sku, brand, store"),
        ({"sku": "99"}, r"no SKU with a view has sku=99"),
    ]
    for filters, words in cases:
        with pytest.raises(GalleryError, match=words):
            select(gallery, filters)


def test_a_filtered_index_narrows_further_and_cannot_be_changed(gallery: Gallery) -> None:
    ids = gallery.ids[::2]
    index = Restricted(gallery.index, ids)
    query = unit(np.random.default_rng(3), 4)
    allowed = gallery.ids[::3][::-1]  # in any order
    both = np.intersect1d(ids, allowed)
    _, found = index.search(query, len(both) + 2, allowed)
    assert all(sorted(line[line >= 0].tolist()) == both.tolist() for line in found) and (found[:, -2:] == -1).all()
    assert (index.search(query, 2, ids[:0])[1] == -1).all()
    changes: list[Callable[[], None]] = [lambda: index.add(ids, query), lambda: index.remove(ids)]
    for change in changes:
        with pytest.raises(GalleryError, match="a filtered gallery"):
            change()
    assert isinstance(select(gallery, {"sku": "3"}), Selection) and len(gallery.index) == len(gallery)
