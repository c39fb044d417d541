"""Learned pair scorers against scikit-learn's own answers, and on made-up pairs whose probability is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.calibration import sigmoid
from skumatch.catalogue.scorer import Kind, Linear, PairScorer
from skumatch.errors import ConfigError, DataError
from skumatch.eval.reliability import ece
from skumatch.finetune.pair_scorer import Fit, fit, platt, trees_of
from skumatch.spec import Ids

NAMES = ("title", "picture", "hash", "noise")
KINDS: tuple[Kind, ...] = ("boosting", "logistic")
QUICK = Fit(trees=20, depth=3, leaf=5)
Values = NDArray[np.float32]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def pairs(count: int, seed: int = 0, groups: int = 200) -> tuple[Values, Flags, Ids, Floats]:
    """Return features, labels, groups and the true probability of made-up pairs; the picture is absent from some."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, len(NAMES)))
    without = rng.random(count) < 0.2
    picture = np.where(without, 0.0, 3 * (drawn[:, 1] > 0.5))
    truth = sigmoid(-2.5 + 1.5 * drawn[:, 0] + picture)
    same = rng.random(count) < truth
    features = drawn.astype(np.float32)
    features[without, 1] = np.nan
    return features, same, rng.integers(groups, size=count), truth


def auc(scores: NDArray[Any], same: Flags) -> float:
    """Return how probably a pair of one group scores above one that is not (all of them are compared)."""
    ones, others = scores[same][:, None], scores[~same][None]
    return float(((ones > others) + 0.5 * (ones == others)).mean())


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_trees_give_the_probabilities_that_scikit_learn_gives(depth: int) -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    features, same, _, _ = pairs(1500)
    features = np.nan_to_num(features, nan=-5)
    model = GradientBoostingClassifier(n_estimators=40, max_depth=depth, subsample=0.5, random_state=1)
    model.fit(features, same, sample_weight=np.where(same, 1.0, 3.0))
    scorer = PairScorer(NAMES, (0.0,) * len(NAMES), trees_of(model))
    fresh = np.nan_to_num(pairs(3000, seed=5)[0], nan=-5)
    for rows in (features, fresh):
        assert np.abs(scorer.probability(rows) - model.predict_proba(rows)[:, 1]).max() < 1e-6
        assert scorer.score(rows) == pytest.approx(model.decision_function(rows), abs=1e-9)


def test_trees_on_bins_split_the_values_as_the_bins_do() -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    features, same, _, _ = pairs(1500)
    features = np.nan_to_num(features, nan=-5)
    edges = [np.unique(np.quantile(column, [0.1, 0.3, 0.5, 0.8])).astype(np.float32) for column in features.T]
    binned = np.stack([np.digitize(c, e, right=True) for c, e in zip(features.T, edges, strict=True)], axis=1)
    model = GradientBoostingClassifier(n_estimators=30, random_state=1).fit(binned.astype(np.float32), same)
    scorer = PairScorer(NAMES, (0.0,) * len(NAMES), trees_of(model, edges))
    assert np.abs(scorer.probability(features) - model.predict_proba(binned.astype(np.float32))[:, 1]).max() < 1e-6
    on_edges = np.tile(edges[0][:, None], (1, len(NAMES)))
    codes = np.stack([np.digitize(on_edges[:, i], edges[i], right=True) for i in range(len(NAMES))], axis=1)
    assert np.abs(scorer.probability(on_edges) - model.predict_proba(codes.astype(np.float32))[:, 1]).max() < 1e-6


def test_the_logistic_model_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    features, same, groups, _ = pairs(2000)
    features = np.nan_to_num(features, nan=0.25)
    scorer = fit(features, same, groups, NAMES, Fit("logistic"))
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    model = LogisticRegression(max_iter=1000).fit((features - mean) / scale, same)
    wanted = model.predict_proba((features - mean) / scale)[:, 1]
    assert sigmoid(scorer.score(features)) == pytest.approx(wanted, abs=1e-6)
    assert 0.8 < scorer.slope < 1.1 and abs(scorer.shift) < 0.3


@pytest.mark.parametrize(("how", "off"), [(QUICK, 0.06), (Fit("logistic"), 0.2)])
def test_probabilities_come_near_the_truth_on_new_pairs(how: Fit, off: float) -> None:
    features, same, groups, _ = pairs(8000)
    scorer = fit(features, same, groups, NAMES, how)
    fresh, labels, _, truth = pairs(4000, seed=7)
    stated = scorer.probability(fresh).astype(np.float64)
    assert np.abs(stated - truth).mean() < off
    assert ece(stated, labels) < 0.04
    assert auc(stated, labels) > auc(truth, labels) - 0.05
    facts = scorer.facts
    assert facts["ece"] < 0.04 and facts["brier"] == pytest.approx(np.square(stated - labels).mean(), abs=0.02)
    assert facts["pairs"] == 8000 and facts["of_one_group"] == same.sum() and facts["fit"]["kind"] == how.kind
    assert list(facts["importance"]) == list(NAMES)
    assert facts["importance"]["noise"] < min(facts["importance"][name] for name in ("title", "picture"))


def test_trees_tell_absent_from_small() -> None:
    """Pairs without a picture are always of one group, those with one never: no value that is there says so."""
    features, _, groups, _ = pairs(2000)
    absent = np.isnan(features[:, 1])
    scorer = fit(features, absent, groups, NAMES, QUICK)
    fresh = pairs(500, seed=3)[0]
    assert ((scorer.probability(fresh) > 0.5) == np.isnan(fresh[:, 1])).all()


def test_few_absences_count_as_the_median() -> None:
    features, same, groups, _ = pairs(1000)
    features = np.nan_to_num(features, nan=0.1)
    features[3, 2] = np.nan
    scorer = fit(features, same, groups, NAMES, QUICK)
    assert scorer.fill[2] == np.float32(np.nanmedian(features[:, 2]))


def test_a_feature_that_is_never_there_does_no_harm() -> None:
    features, same, groups, _ = pairs(1000)
    features[:, 3] = np.nan
    for how in (QUICK, Fit("logistic")):
        scorer = fit(features, same, groups, NAMES, how)
        assert scorer.facts["importance"]["noise"] == 0
        other = features.copy()
        other[:, 3] = 1e9
        assert np.array_equal(scorer.probability(other), scorer.probability(features))


def test_left_out_pairs_keep_probabilities_at_the_true_rate() -> None:
    features, same, groups, _ = pairs(20_000)
    rare = ~same | (np.arange(len(same)) % 10 == 0)  # one in about forty is of one group
    features, same, groups = features[rare], same[rare], groups[rare]
    for kind in KINDS:
        scorer = fit(features, same, groups, NAMES, Fit(kind, trees=20, pairs=2000))
        stated = scorer.probability(features)
        assert stated.mean() == pytest.approx(same.mean(), rel=0.2)
        raw = sigmoid(scorer.score(features)).mean()  # the weights already make up for it, before calibration
        assert raw == pytest.approx(same.mean(), rel=0.35)


def test_what_is_reported_was_not_fitted_on() -> None:
    """Labels by coin toss, one per group: a scorer that remembers groups must not look good."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 20)
    mark = rng.normal(size=(60, len(NAMES)))  # by which each group can be known
    features = mark[groups].astype(np.float32)
    same = (rng.random(60) < 0.5)[groups]
    scorer = fit(features, same, groups, NAMES, Fit(trees=60, depth=3, leaf=1))
    assert auc(scorer.score(features), same) > 0.95
    assert scorer.facts["brier"] > 0.2
    assert np.abs(scorer.probability(features) - 0.5).max() < 0.25  # calibration says that nothing was learned


def test_the_same_seed_gives_the_same_scorer() -> None:
    features, same, groups, _ = pairs(1500)
    for kind in KINDS:
        hows = [Fit(kind, trees=5, pairs=500, seed=seed) for seed in (0, 0, 1)]
        first, again, other = (fit(features, same, groups, NAMES, how).to_bytes() for how in hows)
        assert first == again
        assert first != other


def test_it_survives_writing_and_reading() -> None:
    features, same, groups, _ = pairs(1000)
    for how in (QUICK, Fit("logistic")):
        scorer = fit(features, same, groups, NAMES, how)
        again = PairScorer.from_bytes(scorer.to_bytes())
        assert again == scorer
        assert np.array_equal(again.probability(features), scorer.probability(features))
    assert isinstance(scorer.model, Linear)


def test_platts_sigmoid_is_the_most_likely_one() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(2, 3, 4000)
    same = rng.random(4000) < sigmoid(0.4 * scores - 1.3)
    slope, shift = platt(scores, same)
    ones, others = int(same.sum()), int((~same).sum())
    target = np.where(same, (ones + 1) / (ones + 2), 1 / (others + 2))

    def loss(a: float, b: float) -> float:
        x = a * scores + b
        return float(np.mean(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - target * x))

    best = loss(slope, shift)
    for a, b in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, -1e-3)):
        assert loss(slope + a, shift + b) > best
    assert slope == pytest.approx(0.4, abs=0.05)
    assert shift == pytest.approx(-1.3, abs=0.15)


def test_platts_sigmoid_of_scores_that_separate_or_mean_nothing() -> None:
    same = np.arange(100) < 30
    slope, shift = platt(np.where(same, 8.0, -5.0), same)
    assert math.isfinite(slope) and math.isfinite(shift)
    stated = sigmoid(shift + slope * np.array([8.0, -5.0]))
    assert stated == pytest.approx([31 / 32, 1 / 72], abs=1e-6)
    for scores in (np.where(same, -1.0, 1.0), np.zeros(100)):
        slope, shift = platt(scores, same)
        assert slope > 0
        assert sigmoid(shift + slope * scores) == pytest.approx(np.full(100, 31 / 102), abs=0.01)


def test_too_little_to_learn_from_is_said() -> None:
    features, same, groups, _ = pairs(400, groups=40)
    few = np.flatnonzero(same)[:9]
    for labels in (np.zeros(400, bool), np.ones(400, bool), np.isin(np.arange(400), few)):
        with pytest.raises(DataError, match="too few to learn from - label more groups"):
            fit(features, labels, groups, NAMES, QUICK)
    with pytest.raises(DataError, match="pairs of 3 groups are too few"):
        fit(features, same, groups % 3, NAMES, QUICK)


def test_one_group_beside_which_nothing_is_left_is_said() -> None:
    features, _, _, _ = pairs(100)
    groups = np.where(np.arange(100) < 50, 0, np.arange(100) % 5)
    with pytest.raises(DataError, match="of a few groups"):
        fit(features, groups != 0, groups, NAMES, QUICK)


def test_infinite_features_are_named() -> None:
    features, same, groups, _ = pairs(400)
    features[7, 2] = np.inf
    with pytest.raises(DataError, match="the feature hash is infinite"):
        fit(features, same, groups, NAMES, QUICK)


def test_lengths_must_agree() -> None:
    features, same, groups, _ = pairs(400)
    for wrong in ((features[:, :3], same, groups), (features, same[1:], groups), (features, same, groups[1:])):
        with pytest.raises(ValueError, match="names"):
            fit(*wrong, NAMES, QUICK)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "forest"}, "kind is 'forest' - choose boosting, logistic"),
        ({"trees": 0}, "trees is 0"),
        ({"depth": 5}, "depth is 5 - choose 1 to 4"),
        ({"rate": 0}, "rate is 0"),
        ({"leaf": 0}, "leaf is 0"),
        ({"pairs": 10}, "pairs is 10"),
        ({"folds": 1}, "folds is 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Fit(**settings)
