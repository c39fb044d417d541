"""Learning a rule for duplicate postings from labelled groups: what speaks for a match, and from where on it is one.

Everything that is reported was answered for postings whose groups the judge had not seen: the groups are dealt into
folds, and the pairs of each fold are judged by what was fitted on the others. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.dedupe import Evidence, features_of
from skumatch.catalogue.groups import Grouping, groups_of
from skumatch.catalogue.judged import Judged, Matches, matches_of_groups
from skumatch.catalogue.rules import Judge, Learned, NoisyOr, Rule, Union
from skumatch.errors import DataError
from skumatch.eval.duplicates import Choice, Matching, best_f1, by_pairs, least_threshold
from skumatch.finetune.pair_scorer import Fit, fit
from skumatch.spec import Ids

Kind = Literal["logistic", "boosting", "union", "noisy-or"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FOLDS: Final = 5
FEWEST: Final = 10  # labelled groups
Values = NDArray[np.float32]
Columns = tuple[Sequence[str], Mapping[str, float]]  # of the features; and of the signals, each with its floor


@dataclass(frozen=True)
class Lesson:
    """How to learn: by which ``kind`` of judge ("logistic" or "boosting", fitted as ``fit`` says; "union", "noisy-or";
    "best": the one with the highest F1 on groups it has not seen), how to group, and the mean precision to keep to
    (None: the highest F1)."""

    kind: str = "best"
    fit: Fit = field(default_factory=Fit)
    grouping: Grouping = field(default_factory=Grouping)
    precision: float | None = None
    folds: int = FOLDS
    seed: int = 0


@dataclass(frozen=True)
class Pool:
    """The candidate pairs of a labelled catalogue: places, features, whether they are of one group."""

    left: Ids
    right: Ids
    values: Values
    same: NDArray[np.bool_]
    groups: Ids

    def judged(self, probability: NDArray[np.float32]) -> Judged:
        """Return the pairs as judged."""
        return Judged(self.left.astype(np.int32), self.right.astype(np.int32), probability)


def learn(found: Evidence, groups: Ids, lesson: Lesson) -> Rule:
    """Return the rule that matches the labelled ``groups`` int64 (N,) best.

    Its ``facts`` hold the mean F1, precision and recall out of fold for every kind that was tried, and what
    calibration the scorer reached. Raises DataError for fewer than ten groups of two, or no pair of one group among the
    candidates, or a precision that no threshold reaches.
    """
    kinds = [kind for kind in KINDS if lesson.kind in (kind, "best")]
    if not kinds:
        raise DataError(f"there is no kind of rule '{lesson.kind}'", f"choose {', '.join(KINDS)} or best")
    _check(groups)
    pool = _pool(found, groups)
    columns = found.features.names, found.floors
    tried = {}
    for kind in kinds:
        out = pool.judged(_out_of_fold(kind, pool, columns, lesson))
        tried[kind] = _chosen(out, groups, lesson)
    best = max(kinds, key=lambda kind: tried[kind][0].f1)
    choice, closed = tried[best]
    judge = _fitted(best, pool, columns, lesson)
    facts = {kind: {**_said(each), "closed": its} for kind, (each, its) in tried.items()}
    about = {"groups": len(np.unique(groups)), "postings": len(groups), "pairs": len(pool.left), "seed": lesson.seed}
    return Rule(judge, choice.threshold, lesson.grouping, closed, facts={"out_of_fold": facts, **about})


def closed_by(grouping: Grouping) -> Matching:
    """Return what matches all postings of a group that the pairs make."""

    def match(count: int, judged: Judged, threshold: float) -> Matches:
        return matches_of_groups(groups_of(count, judged, threshold, grouping), judged)

    return match


def _check(groups: Ids) -> None:
    several = int((np.unique(groups, return_counts=True)[1] > 1).sum())
    if several < FEWEST:
        what = f"{several} groups of two and more postings are too few to learn from"
        raise DataError(what, f"label at least {FEWEST}")


def _pool(found: Evidence, groups: Ids) -> Pool:
    parts = [values for _, values in features_of(found)]
    pairs = found.pairs
    same = groups[pairs.left] == groups[pairs.right]
    if not same.any() or same.all():
        kind = "none" if not same.any() else "all"
        raise DataError(f"{kind} of the {len(same)} candidate pairs are of one group", "check the labels")
    return Pool(pairs.left, pairs.right, np.concatenate(parts), same, groups)


def _chosen(out: Judged, groups: Ids, lesson: Lesson) -> tuple[Choice, bool]:
    """Return the threshold that serves best, and whether the matches of a posting are better taken from its group."""

    def at_best(match: Matching) -> Choice:
        if lesson.precision is None:
            return best_f1(out, groups, match)
        return least_threshold(out, groups, lesson.precision, match)

    open_, closed = at_best(by_pairs), at_best(closed_by(lesson.grouping))
    return (closed, True) if closed.f1 > open_.f1 else (open_, False)


def _said(choice: Choice) -> dict[str, float]:
    return {
        "threshold": choice.threshold,
        "f1": choice.f1,
        "precision": choice.precision,
        "recall": choice.recall,
    }


def _out_of_fold(kind: Kind, pool: Pool, columns: Columns, lesson: Lesson) -> NDArray[np.float32]:
    """Return the probability of every pair by a judge that saw neither of its postings' groups in this fold."""
    probability = np.zeros(len(pool.left), np.float32)
    for mine, others in _folds(pool, lesson):
        judge = _fitted(kind, _part(pool, others), columns, lesson)
        probability[mine] = judge.probability(pool.values[mine], columns[0])
    return probability


def _folds(pool: Pool, lesson: Lesson) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield, fold by fold, the pairs whose left posting is in it, and those without any posting in it."""
    codes = np.unique(pool.groups, return_inverse=True)[1]
    order = np.random.default_rng(lesson.seed).permutation(codes.max() + 1)
    fold = (order % lesson.folds)[codes]
    for number in range(lesson.folds):
        left, right = fold[pool.left] == number, fold[pool.right] == number
        yield left, ~left & ~right


def _part(pool: Pool, chosen: NDArray[np.bool_]) -> Pool:
    return replace(
        pool, left=pool.left[chosen], right=pool.right[chosen], values=pool.values[chosen], same=pool.same[chosen]
    )


def _fitted(kind: Kind, pool: Pool, columns: Columns, lesson: Lesson) -> Judge:
    """Return the judge of a kind, fitted on ``pool``."""
    names = columns[0]
    if kind == "union":
        return _union(pool, columns)
    if kind == "noisy-or":
        return _noisy_or(pool, columns)
    how = replace(lesson.fit, kind=kind)
    return Learned(fit(pool.values, pool.same, pool.groups[pool.left], names, how))


def _union(pool: Pool, columns: Columns) -> Judge:
    """Return the union of signals, each at the threshold with which it alone has the highest F1."""
    names, floors = columns
    thresholds = {}
    for signal in floors:
        scores = np.nan_to_num(pool.values[:, list(names).index(signal)], nan=0.0).clip(0, 1)
        thresholds[signal] = min(max(best_f1(pool.judged(scores), pool.groups).threshold, 1e-3), 1 - 1e-3)
    return _better(Union(thresholds), Union(thresholds, veto=True), pool, names)


def _noisy_or(pool: Pool, columns: Columns) -> Judge:
    """Return the noisy-or of the signals that make it better, added one by one while they do."""
    names, floors = columns
    chosen: dict[str, float] = {}
    best = -1.0
    while len(chosen) < len(floors):
        judges = {name: NoisyOr({**chosen, name: floors[name]}) for name in floors if name not in chosen}
        worth = {name: _worth(judge, pool, names) for name, judge in judges.items()}
        name = max(worth, key=lambda one: worth[one])
        if worth[name] <= best:
            break
        chosen, best = {**chosen, name: floors[name]}, worth[name]
    return _better(NoisyOr(chosen), NoisyOr(chosen, veto=True), pool, names)


def _better(one: Judge, other: Judge, pool: Pool, names: Sequence[str]) -> Judge:
    """Return whichever of two judges has the higher F1; the first of equals."""
    return other if _worth(other, pool, names) > _worth(one, pool, names) else one


def _worth(judge: Judge, pool: Pool, names: Sequence[str]) -> float:
    """Return the best F1 that a judge reaches on what it may see."""
    return best_f1(pool.judged(judge.probability(pool.values, names)), pool.groups).f1
