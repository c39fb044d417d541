"""Pairs of postings worth a look, and what speaks for and against each of them, as numbers.

Candidates are pairs that some signal calls neighbours. Beside the signals' scores stand how the two rank among each
other's neighbours, how far the score lies above what both have around them (Conneau et al. 2018, "Word Translation
Without Parallel Data", section 2.3, CSLS), the neighbours they share, and amounts that agree or contradict. Knows
nothing about how a pair is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.amounts import Amounts, agreements, contradictions
from skumatch.catalogue.neighbours import Neighbours, Places, Scores
from skumatch.catalogue.signals import Signal
from skumatch.spec import Ids

AROUND: Final = 5  # neighbours that tell how dense it is around a posting
SHARED: Final = 10  # neighbours that two postings may share
BLOCK: Final = 100_000  # pairs at a time
PER_SIGNAL: Final = ("", "_margin", "_ratio", "_rank", "_rank_back")
OTHERS: Final = ("amounts_contradict", "amounts_agree", "words_fewer", "words_more")


@dataclass(frozen=True)
class Pairs:
    """Undirected pairs of places, each once, left < right, ordered by both; int64 (P,) each."""

    left: Ids
    right: Ids

    def __len__(self) -> int:
        return len(self.left)

    def blocks(self, size: int = BLOCK) -> Iterator[Pairs]:
        """Yield them in order, ``size`` at a time."""
        for start in range(0, len(self.left), size):
            yield Pairs(self.left[start : start + size], self.right[start : start + size])


def candidates(neighbours: Sequence[Neighbours]) -> Pairs:
    """Return the pairs that at least one of ``neighbours`` holds, in either direction."""
    count = max(len(one) for one in neighbours)
    keys = np.empty(0, np.int64)
    for one in neighbours:  # one after the other: each may be large
        left, right = one.pairs()
        new = np.minimum(left, right) * count + np.maximum(left, right)
        keys = np.unique(np.concatenate([keys, np.unique(new)]))
    return Pairs(keys // count, keys % count)


@dataclass(frozen=True)
class Features:
    """Turns pairs into numbers: ``signals`` with the ``neighbours`` that each found, ``amounts`` of N titles and how
    many ``words`` each has, int64 (N,)."""

    signals: Sequence[Signal]
    neighbours: Sequence[Neighbours]
    amounts: Amounts
    words: Ids

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the columns are called, in order; a signal's own column has its name."""
        per = [signal.name + ending for signal in self.signals for ending in PER_SIGNAL]
        return (*per, *(f"shared_{signal.name}" for signal in self.signals), *OTHERS)

    @cached_property
    def _around(self) -> list[tuple[Scores, Scores]]:
        """Per signal, of each posting the mean score of its nearest five, and the best."""
        return [(one.scores[:, :AROUND].mean(axis=1), one.scores[:, 0]) for one in self.neighbours]

    def of(self, pairs: Pairs) -> NDArray[np.float32]:
        """Return float32 (P, F), NaN where a signal is absent from one of the two."""
        columns: list[NDArray[np.floating] | NDArray[np.integer]] = []
        shared = []
        for signal, near, around in zip(self.signals, self.neighbours, self._around, strict=True):
            scores = signal.scores(pairs.left, pairs.right)
            absent = np.isnan(scores)
            own = [scores, *_among(scores, around, pairs), *_ranks(near.places, pairs), _shared(near.places, pairs)]
            for column in own[1:]:
                column[absent] = np.nan
            columns += own[:-1]
            shared.append(own[-1])
        lengths = self.words[pairs.left], self.words[pairs.right]
        against = contradictions(self.amounts, pairs.left, pairs.right)
        for_it = agreements(self.amounts, pairs.left, pairs.right)
        columns += [*shared, against, for_it, np.minimum(*lengths), np.maximum(*lengths)]
        return np.stack(columns, axis=1).astype(np.float32)


def _among(scores: Scores, around: tuple[Scores, Scores], pairs: Pairs) -> tuple[Scores, Scores]:
    """Return how far the scores lie above the mean around both ends, and their share of the best of both."""
    mean, best = around
    best_of_both = np.maximum(best[pairs.left], best[pairs.right])
    ratio = scores / np.maximum(np.maximum(best_of_both, scores), np.float32(1e-6))
    margin = scores - (mean[pairs.left] + mean[pairs.right]) / 2
    return margin.astype(np.float32), ratio.astype(np.float32)


def _ranks(places: Places, pairs: Pairs) -> tuple[Scores, Scores]:
    """Return 1 / rank of each in the other's list, 0 where it is not in it: the larger, then the smaller."""
    there, back = _rank(places, pairs.left, pairs.right), _rank(places, pairs.right, pairs.left)
    return np.maximum(there, back), np.minimum(there, back)


def _rank(places: Places, of: Ids, who: Ids) -> Scores:
    hit = places[of] == who[:, None]
    rank = np.where(hit.any(axis=1), 1 / (1 + hit.argmax(axis=1)), 0)
    return rank.astype(np.float32)


def _shared(places: Places, pairs: Pairs) -> Scores:
    """Return the share of both ends' nearest ten that they have in common, in 0..1."""
    near = places[:, :SHARED]
    one, other = near[pairs.left], near[pairs.right]
    common = sum(((one == other[:, [at]]) & (one >= 0)).sum(axis=1) for at in range(near.shape[1]))
    most = np.minimum((one >= 0).sum(axis=1), (other >= 0).sum(axis=1))
    return np.asarray(common / np.maximum(most, 1), np.float32)
