"""Which kind of index, what its answers are worth, and how much effort that takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from skumatch.errors import ConfigError, GalleryError
from skumatch.index.approximate import ApproximateIndex, build
from skumatch.index.choose import (
    EXACT_NUMBERS,
    OVERLAP,
    RECALL,
    chosen,
    index_bytes,
    measured,
    noisy,
    questions,
    scored,
    tuned,
)
from skumatch.index.exact import ExactIndex
from skumatch.index.parts import Parts
from skumatch.index.plan import Plan
from skumatch.spec import Ids, Vectors

DIM, ROWS = 64, 2400


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, DIM))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def families(seed: int = 0) -> Vectors:
    """Return rows in families of eight, at a cosine of about .8 within a family."""
    rng = np.random.default_rng(seed)
    return noisy(np.repeat(unit(rng, ROWS // 8), 8, axis=0), 0.9, rng)


VECTORS = families()
VIEWS = np.arange(ROWS) + 10


def vectors_of(ids: Ids) -> Vectors:
    return VECTORS[ids - 10]


@pytest.fixture(scope="module")
def exact() -> ExactIndex:
    index = ExactIndex(DIM)
    index.add(VIEWS, VECTORS)
    return index


@pytest.fixture(scope="module")
def lists() -> ApproximateIndex:
    return build(Plan("ivf-rabitq", ROWS, DIM), lambda: iter([(VIEWS, VECTORS)]))


@pytest.mark.parametrize(
    ("rows", "dim", "memory", "device", "kind"),
    [
        (1, 512, None, "cpu", "exact"),
        (EXACT_NUMBERS // 512, 512, None, "cpu", "exact"),
        (EXACT_NUMBERS // 512 + 1, 512, None, "cpu", "ivf-rabitq"),
        (EXACT_NUMBERS // 512 + 1, 256, None, "cpu", "exact"),
        (1_000_000, 512, 700_000_000, "cpu", "ivf-rabitq"),
        (1_000_000, 512, 500_000_000, "cpu", "exact"),
        (3_500_000, 512, 3_000_000_000, "cpu", "ivf-rabitq"),
        (1_000_000, 512, None, "cuda", "exact"),
        (100_000_000, 512, None, "cuda:1", "ivf-rabitq"),
        (1_000_000, 512, 1_000_000_000, "cuda", "ivf-rabitq"),
    ],
)
def test_the_size_decides(rows: int, dim: int, memory: int | None, device: str, kind: str) -> None:
    assert chosen("auto", rows, dim, memory, device) == kind


def test_a_named_kind_is_that_kind() -> None:
    for kind in ("exact", "hnsw", "ivf-rabitq"):
        assert chosen(kind, 10**9, 512, 1) == kind
    with pytest.raises(ConfigError, match="unknown index kind 'annoy'"):
        chosen("annoy", 1, 1)  # type: ignore[arg-type]


def test_the_memory_is_about_what_an_index_takes(lists: ApproximateIndex, tmp_path: Path) -> None:
    graph = build(Plan("hnsw", ROWS, DIM), lambda: iter([(VIEWS, VECTORS)]))
    for index in (lists, graph):
        index.save(tmp_path)
        taken = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert taken * 0.8 < index_bytes(index.kind, ROWS, DIM) < taken * 1.5


def test_questions_are_never_a_views_own(exact: ExactIndex) -> None:
    asked = questions(exact, VIEWS, vectors_of, seed=3, sample=200)
    others, crops = asked.drop >= 0, asked.drop < 0
    assert others.sum() == crops.sum() == 100 and len(set(asked.drop[others].tolist())) == 100
    assert np.array_equal(asked.queries[others], vectors_of(asked.drop[others]))
    assert np.allclose(np.linalg.norm(asked.queries, axis=1), 1, atol=1e-5)
    assert 0.75 < asked.cosines[crops, 0].mean() < 0.9 and np.all(asked.cosines[crops, 0] > 0.79)
    product = asked.queries[others] @ VECTORS.T
    product[np.arange(100), asked.drop[others] - 10] = -1
    assert np.allclose(asked.cosines[others], -np.sort(-product, axis=1)[:, :5], atol=1e-5)
    again = questions(exact, VIEWS, vectors_of, seed=3, sample=200)
    assert np.array_equal(asked.queries, again.queries) and np.array_equal(asked.drop, again.drop)
    assert not np.array_equal(asked.drop, questions(exact, VIEWS, vectors_of, seed=4, sample=200).drop)


def test_a_hit_counts_by_its_score() -> None:
    none = -np.inf
    right = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, none, none, none], [0.9, 0.9, 0.9, 0.9, 0.9]], np.float32)
    recall, overlap = scored(right, right)
    assert recall.tolist() == [1, 1, 1] and overlap.tolist() == [1, 1, 1]
    found = np.array([[0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.7, none, none, none], [0.9, 0.9, 0.1, 0, 0]], np.float32)
    recall, overlap = scored(found, right)
    assert recall.tolist() == [0, 1, 1] and overlap.tolist() == [0.8, 0.5, 0.4]


def test_the_exact_index_is_perfect_and_a_blind_one_is_not(exact: ExactIndex) -> None:
    asked = questions(exact, VIEWS, vectors_of, sample=100)
    figures = measured(exact, exact, asked)
    assert figures.good and figures.recall == figures.recall_lower == figures.overlap == figures.overlap_lower == 1
    assert figures.rows == ROWS and figures.sample == 100 and figures.rate > 0 and figures.exact_rate > 0
    blind = ExactIndex(DIM)
    blind.add(VIEWS[: ROWS // 2], VECTORS[: ROWS // 2])
    half = measured(blind, exact, asked)
    assert 0.3 < half.recall < 0.7 and half.recall_lower <= half.recall and not half.good


def test_the_lower_half_is_told(exact: ExactIndex) -> None:
    """Views that were asked for their nearest other find none here; crops find all."""
    asked = questions(exact, VIEWS, vectors_of, sample=100)
    own = ExactIndex(DIM)
    own.add(asked.drop[asked.drop >= 0], vectors_of(asked.drop[asked.drop >= 0]))
    no_others = dataclasses.replace(asked, cosines=np.where(asked.drop[:, None] < 0, np.float32(-1), asked.cosines))
    figures = measured(own, exact, no_others)
    assert figures.recall_lower < 0.2 < figures.recall


def test_the_least_effort_that_is_good_enough(lists: ApproximateIndex, exact: ExactIndex) -> None:
    index, figures = tuned(lists, exact, vectors_of, seed=1, sample=300)
    assert figures.recall_lower >= RECALL and figures.overlap_lower >= OVERLAP and figures.good
    assert figures.effort == index.effort == index.facts["effort"] and figures.seed == 1 and figures.rows == ROWS
    assert json.loads(json.dumps(figures.to_json()))["effort"] == index.effort
    again = tuned(lists, exact, vectors_of, seed=1, sample=300)[0]
    assert again.effort == index.effort
    if index.effort > 8:
        asked = questions(exact, VIEWS, vectors_of, 1, 300)
        less = measured(Parts(lists.with_effort(index.effort // 2), ExactIndex(DIM), vectors_of), exact, asked)
        assert not less.good


def test_where_no_effort_is_enough_it_says_how_far_it_came(lists: ApproximateIndex, exact: ExactIndex) -> None:
    """An index that lacks a third of the views can never be good."""
    other = ExactIndex(DIM)
    other.add(VIEWS, VECTORS)
    other.add(VIEWS + 100_000, noisy(VECTORS, 0.97, np.random.default_rng(0)))
    index, figures = tuned(lists, other, vectors_of, sample=60)
    assert not figures.good and figures.recall_lower < 0.5 and index.effort == figures.effort


def test_small_galleries_can_be_measured() -> None:
    index = ExactIndex(DIM)
    index.add(VIEWS[:3], VECTORS[:3])
    asked = questions(index, VIEWS[:3], vectors_of)
    assert len(asked.queries) == 3 and measured(index, index, asked).good
    with pytest.raises(GalleryError, match="none to compare"):
        questions(index, VIEWS[:1], vectors_of)
