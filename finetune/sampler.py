"""Which pictures an epoch shows, and in which order: a pure function of seed and epoch.

Look-alike batches change the order alone: which pictures an epoch shows, and how often, stays as it is without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skumatch.errors import ConfigError, DataError
from skumatch.eval.lookalikes import read_lookalikes
from skumatch.finetune.recipe import Recipe
from skumatch.readers_common import shown
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


@dataclass(frozen=True)
class Lookalikes:
    """Which labels look alike: int64 labels per group, each label in one group at most; ``share`` of a batch, 0..1,
    that is filled from a group; ``unknown``: listed SKUs that are not trained on. Empty, it changes nothing."""

    groups: tuple[Ids, ...] = ()
    share: float = 0.0
    unknown: tuple[str, ...] = ()


def load_lookalikes(path: Path, skus: Sequence[str], recipe: Recipe) -> Lookalikes:
    """Read a list of look-alikes (``skumatch.eval.lookalikes``) for training on ``skus``, whose places are the labels.

    SKUs that are not trained on are left out, and groups of which fewer than two SKUs remain. Raises DataError for a
    bad list or one without any group left, ConfigError when the recipe's share of a batch is less than two pictures.
    """
    if round(recipe.lookalike_share * recipe.batch) < 2:
        said = (
            f"recipe: lookalike_share is {recipe.lookalike_share} of a batch of {recipe.batch}: less than two pictures"
        )
        raise ConfigError(said, "raise lookalike_share or batch, or leave out the look-alikes")
    listed = read_lookalikes(path)
    place = {sku: label for label, sku in enumerate(skus)}
    labels = [np.array([place[sku] for sku in group if sku in place], np.int64) for group in listed]
    groups = tuple(members for members in labels if len(members) > 1)
    if not groups:
        raise DataError(f"{shown(path)} groups no two SKUs that are trained on", "make the list from this data set")
    unknown = tuple(sku for group in listed for sku in group if sku not in place)
    return Lookalikes(groups, recipe.lookalike_share, unknown)


def lookalike_order(order: Ids, labels: Ids, batch: int, alike: Lookalikes, key: tuple[int, int]) -> Ids:
    """Return ``order`` (of ``epoch_order``) rearranged so that look-alikes meet in batches of ``batch``.

    ``round(share * batch)`` places of as many batches as there are pictures for are filled from one group after the
    other; all other places keep the order's shuffled rest. What ``order`` holds beyond its last full batch stays where
    it is, so the full batches together show exactly the pictures that they show without look-alikes. ``key``: seed and
    epoch.
    """
    full = len(order) // batch * batch
    places = round(alike.share * batch)
    if not alike.groups or places < 2 or not full:
        return order
    rng = np.random.default_rng((*key, 2))
    stream, rest = _by_group(order[:full], labels, alike.groups, rng)
    runs = min(full // batch, len(stream) // places)
    chosen = rng.permutation(full // batch)[:runs]
    lines = np.empty((full // batch, batch), np.int64)
    alone = np.ones(lines.shape, bool)
    alone[chosen, :places] = False
    lines[chosen, :places] = stream[: runs * places].reshape(runs, places)
    lines[alone] = rng.permutation(np.concatenate([rest, stream[runs * places :]]))
    return np.concatenate([lines.ravel(), order[full:]])


def _by_group(order: Ids, labels: Ids, groups: Sequence[Ids], rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Part ``order`` into pictures of grouped labels, group by group, and the rest.

    Groups come in random order; within one, each SKU is spread evenly over the group's stretch, so that every part of
    it mixes the group's SKUs.
    """
    group_of = np.full(int(labels.max()) + 1, -1, np.int64)
    for number, members in zip(rng.permutation(len(groups)), groups, strict=True):
        group_of[members] = number
    label = labels[order]
    grouped = np.flatnonzero(group_of[label] >= 0)
    found, code, count = np.unique(label[grouped], return_inverse=True, return_counts=True)
    by_label = np.argsort(code, kind="stable")
    nth = np.empty(len(grouped), np.int64)
    nth[by_label] = np.arange(len(grouped)) - np.repeat(np.cumsum(count) - count, count)
    spread = (nth + rng.random(len(grouped))) / count[code]
    stream = order[grouped[np.lexsort((spread, group_of[found][code]))]]
    return stream, order[group_of[label] < 0]
