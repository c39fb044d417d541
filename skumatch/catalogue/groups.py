"""From pairs to groups: connected components, or correlation clustering, with a largest size.

Components join whatever a chain of matches joins. Correlation clustering weighs what speaks against a group too: it
merges the two clusters whose pairs have the largest mean log-odds, while that is above zero (greedy additive edge
contraction, Keuper et al. 2015, "Efficient Decomposition of Image and Mesh Graphs by Lifted Multicuts", section 4.1,
ordered here by the mean, as average linkage does, so that large clusters do not swallow small ones). Knows nothing
about what a posting is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.judged import Judged
from skumatch.errors import ConfigError
from skumatch.spec import Ids

How = Literal["components", "correlation"]
SURE: Final = 1e-4  # no probability is nearer to 0 or 1 than this
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Grouping:
    """``how`` to group, the largest size ``most``, and the log-odds, below zero, of a pair that no signal called
    neighbours. Raises ConfigError for values out of range."""

    how: How = "correlation"
    most: int = 50
    absent: float = -0.5

    def __post_init__(self) -> None:
        if self.how not in get_args(How) or self.most < 1 or self.absent > 0:
            what = f"grouping '{self.how}' of at most {self.most}, absent pairs {self.absent}"
            raise ConfigError(what, f"choose {' or '.join(get_args(How))}, at least 1, and at most 0")


def groups_of(count: int, judged: Judged, threshold: float, how: Grouping | None = None) -> Ids:
    """Return the group of each of ``count`` postings, int64 (N,): codes from 0 in order of their first posting.

    A pair speaks for a group from probability ``threshold`` on, and against it below.
    """
    how = how or Grouping()
    weights = log_odds(judged.probability) - log_odds(np.array([threshold]))[0]
    joined = judged.probability >= threshold
    labels = _components(count, judged.left[joined], judged.right[joined])
    sizes = np.bincount(labels, minlength=1)
    if how.how == "components" and sizes.max() <= how.most:
        return _in_order(labels)
    inside = labels[judged.left] == labels[judged.right]
    torn = sizes > (how.most if how.how == "components" else 2)  # two that match are a group whatever the method
    inside &= torn[labels[judged.left]]
    for left, right, weight in _by_component(judged, weights, labels, np.flatnonzero(inside)):
        members = np.unique(np.concatenate([left, right]))
        clusters = _Clusters(len(members), how)
        parts = clusters.merged(np.searchsorted(members, left), np.searchsorted(members, right), weight)
        labels[members] = len(sizes) + members[parts]  # a cluster is called after one of its members
    return _in_order(labels)


def log_odds(probability: NDArray[np.floating]) -> Logits:
    """Return log(p / (1 - p)), of probabilities held off 0 and 1."""
    held = np.clip(probability.astype(np.float64), SURE, 1 - SURE)
    return np.asarray(np.log(held / (1 - held)))


def _components(count: int, left: NDArray[np.int32], right: NDArray[np.int32]) -> Ids:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), np.int8), (left, right)), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _in_order(labels: Ids) -> Ids:
    """Return codes from 0 in order of first appearance."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[codes]


def _by_component(judged: Judged, weights: Logits, labels: Ids, chosen: Ids) -> Iterator[tuple[Ids, Ids, Logits]]:
    """Yield the chosen pairs of one component after the other."""
    chosen = chosen[np.argsort(labels[judged.left[chosen]], kind="stable")]
    of = labels[judged.left[chosen]]
    for start, end in _runs(of):
        part = chosen[start:end]
        yield judged.left[part].astype(np.int64), judged.right[part].astype(np.int64), weights[part]


def _runs(values: Ids) -> list[tuple[int, int]]:
    """Return where each run of equal values begins and ends."""
    if not len(values):
        return []
    cuts = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *cuts.tolist(), len(values)]
    return list(pairwise(edges))


class _Clusters:
    """Merges ``count`` members, each at first a cluster of its own."""

    def __init__(self, count: int, how: Grouping) -> None:
        self.how = how
        self.absent = 0.0 if how.how == "components" else how.absent
        self.members = [[member] for member in range(count)]
        self.links: list[dict[int, tuple[float, int]]] = [{} for _ in range(count)]  # sum of log-odds, number of pairs
        self.heap: list[tuple[float, int, int, int]] = []

    def merged(self, left: Ids, right: Ids, weights: Logits) -> Ids:
        """Return per member the smallest member of its cluster, int64 (count,)."""
        for one, other, weight in zip(left.tolist(), right.tolist(), weights.tolist(), strict=True):
            if weight > 0 or self.how.how == "correlation":
                self.links[one][other] = self.links[other][one] = (weight, 1)
                self._offer(one, other)
        while self.heap:
            _, one, other, pairs = heapq.heappop(self.heap)
            both = len(self.members[one]) * len(self.members[other])
            if (
                both == pairs
                and other in self.links[one]
                and len(self.members[one] + self.members[other]) <= self.how.most
            ):
                self._merge(one, other)
        first = np.empty(len(self.members), np.int64)
        for members in self.members:
            first[members] = min(members, default=0)
        return first

    def _offer(self, one: int, other: int) -> None:
        """Put a pair of clusters in line where more speaks for merging them than against it."""
        weight, known = self.links[one][other]
        pairs = len(self.members[one]) * len(self.members[other])
        mean = (weight + (pairs - known) * self.absent) / pairs
        if mean > 0:
            heapq.heappush(self.heap, (-mean, min(one, other), max(one, other), pairs))

    def _merge(self, one: int, other: int) -> None:
        """Put the members of ``other`` into ``one``, and offer ``one`` to its neighbours anew."""
        self.members[one] += self.members[other]
        self.members[other] = []
        gone, self.links[other] = self.links[other], {}
        gone.pop(one)
        self.links[one].pop(other)
        for third, (weight, known) in gone.items():
            del self.links[third][other]
            had = self.links[one].get(third, (0.0, 0))
            self.links[one][third] = self.links[third][one] = (had[0] + weight, had[1] + known)
        for third in self.links[one]:
            self._offer(one, third)
