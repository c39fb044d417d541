"""Neighbours by vectors against comparing all with all, blending, and features of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.catalogue.amounts import amounts
from skumatch.catalogue.blend import blended
from skumatch.catalogue.features import Features, Pairs, Surroundings
from skumatch.catalogue.neighbours import Neighbours
from skumatch.catalogue.signals import HashSignal, TextSignal, VectorSignal
from skumatch.catalogue.tfidf import WORDS, tfidf
from skumatch.spec import Vectors


def unit(count: int, dim: int, seed: int = 0, near: float = 0.0) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, dim))
    rows = rng.normal(size=(count, dim)) + near * centres[np.arange(count) // 5]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_neighbours_are_those_of_comparing_all() -> None:
    rows = unit(200, 16)
    present = np.arange(200) % 7 != 0
    found = VectorSignal("image", rows, present, floor=0.2).nearest(8)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    cosines[:, ~present] = -2
    for place in range(200):
        order = [other for other in np.argsort(-cosines[place], kind="stable")[:8] if cosines[place, other] >= 0.2]
        there = found.places[place][found.places[place] >= 0].tolist()
        assert there == (order if present[place] else [])
        np.testing.assert_allclose(found.scores[place][: len(there)], cosines[place, there], atol=1e-6)


def test_many_vectors_are_searched_by_lists_and_nearly_as_well() -> None:
    rows = unit(3000, 32, near=1.5)
    present = np.arange(3000) % 11 != 0
    exact = VectorSignal("image", rows, present).nearest(4)
    lists = VectorSignal("image", rows, present, exact_rows=100).nearest(4)
    assert (lists.places[~present] == -1).all()
    hits = [len(set(a.tolist()) & set(b.tolist())) / 4 for a, b in zip(exact.places, lists.places, strict=True)]
    assert np.mean(np.array(hits)[present]) > 0.95
    own = np.arange(3000)[:, None]
    assert not (lists.places == own).any()
    again = VectorSignal("image", rows, present, exact_rows=100).nearest(4)
    assert np.array_equal(again.places, lists.places)


def test_copies_of_a_posting_do_not_hide_it() -> None:
    rows = np.repeat(unit(1, 8), 30, axis=0)
    found = VectorSignal("image", rows, np.ones(30, bool)).nearest(10)
    assert not (found.places == np.arange(30)[:, None]).any()
    assert (found.places >= 0).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_postings_are_no_trouble(count: int) -> None:
    found = VectorSignal("image", unit(count, 8), np.ones(count, bool)).nearest(3)
    assert found.places.shape == (count, 3)


def test_absent_is_not_a_number() -> None:
    rows, present = unit(3, 8), np.array([True, True, False])
    left, right = np.array([0, 0]), np.array([1, 2])
    for signal in (VectorSignal("image", rows, present), HashSignal(np.arange(3).astype(np.uint64), present)):
        scores = signal.scores(left, right)
        assert not np.isnan(scores[0]) and np.isnan(scores[1])
    texts = TextSignal("words", tfidf(["red tea", "red tea", ""], WORDS))
    assert np.isnan(texts.scores(left, right)).tolist() == [False, True]
    assert texts.scores(left, right)[0] == pytest.approx(1)


def test_blending_draws_a_product_together() -> None:
    rows = unit(100, 32, near=1.0)
    signal = VectorSignal("image", rows, np.ones(100, bool))
    after = blended(signal, signal.nearest(4), 0.0)
    of = np.arange(100) // 5
    same = of[:, None] == of[None]

    def gap(vectors: Vectors) -> float:
        cosines = vectors @ vectors.T
        return float(cosines[same].mean() - cosines[~same].mean())

    assert gap(after.vectors) > gap(rows) + 0.1
    np.testing.assert_allclose(np.linalg.norm(after.vectors, axis=1), 1, atol=1e-5)
    nothing = blended(signal, signal.nearest(4), 1.1)
    np.testing.assert_allclose(nothing.vectors, rows, atol=1e-6)


def test_blending_is_the_weighted_mean() -> None:
    rows = unit(3, 4)
    near = neighbours([[1, 2], [-1, -1], [0, -1]], [[0.9, 0.3], [0, 0], [0.9, 0]])
    after = blended(VectorSignal("image", rows, np.ones(3, bool)), near, 0.5).vectors
    wanted = rows[0] + 0.9 * rows[1]
    np.testing.assert_allclose(after[0], wanted / np.linalg.norm(wanted), atol=1e-6)
    np.testing.assert_allclose(after[1], rows[1], atol=1e-6)


def neighbours(lists: list[list[int]], scores: list[list[float]]) -> Neighbours:
    return Neighbours(np.array(lists, np.int32), np.array(scores, np.float32))


def test_candidates_are_named_by_either_end_and_come_once() -> None:
    one = neighbours([[1, 2], [0, -1], [-1, -1], [2, -1]], [[0.9, 0.5], [0.9, 0], [0, 0], [0.4, 0]])
    other = neighbours([[-1], [2], [1], [-1]], [[0], [0.8], [0.8], [0]])
    found = Pairs.together(4, [Pairs.of(4, *near.pairs()) for near in (one, other)])
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (2, 3)]


def test_features_of_a_pair() -> None:
    rows = unit(4, 8)
    present = np.array([True, True, True, False])
    image = VectorSignal("image", rows, present)
    titles = ["red tea 500g", "red tea 1000g", "green tea 500g", "tea"]
    words = TextSignal("words", tfidf(titles, WORDS))
    near = [image.nearest(2), words.nearest(2)]
    around = [Surroundings.of(one) for one in near]
    features = Features([image, words], around, amounts(titles), np.array([3, 3, 3, 1]))
    values = features.of(Pairs.of(4, np.array([0, 2, 0]), np.array([1, 0, 3])))
    columns = {name: values[:, at] for at, name in enumerate(features.names)}
    assert values.shape == (3, len(features.names))
    np.testing.assert_allclose(columns["image"][:2], (rows[[0, 0]] * rows[[1, 2]]).sum(axis=1), atol=1e-6)
    for name in ("image", "image_margin", "image_rank", "shared_image"):
        assert np.isnan(columns[name][2])
    assert columns["amounts_contradict"].tolist() == [1, 0, 0]
    assert columns["amounts_agree"].tolist() == [0, 1, 0]
    assert columns["words_fewer"].tolist() == [3, 3, 1]
    places = near[0].places
    for row, (left, right) in enumerate(((0, 1), (0, 2))):
        ranks = [
            1 / (1 + places[a].tolist().index(b)) if b in places[a].tolist() else 0
            for a, b in ((left, right), (right, left))
        ]
        assert columns["image_rank"][row] == pytest.approx(max(ranks))
        assert columns["image_rank_back"][row] == pytest.approx(min(ranks))
        margin = columns["image"][row] - (near[0].scores[left].mean() + near[0].scores[right].mean()) / 2
        assert columns["image_margin"][row] == pytest.approx(margin, abs=1e-5)


def test_blocks_of_pairs_are_all_pairs_in_order() -> None:
    pairs = Pairs.of(20, np.arange(10) + 1, np.arange(10))
    parts = list(pairs.blocks(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.concatenate([part.left for part in parts]).tolist() == list(range(10))
