"""SKU folders as a whole: two that look like one product, and one that holds two.

Works on vectors and labels alone. Two photo sessions of one product can look like two products, and two flavours in
one design like one: both lists are for a person to decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skumatch.dataset import Row
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids, Vectors

Floats = NDArray[np.float64]

MIXED = 0.6  # two folders are one product from this share of chance mixing on
APART = 3.0  # a folder holds two from this many robust deviations above the typical folder on
EXPLAINED = 0.25  # and where the two groups explain this share of its variance; noise cut in half explains about .2
PAIR_LEAST, SPLIT_LEAST, PART_LEAST = 4, 8, 3  # pictures per folder of a pair, per folder to split, per part
FOLDERS_LEAST = 8  # what is typical needs this many folders
CANDIDATES = 5  # nearest other SKUs compared with each SKU
SAMPLE = 200  # pictures per folder that are compared, evenly spaced
NEIGHBOURS = 10
ROUNDS = 30


@dataclass(frozen=True)
class Pair:
    """Two SKUs that look like one product.

    ``mixing``: how often the pictures of one have pictures of the other as neighbours, 0 never, 1 as often as by
    chance. ``similarity``: cosine of the mean vectors. ``a`` has at least as many pictures as ``b``.
    """

    a: str
    b: str
    mixing: float
    similarity: float
    a_rows: tuple[Row, ...]
    b_rows: tuple[Row, ...]


@dataclass(frozen=True)
class Split:
    """One SKU whose pictures fall into two groups, the larger one first.

    ``distance``: 1 - cosine of the groups' mean vectors; ``deviations``: how far that is above the typical SKU, in
    robust standard deviations; ``explained``: the share of the SKU's variance that lies between the groups, 0..1.
    """

    sku: str
    distance: float
    deviations: float
    explained: float
    larger: tuple[Row, ...]
    smaller: tuple[Row, ...]


def same_product(views: Views, threshold: float = MIXED) -> list[Pair]:
    """Return pairs of SKUs whose pictures lie among each other, most mixed first.

    The statistic is the nearest-neighbour two-sample test (Schilling 1986; Henze 1988): the share of the other
    folder's pictures among the nearest ten in both folders, divided by what chance would give; the smaller of the two
    directions. Each SKU is compared with its five nearest mean vectors; folders with fewer than four pictures are left
    out. ``threshold``: on a clean catalogue (81 classes, untouched MobileNetV2) one pair of look-alikes reaches .6,
    while of 81 classes cut in half all reach it when cut in the order of the photos, 79 when cut at random.
    """
    members = _members(views)
    chosen = [code for code, places in enumerate(members) if len(places) >= PAIR_LEAST]
    if len(chosen) < 2:
        return []
    means = _units(np.stack([views.vectors[members[code]].mean(axis=0) for code in chosen]))
    index = ExactIndex(means.shape[1])
    index.add(np.arange(len(chosen), dtype=np.int64), means)
    _, near = index.search(means, min(CANDIDATES + 1, len(chosen)))
    asked = sorted({(min(i, int(j)), max(i, int(j))) for i, line in enumerate(near) for j in line if i != j})
    pairs = []
    for i, j in asked:
        a, b = members[chosen[i]], members[chosen[j]]
        mixing = _mixing(views.vectors[_spaced(a)], views.vectors[_spaced(b)])
        if mixing >= threshold:
            pairs.append(_pair(views, a, b, mixing, float(means[i] @ means[j])))
    return sorted(pairs, key=lambda pair: (-pair.mixing, pair.a, pair.b))


def _pair(views: Views, a: Ids, b: Ids, mixing: float, similarity: float) -> Pair:
    a, b = (a, b) if len(a) >= len(b) else (b, a)
    a_rows, b_rows = (tuple(views.rows[i] for i in places) for places in (a, b))
    return Pair(a_rows[0].sku, b_rows[0].sku, mixing, similarity, a_rows, b_rows)


def _mixing(a: Vectors, b: Vectors) -> float:
    """Return how far two groups of unit rows lie among each other: 0 apart, about 1 as one group would."""
    both = np.concatenate([a, b])
    second = np.arange(len(both)) >= len(a)
    likeness = both @ both.T
    np.fill_diagonal(likeness, -np.inf)
    k = min(NEIGHBOURS, len(a), len(b))
    near = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    crossing = (second[near] != second[:, None]).mean(axis=1)
    others = len(both) - 1
    return float(min(crossing[~second].mean() * others / len(b), crossing[second].mean() * others / len(a)))


def two_products(views: Views, threshold: float = APART) -> list[Split]:
    """Return SKUs whose pictures fall into two groups much further apart than the typical SKU's, furthest first.

    Every SKU with eight pictures or more is divided by 2-means, both parts at least three pictures and a tenth of the
    folder; the distance of the parts' mean vectors is set against all SKUs' by the modified z-score (Iglewicz &
    Hoaglin 1993: median and MAD), and the parts must explain a quarter of the variance, so that plain noise is
    not cut. ``threshold``: three; with both, a clean catalogue of 81 classes yields one to four. What is typical needs
    eight such SKUs; with fewer nothing is returned.
    """
    members = [places for places in _members(views) if len(places) >= SPLIT_LEAST]
    if len(members) < FOLDERS_LEAST:
        return []
    parts = [_two_means(views.vectors[places]) for places in members]
    distance = np.array([_distance(views.vectors[p], part) for p, part in zip(members, parts, strict=True)])
    middle = np.median(distance)
    spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-6)
    deviations = (distance - middle) / spread
    found = []
    for at in np.flatnonzero(deviations >= threshold):
        larger, smaller = members[at][~parts[at]], members[at][parts[at]]
        explained = _explained(views.vectors[members[at]], parts[at])
        if len(smaller) >= max(PART_LEAST, len(members[at]) / 10) and explained >= EXPLAINED:
            rows = [tuple(views.rows[i] for i in places) for places in (larger, smaller)]
            far = float(distance[at]), float(deviations[at])
            found.append(Split(rows[0][0].sku, *far, explained, rows[0], rows[1]))
    return sorted(found, key=lambda split: (-split.deviations, split.sku))


def _two_means(vectors: Vectors) -> NDArray[np.bool_]:
    """Divide unit rows (N, D) into two groups by 2-means, started along the main axis; True: the smaller group."""
    centred = vectors - vectors.mean(axis=0)
    axis = np.linalg.svd(centred[_spaced(np.arange(len(vectors)))], full_matrices=False)[2][0]
    second = centred @ axis > 0
    for _ in range(ROUNDS):
        if second.all() or not second.any():
            break
        first_mean, second_mean = vectors[~second].mean(axis=0), vectors[second].mean(axis=0)
        # nearer to the second mean, written as one product per row
        moved = vectors @ (second_mean - first_mean) > (second_mean @ second_mean - first_mean @ first_mean) / 2
        if (moved == second).all():
            break
        second = moved
    smaller: NDArray[np.bool_] = second if second.sum() * 2 <= len(second) else ~second
    return smaller


def _distance(vectors: Vectors, second: NDArray[np.bool_]) -> float:
    """Return 1 - cosine of the groups' mean vectors, 0 where there is one group."""
    if not second.any():
        return 0.0
    means = _units(np.stack([vectors[~second].mean(axis=0), vectors[second].mean(axis=0)]))
    return float(1 - means[0] @ means[1])


def _explained(vectors: Vectors, second: NDArray[np.bool_]) -> float:
    """Return the share of the variance of unit rows that lies between two groups, neither empty."""
    mean = vectors.mean(axis=0)
    total = len(vectors) * (1 - float(mean @ mean))
    between = [
        len(part) * float(((part.mean(axis=0) - mean) ** 2).sum()) for part in (vectors[second], vectors[~second])
    ]
    return sum(between) / max(total, 1e-12)


def _members(views: Views) -> list[Ids]:
    """Return the places of each SKU's pictures, by code."""
    order = np.argsort(views.codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(views.codes, minlength=len(views.skus)))[:-1]) if len(views) else []


def _spaced(places: Ids) -> Ids:
    """Return at most ``SAMPLE`` of ``places``, evenly spaced."""
    return places[np.linspace(0, len(places) - 1, min(SAMPLE, len(places))).astype(np.int64)]


def _units(vectors: Vectors) -> Vectors:
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    units: Vectors = (vectors / lengths).astype(np.float32)
    return units
