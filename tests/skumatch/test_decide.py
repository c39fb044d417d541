"""Accept, review or unknown: thresholds measured by leaving views out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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


def test_decisions_at_and_around_the_thresholds() -> None:
    thresholds = Thresholds(0.8, 0.5, 100)
    expected = {0.9: "accept", 0.8: "accept", 0.79: "review", 0.5: "review", 0.49: "unknown", -1.0: "unknown"}
    assert {score: decide(score, thresholds) for score in expected} == expected
    assert decide(0.99, None) == decide(-1.0, None) == "review"


def test_thresholds_out_of_order_are_refused() -> None:
    for accept, unknown in ((0.5, 0.6), (float("nan"), 0.1)):
        with pytest.raises(GalleryError, match="out of order"):
            Thresholds(accept, unknown, 10)
    stored: dict[str, Any] = Thresholds(0.5, 0.5, 10).to_json()
    assert Thresholds(**stored) == Thresholds(0.5, 0.5, 10)


def test_accept_is_the_lowest_score_that_keeps_95_percent_right() -> None:
    scores = np.linspace(1, 0, 101).astype(np.float32)
    right = scores > 0.595  # 41 right, then wrong answers only: 41 of 43 are 95.3 %, 41 of 44 are 93.2 %
    found = fit(scores, right)
    assert found is not None and found.measured_on == 101
    assert found.accept == pytest.approx(0.58) and right.sum() == 41
    assert found.unknown <= found.accept


def test_unknown_lies_below_nearly_all_right_answers() -> None:
    scores = np.linspace(0.5, 1, 1000).astype(np.float32)
    found = fit(scores, np.ones(1000, bool))
    assert found is not None and found.accept == pytest.approx(0.5)
    mixed = np.where(np.arange(1000) % 2, scores, scores - 1).astype(np.float32)
    other = fit(mixed, np.arange(1000) % 2 == 1)
    assert other is not None and 0.01 <= np.mean(scores[1::2] < other.unknown) + 0.011 <= 0.04


def test_no_right_answer_no_thresholds() -> None:
    assert fit(np.ones(30, np.float32), np.zeros(30, bool)) is None


def test_no_precision_to_be_had_accepts_only_the_best() -> None:
    found = fit(np.array([0.9, 0.8, 0.7], np.float32), np.array([False, True, True]))
    assert found is not None and found.accept == pytest.approx(0.9)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_answers_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 6, 40) / 6).astype(np.float32)  # many equal scores, right and wrong
    right = rng.random(40) < 0.4 + 0.6 * scores
    turned = rng.permutation(40)
    assert fit(scores, right) == fit(scores[turned], right[turned])


def test_measured_on_easy_and_on_hard_views() -> None:
    easy, hard = measure(*clusters(10, 4, 0.05)), measure(*clusters(10, 4, 1.0))
    assert easy is not None and easy.measured_on == 40 and easy.accept > 0.9
    assert hard is not None and hard.accept > hard.unknown
    assert easy == measure(*clusters(10, 4, 0.05))


def test_without_sister_views_nothing_is_measured() -> None:
    assert measure(*clusters(50, 1, 0.1)) is None
    assert measure(*clusters(9, 2, 0.1)) is None  # 18 views: fewer than 20
    assert measure(*clusters(10, 2, 0.1)) is not None


def test_views_that_are_copies_of_each_other() -> None:
    found = measure(*clusters(10, 4, 0.0))
    assert found is not None and found.accept == pytest.approx(1, abs=1e-5)
