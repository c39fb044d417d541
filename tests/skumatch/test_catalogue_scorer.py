"""The pair scorer against walks through its trees one pair at a time, and against files that are not one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.catalogue.scorer import BLOCK, LEAF, Linear, PairScorer, Trees, rounded_down
from skumatch.errors import ModelError

COLUMNS = 5
NAMES = ("picture", "title", "words", "hash", "amounts")
FILL = (-1.0, 0.5, 0.0, 0.25, 2.0)
Tree = tuple[tuple[int, ...], tuple[float, ...]]


def tree(rng: np.random.Generator, depth: int) -> Tree:
    """Draw a tree, not all of whose branches reach ``depth``."""
    if depth == 0 or rng.random() < 0.2:
        return (LEAF,), (float(rng.normal()),)
    below = [tree(rng, depth - 1) for _ in range(2)]
    feature, threshold = int(rng.integers(COLUMNS)), float(rng.integers(-8, 9) / 8)
    return (feature, *below[0][0], *below[1][0]), (threshold, *below[0][1], *below[1][1])


def trees(seed: int, count: int = 30, depth: int = 4) -> Trees:
    rng = np.random.default_rng(seed)
    features, numbers = zip(*(tree(rng, depth) for _ in range(count)), strict=True)
    return Trees(0.3, features, numbers)


def scorer(seed: int = 0) -> PairScorer:
    return PairScorer(NAMES, FILL, trees(seed), 0.7, -0.2, {"ece": 0.01})


def linear() -> PairScorer:
    return PairScorer(NAMES, FILL, Linear(-0.5, (1.0, -2.0, 0.0, 3.0, 0.1), FILL, (1.0, 2.0, 0.5, 4.0, 1.0)))


def values(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Draw features, many of which equal a threshold, and some of which are absent."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(-10, 11, (count, COLUMNS)) / 8).astype(np.float32)
    drawn[rng.random(drawn.shape) < 0.1] = np.nan
    return drawn


def walked(model: Trees, row: list[float]) -> float:
    """Return the score of one pair, going down each tree."""

    def size(features: tuple[int, ...], at: int) -> int:
        if features[at] == LEAF:
            return 1
        left = size(features, at + 1)
        return 1 + left + size(features, at + 1 + left)

    total = model.base
    for features, numbers in zip(model.features, model.numbers, strict=True):
        at = 0
        while features[at] != LEAF:
            at += 1 if row[features[at]] <= numbers[at] else 1 + size(features, at + 1)
        total += numbers[at]
    return total


@pytest.mark.parametrize("seed", range(5))
def test_trees_answer_as_a_walk_through_each_of_them(seed: int) -> None:
    found = scorer(seed)
    rows = values(300, seed)
    filled = [[FILL[i] if math.isnan(v) else float(v) for i, v in enumerate(row)] for row in rows]
    model = found.model
    assert isinstance(model, Trees)
    wanted = [walked(model, row) for row in filled]
    assert found.score(rows) == pytest.approx(wanted, abs=1e-12)
    stated = found.probability(rows)
    assert stated.dtype == np.float32
    assert stated == pytest.approx([1 / (1 + math.exp(0.2 - 0.7 * one)) for one in wanted], abs=1e-6)


def test_a_full_tree_of_sixteen_leaves_reaches_every_one_of_them() -> None:
    """The tree tells the whole numbers 0 to 15 apart."""

    def grown(low: int, high: int) -> Tree:
        if low == high:
            return (LEAF,), (float(low),)
        middle = (low + high) // 2
        left, right = grown(low, middle), grown(middle + 1, high)
        return (0, *left[0], *right[0]), (middle + 0.5, *left[1], *right[1])

    features, numbers = grown(0, 15)
    found = PairScorer(("one",), (0.0,), Trees(0.0, (features,), (numbers,)))
    assert found.score(np.arange(16, dtype=np.float32)[:, None]).tolist() == list(range(16))


def test_linear_scores_are_the_formula() -> None:
    rows = values(50)
    found, model = linear(), linear().model
    assert isinstance(model, Linear)
    for row, score in zip(rows.tolist(), found.score(rows).tolist(), strict=True):
        total = model.bias
        for value, fill, weight, mean, scale in zip(row, FILL, model.weights, model.mean, model.scale, strict=True):
            total += weight * ((fill if math.isnan(value) else value) - mean) / scale
        assert score == pytest.approx(total, abs=1e-9)


def test_blocks_change_nothing() -> None:
    rows = values(BLOCK + 7)
    whole = scorer().probability(rows)
    apart = np.concatenate([scorer().probability(part) for part in np.array_split(rows, 9)])
    assert np.array_equal(whole, apart)
    assert scorer().probability(rows[:0]).shape == (0,)


def test_what_is_infinite_counts_as_absent() -> None:
    absent = values(200)
    for value in (np.inf, -np.inf):
        infinite = np.where(np.isnan(absent), np.float32(value), absent)
        for one in (scorer(), linear()):
            assert np.array_equal(one.probability(infinite), one.probability(absent))


def test_extreme_scores_stay_probabilities() -> None:
    steep = replace(linear(), slope=1e6)
    stated = steep.probability(values(500))
    assert ((stated >= 0) & (stated <= 1)).all() and {0.0, 1.0} <= set(stated.tolist())


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1 / 3, 0.5, -7.3e-12, 1e300, -1e300, 16777217.0])
def test_rounded_thresholds_decide_float32_values_alike(threshold: float) -> None:
    down = rounded_down(threshold)
    near = [down]
    with np.errstate(over="ignore"):
        near += [np.nextafter(down, np.float32(way)) for way in (-np.inf, np.inf)]
    for value in near:
        if np.isfinite(value):
            assert (value <= down) == (float(value) <= threshold)


@pytest.mark.parametrize("make", [scorer, linear])
def test_it_comes_back_as_it_was_written(make: Callable[[], PairScorer]) -> None:
    before = make()
    again = PairScorer.from_bytes(before.to_bytes())
    assert again == before
    assert PairScorer.from_json(before.to_json()) == before
    assert again.to_bytes() == before.to_bytes()
    assert np.array_equal(again.probability(values(100)), before.probability(values(100)))


def test_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\), not \(pairs, 5\)"):
        scorer().probability(np.zeros((3, 4), np.float32))


def changed(path: str, value: Any) -> bytes:
    """Return a scorer's bytes with the entry at a path such as "model/features/0" replaced."""
    document: Any = json.loads(scorer().to_bytes())
    *above, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at = document
    for key in above:
        at = at[key]
    at[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 2),
        ("names/0", "title"),  # twice
        ("names/0", 7),
        ("names", []),
        ("names", None),
        ("fill/0", float("nan")),
        ("fill", [0.0]),
        ("slope", 0.0),
        ("slope", -1.0),
        ("slope", True),
        ("shift", float("inf")),
        ("facts", 3),
        ("model/kind", "forest"),
        ("model/base", "0.3"),
        ("model/base", 10**400),
        ("model/features", []),  # numbers without nodes
        ("model/features/0", []),
        ("model/features/0", [COLUMNS, -1, -1]),  # a column that is not there
        ("model/features/0", [-2]),
        ("model/features/0", [0.5, -1, -1]),
        ("model/features/0", [0, -1]),  # breaks off
        ("model/features/0", [-1, -1]),  # goes on
        ("model/features/0", [0] * 16 + [-1] * 17),  # too large
        ("model/numbers/0/0", float("nan")),
        ("model/numbers/0", ["a"]),
        ("model", None),
    ],
)
def test_what_is_no_scorer_is_refused(path: str, value: Any) -> None:
    data = changed(path, value)
    features = json.loads(data)["model"] and json.loads(data)["model"].get("features")
    if path == "model/features/0":  # as many numbers as nodes, so that the nodes alone are wrong
        document = json.loads(data)
        document["model"]["numbers"][0] = [0.0] * len(features[0])
        data = json.dumps(document).encode()
    with pytest.raises(ModelError, match=r"the pair scorer is broken: .* - learn it anew"):
        PairScorer.from_bytes(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="the pair scorer is broken"):
        PairScorer.from_bytes(data)


def test_bytes_cut_anywhere_are_refused() -> None:
    data = scorer().to_bytes()
    for end in range(0, len(data) - 2, 97):
        with pytest.raises(ModelError):
            PairScorer.from_bytes(data[:end])


@pytest.mark.parametrize("name", ["weights", "mean", "scale"])
def test_weights_must_fit_the_features(name: str) -> None:
    document = linear().to_json()
    document["model"][name] = document["model"][name][1:]
    with pytest.raises(ModelError):
        PairScorer.from_json(document)


def test_a_scale_of_zero_is_refused() -> None:
    document = linear().to_json()
    document["model"]["scale"][2] = 0.0
    with pytest.raises(ModelError):
        PairScorer.from_json(document)
