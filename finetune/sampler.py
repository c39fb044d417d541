"""Which pictures an epoch shows, and in which order: a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np

from skumatch.spec import Ids


def epoch_order(labels: Ids, balance: float, seed: int, epoch: int) -> Ids:
    """Return N positions into ``labels`` (N,), shuffled, for one epoch.

    A SKU with n pictures is drawn in proportion to n^(1 - balance): 0 shows every picture once, 1 every SKU equally
    often. Within a SKU pictures repeat only after all have been shown.
    """
    rng = np.random.default_rng((seed, epoch, 1))
    if balance == 0:
        return rng.permutation(len(labels))
    sizes = np.bincount(labels)
    share = np.where(sizes > 0, sizes.astype(np.float64), 1.0) ** (1 - balance) * (sizes > 0)
    exact = share * (len(labels) / share.sum())
    counts = np.floor(exact).astype(np.int64)
    short = len(labels) - int(counts.sum())
    rest = exact - counts
    if short:
        counts[rng.choice(len(counts), size=short, replace=False, p=rest / rest.sum())] += 1
    by_sku = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    chosen = [_draw(by_sku[ends[i] - sizes[i] : ends[i]], int(counts[i]), rng) for i in np.flatnonzero(sizes)]
    return rng.permutation(np.concatenate(chosen))


def _draw(members: Ids, count: int, rng: np.random.Generator) -> Ids:
    rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]
