"""Which pictures an epoch shows, and in which order: a pure function of seed and epoch.

How often a SKU is drawn is decided here; look-alikes (``skumatch.finetune.batches``) change only what meets in a
batch. Knows nothing about pictures or networks: it sees labels, and answers positions among them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ConfigError
from skumatch.finetune.batches import (
    Centres,
    Lookalikes,
    by_group,
    groups_of,
    load_lookalikes,
    lookalike_order,
    nth,
    require_room,
)
from skumatch.finetune.parts import Sampling
from skumatch.finetune.recipe import Recipe
from skumatch.spec import Ids

__all__ = [  # with what a trainer needs of skumatch.finetune.batches
    "Centres",
    "Lookalikes",
    "epoch_order",
    "groups_of",
    "load_lookalikes",
    "order_for",
    "pk_order",
    "shard",
    "steps_of",
]


def order_for(labels: Ids, recipe: Recipe, alike: Lookalikes, epoch: int) -> Ids:
    """Return the positions into ``labels`` (N,) that ``epoch`` shows, in order, drawn as ``recipe.sampler`` says.

    The first ``steps_of(N, recipe.batch)`` batches of ``recipe.batch`` positions are what is trained on; "weighted"
    may hold some positions beyond them. Raises ConfigError when look-alikes are asked for and have no room in a batch.
    """
    how, key = recipe.sampler, (recipe.seed, epoch)
    if how.refresh or alike.groups:
        require_room(recipe)
    if how.draw == "pk":
        return _pk(labels, how, recipe.batch, alike, key)
    return lookalike_order(epoch_order(labels, how.alpha, *key), labels, recipe.batch, alike, key)


def steps_of(n: int, batch: int) -> int:
    """Return how many steps an epoch over ``n`` pictures takes, of either draw: the full batches, at least 1.

    Fewer pictures than a batch are one short batch ("weighted") or one full batch with repeats ("pk").
    """
    return max(1, n // batch)


def shard(order: Ids, batch: int, rank: int, world: int) -> Ids:
    """Return the positions of ``order`` (N,) that process ``rank`` of ``world`` trains on, batch after batch.

    Each batch of ``batch`` positions falls into ``world`` contiguous shares of equal length, so all processes take
    ``steps_of(N, batch)`` steps, share no place of the order, and together cover its full batches exactly. What lies
    beyond the last full batch is left out; an order shorter than one batch is one batch, less what does not divide.
    Raises ConfigError when ``batch`` does not divide by ``world``, or a process would get nothing.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"there is no process {rank} of {world}", f"count processes from 0 to {world - 1}")
    if batch % world:
        raise ConfigError(
            f"a batch of {batch} does not divide among {world} processes", f"choose a multiple of {world}"
        )
    steps = steps_of(len(order), batch)
    share = min(batch, len(order)) // world
    if not share:
        raise ConfigError(f"{len(order)} pictures for {world} processes", "start fewer processes")
    return order[: steps * share * world].reshape(steps, world, share)[:, rank].ravel()


def epoch_order(labels: Ids, alpha: float, seed: int, epoch: int) -> Ids:
    """Return N positions into ``labels`` (N,), shuffled, for one epoch.

    A SKU with n pictures is drawn in proportion to n^alpha: 1 shows every picture exactly once, 0 every SKU equally
    often. (With w the chance of one picture and f = n the SKU's frequency, w_i f_i / (w_j f_j) = (f_i / f_j)^alpha.)
    Within a SKU pictures repeat only after all have been shown.
    """
    rng = np.random.default_rng((seed, epoch, 1))
    if alpha == 1 or not len(labels):
        return rng.permutation(len(labels))
    sizes = np.bincount(labels)
    share = np.where(sizes > 0, sizes.astype(np.float64), 1.0) ** alpha * (sizes > 0)
    counts = _whole(share * (len(labels) / share.sum()), len(labels), rng)
    by_sku = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    chosen = [_draw(by_sku[ends[i] - sizes[i] : ends[i]], int(counts[i]), rng) for i in np.flatnonzero(sizes)]
    return rng.permutation(np.concatenate(chosen))


def _draw(members: Ids, count: int, rng: np.random.Generator) -> Ids:
    rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]


def _whole(exact: NDArray[np.float64], total: int, rng: np.random.Generator) -> Ids:
    """Round ``exact``, which sums to ``total``, up or down at random so that whole numbers do too."""
    counts = np.floor(exact).astype(np.int64)
    short = total - int(counts.sum())
    rest = exact - counts
    if short:
        counts[rng.choice(len(counts), size=short, replace=False, p=rest / rest.sum())] += 1
    return counts


def pk_order(labels: Ids, alpha: float, batch: int, per_sku: int, seed: int, epoch: int) -> Ids:
    """Return positions into ``labels`` (N,) for one epoch of batches with several pictures of each SKU.

    Every one of the ``steps_of(N, batch)`` batches holds batch // per_sku SKUs with ``per_sku`` pictures each, one SKU
    after the other, and, where that leaves places, one more SKU with batch % per_sku pictures. No SKU is in a batch
    twice, unless there are too few SKUs to fill it; then every SKU is in it before one comes again.
    Over the epoch SKUs are drawn in proportion to n^alpha, as evenly as whole numbers and at most one place per batch
    allow. The pictures of a SKU come in one random order, over and over: they repeat only after all have been shown,
    and within a batch only where the SKU has fewer pictures than the batch asks of it.
    PK batches: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification" (2017), section 2.
    """
    return _pk(labels, Sampling("pk", alpha, per_sku), batch, Lookalikes(), (seed, epoch))


def _pk(labels: Ids, how: Sampling, batch: int, alike: Lookalikes, key: tuple[int, int]) -> Ids:
    """Do the work of ``pk_order``; look-alikes fill ``round(share * SKUs of a batch)`` of a batch's SKUs.

    They do so in as many batches as they suffice for, one group after the other; how often a SKU is drawn stays.
    """
    rng = np.random.default_rng((*key, 3))
    present, sizes = np.unique(labels, return_counts=True)
    steps, slots = steps_of(len(labels), batch), -(-batch // how.per_sku)
    always = slots // len(present)  # how often every SKU is in every batch: 0 where there are enough SKUs
    exact = _bounded(sizes.astype(np.float64) ** how.alpha, steps * slots, always * steps, (always + 1) * steps)
    drawn = np.repeat(present, _whole(exact, steps * slots, rng) - always * steps)
    first, rest, places = _streams(drawn, alike, (steps, slots), rng)
    dealer = _Dealer(first, rest)
    dealt = [dealer.deal(steps - step, slots - always * len(present), places) for step in range(steps)]
    skus = np.concatenate([np.tile(np.tile(present, always), (steps, 1)), np.array(dealt, np.int64)], axis=1)
    skus = rng.permuted(rng.permutation(skus), axis=1)  # batches, and SKUs within each: the last one may be short
    widths = np.full(slots, how.per_sku)
    widths[-1] = batch - how.per_sku * (slots - 1)
    return _pictures(labels, np.repeat(skus, widths, axis=1).ravel(), rng)


def _bounded(weights: NDArray[np.float64], total: int, low: int, high: int) -> NDArray[np.float64]:
    """Return numbers in proportion to ``weights``, held between ``low`` and ``high``, that sum to ``total``."""
    least, most = 0.0, (high + 1) / float(weights.min())
    for _ in range(100):  # bisection: the sum rises with the factor
        factor = (least + most) / 2
        if np.clip(factor * weights, low, high).sum() < total:
            least = factor
        else:
            most = factor
    return np.clip(most * weights, low, high)


def _streams(drawn: Ids, alike: Lookalikes, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Ids, Ids, int]:
    """Part the SKUs ``drawn`` into those that come as look-alikes, in order, and the shuffled rest.

    ``shape``: batches, and SKUs per batch. Also return how many of a batch's SKUs come from the first.
    """
    places = round(alike.share * shape[1])
    if not alike.groups or places < 2 or not len(drawn):
        return drawn[:0], rng.permutation(drawn), 0
    stream, rest = by_group(np.arange(len(drawn)), drawn, alike.groups, rng)
    used = min(shape[0], len(stream) // places) * places
    return drawn[stream[:used]], rng.permutation(drawn[np.concatenate([rest, stream[used:]])]), places


class _Dealer:
    """Deals SKUs to batches so that none is in a batch twice, given that none is drawn more often than there are
    batches.

    A SKU that is still to come as often as there are batches left must be in each of them. As long as this is kept,
    any choice of the others works out.
    """

    def __init__(self, first: Ids, rest: Ids) -> None:
        """Deal ``first`` (look-alikes) in order and ``rest`` beside it."""
        self._first, self._rest = first[::-1].tolist(), rest[::-1].tolist()
        self._left = Counter(self._first + self._rest)
        self._most = [(-count, sku) for sku, count in self._left.items()]  # stale counts are too large, never too small
        heapq.heapify(self._most)
        self._owed = Counter[int]()  # came up when their SKU was in the batch already
        self._early = Counter[int]()  # were dealt before they came up
        self._hand: dict[int, None] = {}

    def deal(self, batches: int, slots: int, places: int) -> list[int]:
        """Return ``slots`` distinct SKUs, about ``places`` of them look-alikes, for one of the ``batches`` left."""
        self._hand = {}
        self._take_due(batches)
        room = min(slots, len(self._hand) + places)
        for _ in range(2 * places):  # look no further, or one large SKU would use up its look-alikes
            if len(self._hand) < room and self._first:
                self._take_next(self._first)
        for sku in list(islice(self._owed, 2 * slots)):
            if len(self._hand) < slots and sku not in self._hand:
                self._pay(self._owed, sku)
                self._take(sku)
        for stream in (self._rest, self._first):
            while len(self._hand) < slots and stream:
                self._take_next(stream)
        return list(self._hand)

    def _take_due(self, batches: int) -> None:
        while self._most and -self._most[0][0] >= batches:
            _, sku = heapq.heappop(self._most)
            if self._left[sku] == batches:
                self._take(sku)
                if not self._pay(self._owed, sku):
                    self._early[sku] += 1
            if self._left[sku]:
                heapq.heappush(self._most, (-self._left[sku], sku))

    def _take_next(self, stream: list[int]) -> None:
        sku = stream.pop()
        if self._pay(self._early, sku):
            return
        if sku in self._hand:
            self._owed[sku] += 1
        else:
            self._take(sku)

    def _take(self, sku: int) -> None:
        self._hand[sku] = None
        self._left[sku] -= 1

    @staticmethod
    def _pay(debts: Counter[int], sku: int) -> bool:
        """Cancel one of ``sku``'s ``debts``; return whether there was one."""
        if sku not in debts:
            return False
        debts[sku] -= 1
        if not debts[sku]:
            del debts[sku]
        return True


def _pictures(labels: Ids, skus: Ids, rng: np.random.Generator) -> Ids:
    """Return a picture of each of ``skus`` in turn, going round the pictures of a SKU in one random order."""
    shuffled = rng.permutation(len(labels))
    by_sku = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    start = np.cumsum(sizes) - sizes
    return by_sku[start[skus] + nth(skus) % sizes[skus]]
