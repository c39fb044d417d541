"""Search techniques against plain NumPy: the same answers by brute force, for galleries of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.errors import ConfigError, GalleryError
from skumatch.index.exact import ExactIndex
from skumatch.nearest import Nearest, nearest_skus
from skumatch.reciprocal import reciprocal_scores
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import MemoryStore, Store, augment, mean_per_sku, memory_store, unit_rows
from skumatch.techniques import USES, Technique, prepared, search

DIM = 8
ALL = [
    Technique("nearest"),
    Technique("vote", 7, temperature=0.1),
    Technique("prototype", strength=0.6, candidates=30),
    Technique("expand", 4),
    Technique("augment", 3),
    Technique("augment", 3, same_sku=False),
    Technique("reciprocal", 6, strength=0.7, candidates=40),
]


def gallery(seed: int, views: int = 120, skus: int = 15) -> MemoryStore:
    """Return a store of noisy views around one centre per SKU."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, skus, views).astype(np.int64)
    vectors = rng.normal(size=(skus, DIM))[codes] + rng.normal(0, 0.8, (views, DIM))
    return memory_store(unit_rows(vectors.astype(np.float32)), codes, ExactIndex(DIM))


def asked(seed: int, count: int = 6) -> Vectors:
    return unit_rows(np.random.default_rng(1000 + seed).normal(size=(count, DIM)).astype(np.float32))


def ready(technique: Technique, store: MemoryStore) -> Store:
    return prepared(technique, store, np.arange(len(store.vectors)), lambda: ExactIndex(DIM))


def ranked(score_of: dict[int, float]) -> list[int]:
    return sorted(score_of, key=lambda sku: -score_of[sku])


def check(found: Nearest, line: int, expected: dict[int, float], k: int) -> None:
    """Compare one line of answers with the scores that brute force gives every SKU."""
    wanted = ranked(expected)[:k]
    there = found.skus[line] >= 0
    assert found.skus[line][there].tolist() == wanted
    assert np.allclose(found.scores[line][there], [expected[sku] for sku in wanted], atol=1e-4)


def best_views(store: MemoryStore, cosine: NDArray[Any]) -> dict[int, float]:
    return {int(sku): float(cosine[store.sku_codes == sku].max()) for sku in np.unique(store.sku_codes)}


@pytest.mark.parametrize("seed", range(4))
def test_nearest_is_the_plain_search(seed: int) -> None:
    store, queries = gallery(seed), asked(seed)
    found, plain = search(Technique("nearest"), store, queries, 6), nearest_skus(store.index, store.codes, queries, 6)
    for part in ("scores", "skus", "views"):
        assert np.array_equal(getattr(found, part), getattr(plain, part))


@pytest.mark.parametrize("seed", range(4))
def test_prototype_against_brute_force(seed: int) -> None:
    store, queries = gallery(seed), asked(seed)
    found = search(Technique("prototype", strength=0.7, candidates=200), store, queries, 5)
    for line, query in enumerate(queries):
        best, expected = best_views(store, store.vectors @ query), {}
        for sku, cosine in best.items():
            mean = store.vectors[store.sku_codes == sku].mean(axis=0)
            expected[sku] = 0.3 * cosine + 0.7 * float(mean @ query / np.linalg.norm(mean))
        check(found, line, expected, 5)
        assert np.allclose(store.vectors[found.views[line]] @ query, [best[int(s)] for s in found.skus[line]])


@pytest.mark.parametrize("seed", range(4))
def test_vote_against_brute_force(seed: int) -> None:
    store, queries = gallery(seed), asked(seed)
    technique = Technique("vote", 25, temperature=0.08)
    found = search(technique, store, queries, 9)
    for line, query in enumerate(queries):
        cosine = store.vectors @ query
        voters, best = np.argsort(-cosine)[:25], best_views(store, cosine)
        votes = dict.fromkeys(best, 0.0)
        for view in voters:
            votes[int(store.sku_codes[view])] += float(np.exp(cosine[view] / 0.08))
        weight = {sku: vote or float(np.exp(best[sku] / 0.08)) for sku, vote in votes.items()}
        check(found, line, {sku: 0.08 * float(np.log(value / 25)) for sku, value in weight.items()}, 9)
        assert np.all(found.scores[line] <= [best[int(sku)] + 1e-5 for sku in found.skus[line]])


def test_many_middling_views_outvote_one_good_view() -> None:
    angles = np.array([0.30, 0.40, 0.41, 0.42, 0.43])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    store = memory_store(vectors, np.array([0, 1, 1, 1, 1]), ExactIndex(2))
    query = np.array([[1, 0]], np.float32)
    assert search(Technique("nearest"), store, query, 2).skus.tolist() == [[0, 1]]
    assert search(Technique("vote", 5, temperature=0.1), store, query, 2).skus.tolist() == [[1, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_expand_against_brute_force(seed: int) -> None:
    store, queries = gallery(seed), asked(seed)
    found = search(Technique("expand", 4, alpha=2.0), store, queries, 5)
    for line, query in enumerate(queries):
        cosine = store.vectors @ query
        total = query.astype(np.float64)
        for view in np.argsort(-cosine)[:4]:
            total = total + max(float(cosine[view]), 0.0) ** 2 * store.vectors[view]
        check(found, line, best_views(store, store.vectors @ (total / np.linalg.norm(total))), 5)


@pytest.mark.parametrize("same_sku", [True, False])
def test_augmented_vectors_against_brute_force(same_sku: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skumatch.technique_store.BLOCK", 7)
    store = gallery(3, views=60, skus=25)
    technique = Technique("augment", 3, alpha=2.0, same_sku=same_sku)
    cosine = (store.vectors @ store.vectors.T).astype(np.float64)
    np.fill_diagonal(cosine, -np.inf)
    mixed = store.vectors.astype(np.float64)
    for view in range(60):
        allowed = (store.sku_codes == store.sku_codes[view]) | (not same_sku)
        order = [other for other in np.argsort(-cosine[view]) if allowed[other] and other != view]
        for other in order[:3]:
            mixed[view] += max(cosine[view, other], 0) ** 2 * store.vectors[other]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    opened, queries = ready(technique, store), asked(3)
    assert len(opened.index) == 60
    found = search(technique, opened, queries, 5)
    for line, query in enumerate(queries):
        check(found, line, best_views(store, mixed @ query), 5)


def plain_reciprocal(points: NDArray[np.float64], k1: int, k2: int, lam: float) -> NDArray[np.float64]:
    """Return the final distances of point 0 to the others, by the paper's sets and loops."""
    count = len(points)
    distance = 1 - points @ points.T
    np.fill_diagonal(distance, -1)
    order = np.argsort(distance, axis=1, kind="stable")
    np.fill_diagonal(distance, 0)

    def reciprocal(p: int, k: int) -> set[int]:
        return {int(g) for g in order[p, : k + 1] if p in order[g, : k + 1]}

    weights = np.zeros((count, count))
    for p in range(count):
        members = set(reciprocal(p, k1))
        for q in reciprocal(p, k1):
            half = reciprocal(q, round(k1 / 2))
            if len(reciprocal(p, k1) & half) >= 2 / 3 * len(half):
                members |= half
        for g in members:
            weights[p, g] = np.exp(-distance[p, g])
    averaged = np.array([weights[order[p, :k2]].mean(axis=0) for p in range(count)])
    jaccard = [
        1 - np.minimum(averaged[0], averaged[g]).sum() / np.maximum(averaged[0], averaged[g]).sum()
        for g in range(1, count)
    ]
    final: NDArray[np.float64] = (1 - lam) * np.array(jaccard) + lam * distance[0, 1:]
    return final


@pytest.mark.parametrize("seed", range(5))
def test_reciprocal_scores_are_the_papers(seed: int) -> None:
    points = np.concatenate([asked(seed, 1), gallery(seed, views=45, skus=6).vectors]).astype(np.float64)
    scores = reciprocal_scores((points @ points.T).astype(np.float32), 10, 0.7)
    assert np.allclose(scores, 1 - plain_reciprocal(points, 10, 3, 0.3), atol=1e-5)


def test_reciprocal_search_takes_the_best_view_of_each_sku() -> None:
    store, queries = gallery(1, views=60), asked(1)
    found = search(Technique("reciprocal", 10, strength=0.7, candidates=60), store, queries, 5)
    for line, query in enumerate(queries):
        scores = 1 - plain_reciprocal(np.concatenate([query[None], store.vectors]).astype(np.float64), 10, 3, 0.3)
        check(found, line, best_views(store, scores), 5)
        assert np.allclose(scores[found.views[line]], found.scores[line], atol=1e-5)


@pytest.mark.parametrize("technique", ALL, ids=str)
@pytest.mark.parametrize(("views", "skus"), [(1, 1), (3, 3), (400, 2), (400, 40), (90, 90)])
def test_every_technique_answers_k_distinct_skus(technique: Technique, views: int, skus: int) -> None:
    store = gallery(views, views, skus)
    there = len(np.unique(store.sku_codes))
    found = search(technique, ready(technique, store), asked(5, 70), 10)
    assert found.skus.shape == found.scores.shape == found.views.shape == (70, 10)
    for line in range(70):
        answered = found.skus[line][found.skus[line] >= 0].tolist()
        assert len(answered) == len(set(answered)) == min(10, there)
        assert store.sku_codes[found.views[line][: len(answered)]].tolist() == answered
        assert np.all(found.views[line][len(answered) :] == -1) and np.all(np.isneginf(found.scores[line, there:]))
        assert np.all(np.abs(found.scores[line][: len(answered)]) <= 1.25)  # a vote may go a little below -1


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_answers_do_not_depend_on_the_batch(technique: Technique) -> None:
    store, queries = gallery(2), asked(2, 40)
    opened = ready(technique, store)
    together = search(technique, opened, queries, 4)
    for line in range(40):
        alone = search(technique, opened, queries[line : line + 1], 4)
        assert np.array_equal(alone.skus[0], together.skus[line])
        assert np.allclose(alone.scores[0], together.scores[line], atol=1e-5)


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_the_first_answers_do_not_depend_on_how_many_are_asked_for(technique: Technique) -> None:
    store, queries = gallery(5, views=900, skus=12), asked(5, 40)  # the candidates show few of the 12 SKUs
    few, many = (search(technique, ready(technique, store), queries, k) for k in (2, 10))
    assert np.array_equal(few.skus, many.skus[:, :2])
    assert np.allclose(few.scores, many.scores[:, :2], atol=1e-5)
    assert (many.skus >= 0).all()


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_no_queries_and_an_empty_gallery(technique: Technique) -> None:
    empty = memory_store(np.empty((0, DIM), np.float32), np.empty(0, np.int64), ExactIndex(DIM))
    assert np.all(search(technique, ready(technique, empty), asked(0), 3).skus == -1)
    store = gallery(0)
    assert search(technique, ready(technique, store), asked(0, 0), 3).skus.shape == (0, 3)


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_only_candidates_are_looked_at(technique: Technique) -> None:
    """A technique may read the vectors of its candidates, not of the gallery."""
    read: list[int] = []

    class Watched(MemoryStore):
        def vectors_of(self, ids: Ids) -> Vectors:
            read.append(len(ids))
            return super().vectors_of(ids)

    plain = gallery(4, views=3000, skus=60)
    opened = ready(technique, Watched(plain.vectors, plain.sku_codes, plain.index))
    read.clear()
    search(technique, opened, asked(4, 1), 5)
    assert sum(read) <= 45


def test_ids_need_not_be_positions() -> None:
    """Ids of a gallery with removed views have gaps, and an index may hold fewer than asked for."""
    plain, queries = gallery(6), asked(6)
    vectors = np.full((1000, DIM), np.nan, np.float32)
    codes = np.full(1000, -1, np.int64)
    ids = np.random.default_rng(0).permutation(1000)[:120].astype(np.int64)
    vectors[ids], codes[ids] = plain.vectors, plain.sku_codes
    index = ExactIndex(DIM)
    index.add(ids, plain.vectors)

    class Gapped(MemoryStore):
        def prototypes(self) -> tuple[Vectors, Ids]:
            return plain.prototypes()

    store = Gapped(vectors, codes, index)
    for technique in ALL:
        opened = prepared(technique, store, ids, lambda: ExactIndex(DIM))
        found = search(technique, opened, queries, 5)
        expected = search(technique, ready(technique, plain), queries, 5)
        assert np.array_equal(found.skus, expected.skus) and np.array_equal(found.views, ids[expected.views])


def test_a_gallery_that_was_not_prepared_is_refused() -> None:
    store, technique = gallery(0), Technique("augment", 3)
    with pytest.raises(GalleryError, match="not prepared for 'augment"):
        search(technique, store, asked(0), 1)
    with pytest.raises(GalleryError, match="not prepared for 'nearest'"):
        search(Technique("nearest"), ready(technique, store), asked(0), 1)
    with pytest.raises(GalleryError, match="not prepared"):
        search(Technique("augment", 4), ready(technique, store), asked(0), 1)
    with pytest.raises(GalleryError, match="not empty"):
        augment(store, np.arange(120), store.index, 3, 3.0)
    with pytest.raises(GalleryError, match="k is 0"):
        search(Technique("vote"), store, asked(0), 0)


def test_prototypes_in_pieces() -> None:
    store = gallery(7)
    pieces = [(store.sku_codes[i : i + 11], store.vectors[i : i + 11]) for i in range(0, 120, 11)]
    vectors, codes = mean_per_sku(pieces, 40)
    assert codes.tolist() == np.unique(store.sku_codes).tolist()
    for row, sku in zip(vectors, codes, strict=True):
        mean = store.vectors[store.sku_codes == sku].mean(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_json_there_and_back(technique: Technique) -> None:
    data = technique.to_json()
    assert set(data) == {"name", *USES[technique.name]}
    assert Technique.from_json(data) == technique
    assert Technique.from_json({"name": technique.name}).name == technique.name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no name"),
        ({"name": 3}, "no name"),
        ([], "no name"),
        ({"name": "voting"}, "unknown technique 'voting' - choose vote"),
        ({"name": "vote", "strength": 0.5}, "no setting 'strength' - its settings are: neighbours, temperature"),
        ({"name": "nearest", "alpha": 1}, "its settings are: none"),
        ({"name": "vote", "neighbours": 0}, "neighbours 0 of technique 'vote' is out of range - give a whole number"),
        ({"name": "vote", "neighbours": 2.5}, "neighbours 2.5"),
        ({"name": "vote", "neighbours": True}, "neighbours True"),
        ({"name": "vote", "temperature": float("nan")}, "temperature nan"),
        ({"name": "prototype", "strength": 1.01}, "strength 1.01"),
        ({"name": "prototype", "strength": "1"}, "strength '1'"),
        ({"name": "expand", "alpha": -1}, "alpha -1"),
        ({"name": "reciprocal", "candidates": 100000}, "candidates 100000"),
        ({"name": "augment", "same_sku": 1}, "same_sku 1"),
    ],
)
def test_nonsense_in_json_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Technique.from_json(data)
    assert message in str(caught.value) and "\n" not in str(caught.value)
