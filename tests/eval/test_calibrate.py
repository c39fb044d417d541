"""Fitting the decision rule: against scikit-learn, on simulated shelves where the truth is known, and on noise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.calibration import NOTHING, Calibration, Floats, sigmoid
from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import DataError
from skumatch.eval.calibrate import (
    FOLDS,
    MISSED,
    RIDGE,
    TARGET_ACCURACY,
    UNKNOWN_SHARE,
    Case,
    accuracy_threshold,
    case_of,
    cohesion,
    far_threshold,
    fit,
    folds_of,
    left_out_far,
    logistic,
    worst,
)
from skumatch.eval.openset import auroc
from skumatch.eval.reliability import ece
from skumatch.eval.retrieval import retrieve
from skumatch.eval.unknowns import known_case
from skumatch.eval.views import Views, embed_rows
from skumatch.match import Matcher
from skumatch.readers import open_dataset
from skumatch.search import Search
from skumatch.techniques import Technique

Flags = NDArray[np.bool_]
TRUTH = np.array([6.0, 9.0, 3.0])


def sampled(seed: int, count: int, steps: float = 0) -> tuple[Floats, Flags, Floats]:
    """Draw evidence, whether the answers are right by a logistic model with weights TRUTH, and query weights."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0.3, 1, count)
    evidence = np.stack([score, score * rng.uniform(0, 0.6, count), score - rng.uniform(0.6, 1, count)], axis=1)
    if steps:
        evidence = np.round(evidence / steps) * steps
    right = rng.random(count) < sigmoid(evidence @ TRUTH - 5)
    return evidence, right, rng.uniform(0.2, 3, count)


def simulated(seed: int, skus: int = 60, each: int = 20, prefix: str = "k", shift: float = 0.0) -> Case:
    """Draw known queries (or, with ``shift`` below 0, unknown ones: never right); the SKUs differ in difficulty."""
    rng = np.random.default_rng(seed)
    ease = np.repeat(rng.normal(0, 0.04, skus), each)
    score = np.clip(0.8 + shift + ease + rng.normal(0, 0.07, len(ease)), 0, 1)
    margin = np.clip(0.25 + shift / 2 + ease + rng.normal(0, 0.08, len(ease)), 0, score)
    evidence = np.stack([score, margin, score - 0.85 + rng.normal(0, 0.03, len(ease))], axis=1)
    right = rng.random(len(ease)) < sigmoid(evidence @ np.array([8.0, 12.0, 4.0]) - 6)
    return Case(evidence, right & (shift >= 0), tuple(f"{prefix}{i // each}" for i in range(len(ease))))


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.linear_model import LogisticRegression

    evidence, right, weight = sampled(seed, 400, steps=0.05 * (seed % 2))
    intercept, weights = logistic(evidence, right, weight)
    spread = evidence.std(axis=0)
    scaled = (evidence - evidence.mean(axis=0)) / spread
    model = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(scaled, right, sample_weight=weight)
    assert (model.coef_ >= 0).all()
    assert np.array(weights) * spread == pytest.approx(model.coef_[0], abs=1e-4)
    stated = sigmoid(evidence @ np.array(weights) + intercept)
    assert stated == pytest.approx(model.predict_proba(scaled)[:, 1], abs=1e-4)


def test_misleading_evidence_weighs_nothing_and_the_rest_is_fitted_without_it() -> None:
    from sklearn.linear_model import LogisticRegression

    evidence, right, weight = sampled(1, 600)
    evidence[:, 1] = np.where(right, 0.1, 0.3) + np.random.default_rng(0).normal(0, 0.2, 600)
    intercept, weights = logistic(evidence, right, weight)
    assert weights[1] == 0 and weights[0] > 0 and weights[2] > 0
    rest = evidence[:, [0, 2]]
    scaled = (rest - rest.mean(axis=0)) / rest.std(axis=0)
    model = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(scaled, right, sample_weight=weight)
    stated = sigmoid(evidence @ np.array(weights) + intercept)
    assert stated == pytest.approx(model.predict_proba(scaled)[:, 1], abs=1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_no_weight_is_negative_or_endless(seed: int) -> None:
    rng = np.random.default_rng(seed)
    evidence = rng.normal(size=(80, 3)) * rng.choice([0.0, 1e-3, 1, 50], 3)  # a column may be constant
    right = evidence[:, 0] + evidence[:, 1] * rng.choice([-1, 1]) > 0 if seed % 2 else rng.random(80) < 0.9
    intercept, weights = logistic(evidence, right, np.ones(80))
    assert min(weights) >= 0 and np.isfinite([intercept, *weights]).all()


@pytest.mark.parametrize("gap", [1e-4, 0.1, 0.8])
def test_groups_that_separate_stay_finite_and_in_order(gap: float) -> None:
    right = np.arange(2000) < 1000
    rng = np.random.default_rng(0)
    evidence = np.where(right, 0.5 + gap / 2, 0.5 - gap / 2)[:, None] + rng.uniform(-gap / 4, gap / 4, (2000, 3))
    intercept, weights = logistic(evidence, right, np.ones(2000))
    stated = sigmoid(evidence @ np.array(weights) + intercept)
    assert np.isfinite([intercept, *weights]).all()
    assert stated[right].min() > 0.9 > 0.1 > stated[~right].max()


def test_one_outcome_alone_is_no_failure() -> None:
    evidence, _, weight = sampled(0, 50)
    for right in (np.ones(50, bool), np.zeros(50, bool)):
        intercept, weights = logistic(evidence, right, weight)
        stated = sigmoid(evidence @ np.array(weights) + intercept)
        assert np.isfinite([intercept, *weights]).all() and (abs(stated - right) < 0.05).all()


def test_folds_keep_the_crops_of_a_sku_together_and_are_even() -> None:
    shown = [f"sku-{i}" for i in np.random.default_rng(0).integers(0, 23, 400)]
    found = folds_of(shown, seed=3)
    by_sku = {name: {int(f) for f, s in zip(found, shown, strict=True) if s == name} for name in set(shown)}
    assert all(len(folds) == 1 for folds in by_sku.values())
    sizes = np.bincount([folds.pop() for folds in by_sku.values()], minlength=FOLDS)
    assert len(sizes) == FOLDS and sizes.max() - sizes.min() <= 1
    assert folds_of(shown, 3).tolist() == found.tolist() != folds_of(shown, 4).tolist()
    assert folds_of(shown[::-1], 3).tolist() == found.tolist()[::-1]


def test_a_sku_that_is_known_and_unknown_has_one_fold() -> None:
    """Where SKUs are removed from the gallery the same crops are known and unknown: fitting on either would leak."""
    from skumatch.eval.calibrate import _folds

    known, unknown = [f"s{i % 17}" for i in range(90)], [f"s{i % 11}" for i in range(40)]
    found = _folds(known, unknown, 0).tolist()
    fold: dict[str, set[int]] = {}
    for name, number in zip([*known, *unknown], found, strict=True):
        fold.setdefault(name, set()).add(number)
    assert all(len(numbers) == 1 for numbers in fold.values()) and len(set(found[90:])) == FOLDS


@pytest.mark.parametrize("ties", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("count", "target"), [(20, 0.1), (20, 0.01), (7, 0.2), (150, 0.02), (99, 0.01), (3, 0.5)])
def test_the_false_accept_rate_holds_on_average_for_crops_like_those_seen(
    count: int, target: float, ties: float
) -> None:
    rng = np.random.default_rng(int(count + 1000 * target))
    rates = []
    for _ in range(3000):
        p = rng.beta(2, 5, count + 40)
        p = np.round(p / ties) * ties if ties else p
        rates.append((p[count:] >= far_threshold(p[:count], target)).mean())
    noise = 3 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= target + noise
    if not ties:  # as many pass as may: the bound is met up to one crop
        assert np.mean(rates) >= target - 1 / (count + 1) - noise


@pytest.mark.parametrize(("count", "target", "passing"), [(99, 0.01, 0), (199, 0.01, 1), (200, 0.01, 1), (9, 0.5, 4)])
def test_the_threshold_lets_through_the_most_that_the_target_allows(count: int, target: float, passing: int) -> None:
    p = np.random.default_rng(0).random(count)
    assert int((p >= far_threshold(p, target)).sum()) == passing


def test_ties_at_the_threshold_do_not_pass() -> None:
    p = np.array([0.9] * 10 + [0.1] * 89)
    assert (p >= far_threshold(p, 0.05)).sum() == 0
    assert (p >= far_threshold(np.ones(99), 0.05)).sum() == 0


@pytest.mark.parametrize(("count", "target"), [(98, 0.01), (20, 0.04), (1, 0.4)])
def test_a_rate_that_so_few_crops_cannot_show_accepts_nothing(count: int, target: float) -> None:
    assert far_threshold(np.full(count, 0.3), target) == NOTHING > 1
    assert left_out_far(np.linspace(0, 1, count), [f"s{i}" for i in range(count)], target) == 0


@pytest.mark.parametrize("seed", range(6))
def test_left_out_far_is_what_leaving_each_sku_out_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random(150) if seed % 2 else rng.integers(0, 6, 150) / 5
    shown = [f"s{i}" for i in rng.integers(0, 2 if seed == 2 else 12, 150)]
    names = np.array(shown)
    for target in (0.005, 0.05, 0.3):
        passed = sum(
            int((p[names == name] >= far_threshold(p[names != name], target)).sum()) for name in sorted(set(shown))
        )
        assert left_out_far(p, shown, target) == passed / 150


def test_the_worst_unknown_sku_is_named_with_its_rate() -> None:
    passed = np.array([True, False, True, True, False, False])
    assert worst(passed, ["b", "b", "a", "c", "c", "c"]) == ("a", 1.0)
    assert worst(~passed & passed, ["b", "b", "a", "c", "c", "c"])[1] == 0


def test_the_accuracy_threshold_is_the_lowest_that_keeps_enough() -> None:
    rng = np.random.default_rng(0)
    for steps in (0.0, 0.02, 0.2):
        p = rng.random(300)
        p = np.round(p / steps) * steps if steps else p
        right = rng.random(300) < p**0.2
        for target in (0.8, 0.9, 0.98):
            enough = [t for t in np.unique(p) if right[p >= t].mean() >= target]
            assert accuracy_threshold(p, right, target) == (min(enough) if enough else NOTHING)


def test_ties_are_accepted_together_or_not_at_all() -> None:
    p, right = np.array([0.9, 0.9, 0.9, 0.5]), np.array([True, True, False, False])
    assert accuracy_threshold(p, right, 0.9) == accuracy_threshold(p, right[[2, 0, 1, 3]], 0.9) == NOTHING
    assert accuracy_threshold(p, right, 0.6) == 0.9
    assert accuracy_threshold(p, ~right & right, 0.5) == NOTHING


@pytest.fixture(scope="module")
def fitted() -> tuple[Calibration, Case, Case]:
    """Return a rule fitted on simulated queries and the known and unknown ones it was fitted on."""
    known, unknown = simulated(0), simulated(1, skus=30, prefix="u", shift=-0.2)
    return fit(known, unknown, 0.05, "digest", 0.9), known, unknown


def test_the_rule_keeps_its_promises_on_fresh_skus(fitted: tuple[Calibration, Case, Case]) -> None:
    rule = fitted[0]
    fars, accuracies, missed, errors = [], [], [], []
    for seed in range(40):
        known, unknown = simulated(2 + 2 * seed), simulated(3 + 2 * seed, skus=30, prefix="u", shift=-0.2)
        p, other = rule.probability(known.evidence), rule.probability(unknown.evidence)
        fars.append((other >= rule.accept).mean())
        accuracies.append(known.right[p >= rule.accept].mean())
        missed.append((p[known.right] < rule.unknown).mean())
        share = round(len(known) * UNKNOWN_SHARE / (1 - UNKNOWN_SHARE))
        stated = np.concatenate([p, other[:share]])
        errors.append(ece(stated, np.concatenate([known.right, np.zeros(share, bool)])))
    assert np.mean(fars) < 0.06 and np.mean(accuracies) > TARGET_ACCURACY - 0.01
    assert np.mean(missed) == pytest.approx(MISSED, abs=0.015) and np.mean(errors) < 0.03
    assert rule.facts["ece"] < 0.04 and rule.facts["left_out_far"] < 0.08


def test_far_of_rules_fitted_on_few_skus_is_the_target_on_average() -> None:
    rates = []
    for seed in range(60):
        unknown = simulated(500 + seed, skus=60, each=1, prefix="u", shift=-0.15)
        rule = fit(simulated(seed, skus=20), unknown, 0.1, "digest", 0.9, seed)
        fresh = simulated(900 + seed, skus=300, each=1, prefix="v", shift=-0.15)
        rates.append((rule.probability(fresh.evidence) >= rule.accept).mean())
    assert np.mean(rates) <= 0.1 + 2 * np.std(rates) / np.sqrt(len(rates))


def test_the_facts_say_what_was_fitted_on(fitted: tuple[Calibration, Case, Case]) -> None:
    rule, known, unknown = fitted
    facts = rule.facts
    assert (facts["known_queries"], facts["known_skus"]) == (len(known), 60) == (1200, 60)
    assert (facts["unknown_crops"], facts["unknown_skus"]) == (len(unknown), 30) == (600, 30)
    assert facts["target_far"] == 0.05 and facts["fitted_far"] <= 0.05
    assert 0.2 < facts["fitted_accepted"] < 1 and facts["worst_unknown"]["sku"] in unknown.shown
    assert facts["worst_unknown"]["far"] >= facts["fitted_far"]


def test_the_same_seed_gives_the_same_rule(fitted: tuple[Calibration, Case, Case]) -> None:
    rule, known, unknown = fitted
    assert fit(known, unknown, 0.05, "digest", 0.9).to_bytes() == rule.to_bytes()
    other = fit(known, unknown, 0.05, "digest", 0.9, seed=1)
    assert other.weights == rule.weights and other.accept != rule.accept


def test_a_stricter_rate_accepts_fewer(fitted: tuple[Calibration, Case, Case]) -> None:
    known, unknown = fitted[1], simulated(1, skus=30, prefix="u", shift=-0.05)
    rules = [fit(known, unknown, target, "digest", 0.9) for target in (0.2, 0.02, 0.001)]
    accepts = [rule.accept for rule in rules]
    assert accepts == sorted(accepts) and accepts[0] < accepts[1] < accepts[2] == NOTHING
    assert rules[2].facts["fitted_accepted"] == 0 and rules[2].unknown <= rules[2].accept


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_teach_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, unknown = simulated(seed), simulated(50 + seed, skus=30, prefix="u")
    noise = Case(known.evidence, rng.random(len(known)) < 0.6, known.shown)
    rule = fit(noise, Case(unknown.evidence, np.zeros(600, bool), unknown.shown), 0.05, "digest", 0.9, seed)
    fresh = simulated(100 + seed)
    p = rule.probability(fresh.evidence)
    labels = rng.random(len(fresh)) < 0.6
    assert abs(auroc(p[labels], p[~labels]) - 0.5) < 0.06
    assert (p >= rule.accept).mean() < 0.02


def test_a_probability_never_falls_when_evidence_rises(fitted: tuple[Calibration, Case, Case]) -> None:
    rule, known, _ = fitted
    assert sum(weight > 0 for weight in rule.weights) >= 2
    for column in range(3):
        lower, higher = known.evidence, known.evidence.copy()
        higher[:, column] += 0.01
        assert (rule.probability(higher) >= rule.probability(lower)).all()


@pytest.mark.parametrize(
    ("known", "unknown", "said"),
    [
        (simulated(0), simulated(1, 2, 9, "u", -0.2), "18 crops of 2 unknown SKUs are too few .* at least 2, with 20"),
        (simulated(0), simulated(1, 1, 40, "u", -0.2), "40 crops of 1 unknown SKUs are too few"),
        (simulated(0, 1, 19), simulated(1, 5, 9, "u", -0.2), r"only \d+ answers to known crops are right"),
        (simulated(0, shift=-0.1), simulated(1, 5, 9, "u", -0.2), "only 0 answers to known crops are right"),
    ],
)
def test_too_little_to_fit_on_is_an_error(known: Case, unknown: Case, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(known, unknown, 0.05, "digest", 0.9)


def test_a_case_is_taken_apart_by_place_or_mask() -> None:
    case = simulated(0, 3, 2)
    places = np.array([4, 0])
    assert case.take(places).shown == ("k2", "k0") and case.take(places).evidence.tolist() == [
        *case.evidence[[4, 0]].tolist()
    ]
    assert len(case.take(case.right)) == case.right.sum()


def test_cohesion_of_a_gallery_is_per_sku_with_the_median() -> None:
    rows = tuple(Row(Path(f"{i}.jpg"), sku, "train") for i, sku in enumerate("abacab"))
    angles = np.array([0, 1, 0.2, 2, 0.5, 1.3])
    views = Views(rows, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    own, counts, median = cohesion(views)
    assert counts.tolist() == [3, 2, 1] and np.isnan(own[2])
    assert own[:2] == pytest.approx([(2 * np.cos(0.2) + np.cos(0.3)) / 3, np.cos(0.3)], abs=1e-6)
    assert median == pytest.approx(np.median(own[:2]))
    assert cohesion(views.take(np.array([0, 1, 3])))[2] == 1.0


def test_evidence_of_eval_is_that_of_the_matcher(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    """What is fitted in eval must be what a gallery on disk gives at match time, to the last decimals."""
    dataset = open_dataset(patterns)
    rows = [row for row in dataset.split("train").rows if not (row.sku == "sku-0" and row.path.stem > "0")]
    rows = [row for row in rows if not (row.sku == "sku-1" and row.path.stem > "1")]  # one view, two views, four
    queries = dataset.split("test").rows
    gallery, asked = (embed_rows(part, encoder, Pipeline())[0] for part in (rows, queries))
    case, typical = case_of(retrieve(gallery, asked, 2))
    rule = Calibration(encoder.spec.digest, -4.0, (3.0, 5.0, 40.0), typical, 0.6, 0.2)
    opened = build_gallery(tmp_path / "gallery", Supply.of(rows), encoder, Pipeline()).gallery
    own, counts, _ = cohesion(gallery)
    for sku, alike, count in zip(gallery.skus, own, counts, strict=True):
        there, views = opened.cohesion(opened.skus.index(sku))
        assert there == pytest.approx(alike, abs=1e-6, nan_ok=True) and views == count
    found = Matcher(encoder, opened, calibration=rule).match([row.path for row in queries], k=1)
    probabilities = [crop.matches[0].probability for crop in found]
    assert probabilities == pytest.approx(rule.probability(case.evidence).tolist(), abs=1e-5)
    assert len({round(p or 0, 3) for p in probabilities}) > 6
    assert [crop.decision for crop in found] == [rule.decide(p or 0) for p in probabilities]
    assert [crop.matches[0].sku == row.sku for crop, row in zip(found, queries, strict=True)] == case.right.tolist()


TECHNIQUES = (
    Technique("vote", 5),
    Technique("prototype", candidates=2),
    Technique("expand", 3),
    Technique("augment", 3),
    Technique("reciprocal", 3, candidates=4),
)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_another_search_is_fitted_as_it_is_matched(
    technique: Technique, patterns: Path, encoder: Encoder, tmp_path: Path
) -> None:
    dataset = open_dataset(patterns)
    rows, queries = dataset.split("train").rows, dataset.split("test").rows
    gallery, asked = (embed_rows(part, encoder, Pipeline())[0] for part in (rows, queries))
    case, typical = known_case(gallery, asked, None, technique)
    rule = Calibration(encoder.spec.digest, -4.0, (3.0, 5.0, 40.0), typical, 0.6, 0.2)
    opened = build_gallery(tmp_path / "gallery", Supply.of(rows), encoder, Pipeline()).gallery
    matcher = Matcher(encoder, opened, calibration=rule, search=Search(technique))
    for k in (1, 2, 6):
        found = matcher.match([row.path for row in queries], k)
        stated = [crop.matches[0].probability for crop in found]
        assert stated == pytest.approx(rule.probability(case.evidence).tolist(), abs=1e-5), k


def test_a_typical_cohesion_that_is_given_is_used(patterns: Path, encoder: Encoder) -> None:
    dataset = open_dataset(patterns)
    gallery, asked = (embed_rows(dataset.split(s).rows, encoder, Pipeline())[0] for s in ("train", "test"))
    answers = retrieve(gallery, asked, 2)
    own, typical = case_of(answers)
    cases = [case_of(answers, value) for value in (typical, 0.2, 0.1)]
    assert cases[0][0].evidence.tolist() == own.evidence.tolist() and [value for _, value in cases[1:]] == [0.2, 0.1]
    step = cases[2][0].evidence - cases[1][0].evidence
    assert step[:, 2] == pytest.approx(0.1 * 3 / 7, abs=1e-6) and not step[:, :2].any()
    assert all(first[0].right.tolist() == second[0].right.tolist() for first, second in pairwise(cases))
