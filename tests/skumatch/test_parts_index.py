"""A big approximate index and an exact tail, searched as one: complete, exactly scored, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest

from skumatch.errors import GalleryError
from skumatch.index import parts as module
from skumatch.index.approximate import ApproximateIndex, build
from skumatch.index.exact import ExactIndex
from skumatch.index.parts import Parts
from skumatch.index.plan import ApproximateKind, Plan
from skumatch.spec import Ids, Vectors

DIM, BIG, TAIL = 64, 2000, 500


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, DIM))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


VECTORS = unit(np.random.default_rng(0), BIG + TAIL)
EVEN = 7
VECTORS[EVEN] = np.where(VECTORS[EVEN] > 0, 1, -1) / np.sqrt(DIM)
VIEWS = np.arange(BIG + TAIL) * 3 + 1  # the id of each row


class Source:
    """Hands out vectors by id, and remembers how many at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, ids: Ids) -> Vectors:
        assert ids.ndim == 1 and np.all(ids % 3 == 1)
        self.asked.append(len(ids))
        return VECTORS[(ids - 1) // 3]


@pytest.fixture(scope="module", params=get_args(ApproximateKind))
def built(request: pytest.FixtureRequest) -> ApproximateIndex:
    def blocks() -> Iterator[tuple[Ids, Vectors]]:
        yield VIEWS[:BIG], VECTORS[:BIG]

    index = build(Plan(request.param, BIG, DIM), blocks)
    return index.with_effort(index.most_effort)


def parts_of(built: ApproximateIndex | None, start: int = BIG) -> tuple[Parts, ExactIndex, Source]:
    """Return parts with all rows from ``start`` in the tail, an exact index over the same rows, and their source."""
    tail, exact, source = ExactIndex(DIM), ExactIndex(DIM), Source()
    tail.add(VIEWS[start:], VECTORS[start:])
    exact.add(VIEWS, VECTORS)
    return Parts(None if built is None else built.without(np.empty(0, np.int64)), tail, source), exact, source


def share(found: Ids, right: Ids) -> float:
    return float(np.mean([np.isin(row, mine).mean() for row, mine in zip(right, found, strict=True)]))


def test_both_parts_answer_with_exact_scores(built: ApproximateIndex) -> None:
    parts, exact, _ = parts_of(built)
    queries = unit(np.random.default_rng(1), 150)
    scores, found = parts.search(queries, 10)
    right_scores, right = exact.search(queries, 10)
    assert len(parts) == BIG + TAIL and share(found, right) > 0.95
    assert np.any(found > VIEWS[BIG]) and np.any(found < VIEWS[BIG])
    true = np.einsum("nd,nkd->nk", queries, VECTORS[(found - 1) // 3])
    assert np.allclose(scores, true, atol=1e-6) and np.all(np.diff(scores, axis=1) <= 0)
    agree = np.all(found == right, axis=1)
    assert agree.mean() > 0.7 and np.allclose(scores[agree], right_scores[agree], atol=1e-6)


@pytest.mark.parametrize("k", [1001, BIG + TAIL, 5000])
def test_a_long_answer_is_exact(built: ApproximateIndex, k: int) -> None:
    parts, exact, _ = parts_of(built)
    queries = unit(np.random.default_rng(2), 3)
    scores, found = parts.search(queries, k)
    expected, right = exact.search(queries, k)
    assert (
        found.shape == (3, k)
        and np.array_equal(found < 0, right < 0)
        and np.array_equal(np.sort(found), np.sort(right))
    )
    there = right >= 0
    assert np.allclose(scores[there], expected[there], atol=1e-6) and np.all(np.isneginf(scores[~there]))


def test_few_allowed_are_compared_exactly_and_in_pieces(
    built: ApproximateIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 4 * DIM * 100)
    parts, exact, source = parts_of(built)
    parts.remove(VIEWS[:40])
    exact.remove(VIEWS[:40])
    queries = unit(np.random.default_rng(3), 20)
    allowed = np.append(np.random.default_rng(4).permutation(VIEWS)[:700], [-3, 10**9])
    assert np.array_equal(parts.search(queries, 10, allowed)[1], exact.search(queries, 10, allowed)[1])
    assert max(source.asked) == 100 and 400 < sum(source.asked) < 700
    assert np.all(parts.search(queries, 2, np.empty(0, np.int64))[1] == -1)
    alone = parts.search(queries, 2, VIEWS[50:51])[1]
    assert alone.tolist() == [[int(VIEWS[50]), -1]] * 20


def test_many_allowed_are_asked_of_the_big_one(built: ApproximateIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_ALLOWED", 100)
    parts, exact, source = parts_of(built)
    queries, allowed = unit(np.random.default_rng(5), 60), VIEWS[::2]
    found, right = parts.search(queries, 5, allowed)[1], exact.search(queries, 5, allowed)[1]
    assert share(found, right) > 0.95 and np.isin(found, allowed).all()
    assert sum(source.asked) < len(allowed)


def test_what_the_big_one_cannot_find_is_found_exactly(
    built: ApproximateIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the least effort and a narrow filter it answers too little: those queries are asked again, exactly."""
    monkeypatch.setattr(module, "EXACT_ALLOWED", 10)
    parts, exact, source = parts_of(built.with_effort(1), start=BIG + TAIL)
    exact.remove(VIEWS[BIG:])
    allowed, queries = VIEWS[:BIG:40], unit(np.random.default_rng(6), 40)
    found = parts.search(queries, 50, allowed)[1]
    assert np.array_equal(found, exact.search(queries, 50, allowed)[1]) and len(allowed) == 50
    assert max(source.asked) >= 50


def test_removed_in_both_parts(built: ApproximateIndex) -> None:
    parts, _, _ = parts_of(built)
    gone = VIEWS[[0, 1, BIG, BIG + 1]]
    parts.remove(np.append(gone, 10**9))
    assert len(parts) == BIG + TAIL - 4
    assert not np.isin(parts.search(VECTORS[[0, 1, BIG, BIG + 1]], 20)[1], gone).any()
    assert len(built) == BIG  # it was a copy that forgot them


def test_additions_go_to_the_tail(built: ApproximateIndex) -> None:
    parts, _, _ = parts_of(built)
    with pytest.raises(GalleryError, match="there already"):
        parts.add(VIEWS[5:6], VECTORS[5:6])
    with pytest.raises(GalleryError, match="there already"):
        parts.add(VIEWS[BIG : BIG + 1], VECTORS[BIG : BIG + 1])
    new = unit(np.random.default_rng(7), 2)
    parts.add(np.array([0, 3]), new)
    assert parts.search(new, 1)[1].ravel().tolist() == [0, 3] and len(parts) == BIG + TAIL + 2


def test_equal_scores_come_by_id(built: ApproximateIndex) -> None:
    """The same vector in both parts, and its products are exact."""
    tail = ExactIndex(DIM)
    tail.add(np.array([10**6, 0]), VECTORS[[EVEN, EVEN]])
    scores, found = Parts(built, tail, Source()).search(VECTORS[EVEN : EVEN + 1], 4)
    assert found[0][:3].tolist() == [0, int(VIEWS[EVEN]), 10**6] and scores[0][:3].tolist() == [1, 1, 1]


def test_without_a_big_one_it_is_its_tail() -> None:
    parts, exact, source = parts_of(None, start=0)
    queries = unit(np.random.default_rng(8), 30)
    for k, allowed in ((3, None), (2000, None), (3, VIEWS[::7])):
        for mine, theirs in zip(parts.search(queries, k, allowed), exact.search(queries, k, allowed), strict=True):
            assert np.array_equal(np.asarray(mine), np.asarray(theirs))
    parts.add(np.array([0]), queries[:1])
    parts.remove(VIEWS[:5])
    assert len(parts) == BIG + TAIL - 4 and not source.asked
