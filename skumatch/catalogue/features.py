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
    """Undirected pairs of places among ``count`` postings, each once, ordered by ``left`` and ``right``, left < right.

    ``keys`` int64 (P,), ascending: left * count + right.
    """

    count: int
    keys: Ids

    @staticmethod
    def of(count: int, left: Ids, right: Ids) -> Pairs:
        """Return the pairs of places int64 (P,), in any order and either direction, given more than once or not."""
        keys = np.minimum(left, right).astype(np.int64) * count + np.maximum(left, right)
        return Pairs(count, _distinct(keys))

    @property
    def left(self) -> Ids:
        """The smaller place of each, int64 (P,), made anew each time."""
        return self.keys // self.count

    @property
    def right(self) -> Ids:
        """The larger place of each, int64 (P,), made anew each time."""
        return self.keys % self.count

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: NDArray[np.bool_] | slice) -> Pairs:
        """Return some of them, in the same order."""
        return Pairs(self.count, self.keys[chosen])

    def blocks(self, size: int = BLOCK) -> Iterator[Pairs]:
        """Yield them in order, ``size`` at a time."""
        for start in range(0, len(self.keys), size):
            yield self.take(slice(start, start + size))

    @staticmethod
    def together(count: int, parts: Sequence[Pairs]) -> Pairs:
        """Return the pairs that are in at least one of ``parts``."""
        return Pairs(count, _distinct(np.concatenate([np.empty(0, np.int64), *(part.keys for part in parts)])))


def _distinct(keys: Ids) -> Ids:
    """Sort ``keys`` in place and return each once; numpy.unique would hash them, which takes longer and more memory."""
    keys.sort()
    return np.asarray(keys[np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]])])


@dataclass(frozen=True)
class Surroundings:
    """What is kept of a signal's neighbours: their ``places`` int32 (N, k), the ``mean`` score of the nearest five and
    the ``best``, float32 (N,)."""

    places: Places
    mean: Scores
    best: Scores

    @staticmethod
    def of(near: Neighbours) -> Surroundings:
        """Return what pairs are compared with."""
        return Surroundings(near.places, near.scores[:, :AROUND].mean(axis=1), near.scores[:, 0].copy())


@dataclass(frozen=True)
class Features:
    """Turns pairs into numbers: ``signals`` with what is ``around`` each posting by them, ``amounts`` of N titles and
    how many ``words`` each has, int64 (N,)."""

    signals: Sequence[Signal]
    around: Sequence[Surroundings]
    amounts: Amounts
    words: Ids

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the columns are called, in order; a signal's own column has its name."""
        per = [signal.name + ending for signal in self.signals for ending in PER_SIGNAL]
        return (*per, *(f"shared_{signal.name}" for signal in self.signals), *OTHERS)

    def of(self, pairs: Pairs) -> NDArray[np.float32]:
        """Return float32 (P, F), NaN where a signal is absent from one of the two."""
        columns: list[NDArray[np.floating] | NDArray[np.integer]] = []
        shared = []
        left, right = pairs.left, pairs.right
        ends = left, right
        for signal, around in zip(self.signals, self.around, strict=True):
            scores = signal.scores(left, right)
            absent = np.isnan(scores)
            places = around.places
            own = [scores, *_among(scores, around, ends), *_ranks(places, ends), _shared(places, ends)]
            for column in own[1:]:
                column[absent] = np.nan
            columns += own[:-1]
            shared.append(own[-1])
        lengths = self.words[left], self.words[right]
        against = contradictions(self.amounts, left, right)
        for_it = agreements(self.amounts, left, right)
        columns += [*shared, against, for_it, np.minimum(*lengths), np.maximum(*lengths)]
        return np.stack(columns, axis=1).astype(np.float32)


def _among(scores: Scores, around: Surroundings, ends: tuple[Ids, Ids]) -> tuple[Scores, Scores]:
    """Return how far the scores lie above the mean around both ends, and their share of the best of both."""
    left, right = ends
    best_of_both = np.maximum(around.best[left], around.best[right])
    ratio = scores / np.maximum(np.maximum(best_of_both, scores), np.float32(1e-6))
    margin = scores - (around.mean[left] + around.mean[right]) / 2
    return margin.astype(np.float32), ratio.astype(np.float32)


def _ranks(places: Places, ends: tuple[Ids, Ids]) -> tuple[Scores, Scores]:
    """Return 1 / rank of each in the other's list, 0 where it is not in it: the larger, then the smaller."""
    left, right = ends
    there, back = _rank(places, left, right), _rank(places, right, left)
    return np.maximum(there, back), np.minimum(there, back)


def _rank(places: Places, of: Ids, who: Ids) -> Scores:
    hit = places[of] == who[:, None]
    rank = np.where(hit.any(axis=1), 1 / (1 + hit.argmax(axis=1)), 0)
    return rank.astype(np.float32)


def _shared(places: Places, ends: tuple[Ids, Ids]) -> Scores:
    """Return the share of both ends' nearest ten that they have in common, in 0..1."""
    near = places[:, :SHARED]
    one, other = near[ends[0]], near[ends[1]]
    common = sum(((one == other[:, [at]]) & (one >= 0)).sum(axis=1) for at in range(near.shape[1]))
    most = np.minimum((one >= 0).sum(axis=1), (other >= 0).sum(axis=1))
    return np.asarray(common / np.maximum(most, 1), np.float32)
