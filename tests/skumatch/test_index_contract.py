"""One suite for every index behind the seam: exact search in two forms, faiss' approximate kinds, and Milvus Lite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from skumatch.index import Index
from skumatch.index.approximate import build
from skumatch.index.exact import ExactIndex
from skumatch.index.matmul import exact_index
from skumatch.index.parts import Parts
from skumatch.index.plan import ApproximateKind, Plan
from skumatch.milvus import client
from skumatch.milvus.address import Address, parse
from skumatch.milvus.changes import set_index
from skumatch.milvus.enrol import create
from skumatch.milvus.index import levelled
from skumatch.segment import Views
from skumatch.spec import Spec, Vectors
from tests.skumatch.test_exact_index import brute

DIM, COUNT = 32, 700
Make = Callable[[Vectors], Index]  # holds the rows under their numbers
HALF = (0.5, 0.5, 0.5)


def unit(seed: int, count: int) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(count, DIM))
    made: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def exact(vectors: Vectors) -> Index:
    index = ExactIndex(DIM)
    index.add(np.arange(len(vectors)), vectors)
    return index


def matmul(vectors: Vectors) -> Index:
    index = exact_index(DIM, "cpu")
    index.add(np.arange(len(vectors)), vectors)
    return index


def faiss(kind: ApproximateKind) -> Make:
    def made(vectors: Vectors) -> Index:
        half = len(vectors) // 2
        index = build(Plan(kind, half, DIM), lambda: iter([(np.arange(half), vectors[:half])]))
        tail = ExactIndex(DIM)
        tail.add(np.arange(half, len(vectors)), vectors[half:])
        return Parts(index.with_effort(index.most_effort), tail, lambda ids: vectors[ids])

    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    address = parse(f"milvus+file:{tmp_path_factory.mktemp('milvus')}/i.db")
    yield address
    client.close(address)


@pytest.fixture(params=["exact", "matmul", "hnsw", "ivf-rabitq", "milvus-lite", "milvus-lite hnsw"])
def make(request: pytest.FixtureRequest) -> Make:
    kind = request.param
    if kind in ("hnsw", "ivf-rabitq"):
        return faiss(kind)
    if kind in ("exact", "matmul"):
        return {"exact": exact, "matmul": matmul}[kind]
    file: Address = request.getfixturevalue("file")

    def made(vectors: Vectors) -> Index:
        address = replace(file, name=f"g{abs(hash((request.node.name, len(vectors))))}")
        spec = Spec(64, HALF, HALF, "squash", 1.0, "bicubic", name="m", dim=DIM, layer="none", digest="0" * 64)
        texts = [[f"sku-{number // 2}" for number in range(len(vectors))], *([[""] * len(vectors)] * 2)]
        views = Views(texts[0], texts[1], texts[2], [b"\xff\xd8"] * len(vectors), vectors)
        gallery = create(address, spec, iter([views]), None, "import")
        return (set_index(gallery, "hnsw") if kind.endswith("hnsw") else gallery).index

    return made


def test_the_nearest_views_are_found(make: Make) -> None:
    vectors, queries = unit(0, COUNT), unit(1, 40)
    scores, ids = make(vectors).search(queries, 10)
    expected_scores, expected = brute(vectors, np.arange(COUNT), queries, 10)
    assert scores.shape == ids.shape == (40, 10) and scores.dtype == np.float32 and ids.dtype == np.int64
    assert (ids == expected).mean() > 0.98
    assert np.allclose(scores, expected_scores, atol=1e-3)
    assert np.allclose(scores, np.einsum("nd,nkd->nk", queries, vectors[ids]), atol=1e-5)  # true cosines
    assert np.all(np.diff(scores, axis=1) <= 0)


def test_a_view_is_its_own_nearest(make: Make) -> None:
    vectors = unit(2, COUNT)
    scores, ids = make(vectors).search(vectors[:50], 1)
    assert np.array_equal(ids[:, 0], np.arange(50)) and np.allclose(scores, 1, atol=1e-5)


def test_only_what_is_allowed_is_found(make: Make) -> None:
    vectors, queries = unit(3, COUNT), unit(4, 9)
    allowed = np.sort(np.random.default_rng(5).choice(COUNT, 60, replace=False))
    index = make(vectors)
    ids = index.search(queries, 5, allowed)[1]
    assert np.array_equal(ids, brute(vectors[allowed], allowed, queries, 5)[1])
    assert np.array_equal(index.search(queries, 5, allowed[::-1])[1], ids)
    assert np.array_equal(index.search(queries, 3, allowed[:2])[1][:, 2], np.full(9, -1))
    assert np.all(np.isneginf(index.search(queries, 3, allowed[:2])[0][:, 2]))
    none = index.search(queries, 3, np.empty(0, np.int64))
    assert np.all(none[1] == -1) and np.all(np.isneginf(none[0]))


def test_more_than_there_is_ends_in_nothing(make: Make) -> None:
    vectors, queries = unit(6, 12), unit(7, 3)
    index = make(vectors)
    assert len(index) == 12
    scores, ids = index.search(queries, 20)
    assert np.array_equal(ids, brute(vectors, np.arange(12), queries, 20)[1]) and np.all(np.isneginf(scores[:, 12:]))


def test_equal_views_come_by_id(make: Make) -> None:
    vectors = np.repeat(unit(8, 6), 3, axis=0)
    ids = make(vectors).search(vectors[::3], 3)[1]
    assert np.array_equal(ids, np.arange(18).reshape(6, 3))


def test_no_queries_no_answers(make: Make) -> None:
    scores, ids = make(unit(9, 30)).search(np.empty((0, DIM), np.float32), 4)
    assert scores.shape == ids.shape == (0, 4)


def test_the_same_question_has_the_same_answer(make: Make) -> None:
    vectors, queries = unit(10, COUNT), unit(11, 20)
    index = make(vectors)
    assert np.array_equal(index.search(queries, 7)[1], index.search(queries, 7)[1])


def test_far_more_answers_than_a_server_gives(file: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skumatch.milvus.index.MOST", 50)
    monkeypatch.setattr("skumatch.milvus.index.ALLOWED", 20)
    vectors, queries = unit(12, 120), unit(13, 4)
    spec = Spec(64, HALF, HALF, "squash", 1.0, "bicubic", name="m", dim=DIM, layer="none", digest="0" * 64)
    views = Views([f"s{i}" for i in range(120)], [""] * 120, [""] * 120, [b""] * 120, vectors)
    index = create(replace(file, name="far"), spec, iter([views]), None, "import").index
    assert np.array_equal(index.search(queries, 100)[1], brute(vectors, np.arange(120), queries, 100)[1])
    allowed = np.arange(0, 120, 2)
    assert np.array_equal(index.search(queries, 5, allowed)[1], brute(vectors[allowed], allowed, queries, 5)[1])


def test_a_question_of_another_length_scales_the_scores(make: Make) -> None:
    vectors, queries = unit(14, COUNT), unit(15, 8)
    index = make(vectors)
    scores, ids = index.search(queries, 4)
    long, same = index.search(3 * queries, 4)
    assert np.array_equal(ids, same) and np.allclose(long, 3 * scores, atol=1e-5)  # a guarded model asks so


def test_equal_scores_that_rounding_parts_are_levelled() -> None:
    below, far = np.nextafter(np.float32(0.9), np.float32(0)), np.float32(0.89)
    nothing = -np.inf
    scores = np.array([[0.9, below, far, nothing, nothing], [nothing] * 5, [1, 0.5, 0.5, 0.4, nothing]], np.float32)
    expected = scores.copy()
    expected[0, 1] = np.float32(0.9)
    assert np.array_equal(levelled(scores), expected)
    assert np.array_equal(levelled(scores[:, :1]), scores[:, :1])
