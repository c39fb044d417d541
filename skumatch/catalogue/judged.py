"""Pairs after judgement, and the matches of each posting that follow from them.

Knows nothing about features or rules: a pair has a probability, and a threshold says from where on it is a match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.neighbours import Places, Scores
from skumatch.spec import Ids

MOST: Final = 50  # matches of a posting, itself included (the Shopee task's limit)
BLOCK: Final = 100_000  # postings at a time


@dataclass(frozen=True)
class Judged:
    """Undirected pairs, each once, left < right: places int32 (P,) and ``probability`` float32 (P,) in 0..1."""

    left: Places
    right: Places
    probability: Scores

    def __len__(self) -> int:
        return len(self.left)

    def above(self, threshold: float) -> Judged:
        """Return those with at least this probability."""
        return self.take(self.probability >= threshold)

    def take(self, chosen: NDArray[np.bool_]) -> Judged:
        """Return some of them, in the same order."""
        return Judged(self.left[chosen], self.right[chosen], self.probability[chosen])


@dataclass(frozen=True)
class Matches:
    """Per posting the postings of the same product, itself first, then the surest first.

    ``places`` int64 (M,), those of posting i at ``offsets[i]:offsets[i + 1]``; ``offsets`` int64 (N + 1,).
    """

    offsets: Ids
    places: Ids

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, place: int) -> Ids:
        """Return the matches of one posting."""
        return self.places[self.offsets[place] : self.offsets[place + 1]]


def matches_of(count: int, judged: Judged, most: int = MOST) -> Matches:
    """Return the matches that the pairs ``judged`` make among ``count`` postings, at most ``most`` of each.

    Ties in probability: the smaller place first.
    """
    blocks = [_block(first, min(first + BLOCK, count), judged, most) for first in range(0, count, BLOCK)]
    sizes = np.concatenate([np.zeros(1, np.int64), *(sizes for sizes, _ in blocks)])
    return Matches(np.cumsum(sizes), np.concatenate([np.empty(0, np.int64), *(places for _, places in blocks)]))


def _block(first: int, last: int, judged: Judged, most: int) -> tuple[Ids, Ids]:
    """Return how many matches the postings ``first`` to ``last`` (excluded) have, and their places."""
    own = np.arange(first, last)
    forth = (judged.left >= first) & (judged.left < last)
    back = (judged.right >= first) & (judged.right < last)
    one = np.concatenate([own, judged.left[forth], judged.right[back]])
    other = np.concatenate([own, judged.right[forth], judged.left[back]])
    sure = [np.full(len(own), np.inf, np.float32), judged.probability[forth], judged.probability[back]]
    order = np.lexsort((other, -np.concatenate(sure), one))
    one = one[order] - first
    kept = np.arange(len(one)) - np.searchsorted(one, np.arange(len(own)))[one] < most
    return np.bincount(one[kept], minlength=len(own)), other[order][kept]


def matches_of_groups(groups: Ids, judged: Judged, most: int = MOST) -> Matches:
    """Return the matches that say: all postings of a group are one product. ``groups`` int64 (N,) codes.

    Members that ``judged`` has no pair for come last.
    """
    order = np.argsort(groups, kind="stable").astype(np.int32)
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    pairs = [_all_pairs(order, starts[:-1][sizes == size], int(size)) for size in np.unique(sizes[sizes > 1])]
    left = np.concatenate([np.empty(0, np.int32), *(pair[0] for pair in pairs)])
    right = np.concatenate([np.empty(0, np.int32), *(pair[1] for pair in pairs)])
    inside = judged.take(groups[judged.left] == groups[judged.right])
    return matches_of(len(groups), Judged(left, right, _known(len(groups), left, right, inside)), most)


def _known(count: int, left: Places, right: Places, judged: Judged) -> Scores:
    """Return the probability of each pair, 0 for those that ``judged`` does not have."""
    if not len(judged):
        return np.zeros(len(left), np.float32)
    keys = judged.left.astype(np.int64) * count + judged.right
    order = np.argsort(keys)
    wanted = left.astype(np.int64) * count + right
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[at] == wanted, judged.probability[at], np.float32(0))


def _all_pairs(order: Places, starts: Ids, size: int) -> tuple[Places, Places]:
    """Return both ends, the smaller first, of all pairs within the groups of ``size`` that begin at ``starts``."""
    members = np.sort(order[starts[:, None] + np.arange(size)], axis=1)
    one, other = np.triu_indices(size, 1)
    return members[:, one].ravel(), members[:, other].ravel()
