"""From pairs to groups: connected components, or correlation clustering, with a largest size.

Components join whatever a chain of matches joins. Correlation clustering weighs what speaks against a group too: it
merges the two clusters whose pairs have the largest mean log-odds, while that is above zero (greedy additive edge
contraction, Keuper et al. 2015, "Efficient Decomposition of Image and Mesh Graphs by Lifted Multicuts", section 4.1,
ordered here by the mean, as average linkage does, so that large clusters do not swallow small ones). A component of
more than ``LARGEST`` postings, which weak matches chain together, is torn at the weakest of them first, so that memory
is bounded. Knows nothing about what a posting is.
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
LARGEST: Final = 10_000  # postings of a component that is clustered as a whole
SURE: Final = 1e-4  # no probability is nearer to 0 or 1 than this
Logits = NDArray[np.float64]
Labels = NDArray[np.int32]


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
    labels = _components(count, judged, threshold)
    sizes = np.bincount(labels, minlength=1)
    if how.how == "components" and sizes.max() <= how.most:
        return _in_order(labels)
    if sizes.max() > LARGEST:
        labels = _torn(judged, threshold, labels, sizes > LARGEST)
        sizes = np.bincount(labels, minlength=1)
    loose = sizes > (how.most if how.how == "components" else 2)  # two that match are a group whatever the method
    middle = log_odds(np.array([threshold]))[0]
    for left, right, probability in _by_component(judged, labels, loose):
        members = np.unique(np.concatenate([left, right]))
        clusters = _Clusters(len(members), how)
        weights = log_odds(probability) - middle
        parts = clusters.merged(np.searchsorted(members, left), np.searchsorted(members, right), weights)
        labels[members] = len(sizes) + members[parts]  # a cluster is called after one of its members
    return _in_order(labels)


def log_odds(probability: NDArray[np.floating]) -> Logits:
    """Return log(p / (1 - p)), of probabilities held off 0 and 1."""
    held = np.clip(probability.astype(np.float64), SURE, 1 - SURE)
    return np.asarray(np.log(held / (1 - held)))


def _components(count: int, judged: Judged, threshold: float) -> Labels:
    """Return the component of each posting, int32 (N,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    some = judged.above(threshold)
    graph = coo_array((np.ones(len(some), np.int8), (some.left, some.right)), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int32)


def _torn(judged: Judged, threshold: float, labels: Labels, large: NDArray[np.bool_]) -> Labels:
    """Return labels in which the ``large`` components are torn into parts of at most ``LARGEST``.

    The links of the maximum spanning tree join them again, the surest first (Kruskal), but none that makes a part too
    large.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    chosen = large[labels[judged.left]] & (judged.probability >= threshold)
    ends = judged.left[chosen], judged.right[chosen]
    tree = minimum_spanning_tree(coo_array((2 - judged.probability[chosen], ends), (len(labels),) * 2)).tocoo()
    order = np.lexsort((tree.col, tree.row, tree.data))
    parts = _Parts(len(labels))
    for one, other in zip(tree.row[order].tolist(), tree.col[order].tolist(), strict=True):
        parts.join(one, other)
    torn = labels.copy()
    for member in np.flatnonzero(large[labels]).tolist():
        torn[member] = len(large) + parts.find(member)
    return torn


class _Parts:
    """Disjoint sets of ``count`` members, none of more than ``LARGEST``."""

    def __init__(self, count: int) -> None:
        self.parents = list(range(count))
        self.sizes = [1] * count

    def find(self, member: int) -> int:
        """Return the member that a set is called after."""
        parents = self.parents
        while parents[member] != member:
            parents[member] = member = parents[parents[member]]
        return member

    def join(self, one: int, other: int) -> None:
        """Make one set of two, unless it would be too large."""
        one, other = sorted((self.find(one), self.find(other)), key=lambda member: (-self.sizes[member], member))
        if one != other and self.sizes[one] + self.sizes[other] <= LARGEST:
            self.parents[other] = one
            self.sizes[one] += self.sizes[other]


def _in_order(labels: Labels) -> Ids:
    """Return codes from 0 in order of first appearance."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[codes]


def _by_component(
    judged: Judged, labels: Labels, chosen: NDArray[np.bool_]
) -> Iterator[tuple[Labels, Labels, NDArray[np.float32]]]:
    """Yield the pairs within each of the ``chosen`` components."""
    of = labels[judged.left]
    inside = np.flatnonzero((of == labels[judged.right]) & chosen[of]).astype(np.int32)
    of = of[inside]
    inside = inside[np.argsort(of, kind="stable")]
    of.sort()
    for start, end in _runs(of):
        part = inside[start:end]
        yield judged.left[part], judged.right[part], judged.probability[part]


def _runs(values: Labels) -> list[tuple[int, int]]:
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
