"""The open set: crops of SKUs that the gallery lacks. Groups of SKUs, the rule fitted on some and judged on others.

Three groups never meet: known SKUs (in the gallery), unknown SKUs to fit the rule on, unknown SKUs to test it on. The
encoder should have been trained on the known ones alone; where it was not, the figures flatter and the note says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skumatch.calibration import Calibration
from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError
from skumatch.eval.calibrate import Case, case_of, fit, folds_of
from skumatch.eval.intervals import bootstrap
from skumatch.eval.openset import auroc, fpr_at_tpr, oscr, thin
from skumatch.eval.reliability import brier, ece, reliability
from skumatch.eval.retrieval import retrieve
from skumatch.eval.views import Views
from skumatch.spec import Ids
from skumatch.techniques import NEAREST, Technique

DRAWS = 10
HELD_BACK = 1 / 3  # share of the SKUs removed from the gallery where the model has no held-out SKUs


@dataclass(frozen=True)
class Groups:
    """Three disjoint sets of SKUs: ``known``, ``fit`` (unknown, to fit on) and ``test`` (unknown, to test on)."""

    known: frozenset[str]
    fit: frozenset[str]
    test: frozenset[str]


def groups(skus: Sequence[str], held_out: Collection[str], seed: int) -> Groups:
    """Divide SKUs: the held-out ones (a third at random where there are none) are unknown, half of them to fit on.

    Raises DataError with fewer than four unknown SKUs.
    """
    rng = np.random.default_rng(seed)
    names = sorted(skus)
    unknown = sorted(set(held_out) & set(names))
    if not unknown:
        unknown = [names[int(i)] for i in rng.permutation(len(names))[: round(HELD_BACK * len(names))]]
    if len(unknown) < 4 or len(unknown) > len(names) - 2:
        raise DataError(
            f"{len(unknown)} unknown SKUs of {len(names)} do not make an open set", "give more SKUs, or hold out more"
        )
    order = rng.permutation(len(unknown))
    half = len(unknown) // 2
    fitting = frozenset(unknown[int(i)] for i in order[:half])
    return Groups(frozenset(names) - frozenset(unknown), fitting, frozenset(unknown) - fitting)


def splits_of(dataset: Dataset, split: str) -> tuple[str, str | None]:
    """Return the gallery split and the split that known queries are fitted on; None: the gallery's own views."""
    return dataset.gallery_split, "val" if "val" in dataset.splits and split != "val" else None


def known_case(
    gallery: Views, queries: Views, typical: float | None = None, technique: Technique = NEAREST
) -> tuple[Case, float]:
    """Return the evidence of ``queries`` in ``gallery`` and the typical cohesion.

    A query's own view never counts; a query that is its SKU's only view cannot be answered and is left out.
    """
    answers = retrieve(gallery, queries, 2, technique)
    alone = (answers.truth >= 0) & np.isnan(answers.precision)
    return case_of(answers.take(np.flatnonzero(~alone)), typical)


@dataclass(frozen=True)
class Setting:
    """How a rule is fitted and judged.

    ``gallery``, ``fit`` and ``test``: names of splits (``fit`` None: gallery views, each without itself);
    ``target_far`` 0..1; ``digest`` of the encoder; ``technique`` of the search.
    """

    gallery: str
    fit: str | None
    test: str
    target_far: float
    digest: str
    technique: Technique = NEAREST


def draw(views: Views, asked: Views, how: Setting, found: Groups) -> Draw:
    """Fit the rule on one draw of groups and return how it does on the test split.

    ``views``: all rows embedded as reference views; ``asked``: as queries.
    """
    gallery = _pick(views, how.gallery, found.known)
    fitting = _pick(asked, how.fit or how.gallery, found.known)
    fit_unknown = asked.take(np.array([r.sku in found.fit and r.split != how.test for r in asked.rows], bool))
    known, typical = known_case(gallery, fitting, None, how.technique)

    def case(queries: Views) -> Case:
        return known_case(gallery, queries, typical, how.technique)[0]

    rule = fit(known, case(fit_unknown), how.target_far, how.digest, typical)
    return Draw(rule, case(_pick(asked, how.test, found.known)), case(_pick(asked, how.test, found.test)))


def _pick(views: Views, split: str, skus: Collection[str]) -> Views:
    return views.take(np.array([row.split == split and row.sku in skus for row in views.rows], bool))


@dataclass(frozen=True)
class Draw:
    """A fitted rule, and evidence of known and unknown test crops that it did not see."""

    rule: Calibration
    known: Case
    unknown: Case

    def figures(self) -> dict[str, float]:
        """Return FAR, share of known crops accepted, accuracy among them, AUROC, OSCR and FPR at 95 % TPR, in 0..1.

        The accuracies among accepted crops are NaN where none is accepted.
        """
        known, unknown = self.rule.probability(self.known.evidence), self.rule.probability(self.unknown.evidence)
        accepted = known >= self.rule.accept
        passed = unknown >= self.rule.accept
        right = self.known.right
        return {
            "far": float(passed.mean()),
            "accepted": float(accepted.mean()),
            "accuracy_accepted": _share(right[accepted].sum(), accepted.sum()),
            "right_of_all_accepted": _share(right[accepted].sum(), accepted.sum() + passed.sum()),
            "unknown_said": float((unknown < self.rule.unknown).mean()),
            "known_said_unknown": float((known < self.rule.unknown).mean()),
            "top1_known": float(right.mean()),
            "auroc": auroc(known, unknown),
            "oscr": oscr(known, right, unknown).area,
            "fpr95": fpr_at_tpr(known, unknown),
        }


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else math.nan


def _spread(values: Sequence[float]) -> tuple[float | None, list[float | None]]:
    """Return mean, least and largest of the ``values`` that are numbers; None where there is none."""
    real = [value for value in values if not math.isnan(value)]
    return (float(np.mean(real)), [min(real), max(real)]) if real else (None, [None, None])


def summary(draws: Sequence[Draw], target_far: float, note: str) -> dict[str, Any]:
    """Return the figures of all draws: means, the least and largest of each, the pooled FAR's interval by SKU, the
    OSCR curve of the first draw and the reliability of the pooled probabilities; JSON-ready, None where undefined."""
    each = [one.figures() for one in draws]
    spread = {key: _spread([one[key] for one in each]) for key in each[0]}
    passed = np.concatenate([one.rule.probability(one.unknown.evidence) >= one.rule.accept for one in draws])
    shown = [sku for one in draws for sku in one.unknown.shown]
    interval = bootstrap(passed.astype(np.float64), _codes(shown))
    first = draws[0]
    curve = thin(oscr(*_scores(first)))
    return {
        "target_far": target_far,
        "draws": len(draws),
        **{key: mean for key, (mean, _) in spread.items()},
        "range": {key: ends for key, (_, ends) in spread.items()},
        "far_ci95": [interval.low, interval.high],
        "known": len(first.known),
        "unknown": len(first.unknown),
        "known_skus": len(set(first.known.shown)),
        "fit_skus": int(first.rule.facts["unknown_skus"]),
        "test_skus": len(set(first.unknown.shown)),
        "oscr_curve": {"fpr": curve.false_positive.tolist(), "ccr": curve.correct.tolist()},
        "histogram": _histogram(first),
        "threshold": first.rule.accept,
        "reliability": reliability_of(draws),
        "note": note,
    }


def _histogram(one: Draw) -> dict[str, Any]:
    """Return how the probabilities of known and unknown crops are spread over twenty bins."""
    known, _, unknown = _scores(one)
    edges = np.linspace(0, 1, 21)
    counts = {name: np.histogram(p, edges)[0].tolist() for name, p in (("known", known), ("unknown", unknown))}
    return {"edges": edges.tolist(), **counts, "label": "probability that the answer is right"}


def _scores(one: Draw) -> tuple[Any, Any, Any]:
    return one.rule.probability(one.known.evidence), one.known.right, one.rule.probability(one.unknown.evidence)


def _codes(names: Sequence[str]) -> Ids:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def reliability_of(draws: Sequence[Draw]) -> dict[str, Any]:
    """Return ECE, Brier score and bins of the probabilities of all draws, known and unknown test crops together.

    The unknown crops are as frequent here as in the data; the rule assumes a share of them (``facts``), so unknown
    crops are repeated or thinned to that share by drawing with a fixed seed.
    """
    probability, right = [], []
    for number, one in enumerate(draws):
        known, hits, unknown = _scores(one)
        share = float(one.rule.facts["unknown_share"])
        wanted = round(len(known) * share / (1 - share))
        chosen = np.random.default_rng(number).integers(len(unknown), size=wanted)
        probability += [known, unknown[chosen]]
        right += [hits, np.zeros(wanted, bool)]
    p, r = np.concatenate(probability), np.concatenate(right)
    bins = [
        {"low": b.low, "high": b.high, "count": b.count, "probability": b.probability, "accuracy": b.accuracy}
        for b in reliability(p, r)
    ]
    return {"ece": ece(p, r), "brier": brier(p, r), "bins": bins}


def removed_case(gallery: Views, queries: Views, typical: float, technique: Technique = NEAREST, seed: int = 0) -> Case:
    """Return the evidence of ``queries`` when their SKUs are missing from the gallery: a fifth of the SKUs at a time.

    Stands in for unknown products where the model has no held-out SKUs.
    """
    fold = dict(zip(gallery.skus, folds_of(gallery.skus, seed).tolist(), strict=True))
    parts = []
    for number in sorted(set(fold.values())):
        keep = np.array([fold[row.sku] != number for row in gallery.rows], bool)
        ask = np.array([fold.get(row.sku) == number for row in queries.rows], bool)
        if ask.any() and keep.any():
            parts.append(known_case(gallery.take(keep), queries.take(ask), typical, technique)[0])
    if not parts:
        raise DataError("the gallery has too few SKUs to leave some out", "give at least two SKUs")
    shown = tuple(sku for part in parts for sku in part.shown)
    return Case(np.concatenate([part.evidence for part in parts]), np.zeros(len(shown), bool), shown)


def rows_for_calibration(dataset: Dataset, trained: Collection[str], held_out: Collection[str]) -> Roles:
    """Return which rows play which part; the split ``test`` is never touched.

    Raises DataError when no crop shows a known SKU.
    """
    gallery_split, fit_split = splits_of(dataset, "test")
    views = dataset.split(gallery_split)
    known = set(views.skus) & set(trained) if held_out else set(views.skus)
    gallery = tuple(row for row in views if row.sku in known)
    source = dataset.split(fit_split).rows if fit_split else gallery
    queries = tuple(row for row in source if row.sku in known)
    if not queries:
        raise DataError(
            f"no crop in {dataset.root} shows a SKU of split '{gallery_split}' that the model knows",
            "give crops of SKUs that it was trained on",
        )
    unknown = tuple(row for row in dataset if row.sku in held_out and row.split != "test")
    return Roles(gallery, queries, unknown)


@dataclass(frozen=True)
class Roles:
    """Rows to calibrate with: reference views, crops of known SKUs, crops of SKUs that were held out."""

    gallery: tuple[Row, ...]
    queries: tuple[Row, ...]
    unknown: tuple[Row, ...]
