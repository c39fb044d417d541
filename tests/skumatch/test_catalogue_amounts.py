"""Amounts out of titles, and their comparison against a plain loop over pairs and values."""

from __future__ import annotations

import numpy as np
import pytest

from skumatch.catalogue.amounts import MOST, Amounts, agreements, amounts, contradictions
from skumatch.catalogue.titles import normalised
from skumatch.catalogue.units import DIMENSIONS


def named(*titles: str) -> Amounts:
    return amounts([normalised(title) for title in titles])


def listed(found: Amounts, place: int) -> set[tuple[str, float]]:
    rows = slice(found.offsets[place], found.offsets[place + 1])
    return {
        (DIMENSIONS[code], float(value)) for code, value in zip(found.dimension[rows], found.value[rows], strict=True)
    }


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("6 x 330 ml", {("pcs", 6), ("ml", 330), ("ml", 1980)}),
        ("33cl x 6", {("pcs", 6), ("ml", 330), ("ml", 1980)}),
        ("isi 6 pcs x 330ml", {("pcs", 6), ("ml", 330), ("ml", 1980)}),
        ("kopi x6", {("pcs", 6)}),
        ("1 lusin gelas 10 cm", {("pcs", 12), ("mm", 100)}),
        ("mjölk 1,5 % 1 l", {("pct", 1.5), ("ml", 1000)}),
        ("diskon 20% 128GB", {("mb", 131072)}),
        ("128GB 20% off", {("mb", 131072)}),
        ("500g+250g", {("g", 500), ("g", 250)}),
        ("0 kg", set()),
        ("iphone 12 pro", set()),
        ("", set()),
    ],
)
def test_amounts_of_a_title(title: str, expected: set[tuple[str, float]]) -> None:
    assert listed(named(title), 0) == expected


def test_what_contradicts_and_what_agrees() -> None:
    found = named(
        "gula 500 g", "gula 1 kg", "gula 2 x 500g", "gula 0.5 kg 12 pcs", "gula 505g", "gula 511g", "gula", "1 l"
    )
    left = np.array([0, 0, 0, 0, 0, 0, 0, 1, 3])
    right = np.array([1, 2, 3, 4, 5, 6, 7, 2, 2])
    assert contradictions(found, left, right).tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert agreements(found, left, right).tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 1]


def test_they_equal_a_loop_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skumatch.catalogue.amounts.PAIRS", 97)
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 5, 300)
    dimension = rng.integers(0, len(DIMENSIONS), counts.sum()).astype(np.uint8)
    value = np.round(100 * 1.01 ** rng.integers(0, 8, counts.sum()), 2)
    found = Amounts(np.concatenate([[0], np.cumsum(counts)]), dimension, value)
    left, right = rng.integers(0, 300, (2, 2000))
    against, for_it = contradictions(found, left, right), agreements(found, left, right)
    assert against.dtype == for_it.dtype == np.uint8
    for pair in range(2000):
        agree = contradict = 0
        for code in range(len(DIMENSIONS)):
            a, b = ([v for d, v in listed(found, place[pair]) if d == DIMENSIONS[code]] for place in (left, right))
            close = any(abs(x - y) <= 0.02 * max(x, y) + 1e-9 for x in a for y in b)
            agree, contradict = agree + close, contradict + bool(a and b and not close)
        assert (against[pair], for_it[pair]) == (contradict, agree), pair
    assert against.any() and for_it.any()


def test_both_ways_round_are_alike_and_no_pairs_are_fine() -> None:
    found = named("500 g", "1 kg 6 pcs", "6 st 500g")
    left, right = np.array([0, 0, 1]), np.array([1, 2, 2])
    assert np.array_equal(contradictions(found, left, right), contradictions(found, right, left))
    assert len(agreements(found, left[:0], right[:0])) == 0
    assert len(amounts([])) == 0 and len(amounts(["", ""])) == 2


def test_a_title_that_lists_everything_is_cut() -> None:
    found = named(" ".join(f"{n} g" for n in range(1, 200)))
    assert len(found.value) == MOST


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Amounts(np.array([0, 2]), np.zeros(1, np.uint8), np.zeros(1))
