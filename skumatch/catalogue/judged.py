"""Pairs after judgement, and the matches of each posting that follow from them.

Knows nothing about features or rules: a pair has a probability, and a threshold says from where on it is a match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from skumatch.catalogue.neighbours import Places, Scores
from skumatch.spec import Ids

MOST: Final = 50  # matches of a posting, itself included (the Shopee task's limit)


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
        kept = self.probability >= threshold
        return Judged(self.left[kept], self.right[kept], self.probability[kept])


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
    own = np.arange(count, dtype=np.int64)
    one = np.concatenate([own, judged.left, judged.right]).astype(np.int64)
    other = np.concatenate([own, judged.right, judged.left]).astype(np.int64)
    sure = np.concatenate([np.full(count, np.inf, np.float32), judged.probability, judged.probability])
    order = np.lexsort((other, -sure, one))
    one = one[order]
    offsets = np.searchsorted(one, np.arange(count + 1))
    kept = np.arange(len(one)) - offsets[one] < most
    return Matches(np.concatenate([[0], np.cumsum(np.bincount(one[kept], minlength=count))]), other[order][kept])


def matches_of_groups(groups: Ids, judged: Judged, most: int = MOST) -> Matches:
    """Return the matches that say: all postings of a group are one product. ``groups`` int64 (N,) codes.

    Members that ``judged`` has no pair for come last.
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    pairs = [_all_pairs(order, starts[:-1][sizes == size], int(size)) for size in np.unique(sizes[sizes > 1])]
    left = np.concatenate([np.empty(0, np.int64), *(pair[0] for pair in pairs)])
    right = np.concatenate([np.empty(0, np.int64), *(pair[1] for pair in pairs)])
    count = len(groups)
    keys = judged.left.astype(np.int64) * count + judged.right
    known = np.argsort(keys)
    at = np.searchsorted(keys, left * count + right, sorter=known)
    at = known[np.minimum(at, len(keys) - 1)] if len(keys) else np.zeros(len(left), np.int64)
    found = keys[at] == left * count + right if len(keys) else np.zeros(len(left), bool)
    sure = np.where(found, judged.probability[at] if len(keys) else np.float32(0), np.float32(0)).astype(np.float32)
    return matches_of(count, Judged(left.astype(np.int32), right.astype(np.int32), sure), most)


def _all_pairs(order: Ids, starts: Ids, size: int) -> tuple[Ids, Ids]:
    """Return both ends, the smaller first, of all pairs within the groups of ``size`` that begin at ``starts``."""
    members = np.sort(order[starts[:, None] + np.arange(size)], axis=1)
    one, other = np.triu_indices(size, 1)
    return members[:, one].ravel(), members[:, other].ravel()
