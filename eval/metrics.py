"""Measures per query and per SKU: ranks, top-k, reciprocal rank, mAP@R, confusions. Plain arrays in, figures out.

Knows nothing about encoders or galleries; intervals stand in ``intervals``, open-set measures in ``openset``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids


@dataclass(frozen=True)
class Accuracy:
    """A mean over queries or SKUs, in 0..1 (a difference of two: -1..1), with its 95 % interval."""

    value: float
    low: float
    high: float


def hit_ranks(answers: Ids, truth: Ids) -> Ids:
    """Return, per query, the rank from 1 of the first right answer, 0 where there is none.

    ``answers`` int64 (N, K) SKU codes, best first, -1 where there is no answer; ``truth`` int64 (N,), -1 where no
    answer is right. Both for distinct SKUs and for views (codes that repeat).
    """
    hits = (answers == truth[:, None]) & (truth >= 0)[:, None]
    if not answers.shape[1]:
        return np.zeros(len(answers), np.int64)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def top_k(ranks: Ids, k: int) -> NDArray[np.float64]:
    """Return 1.0 per query whose right answer is among the first ``k``, else 0.0."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def reciprocal_ranks(ranks: Ids) -> NDArray[np.float64]:
    """Return 1 / rank per query, 0.0 where the rank is 0: their mean is the MRR (Voorhees 1999, TREC-8)."""
    return np.where(ranks > 0, 1.0 / np.maximum(ranks, 1), 0.0)


def average_precision_at_r(relevant: NDArray[np.bool_], totals: Ids) -> NDArray[np.float64]:
    """Return per query the average precision at R; the mean over queries is mAP@R, in 0..1.

    ``relevant`` bool (N, K): whether the view at each rank shows the query's SKU; ``totals`` int64 (N,): R, how many
    views of that SKU the gallery holds. The precision at each relevant rank up to R, summed and divided by R: unlike
    recall@k it rewards every view that ranks well (Musgrave et al. 2020, "A Metric Learning Reality Check", 4.2).
    NaN where R is 0. Raises ValueError when K is below some R (the list was cut), or more views are relevant than R.
    """
    if relevant.shape[1] < totals.max(initial=0):
        raise ValueError(f"{relevant.shape[1]} ranks, but a SKU has {totals.max()} views")
    if (relevant.sum(axis=1) > totals).any():
        raise ValueError("a query has more relevant views than its SKU has views")
    rank = np.arange(1, relevant.shape[1] + 1)
    counted = relevant & (rank <= totals[:, None])
    summed = np.where(counted, counted.cumsum(axis=1) / rank, 0.0).sum(axis=1)
    found: NDArray[np.float64] = np.full(len(totals), np.nan)
    np.divide(summed, totals, out=found, where=totals > 0)
    return found


def sku_means(values: NDArray[np.float64], units: Ids) -> NDArray[np.float64]:
    """Return the mean of ``values`` (N,) per distinct SKU code in ``units`` (N,), float64 (U,), by rising code."""
    _, unit = np.unique(units, return_inverse=True)
    means: NDArray[np.float64] = np.bincount(unit, values) / np.bincount(unit)
    return means


def macro(values: NDArray[np.float64], units: Ids) -> float:
    """Return the mean over SKUs of each SKU's mean, so that a rare SKU counts as much as a frequent one.

    With top-1 hits this is macro recall (balanced accuracy). Raises ValueError without queries.
    """
    if not len(values):
        raise ValueError("no queries to average over")
    return float(sku_means(values, units).mean())


def per_sku(hits: NDArray[np.float64], names: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return (queries, accuracy) per SKU name, sorted by name."""
    total = Counter(names)
    right = dict.fromkeys(total, 0.0)
    for name, hit in zip(names, hits, strict=True):
        right[name] += float(hit)
    return {name: (total[name], right[name] / total[name]) for name in sorted(total)}


def confusions(truth: Sequence[str], answers: Sequence[str], most: int) -> list[tuple[str, str, int]]:
    """Return the ``most`` frequent (shown SKU, answered SKU, count) among wrong answers, ties by name."""
    wrong = Counter((t, a) for t, a in zip(truth, answers, strict=True) if t != a)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [(shown, answered, count) for (shown, answered), count in ranked[:most]]
