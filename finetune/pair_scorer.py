"""Learning from labelled groups how probably two postings are one product: boosted trees or a logistic model.

Pairs that were left out of a fit, by whole groups, say how its scores become probabilities and how good these are.
What is learned is a ``skumatch.catalogue.scorer.PairScorer``. Knows nothing about what the features mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch.calibration import sigmoid
from skumatch.catalogue.scorer import LEAF, Kind, Linear, PairScorer, Trees
from skumatch.errors import DataError
from skumatch.eval.reliability import brier, ece
from skumatch.finetune.parts import one_of, within
from skumatch.spec import Ids

FEWEST: Final = 10  # pairs of one group, and others
FEWEST_GROUPS: Final = 4  # that such pairs come from
BINS: Final = 32  # of a feature: sklearn sorts the values of every node, and few distinct ones are sorted fast
ROWS: Final = 10_000  # drawn per tree, at most
FEATURES: Final = 0.5  # share of the features that a split chooses among
ABSENT: Final = 100  # absences of a feature from which on trees may tell them from small values
FLATTEST: Final = 1e-3  # slope of the calibration, where the scores mean nothing
Values = NDArray[np.float32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """How a scorer is fitted.

    ``kind`` "boosting": ``trees`` of ``depth`` 1..4, each leaf with at least ``leaf`` pairs, at learning rate ``rate``
    (Friedman 2002, "Stochastic gradient boosting"); "logistic": a ridge logistic model. ``pairs``: at most so many are
    fitted on, half of them from one group where there are enough; the weights make up for what is left out. ``folds``:
    parts that the groups are dealt into for the calibration. Raises ConfigError for values out of range.
    """

    kind: Kind = "boosting"
    trees: int = 100
    depth: int = 3
    rate: float = 0.1
    leaf: int = 20
    pairs: int = 60_000
    folds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("pair scorer", self, "kind")
        within("pair scorer", self, trees=(1, 2000), depth=(1, 4), rate=(1e-4, 1), leaf=(1, 10**6))
        within("pair scorer", self, pairs=(100, 10**8), folds=(2, 20), seed=(0, 2**31 - 1))


@dataclass(frozen=True)
class _Labelled:
    """Pairs: features float32 (P, F), NaN where absent, whether they are of one group, and a weight each."""

    features: Values
    same: Flags
    weight: Floats

    def take(self, chosen: NDArray[Any]) -> _Labelled:
        """Return the pairs at ``chosen`` (int64 or bool mask)."""
        return _Labelled(self.features[chosen], self.same[chosen], self.weight[chosen])


def fit(features: Values, same: Flags, groups: Ids, names: Sequence[str], how: Fit) -> PairScorer:
    """Return a calibrated scorer of pairs with ``features`` float32 (P, F) called ``names``; NaN: absent.

    ``same`` bool (P,): whether a pair is of one group; ``groups`` int64 (P,): the group that it is left out with.
    Platt's sigmoid (Platt 1999, with his smoothed targets) is fitted on the scores of pairs whose groups were left
    out. ``facts``: how it was fitted, the pairs, expected calibration error and Brier score of probabilities that
    neither trees nor sigmoid had seen, and what each feature contributes. Same seed, same scorer. Raises DataError
    for too few pairs or groups, and values that are infinite.
    """
    _check(features, same, groups, names)
    data = _Labelled(features, same, np.ones(len(same)))
    fold = _folds(same, groups, how)
    scores = np.empty(len(same))
    for inside, outside in _parts(fold, same):
        scores[outside] = _fitted(data.take(inside), names, how)[0].score(features[outside])
    slope, shift = platt(scores, same)
    scorer, importance = _fitted(data, names, how)
    stated = _stated(scores, same, fold)
    facts = {
        "fit": asdict(how),
        "pairs": len(same),
        "of_one_group": int(same.sum()),
        "groups": len(np.unique(groups)),
        "ece": ece(stated, same),
        "brier": brier(stated, same),
        "importance": dict(zip(names, (round(float(share), 6) for share in importance), strict=True)),
    }
    return replace(scorer, slope=slope, shift=shift, facts=facts)


def _check(features: Values, same: Flags, groups: Ids, names: Sequence[str]) -> None:
    if features.shape != (len(same), len(names)) or len(groups) != len(same):
        raise ValueError(f"features are {features.shape}; {len(names)} names, {len(same)} labels, {len(groups)} groups")
    ones, several = int(same.sum()), len(np.unique(groups[same]))
    if min(ones, len(same) - ones) < FEWEST:
        what = f"{ones} pairs of one group and {len(same) - ones} others are too few to learn from"
        raise DataError(what, f"label more groups: at least {FEWEST} pairs of each are needed")
    if several < FEWEST_GROUPS:
        raise DataError(f"pairs of {several} groups are too few to learn from", f"label at least {FEWEST_GROUPS}")
    if np.isinf(features).any():
        column = names[int(np.isinf(features).any(axis=0).argmax())]
        raise DataError(f"the feature {column} is infinite for some pairs", "leave those pairs out")


def _folds(same: Flags, groups: Ids, how: Fit) -> Ids:
    """Return the fold of each pair, int64 (P,): that of its group. Groups with a pair in them, and those without, are
    dealt out each in turn, so that every fold has both."""
    codes, unit = np.unique(groups, return_inverse=True)
    matched = np.bincount(unit, same) > 0
    drawn = np.random.default_rng(how.seed).permutation(len(codes))
    dealt = np.empty(len(codes), np.int64)
    dealt[np.concatenate([drawn[matched[drawn]], drawn[~matched[drawn]]])] = np.arange(len(codes))
    return (dealt % min(how.folds, int(matched.sum())))[unit]


def _parts(fold: Ids, same: Flags) -> Iterator[tuple[Flags, Flags]]:
    """Yield, per fold, the pairs outside and inside of it. Raises DataError where nothing could be learned outside."""
    for number in range(int(fold.max()) + 1):
        outside = fold == number
        if same[~outside].all() or not same[~outside].any():
            what = "nearly all pairs are of a few groups: too little is left to learn from without them"
            raise DataError(what, "label more groups")
        yield ~outside, outside


def _stated(scores: Floats, same: Flags, fold: Ids) -> Floats:
    """Return the probability of every pair under a sigmoid that was fitted on the scores of the other folds."""
    stated = np.empty(len(scores))
    for inside, outside in _parts(fold, same):
        slope, shift = platt(scores[inside], same[inside])
        stated[outside] = sigmoid(shift + slope * scores[outside])
    return stated


def _fitted(data: _Labelled, names: Sequence[str], how: Fit) -> tuple[PairScorer, Floats]:
    """Return an uncalibrated scorer and the share of each feature in it, float64 (F,)."""
    some = _drawn(data, how)
    if how.kind == "logistic":
        fill = _fill(some.features, np.inf)
        linear, importance = _logistic(replace(some, features=_filled(some.features, fill)), how)
        return PairScorer(tuple(names), tuple(map(float, fill)), linear), importance
    fill = _fill(some.features, ABSENT)
    trees, importance = _boosted(replace(some, features=_filled(some.features, fill)), how)
    return PairScorer(tuple(names), tuple(map(float, fill)), trees), importance


def _drawn(data: _Labelled, how: Fit) -> _Labelled:
    """Return at most ``how.pairs`` of the pairs; those of a kind that is thinned out weigh the more."""
    count = len(data.same)
    if count <= how.pairs:
        return data
    rng, ones = np.random.default_rng((how.seed, 1)), int(data.same.sum())
    kept_ones = min(ones, max(how.pairs // 2, how.pairs - (count - ones)))
    chosen, weight = [], data.weight.copy()
    for kind, kept in ((True, kept_ones), (False, how.pairs - kept_ones)):
        places = np.flatnonzero(data.same == kind)
        chosen.append(rng.choice(places, kept, replace=False))
        weight[places] *= len(places) / kept
    return replace(data, weight=weight).take(np.sort(np.concatenate(chosen)))


def _fill(features: Values, absent: float) -> Values:
    """Return what stands for an absent value of each feature, float32 (F,): its median.

    Where at least ``absent`` are absent it is a value below all others, which trees can tell from them; 0 where
    nothing is there at all.
    """
    found = np.zeros(features.shape[1], np.float32)
    for place, column in enumerate(features.T):
        there = column[~np.isnan(column)]
        if len(there) and len(column) - len(there) >= absent:
            found[place] = there.min() - max(float(np.ptp(there)), 1.0)
        elif len(there):
            found[place] = np.median(there)
    return found


def _filled(features: Values, fill: Values) -> Values:
    return np.where(np.isnan(features), fill, features)


def _logistic(data: _Labelled, how: Fit) -> tuple[Linear, Floats]:
    """Fit on standardised features; a feature that never changes counts for nothing."""
    from sklearn.linear_model import LogisticRegression

    mean = data.features.mean(axis=0, dtype=np.float64)
    spread = data.features.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-9, spread, 1.0)
    model = LogisticRegression(max_iter=1000, random_state=how.seed)
    model.fit((data.features - mean) / scale, data.same, sample_weight=data.weight)
    weights = np.where(spread > 1e-9, model.coef_[0], 0.0)
    linear = Linear(float(model.intercept_[0]), tuple(weights.tolist()), tuple(mean.tolist()), tuple(scale.tolist()))
    return linear, np.abs(weights) / max(float(np.abs(weights).sum()), 1e-12)


def _boosted(data: _Labelled, how: Fit) -> tuple[Trees, Floats]:
    """Fit on the numbers of bins, and write the bins' edges into the trees."""
    from sklearn.ensemble import GradientBoostingClassifier

    edges = [_edges(column) for column in data.features.T]
    binned = np.stack(
        [np.searchsorted(edge, column) for edge, column in zip(edges, data.features.T, strict=True)], axis=1
    )
    model = GradientBoostingClassifier(
        n_estimators=how.trees,
        max_depth=how.depth,
        learning_rate=how.rate,
        min_samples_leaf=how.leaf,
        subsample=min(0.5, ROWS / len(data.same)),
        max_features=FEATURES,
        random_state=how.seed,
    )
    model.fit(binned.astype(np.float32), data.same, sample_weight=data.weight)
    return trees_of(model, edges), np.asarray(model.feature_importances_)


def _edges(column: Values) -> Values:
    """Return up to ``BINS`` ascending values that part ``column``; each belongs to the bin below it.

    The smallest has a bin of its own: it may stand for what is absent.
    """
    distinct = np.unique(column)
    if len(distinct) <= BINS:
        return distinct[:-1]
    wanted = np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1], method="inverted_cdf")
    return np.unique(np.append(wanted[wanted < distinct[-1]], distinct[0]))


def trees_of(model: Any, edges: Sequence[Values] | None = None) -> Trees:
    """Return the trees of a fitted sklearn GradientBoostingClassifier of two classes, whose scores are its
    ``decision_function``.

    ``edges``: where it was fitted on numbers of bins, the float32 values between them, ascending, per feature. A model
    whose first guess is not the prior of the classes is not understood.
    """
    share = float(model.init_.class_prior_[1])
    grown = [_preorder(stage[0].tree_, model.learning_rate, edges) for stage in model.estimators_]
    return Trees(float(np.log(share / (1 - share))), *zip(*grown, strict=True))


def _preorder(tree: Any, rate: float, edges: Sequence[Values] | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a tree's features and numbers as ``Trees`` writes them."""
    features, numbers, pending = [], [], [0]
    while pending:
        node = pending.pop()
        left, feature, threshold = int(tree.children_left[node]), int(tree.feature[node]), float(tree.threshold[node])
        if left < 0:
            features.append(LEAF)
            numbers.append(rate * float(tree.value[node, 0, 0]))
            continue
        features.append(feature)
        numbers.append(threshold if edges is None else float(edges[feature][int(threshold)]))
        pending += [int(tree.children_right[node]), left]
    return tuple(features), tuple(numbers)


def platt(scores: Floats, same: Flags) -> tuple[float, float]:
    """Return slope and shift under which ``sigmoid(shift + slope * scores)`` is the probability of ``same``.

    Newton's method, with Platt's targets: (n + 1) / (n + 2) for the n pairs of one group and 1 / (m + 2) for the m
    others. The slope is above 0: where larger scores do not mean more, it is next to nothing.
    """
    ones, others = int(same.sum()), int((~same).sum())
    target = np.where(same, (ones + 1) / (ones + 2), 1 / (others + 2))
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    design = np.stack([np.ones(len(scores)), (scores - middle) / spread], axis=1)
    beta = np.array([np.log((ones + 1) / (others + 1)), 0.0])
    for _ in range(100):
        stated = sigmoid(design @ beta)
        bend = (design * (stated * (1 - stated))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, design.T @ (target - stated))
        beta = beta + step * min(1.0, 2 / max(float(np.abs(step).max()), 1e-12))  # far away it overshoots
        if np.abs(step).max() < 1e-9:
            break
    slope = float(beta[1]) / spread
    if slope < FLATTEST:
        return FLATTEST, float(np.log((ones + 1) / (others + 1))) - FLATTEST * middle
    return slope, float(beta[0]) - slope * middle
