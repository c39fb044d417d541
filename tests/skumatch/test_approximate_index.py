"""Approximate indexes: found is what is near, kept off is what is removed, and a folder holds all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from skumatch.errors import ArtefactError, DeviceError, GalleryError
from skumatch.index.approximate import IDS, INDEX, ApproximateIndex, build, open_approximate
from skumatch.index.plan import ApproximateKind, Plan
from skumatch.spec import Ids, Vectors

DIM, ROWS = 64, 2000
KINDS = get_args(ApproximateKind)


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, DIM))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


VECTORS = unit(np.random.default_rng(0), ROWS)
VIEWS = np.random.default_rng(1).permutation(10 * ROWS)[:ROWS].astype(np.int64)  # ids in any order, with gaps


def blocks() -> Iterator[tuple[Ids, Vectors]]:
    """Yield the vectors in uneven pieces, one of them empty."""
    for start, end in ((0, 1), (1, 1), (1, 1300), (1300, ROWS)):
        yield VIEWS[start:end], VECTORS[start:end]


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest) -> ApproximateIndex:
    return build(Plan(request.param, ROWS, DIM), blocks)


def near(index: ApproximateIndex, queries: Vectors, allowed: Ids | None = None) -> tuple[Ids, float]:
    """Return the ids found for k = 10, and how many of the true 10 nearest of the ``allowed`` are among them."""
    held = index.ids() if allowed is None else allowed[index.holds(allowed)]
    places = np.flatnonzero(np.isin(VIEWS, held))
    scores = queries @ VECTORS[places].T
    true = VIEWS[places][np.argsort(-scores, axis=1)[:, :10]]
    found = index.search(queries, 10, allowed)[1]
    return found, float(np.mean([np.isin(row, mine).mean() for row, mine in zip(true, found, strict=True)]))


def test_what_is_near_is_found(index: ApproximateIndex) -> None:
    queries = unit(np.random.default_rng(2), 300)
    scores, found = index.with_effort(index.most_effort).search(queries, 10)
    assert len(index) == ROWS and np.array_equal(index.ids(), VIEWS)
    assert scores.dtype == np.float32 and found.dtype == np.int64 and np.all(np.diff(scores, axis=1) <= 0)
    assert near(index.with_effort(index.most_effort), queries)[1] > 0.94
    place = np.argsort(VIEWS)[np.searchsorted(np.sort(VIEWS), found)]
    true = np.einsum("nd,nkd->nk", queries, VECTORS[place])
    assert np.abs(scores - true).max() < 0.03  # 8 bits per number
    assert near(index.with_effort(1), queries)[1] < near(index, queries)[1] <= 1


def test_what_was_removed_is_never_found(index: ApproximateIndex) -> None:
    queries = VECTORS[:200]
    less = index.without(np.append(VIEWS[:100], 123_456_789))
    found, recall = near(less.with_effort(less.most_effort), queries)
    assert not np.isin(found, VIEWS[:100]).any() and recall > 0.94
    assert np.array_equal(found[100:, 0], VIEWS[100:200])
    assert len(less) == ROWS - 100 and len(index) == ROWS and np.array_equal(less.ids(), VIEWS[100:])
    assert less.holds(VIEWS[98:102]).tolist() == [False, False, True, True]
    assert np.array_equal(index.search(queries, 1)[1].ravel(), VIEWS[:200])  # the one it was taken from stays
    again = less.without(VIEWS[150:151])
    assert len(again) == ROWS - 101 and len(less) == ROWS - 100
    less.remove(VIEWS[100:110])
    assert len(less) == ROWS - 110 and not np.isin(less.search(queries, 10)[1], VIEWS[:110]).any()


def test_only_the_allowed_are_found(index: ApproximateIndex) -> None:
    rng, queries = np.random.default_rng(3), VECTORS[:100]
    many = index.without(VIEWS[:50]).with_effort(index.most_effort)
    allowed = np.append(rng.choice(VIEWS, ROWS // 2, replace=False), [-5, 99_999_999])
    found, recall = near(many, queries, allowed)
    assert np.isin(found, allowed).all() and not np.isin(found, VIEWS[:50]).any() and recall > 0.94
    assert np.all(many.search(queries, 3, np.empty(0, np.int64))[1] == -1)
    scores, few = many.search(queries, 3, VIEWS[60:61])
    assert set(few.ravel().tolist()) <= {int(VIEWS[60]), -1} and np.all(np.isneginf(scores[few < 0]))


def test_more_is_asked_than_there_is() -> None:
    for kind in KINDS:
        small = build(Plan(kind, 5, DIM), lambda: iter([(VIEWS[:5], VECTORS[:5])]))
        scores, found = small.search(VECTORS[:4], 9)
        assert np.array_equal(found[:, 0], VIEWS[:4]) and np.all(found[:, 5:] == -1)
        assert np.all(np.isneginf(scores[:, 5:])) and np.all(np.sort(found[:, :5]) == np.sort(VIEWS[:5]))
        assert small.search(VECTORS[:0], 3)[1].shape == (0, 3)


def test_a_folder_holds_all_but_the_facts(index: ApproximateIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [IDS, INDEX]
    opened = open_approximate(tmp_path, json.loads(json.dumps(index.facts)))
    assert opened.facts == index.facts and opened.effort == index.effort and np.array_equal(opened.ids(), VIEWS)
    scores, found = opened.search(VECTORS[:90], 10)
    expected = index.search(VECTORS[:90], 10)
    assert np.array_equal(scores, expected[0]) and np.array_equal(found, expected[1])


def test_the_effort_is_kept_in_the_facts(index: ApproximateIndex, tmp_path: Path) -> None:
    other = index.with_effort(3)
    index.save(tmp_path)
    assert open_approximate(tmp_path, other.facts).effort == 3 and index.effort != 3


@pytest.mark.parametrize("name", [IDS, INDEX])
def test_a_broken_folder_is_named(index: ApproximateIndex, tmp_path: Path, name: str) -> None:
    index.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"nonsense" * 20, b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ArtefactError, match=r"ids\.i64|index\.faiss"):
            open_approximate(tmp_path, index.facts)
    (tmp_path / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        open_approximate(tmp_path, index.facts)


def test_anothers_facts_are_refused(index: ApproximateIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    with pytest.raises(ArtefactError, match="does not fit"):
        open_approximate(tmp_path, {**index.facts, "rows": ROWS + 1})


def test_a_full_disk_is_an_error(tiny_disk: Path) -> None:
    rows = unit(np.random.default_rng(0), 15_000)
    big = build(Plan("ivf-rabitq", len(rows), DIM), lambda: iter([(np.arange(len(rows)), rows)]))
    with pytest.raises(ArtefactError, match=r"index\.faiss|no space"):
        big.save(tiny_disk)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_index(kind: ApproximateKind, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        build(Plan(kind, ROWS, DIM, seed), blocks).save(tmp_path / name)
    first, again, other = ((tmp_path / name / INDEX).read_bytes() for name in "abc")
    assert first == again
    if kind == "ivf-rabitq":
        assert first != other


def test_an_extended_index_holds_both(index: ApproximateIndex) -> None:
    rng = np.random.default_rng(7)
    more, ids = unit(rng, 400), np.arange(100_000, 100_400)
    done: list[int] = []
    less = index.without(VIEWS[:10])
    longer = less.extended(lambda: iter([(ids[:300], more[:300]), (ids[300:], more[300:])]), done.append)
    assert len(longer) == ROWS + 390 and len(index) == ROWS and len(less) == ROWS - 10 and sum(done) == 400
    assert longer.facts["rows"] == ROWS + 400 and index.facts["rows"] == ROWS
    best = longer.with_effort(longer.most_effort)
    assert np.array_equal(best.search(more, 1)[1].ravel(), ids)
    found = best.search(VECTORS[:100], 1)[1].ravel()
    assert np.array_equal(found[10:], VIEWS[10:100]) and not np.isin(found[:10], VIEWS[:10]).any()
    assert not np.isin(index.search(more, 10)[1], ids).any()
    with pytest.raises(GalleryError, match="id of its own"):
        index.extended(lambda: iter([(VIEWS[:1], more[:1])]))


def test_threads_do_not_share_their_effort_or_their_filter(index: ApproximateIndex) -> None:
    rng, queries = np.random.default_rng(8), VECTORS[:60]
    indexes = [index.with_effort(effort) for effort in (1, 4, index.most_effort)]
    jobs = [(rng.choice(VIEWS, ROWS // 3), indexes[number % 3]) for number in range(30)]
    expected = [each.search(queries, 5, allowed)[1] for allowed, each in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: job[1].search(queries, 5, job[0])[1], jobs))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_the_progress_is_told() -> None:
    done: list[int] = []
    build(Plan("ivf-rabitq", ROWS, DIM), blocks, done.append)
    assert sum(done) == ROWS


def test_nonsense_is_refused() -> None:
    with pytest.raises(GalleryError, match="unknown index kind 'tree'"):
        Plan("tree", 3, DIM)  # type: ignore[arg-type]
    with pytest.raises(GalleryError, match="nothing to index"):
        Plan("hnsw", 0, DIM)
    with pytest.raises(GalleryError, match="2000 vectors for 1999"):
        build(Plan("ivf-rabitq", ROWS - 1, DIM), blocks)
    with pytest.raises(GalleryError, match="id of its own"):
        build(Plan("hnsw", 4, DIM), lambda: iter([(np.array([1, 2, 3, 1]), VECTORS[:4])]))
    with pytest.raises(DeviceError, match="no GPU 99"):
        build(Plan("ivf-rabitq", ROWS, DIM, device="cuda:99"), blocks)


def test_the_sample_and_the_lists_grow_with_the_rows() -> None:
    plans = [Plan("ivf-rabitq", rows, 512) for rows in (1, 39, 10_000, 1_000_000, 3_500_000)]
    assert [plan.lists for plan in plans] == [1, 1, 200, 2000, 3742]
    assert all(min(plan.rows, 40 * plan.lists) <= plan.sample <= 64 * plan.lists for plan in plans)
    assert Plan("ivf-rabitq", 1_000_000, 2560).sample * 2560 * 4 <= 1 << 30


@pytest.mark.gpu
def test_centres_found_on_a_gpu() -> None:
    index = build(Plan("ivf-rabitq", ROWS, DIM, device="cuda:0"), blocks)
    assert near(index.with_effort(index.most_effort), VECTORS[:200])[1] > 0.94
