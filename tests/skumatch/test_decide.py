"""Accept, review or unknown: thresholds measured by leaving views out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.decide import Thresholds, decide, fit, measure
from skumatch.errors import GalleryError
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids, Vectors


def clusters(skus: int, views: int, noise: float, seed: int = 0) -> tuple[ExactIndex, Ids, Ids, Vectors]:
    """Return an index of made-up SKUs with (codes by id, ids, vectors)."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(skus, 16)), views, axis=0) + rng.normal(0, noise, (skus * views, 16))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    ids, codes = np.arange(skus * views), np.repeat(np.arange(skus), views)
    index = ExactIndex(16)
    index.add(ids, vectors)
    return index, codes, ids, vectors


def alone(leads: Vectors, right: NDArray[np.bool_]) -> Thresholds | None:
    """Fit on leads alone: every second score is 0."""
    return fit(leads, np.zeros_like(leads), right)


def test_decisions_at_and_around_the_thresholds() -> None:
    thresholds = Thresholds(lead=0.25, unknown=0.5, measured_on=100)
    expected = {
        (0.75, 0.5): "accept",
        (0.75, 0.51): "review",
        (0.99, 0.98): "review",
        (0.5, 0.25): "accept",
        (0.49, -1.0): "unknown",
        (0.7, float("-inf")): "accept",  # the gallery has no second SKU
    }
    assert {pair: decide(np.array(pair, np.float32), thresholds) for pair in expected} == expected
    assert decide(np.array([0.6], np.float32), thresholds) == "accept"
    assert decide(np.array([0.99, 0.0], np.float32), None) == "review"


def test_thresholds_out_of_range_are_refused() -> None:
    for lead, unknown in ((-0.1, 0.5), (float("nan"), 0.1), (0.1, 2.0)):
        with pytest.raises(GalleryError, match="out of range"):
            Thresholds(lead, unknown, 10)
    stored: dict[str, Any] = Thresholds(0.5, 0.5, 10).to_json()
    assert Thresholds(**stored) == Thresholds(0.5, 0.5, 10)


def test_lead_is_the_lowest_that_keeps_95_percent_right() -> None:
    leads = np.linspace(1, 0, 101).astype(np.float32)
    right = leads > 0.595  # 41 right, then wrong answers only: 41 of 43 are 95.3 %, 41 of 44 are 93.2 %
    found = alone(leads, right)
    assert found is not None and found.measured_on == 101
    assert found.lead == pytest.approx(0.58) and right.sum() == 41


def test_look_alikes_that_both_score_high_are_not_accepted() -> None:
    best = np.full(200, 0.95, np.float32)
    second = np.where(np.arange(200) < 100, 0.94, 0.3).astype(np.float32)
    right = np.where(np.arange(200) < 100, np.arange(200) % 2 == 0, True)
    found = fit(best, second, right)
    assert found is not None and found.lead == pytest.approx(0.65, abs=1e-6)


def test_unknown_lies_below_nearly_all_right_answers() -> None:
    best = np.linspace(0.5, 1, 1000).astype(np.float32)
    right = np.arange(1000) % 2 == 1
    found = alone(best, right)
    assert found is not None and np.mean(best[right] < found.unknown) == pytest.approx(0.02, abs=0.002)


def test_no_right_answer_no_thresholds() -> None:
    assert alone(np.ones(30, np.float32), np.zeros(30, bool)) is None


def test_no_precision_to_be_had_accepts_only_the_greatest_lead() -> None:
    found = alone(np.array([0.9, 0.8, 0.7], np.float32), np.array([False, True, True]))
    assert found is not None and found.lead == pytest.approx(0.9)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_answers_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leads = (rng.integers(0, 6, 40) / 6).astype(np.float32)  # many equal leads, right and wrong
    right = rng.random(40) < 0.4 + 0.6 * leads
    turned = rng.permutation(40)
    assert alone(leads, right) == alone(leads[turned], right[turned])


def test_measured_on_easy_and_on_hard_views() -> None:
    easy, hard = measure(*clusters(10, 4, 0.05)), measure(*clusters(10, 4, 1.0))
    assert easy is not None and easy.measured_on == 40 and easy.unknown > 0.9
    assert hard is not None and hard.unknown < easy.unknown
    assert easy == measure(*clusters(10, 4, 0.05))


def test_measured_as_by_searching_without_the_view() -> None:
    index, codes, ids, vectors = clusters(8, 5, 0.8)
    best, second, right = [], [], []
    cosines = vectors @ vectors.T
    for view in ids:
        others = ids != view
        per_sku = {sku: cosines[view][others & (codes == sku)].max() for sku in range(8)}
        ranked = sorted(per_sku, key=lambda sku: -per_sku[sku])
        best.append(per_sku[ranked[0]])
        second.append(per_sku[ranked[1]])
        right.append(ranked[0] == codes[view])
    expected = fit(np.array(best, np.float32), np.array(second, np.float32), np.array(right))
    found = measure(index, codes, ids, vectors)
    assert expected is not None and found is not None
    assert (found.lead, found.unknown) == pytest.approx((expected.lead, expected.unknown), abs=1e-5)


def test_without_sister_views_nothing_is_measured() -> None:
    assert measure(*clusters(50, 1, 0.1)) is None
    assert measure(*clusters(9, 2, 0.1)) is None  # 18 views: fewer than 20
    assert measure(*clusters(10, 2, 0.1)) is not None


def test_views_that_are_copies_of_each_other() -> None:
    found = measure(*clusters(10, 4, 0.0))
    assert found is not None and found.unknown == pytest.approx(1, abs=1e-5)
