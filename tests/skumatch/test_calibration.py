"""The decision rule: its evidence, its boundaries, and a file that is either right or one clear error."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from skumatch.calibration import (
    COHESION_VIEWS,
    NOTHING,
    Calibration,
    Decision,
    cohesion_of,
    evidence_of,
    shrunk,
    sigmoid,
)
from skumatch.errors import ModelError
from skumatch.nearest import Nearest
from skumatch.spec import Vectors

RULE = Calibration("abc", -3.0, (2.0, 5.0, 0.5), 0.8, 0.9, 0.2, {"target_far": 0.01, "unknowns": "SKUs"})


def unit(seed: int, count: int, dim: int = 8) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def nearest(scores: list[list[float]], skus: list[list[int]]) -> Nearest:
    return Nearest(np.array(scores, np.float32), np.array(skus, np.int64), np.array(skus, np.int64))


@pytest.mark.parametrize(
    ("probability", "decision"),
    [
        (1.0, "accept"),
        (0.9, "accept"),
        (float(np.nextafter(0.9, 0)), "review"),
        (0.2, "review"),
        (float(np.nextafter(0.2, 0)), "unknown"),
        (0.0, "unknown"),
    ],
)
def test_a_decision_changes_exactly_at_its_threshold(probability: float, decision: Decision) -> None:
    assert RULE.decide(probability) == decision


def test_without_a_gap_between_the_thresholds_nothing_is_for_review() -> None:
    rule = Calibration("abc", 0.0, (1.0, 1.0, 1.0), 0.8, 0.5, 0.5)
    assert {rule.decide(p) for p in np.linspace(0, 1, 101)} == {"accept", "unknown"}


def test_the_highest_threshold_accepts_not_even_certainty() -> None:
    rule = Calibration("abc", 0.0, (1.0, 1.0, 1.0), 0.8, NOTHING, 0.1)
    assert rule.decide(1.0) == "review" and rule.decide(0.05) == "unknown"
    assert Calibration.read(rule.to_bytes()).decide(1.0) == "review"


def test_the_probability_is_the_logistic_model_and_rises_with_each_piece_of_evidence() -> None:
    evidence = np.array([[0.7, 0.2, -0.1]])
    assert RULE.probability(evidence)[0] == pytest.approx(1 / (1 + math.exp(3 - 1.4 - 1.0 + 0.05)))
    for column in range(3):
        steps = np.repeat(evidence, 50, axis=0)
        steps[:, column] = np.linspace(-1, 1, 50)
        assert (np.diff(RULE.probability(steps)) > 0).all()


def test_a_probability_never_overflows() -> None:
    found = sigmoid(np.array([-1e9, -800.0, 0.0, 800.0, 1e9]))
    assert found.tolist() == [0, 0, 0.5, 1, 1]


def test_evidence_is_score_lead_and_closeness() -> None:
    found = evidence_of(nearest([[0.9, 0.4], [0.5, 0.5]], [[3, 1], [0, 2]]), np.array([0.8, 0.7]))
    assert found == pytest.approx(np.array([[0.9, 0.5, 0.1], [0.5, 0.0, -0.2]]), abs=1e-6)
    assert found.dtype == np.float64


def test_an_absent_second_sku_counts_as_cosine_nothing() -> None:
    found = evidence_of(nearest([[0.9, -math.inf]], [[0, -1]]), np.array([0.8]))
    assert found == pytest.approx(np.array([[0.9, 0.9, 0.1]]), abs=1e-6)


def test_cohesion_is_how_near_each_view_has_a_sister() -> None:
    assert math.isnan(cohesion_of(unit(0, 0))) and math.isnan(cohesion_of(unit(0, 1)))
    two = unit(1, 2)
    assert cohesion_of(two) == pytest.approx(float(two[0] @ two[1]), abs=1e-6)
    many = unit(2, 7)
    best = [max(float(many[i] @ many[j]) for j in range(7) if j != i) for i in range(7)]
    assert cohesion_of(many) == pytest.approx(np.mean(best), abs=1e-6)
    assert cohesion_of(np.repeat(two[:1], 5, axis=0)) == pytest.approx(1, abs=1e-6)


def test_cohesion_looks_at_a_limited_number_of_views() -> None:
    many = unit(3, COHESION_VIEWS + 20)
    assert cohesion_of(many) == cohesion_of(many[:COHESION_VIEWS]) != cohesion_of(many[: COHESION_VIEWS - 1])


def test_few_views_are_drawn_towards_the_typical_cohesion() -> None:
    assert shrunk(math.nan, 1, 0.7) == 0.7
    drawn = [shrunk(0.9, views, 0.7) for views in (2, 5, 50, 5000)]
    assert drawn == sorted(drawn) and 0.7 < drawn[0] < 0.8 and drawn[-1] == pytest.approx(0.9, abs=1e-3)


def test_a_rule_survives_json() -> None:
    again = Calibration.read(RULE.to_bytes())
    assert again == RULE and again.to_bytes() == RULE.to_bytes()
    assert again.weights == (2.0, 5.0, 0.5) and again.facts["unknowns"] == "SKUs"


def document(**changes: Any) -> bytes:
    return json.dumps({**json.loads(RULE.to_bytes()), **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(RULE.to_bytes()).items() if key != name}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"{}",
        b"[" * 100_000,
        RULE.to_bytes()[:40],
        without("format"),
        without("weights"),
        without("facts"),
        document(format=2),
        document(extra=1),
        document(weights=None),
        document(weights=3.0),
        document(weights="abc"),
        document(weights=[1.0, "2", 3.0]),
        document(weights=[1.0, None, 3.0]),
        document(weights=[1.0, [2.0], 3.0]),
        document(intercept="high"),
        document(intercept=None),
        document(intercept=True),
        document(typical=[0.5]),
        document(accept="0.9"),
        document(unknown=None),
        document(spec_digest=5),
        document(facts=[]),
        document(facts=None),
        document(intercept=10**400),
        document(weights=[10**400, 1.0, 1.0]),
    ],
)
def test_a_broken_file_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^calibration\.json is broken or .* - run `skumatch calibrate` again$"):
        Calibration.read(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [1.0, 2.0]},
        {"weights": [1.0, 2.0, 3.0, 4.0]},
        {"weights": []},
        {"weights": [1.0, math.nan, 1.0]},
        {"intercept": math.inf},
        {"typical": math.nan},
        {"accept": 0.1},
        {"accept": 1.001},
        {"accept": math.nan},
        {"unknown": -0.1},
        {"unknown": 0.95},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="values out of range - run `skumatch calibrate` again"):
        Calibration.read(document(**changes))
