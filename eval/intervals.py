"""How sure a figure is: bootstrap intervals by SKU, and whether one model beats another on the same queries.

Queries of one SKU resemble each other, so the SKU is the unit that is resampled, never the single query. Knows
nothing about which measure it is given: one number per query, one SKU code per query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.eval.metrics import Accuracy, sku_means
from skumatch.spec import Ids

RESAMPLES = 2000
SIGNIFICANT = 0.05
FEWEST = 6  # SKUs that must differ: five that all move one way have p = 0.0625 in a sign test
BLOCK = 4_000_000  # drawn SKU codes held at once

Verdict = Literal["A is better", "B is better", "no difference shown"]


@dataclass(frozen=True)
class Paired:
    """B against A on the same queries.

    ``difference``: mean of B minus mean of A, with its 95 % interval ``low``..``high`` by SKU. ``gained`` and ``lost``:
    queries on which B is above or below A. ``p``: two-sided exact McNemar. ``verdict`` as ``paired`` defines it.
    """

    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    verdict: Verdict


def bootstrap(
    values: NDArray[np.float64], units: Ids, seed: int = 0, resamples: int = RESAMPLES, macro: bool = False
) -> Accuracy:
    """Return the mean of ``values`` (N,) and its 95 % percentile bootstrap interval, resampling whole SKUs.

    ``units`` int64 (N,): SKU codes. ``macro``: the mean over SKUs of their means instead of the mean over queries.
    Efron & Tibshirani 1993, ch. 8 and 13, with SKUs as the units. The interval is that of other SKUs of the same
    kind; with few SKUs it is too narrow, with one it is a point. Raises ValueError without queries, on NaN, and when
    the lengths differ.
    """
    _check(values, units)
    value = (sku_means(values, units) if macro else values).mean()
    low, high = np.quantile(_means(values, units, seed, resamples, macro), [0.025, 0.975])
    return Accuracy(float(value), float(low), float(high))


def _check(values: NDArray[np.float64], units: Ids) -> None:
    if not len(values):
        raise ValueError("no queries to average over")
    if values.shape != units.shape:
        raise ValueError(f"{len(values)} values but {len(units)} SKU codes")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite: leave such queries out")


def _means(values: NDArray[np.float64], units: Ids, seed: int, resamples: int, macro: bool) -> NDArray[np.float64]:
    """Return the mean in each of ``resamples`` draws of as many SKUs as there are, with replacement."""
    _, unit = np.unique(units, return_inverse=True)
    total, count = np.bincount(unit, values).astype(np.float64), np.bincount(unit).astype(np.float64)
    if macro:
        total, count = total / count, np.ones_like(count)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, BLOCK // len(total))  # the draws do not depend on it
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(total), size=(min(rows, resamples - start), len(total)))
        means[start : start + rows] = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    return means


def paired(
    a: NDArray[np.float64], b: NDArray[np.float64], units: Ids, seed: int = 0, resamples: int = RESAMPLES
) -> Paired:
    """Compare models A and B query by query; ``a`` and ``b`` (N,) are their values (top-k hits, say), ``units`` SKUs.

    McNemar's test takes queries as independent, which those of one SKU are not, and the bootstrap is too sure of
    itself with few SKUs. So a model is better only when both say so: the interval by SKU excludes 0, p is below 0.05,
    and at least six SKUs changed. Otherwise: "no difference shown", which is not "no difference". For values that are
    not 0 or 1, p is that of the sign test. Raises ValueError as ``bootstrap`` does.
    """
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values of A but {len(b)} of B")
    change = b - a
    found = bootstrap(change, units, seed, resamples)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    p = mcnemar(gained, lost)
    moved = int((sku_means(change, units) != 0).sum())
    verdict: Verdict = "no difference shown"
    if p < SIGNIFICANT and moved >= FEWEST and not found.low <= 0 <= found.high:
        verdict = "B is better" if found.value > 0 else "A is better"
    return Paired(found.value, found.low, found.high, gained, lost, p, verdict)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p-value of ``gained`` against ``lost`` discordant pairs (McNemar 1947).

    Twice the binomial tail at the greater count, probability one half; exact to about 1e-12 for counts of millions.
    Raises ValueError for a negative count.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts cannot be negative: {gained}, {lost}")
    n, most = gained + lost, max(gained, lost)
    middle = (n + 1) // 2
    # Binomial coefficients from the middle outwards, relative to the middle one: no factorials, no huge integers.
    term, half, tail = 1.0, 0.0, 0.0
    for i in range(middle, n + 1):
        half += term
        if i >= most:
            tail += term
        if term <= tail * 1e-17:  # also when both are 0: p is below the smallest float
            break
        term *= (n - i) / (i + 1)
    whole = 2 * half - (n % 2 == 0)  # an even n has one middle term
    return min(1.0, 2 * tail / whole)
