"""Exact answers against brute force: distinct SKUs, views, mAP@R, own pictures, blocks and deeper searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.dataset import Row
from skumatch.errors import DataError
from skumatch.eval import retrieval
from skumatch.eval.retrieval import Answers, own_views, relevant_views, retrieve
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.spec import Vectors
from skumatch.technique_store import memory_store
from skumatch.techniques import Technique, search

DIM = 12


@dataclass(frozen=True)
class Truth:
    """What a search over everything gives for one query: (SKU, place) of the best SKUs, nearest views, AP at R."""

    best: list[tuple[str, int]]
    views: list[str]
    precision: float


def brute(gallery: Views, queries: Views, k: int, most: int = 2000) -> list[Truth]:
    found = []
    for row, vector in zip(queries.rows, queries.vectors, strict=True):
        others = [place for place, view in enumerate(gallery.rows) if view.path != row.path]
        score = {place: float(gallery.vectors[place] @ vector) for place in others}
        ranked = sorted(others, key=lambda place: (-score[place], place))
        best: dict[str, int] = {}
        for place in ranked:
            best.setdefault(gallery.rows[place].sku, place)
        total = min(most, sum(gallery.rows[place].sku == row.sku for place in others))
        hits = [gallery.rows[place].sku == row.sku for place in ranked[:total]]
        precision = sum(sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits) if hit)
        views = [gallery.rows[place].sku for place in ranked[:k]]
        found.append(Truth(list(best.items())[:k], views, precision / total if total else float("nan")))
    return found


def agree(answers: Answers, expected: Sequence[Truth]) -> None:
    """Compare line by line; answers beyond the last are -1, scores those of the views."""
    best = answers.nearest
    for line, one in enumerate(expected):
        skus = [(answers.skus[code], place) for code, place in zip(best.skus[line], best.views[line], strict=True)]
        there = len(one.best)
        assert skus[:there] == one.best
        assert (best.skus[line, there:] == -1).all() and (best.views[line, there:] == -1).all()
        vectors = answers.gallery.vectors[best.views[line, :there]]
        assert np.allclose(best.scores[line, :there], vectors @ answers.queries.vectors[line], atol=1e-5)
        assert [answers.skus[code] for code in answers.views[line] if code >= 0] == one.views
        assert (answers.views[line, len(one.views) :] == -1).all()
    assert answers.precision == pytest.approx([one.precision for one in expected], nan_ok=True)


def unit(rows: NDArray[np.float64]) -> Vectors:
    scaled: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def views_of(skus: Sequence[str], rng: np.random.Generator, split: str, spread: float = 1.0) -> Views:
    """Draw clustered vectors: a SKU's centre depends on its name alone."""
    centres = np.stack([np.random.default_rng([99, int(sku)]).normal(size=DIM) for sku in skus])
    rows = tuple(Row(Path(split) / sku / f"{number}.png", sku, split) for number, sku in enumerate(skus))
    return Views(rows, unit(centres + spread * rng.normal(size=centres.shape)))


def clusters(seed: int) -> tuple[Views, Views]:
    """Draw a gallery of unbalanced SKUs (some with one view) and queries, some of SKUs that it lacks."""
    rng = np.random.default_rng(seed)
    counts = np.concatenate([[1, 1], rng.integers(1, 15, int(rng.integers(2, 12)))])
    gallery = [str(sku) for sku, count in enumerate(counts) for _ in range(count)]
    asked = [str(sku) for sku in rng.integers(0, len(counts) + 2, 40)]
    return views_of([str(s) for s in rng.permutation(gallery)], rng, "train"), views_of(asked, rng, "test")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("small", [False, True])
def test_random_galleries_against_brute_force(seed: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:  # block boundaries, a shallow first search and deeper ones in many parts
        for name, value in (("BLOCK", 7), ("DEEPER", 2), ("HELD", 30)):
            monkeypatch.setattr(retrieval, name, value)
    gallery, queries = clusters(seed)
    k = (1, 3, 5, 40)[seed % 4]  # 40: more than there are SKUs
    done: list[int] = []
    answers = retrieve(gallery, queries, k, progress=done.append)
    agree(answers, brute(gallery, queries, k))
    assert sum(done) == len(queries) and (len(done) > 1) == small
    lacking = [row.sku not in gallery.skus for row in queries.rows]
    assert (answers.truth < 0).tolist() == lacking and (np.isnan(answers.precision)).tolist() == lacking


def corners(count: int) -> Views:
    """Return views whose cosines are exact multiples of a quarter: many are equal."""
    rng = np.random.default_rng(0)
    rows = tuple(Row(Path(f"{i}.png"), str(rng.integers(0, 9)), "train") for i in range(count))
    return Views(rows, (rng.integers(0, 2, (count, 4)) - 0.5).astype(np.float32))


def test_equal_scores_go_to_the_view_listed_first() -> None:
    gallery = corners(30)
    queries = Views(tuple(Row(Path(f"q{i}.png"), "3", "test") for i in range(16)), gallery.vectors[:16])
    agree(retrieve(gallery, queries, 10), brute(gallery, queries, 10))


def test_a_sku_that_crowds_out_the_others_is_searched_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MOST_RELEVANT", 3)
    monkeypatch.setattr(retrieval, "HELD", 1000)
    rng = np.random.default_rng(1)
    crowd = unit(np.eye(DIM)[:1] + 0.05 * rng.normal(size=(400, DIM)))
    others = unit(rng.normal(size=(20, DIM)) - np.eye(DIM)[:1])
    names = ["crowd"] * 400 + [f"other {n}" for n in range(20)]
    rows = tuple(Row(Path(f"{i}.png"), name, "train") for i, name in enumerate(names))
    gallery = Views(rows, np.concatenate([crowd, others]))
    near = unit(np.eye(DIM)[:1] + 0.05 * rng.normal(size=(30, DIM)))
    queries = Views(tuple(Row(Path(f"q{i}.png"), "crowd", "test") for i in range(30)), near)
    answers = retrieve(gallery, queries, 5)
    agree(answers, brute(gallery, queries, 5, most=3))
    assert all(len(set(line)) == 5 for line in answers.nearest.skus.tolist())
    assert answers.precision.tolist() == [1.0] * 30


@pytest.mark.parametrize("seed", range(5))
def test_a_query_in_the_gallery_never_answers_itself(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 9)
    monkeypatch.setattr(retrieval, "DEEPER", 2)
    gallery, queries = clusters(seed)
    alone = [gallery.skus[code] for code, count in enumerate(np.bincount(gallery.codes)) if count == 1]
    answers = retrieve(gallery, gallery, 4)
    agree(answers, brute(gallery, gallery, 4))
    assert (answers.nearest.views != np.arange(len(gallery))[:, None]).all()
    assert [row.sku in alone for row in gallery.rows] == np.isnan(answers.precision).tolist()
    some = gallery.take(np.arange(0, len(gallery), 2))
    mixed = Views((*some.rows, *queries.rows), np.concatenate([some.vectors, queries.vectors]))
    agree(retrieve(gallery, mixed, 4), brute(gallery, mixed, 4))


def test_a_picture_listed_twice_is_still_no_answer_to_itself() -> None:
    """A manifest may name one file in two lines, even with two SKUs."""
    gallery = corners(25)
    again = (replace(gallery.rows[0], sku="1"), gallery.rows[1], gallery.rows[1])
    double = Views((*gallery.rows, *again), np.concatenate([gallery.vectors, gallery.vectors[[0, 1, 1]]]))
    agree(retrieve(double, double, 10), brute(double, double, 10))


def test_a_picture_listed_often_does_not_push_its_sisters_out_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "DEEPER", 1)
    first = np.eye(DIM, dtype=np.float32)[0]
    near = unit(first + 0.1 * np.random.default_rng(0).normal(size=(9, DIM)))
    rows = [Row(Path("p0.png"), "a", "train")] * 3 + [Row(Path(f"p{n}.png"), "a", "train") for n in range(1, 10)]
    rows += [Row(Path(f"far{n}.png"), "b", "train") for n in range(9)]
    gallery = Views(tuple(rows), np.concatenate([np.stack([first] * 3), near, -near]))
    assert retrieve(gallery, gallery.take(np.array([0])), 1).precision.tolist() == [pytest.approx(1.0)]


def test_views_of_the_same_sku_are_counted_without_the_query() -> None:
    rows = tuple(Row(Path(f"{sku}{i}.png"), sku, "train") for sku, count in (("a", 3), ("b", 1)) for i in range(count))
    gallery = Views(rows, unit(np.random.default_rng(0).normal(size=(4, DIM))))
    asked = (
        rows[0],
        rows[3],
        replace(rows[1], sku="b"),
        Row(Path("new.png"), "a", "test"),
        Row(Path("c"), "c", "test"),
    )
    queries = Views(asked, gallery.vectors[[0, 3, 1, 0, 0]])
    own = own_views(gallery, queries)
    assert own.tolist() == [0, 3, 1, -1, -1]
    truth = np.array([0, 1, 1, 0, -1])
    assert relevant_views(gallery, truth, own).tolist() == [2, 0, 1, 3, 0]


def test_with_shuffled_labels_it_is_chance() -> None:
    rng = np.random.default_rng(0)
    names = [str(n) for n in range(8) for _ in range(25)]
    gallery, queries = views_of(names, rng, "train", 0.3), views_of(names, rng, "test", 0.3)
    assert (retrieve(gallery, queries, 1).nearest.skus[:, 0] == queries.codes).mean() > 0.95
    hits, precision = [], []
    for seed in range(10):
        mixed = np.random.default_rng(seed).permutation(len(names))
        rows = tuple(replace(row, sku=names[int(i)]) for row, i in zip(gallery.rows, mixed, strict=True))
        for asked in (queries, Views(rows, gallery.vectors)):
            found = retrieve(Views(rows, gallery.vectors), asked, 3)
            hits.append((found.nearest.skus[:, 0] == found.truth).mean())
            precision.append(found.precision.mean())
    assert 0.09 < np.mean(hits) < 0.16  # 1 in 8
    assert np.mean(precision) < 0.1


def test_the_answers_of_some_queries() -> None:
    gallery, queries = clusters(4)
    all_of_them, places = retrieve(gallery, queries, 3), np.array([7, 2])
    agree(all_of_them.take(places), brute(gallery, queries.take(places), 3))


def test_sides_without_pictures_and_a_query_alone_are_refused() -> None:
    gallery, queries = clusters(5)
    none = gallery.take(np.empty(0, np.int64))
    for sides in ((gallery, none), (none, queries)):
        with pytest.raises(DataError, match="no readable picture on one side"):
            retrieve(*sides, 3)
    one = gallery.take(np.array([0]))
    with pytest.raises(DataError, match="nothing but the query itself"):
        retrieve(one, one, 3)
    assert retrieve(one, queries, 3).nearest.skus[:, 0].tolist() == [0] * len(queries)


def test_a_technique_ranks_the_skus_and_nothing_else() -> None:
    gallery, queries = clusters(6)
    vote = Technique("vote", neighbours=5)
    plain, ranked = retrieve(gallery, queries, 3), retrieve(gallery, queries, 3, vote)
    store = memory_store(gallery.vectors, gallery.codes, ExactIndex(DIM))
    expected = search(vote, store, queries.vectors, 3)
    assert np.array_equal(ranked.nearest.skus, expected.skus) and not np.array_equal(plain.nearest.skus, expected.skus)
    assert np.array_equal(ranked.views, plain.views)
    assert np.array_equal(ranked.precision, plain.precision, equal_nan=True)
    with pytest.raises(DataError, match="queries are gallery views, which the search 'vote"):
        retrieve(gallery, gallery, 3, vote)
