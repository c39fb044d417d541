"""Which search technique or test-time views to switch on: measured on validation queries, none unless one gains.

Settings are chosen on some SKUs and judged on others (cross-fitting), each family of settings is compared with the
plain search query by query, and p-values are corrected for the number of families. Knows nothing about bundles: the
result is a Technique and a view setting, as JSON. Never hand in the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import DataError
from skumatch.eval.intervals import SIGNIFICANT, Paired, paired
from skumatch.eval.metrics import top_k
from skumatch.eval.options import GRID, Measured, Option, Trial, families, trial
from skumatch.eval.views import Views
from skumatch.spec import Ids, Vectors
from skumatch.techniques import Technique
from skumatch.testviews import VIEWS, ViewSetting

KS = (1, 3, 5)
FOLDS = 5
FLIPS = 9_999
BLOCK = 2_000_000  # signs held at once


@dataclass(frozen=True)
class Arm:
    """One family of options against the base of its round.

    ``option``: what would be switched on, chosen on all queries. ``top``: accuracy per k, and ``paired`` the
    comparison, both on SKUs that did not choose the setting. ``p``: the larger of McNemar's, which takes queries as
    independent, and ``sign_flip``, which does not, corrected for the families of the round (Holm 1979). ``gains``:
    ``paired`` says better and ``p`` is below 0.05. ``searches``, ``encodings`` and
    ``milliseconds`` of search: per query.
    """

    family: str
    option: Option
    top: dict[int, float]
    paired: Paired
    p: float
    gains: bool
    searches: float
    encodings: int
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        facts = asdict(self)
        del facts["option"]
        technique = self.option.technique.to_json()
        return {**facts, "technique": technique, "views": self.option.views, "top": _by_k(self.top)}


@dataclass(frozen=True)
class Sweep:
    """``chosen`` and how it was found: ``rounds`` of arms, ``plain`` accuracy per k of the plain search and its cost.

    ``plain_searches`` and ``plain_milliseconds``: per query; more than one search where the nearest views show too few
    SKUs. ``queries``: how many were asked; ``left_out``: queries whose SKU the gallery lacks. The gain of the chosen
    option is that of the best of several, so expect a little less of it on new crops.
    """

    chosen: Option
    plain: dict[int, float]
    plain_searches: float
    plain_milliseconds: float
    rounds: tuple[tuple[Arm, ...], ...]
    queries: int
    left_out: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; ``technique`` and ``views`` are what a bundle keeps."""
        return {
            "technique": self.chosen.technique.to_json(),
            "views": self.chosen.views,
            "plain": _by_k(self.plain),
            "plain_searches": self.plain_searches,
            "plain_milliseconds": self.plain_milliseconds,
            "rounds": [[arm.to_json() for arm in arms] for arms in self.rounds],
            "queries": self.queries,
            "left_out": self.left_out,
            "seed": self.seed,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of a table: accuracy in percent, differences in percentage points, cost per query."""
        head = ["technique", "views", *(f"top-{k}" for k in KS), "difference", "95 % interval", "p (Holm)", "verdict"]
        cost = [f"{self.plain_searches:.1f}", "1", f"{self.plain_milliseconds:.2f}"]
        rows = [["nearest", "none", *_percent(self.plain), *[""] * 4, *cost]]
        for arm in (arm for arms in self.rounds for arm in arms):
            change = arm.paired
            interval = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
            judged = [f"{100 * change.difference:+.1f}", interval, f"{arm.p:.3f}", _verdict(arm)]
            cost = [f"{arm.searches:.1f}", str(arm.encodings), f"{arm.milliseconds:.2f}"]
            rows.append([str(arm.option.technique), arm.option.views, *_percent(arm.top), *judged, *cost])
        return [*head, "searches", "encodings", "ms"], rows


def _by_k(top: Mapping[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in top.items()}


def _percent(top: Mapping[int, float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in top.values()]


def _verdict(arm: Arm) -> str:
    if arm.gains:
        return "gains"
    return "loses" if arm.paired.verdict == "A is better" else "no gain shown"


def sweep(
    gallery: Views,
    queries: Views,
    settings: Mapping[ViewSetting, Vectors] | None = None,
    grid: Sequence[Technique] = GRID,
    seed: int = 0,
) -> Sweep:
    """Try every family of ``grid`` and every view setting in ``settings`` on validation ``queries``; choose or decline.

    Judged by top-1 accuracy. A first round compares each family with the plain search; when one gains, a second round
    tries the other kind (views on a technique, techniques on views) on top of it. Where nothing helps, something is
    switched on in at most about 5 % of sweeps. ``settings``: the queries' (N, D) vectors per setting, as
    ``options.embed_settings`` makes them. Raises DataError as ``options.trial`` does, and below two SKUs.
    """
    task = trial(gallery, queries, settings)
    folds = _folds(task.truth, seed)
    base = Option()
    plain = task.measure(base)
    kinds = families(grid, len(gallery))
    views = [setting for setting in VIEWS if setting != "none" and setting in task.queries]
    first = {name: [Option(technique) for technique in kinds[name]] for name in kinds}
    if views:
        first["views"] = [Option(views=setting) for setting in views]
    rounds = [_round(task, first, plain, folds, seed)]
    chosen = _best(rounds[0], base)
    second = _second(kinds, views, chosen)
    if second:
        rounds.append(_round(task, second, task.measure(chosen), folds, seed))
        chosen = _best(rounds[1], chosen)
    answered = (_top(plain.ranks), plain.searches, plain.milliseconds)
    return Sweep(chosen, *answered, tuple(rounds), len(task.truth), task.left_out, seed)


def _second(
    kinds: Mapping[str, list[Technique]], views: Sequence[ViewSetting], chosen: Option
) -> dict[str, list[Option]]:
    """Return what may be tried on top of ``chosen``: the other kind; nothing on top of nothing."""
    if chosen.views != "none":
        return {name: [Option(technique, chosen.views) for technique in kinds[name]] for name in kinds}
    if chosen.technique.name == "nearest" or not views:
        return {}
    return {"views": [Option(chosen.technique, setting) for setting in views]}


def _folds(units: Ids, seed: int) -> Ids:
    """Return int64 (N,): a fold per query, whole SKUs together, SKUs dealt out at random."""
    skus, place = np.unique(units, return_inverse=True)
    if len(skus) < 2:
        raise DataError("the validation queries show one SKU only", "a sweep needs queries of several SKUs")
    dealt = np.random.default_rng(seed).permutation(len(skus)) % min(FOLDS, len(skus))
    return dealt[place]


def _round(task: Trial, kinds: Mapping[str, list[Option]], base: Measured, folds: Ids, seed: int) -> tuple[Arm, ...]:
    """Judge every family of options against ``base``."""
    arms: list[Arm] = []
    for family, options in kinds.items():
        measured = [task.measure(option) for option in options]
        ranks, best = _cross_fitted([one.ranks for one in measured], folds)
        before, after = top_k(base.ranks, 1), top_k(ranks, 1)
        found = paired(before, after, task.truth, seed)
        p = max(found.p, sign_flip(after - before, task.truth, seed))
        encodings, cost = len(VIEWS[options[best].views]), measured[best]
        arms.append(
            Arm(family, options[best], _top(ranks), found, p, False, cost.searches, encodings, cost.milliseconds)
        )
    return _corrected(arms)


def _cross_fitted(ranks: Sequence[Ids], folds: Ids) -> tuple[Ids, int]:
    """Return each query's rank under the option that the other folds chose, and the option that all queries choose.

    An option is chosen by top-1 accuracy, of equals the first.
    """
    hits = np.stack([top_k(row, 1) for row in ranks])
    result = np.empty(len(folds), np.int64)
    for fold in np.unique(folds):
        here = folds == fold
        result[here] = ranks[int(hits[:, ~here].mean(axis=1).argmax())][here]
    return result, int(hits.mean(axis=1).argmax())


def _corrected(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return ``arms`` with Holm-corrected p-values and their verdicts."""
    adjusted = holm([arm.p for arm in arms])
    done = []
    for arm, p in zip(arms, adjusted, strict=True):
        gains = arm.paired.verdict == "B is better" and p < SIGNIFICANT
        done.append(replace(arm, p=p, gains=gains))
    return tuple(done)


def sign_flip(change: NDArray[np.float64], units: Ids, seed: int = 0) -> float:
    """Return the two-sided p-value of ``change`` (N,) summed over ``units`` (N,), flipping the signs of whole units.

    Where neither side is better, a SKU's sum is as likely to have the other sign (Fisher 1935, "The design of
    experiments", ch. 3); queries of one SKU may resemble each other at will. 9,999 random flips and the one observed
    (Davison & Hinkley 1997, ch. 4).
    """
    _, place = np.unique(units, return_inverse=True)
    total = np.bincount(place, change)
    total = total[total != 0]
    rng, as_far, rows = np.random.default_rng(seed), 0, max(1, BLOCK // max(1, len(total)))
    for start in range(0, FLIPS, rows):
        signs = rng.integers(0, 2, (min(rows, FLIPS - start), len(total)), np.int8) * 2 - 1
        as_far += int((np.abs(signs @ total) >= abs(total.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + FLIPS)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are (Holm 1979), in the same order."""
    order = np.argsort(p, kind="stable")
    result = np.empty(len(p))
    result[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in result]


def _best(arms: Sequence[Arm], base: Option) -> Option:
    """Return the option of the arm with the greatest gain, or ``base`` when none gains."""
    winners = [arm for arm in arms if arm.gains]
    return max(winners, key=lambda arm: arm.paired.difference).option if winners else base


def _top(ranks: Ids) -> dict[int, float]:
    hits: dict[int, NDArray[np.float64]] = {k: top_k(ranks, k) for k in KS}
    return {k: float(values.mean()) for k, values in hits.items()}
