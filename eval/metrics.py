"""Accuracy of ranked answers, with intervals. Plain arrays in, figures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids

RESAMPLES = 2000


@dataclass(frozen=True)
class Accuracy:
    """Top-k accuracy with a 95 % interval, all in 0..1."""

    value: float
    low: float
    high: float


def hit_ranks(answers: Ids, truth: Ids) -> Ids:
    """Return, per query, the rank from 1 of the first right answer, 0 where there is none.

    ``answers`` int64 (N, K) SKU codes, best first; ``truth`` int64 (N,).
    """
    hits = answers == truth[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def top_k(ranks: Ids, k: int) -> NDArray[np.float64]:
    """Return 1.0 per query whose right answer is among the first ``k``, else 0.0."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def accuracy(hits: NDArray[np.float64], skus: Ids, seed: int = 0) -> Accuracy:
    """Return the mean of ``hits`` (N,) and its 95 % percentile bootstrap interval, resampling whole SKUs.

    Queries of one SKU resemble each other, so queries are not resampled one by one (Efron & Tibshirani 1993, ch. 8,
    with SKUs as the units). ``skus`` int64 (N,). Raises ValueError without queries.
    """
    if not len(hits):
        raise ValueError("no queries to average over")
    _, unit = np.unique(skus, return_inverse=True)
    right, count = np.bincount(unit, hits), np.bincount(unit).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 200):
        drawn = rng.integers(len(right), size=(200, len(right)))
        means[start : start + 200] = right[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Accuracy(float(hits.mean()), float(low), float(high))


def per_sku(hits: NDArray[np.float64], names: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return (queries, accuracy) per SKU name, sorted by name."""
    total: Counter[str] = Counter(names)
    right: Counter[str] = Counter()
    for name, hit in zip(names, hits, strict=True):
        right[name] += float(hit)  # type: ignore[assignment]
    return {name: (total[name], right[name] / total[name]) for name in sorted(total)}


def confusions(truth: Sequence[str], answers: Sequence[str], most: int) -> list[tuple[str, str, int]]:
    """Return the ``most`` frequent (shown SKU, answered SKU, count) among wrong answers, ties by name."""
    wrong = Counter((t, a) for t, a in zip(truth, answers, strict=True) if t != a)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [(shown, answered, count) for (shown, answered), count in ranked[:most]]
