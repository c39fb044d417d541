"""Look-alikes: groups of SKUs that an encoder confuses, or whose pictures lie close together.

A graph over SKUs, its edges from wrong answers and from the similarity of centroids, cut into small groups. The CSV
written here is what ``skumatch finetune --lookalikes`` reads. It knows nothing about pictures.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skumatch import artefact
from skumatch.csv_cells import safe_cell
from skumatch.errors import DataError
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.readers_common import safe_text, shown
from skumatch.readers_tables import read_table
from skumatch.spec import Ids, Vectors

NEIGHBOURS = 5  # nearest SKUs looked at per SKU
MOST = 12  # SKUs in a group at most: what a person can compare at a glance
LEAST_RATE = 0.05  # smoothed share of a SKU's queries answered with the other: below it, wrong answers are strays
LEAST_WRONG = 2  # wrong answers between two SKUs: a single one may be a bad picture
DOUBT = 2  # queries added to every count, so that one wrong answer of one is not a rate of 100 %
CLOSEST = 0.9  # quantile of nearest similarities above which two SKUs always count as look-alikes
BLOCK = 65_536  # views summed at once
SHIFTS = 64  # random partners per SKU when asking what similarity is typical
HEAD = ("group", "sku", "other", "similarity", "confusions")


@dataclass(frozen=True)
class Pair:
    """Two SKUs, ``a`` before ``b`` in the alphabet: cosine of their centroids, wrong answers in both directions."""

    a: str
    b: str
    similarity: float
    confusions: int


@dataclass(frozen=True)
class Group:
    """SKUs (sorted) that look alike, their pairs, the most confused first, and ``score``, 0..1: wrong answers inside
    the group per query shown to it, smoothed by two queries per SKU."""

    skus: tuple[str, ...]
    pairs: tuple[Pair, ...]
    score: float


@dataclass(frozen=True)
class _Edges:
    """Pairs of SKU codes ``a`` < ``b`` int64 (E,), cosines, wrong answers and weights, larger is more alike."""

    a: Ids
    b: Ids
    similarity: Vectors
    confusions: Ids
    weight: Vectors


def lookalikes(
    gallery: Views,
    confused: Sequence[tuple[str, str, int]] = (),
    queries_per_sku: Mapping[str, int] | None = None,
    neighbours: int = NEIGHBOURS,
    most: int = MOST,
) -> list[Group]:
    """Return groups of two to ``most`` SKUs, the most confused first, then the most similar.

    ``confused``: (shown SKU, answered SKU, count), SKUs without a gallery view ignored; ``queries_per_sku``: how often
    each was shown. Two SKUs are joined when they were taken for each other at least twice and in at least 5 % of the
    queries of one of them (count over queries plus two), or when each centroid is among the other's ``neighbours``
    nearest and they are closer than chance would put the nearest of all SKUs (``_threshold``). Groups grow from the
    strongest pair down (single linkage: Kruskal 1956) and are never merged beyond ``most``: a SKU whose only
    look-alikes sit in a full group stays out. The same input gives the same groups. Memory is SKUs x dimensions, never
    SKUs x SKUs.
    """
    skus = gallery.skus
    if len(skus) < 2:
        return []
    centres = centroids(gallery)
    wrong = _wrong_answers(confused, skus)
    queries = _shown(skus, confused, queries_per_sku or {})
    edges = _edges(centres, wrong, queries, neighbours)
    groups = [_group(members, edges, skus, queries) for members in _components(edges, len(skus), most)]
    return sorted(groups, key=lambda g: (-g.score, -max(p.similarity for p in g.pairs), g.skus))


def centroids(gallery: Views) -> Vectors:
    """Return the mean direction of each SKU's views: float32 (SKUs, D), unit rows in the order of ``gallery.skus``."""
    sums = np.zeros((len(gallery.skus), gallery.vectors.shape[1]), np.float64)
    for start in range(0, len(gallery), BLOCK):
        codes = gallery.codes[start : start + BLOCK]
        order = np.argsort(codes, kind="stable")
        found, first = np.unique(codes[order], return_index=True)
        sums[found] += np.add.reduceat(gallery.vectors[start : start + BLOCK][order].astype(np.float64), first, axis=0)
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    unit: Vectors = (sums / lengths).astype(np.float32)
    return unit


def typical_views(gallery: Views, skus: Sequence[str]) -> dict[str, int]:
    """Return, per SKU of ``skus``, the place in ``gallery`` of the view nearest to its SKU's centroid."""
    own = centroids(gallery)[gallery.codes]
    closeness = np.einsum("nd,nd->n", own, gallery.vectors)
    order = np.lexsort((np.arange(len(gallery)), -closeness, gallery.codes))
    _, first = np.unique(gallery.codes[order], return_index=True)
    best = dict(zip(gallery.skus, order[first].tolist(), strict=True))
    return {sku: int(best[sku]) for sku in skus if sku in best}


def _wrong_answers(confused: Sequence[tuple[str, str, int]], skus: Sequence[str]) -> Counter[tuple[int, int]]:
    """Return wrong answers by (shown code, answered code); those of SKUs outside the gallery are left out."""
    place = {sku: code for code, sku in enumerate(skus)}
    wrong: Counter[tuple[int, int]] = Counter()
    for shown_sku, answered, count in confused:
        if shown_sku in place and answered in place and shown_sku != answered:
            wrong[place[shown_sku], place[answered]] += count
    return wrong


def _shown(skus: Sequence[str], confused: Sequence[tuple[str, str, int]], queries: Mapping[str, int]) -> Ids:
    """Return queries per SKU code: as counted, and never fewer than its wrong answers."""
    least: Counter[str] = Counter()
    for sku, _, count in confused:
        least[sku] += count
    return np.array([max(queries.get(sku, 0), least[sku]) for sku in skus], np.int64)


def _edges(centres: Vectors, wrong: Mapping[tuple[int, int], int], queries: Ids, neighbours: int) -> _Edges:
    """Join SKUs that are confused or close; the weight is the larger confusion rate plus the likeness, 0..2."""
    close, typical = _close(centres, neighbours)
    rates = {pair: count / (int(queries[pair[0]]) + DOUBT) for pair, count in wrong.items()}
    both: Counter[tuple[int, int]] = Counter()
    for (i, j), count in wrong.items():
        both[min(i, j), max(i, j)] += count
    often = {(min(i, j), max(i, j)) for (i, j), rate in rates.items() if rate >= LEAST_RATE}
    pairs = sorted({pair for pair in often if both[pair] >= LEAST_WRONG}.union(close))
    a, b = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    similarity: Vectors = np.einsum("nd,nd->n", centres[a], centres[b])
    rate = np.array([max(rates.get((i, j), 0.0), rates.get((j, i), 0.0)) for i, j in pairs])
    likeness = np.clip((similarity - typical) / max(1 - typical, 1e-6), 0, 1)
    return _Edges(
        a, b, similarity, np.array([both[pair] for pair in pairs], np.int64), (rate + likeness).astype(np.float32)
    )


def _close(centres: Vectors, neighbours: int) -> tuple[list[tuple[int, int]], float]:
    """Return the pairs of close centroids (smaller code first) and the similarity that is typical of two SKUs."""
    count = len(centres)
    index = ExactIndex(centres.shape[1])
    index.add(np.arange(count, dtype=np.int64), centres)
    scores, ids = index.search(centres, min(neighbours + 1, count))
    own = np.arange(count, dtype=np.int64)[:, None]
    other = ids != own
    nearest = np.where(other, scores, -np.inf).max(axis=1)
    typical, threshold = _threshold(centres, nearest)
    chosen = other & (ids >= 0) & (scores >= threshold)
    left, right = np.broadcast_to(own, ids.shape)[chosen], ids[chosen]
    mutual = np.isin(left * count + right, right * count + left) & (left < right)
    return list(zip(left[mutual].tolist(), right[mutual].tolist(), strict=True)), typical


def _threshold(centres: Vectors, nearest: Vectors) -> tuple[float, float]:
    """Return the typical similarity of two SKUs, and the one from which on they count as look-alikes.

    Typical is the median over random pairs, the spread is measured below it, where no look-alikes are. The largest of
    n normal values lies near sqrt(2 ln n) standard deviations above their mean, so what is closer than that is close by
    more than chance. Never above the ``CLOSEST`` quantile of nearest similarities: the closest tenth always counts.
    """
    count = len(centres)
    shifts = np.arange(1, count)
    if len(shifts) > SHIFTS:
        shifts = np.sort(np.random.default_rng(0).choice(shifts, SHIFTS, replace=False))
    pairs = np.concatenate([np.einsum("nd,nd->n", centres, np.roll(centres, int(s), axis=0)) for s in shifts])
    below, typical = np.quantile(pairs, [0.1587, 0.5])
    chance = typical + (typical - below) * math.sqrt(2 * math.log(count))
    return float(typical), float(min(chance, np.quantile(nearest, CLOSEST)))


def _components(edges: _Edges, count: int, most: int) -> list[list[int]]:
    """Return lists of edge numbers, one per group: both ends of each edge lie in its group."""
    parent = list(range(count))
    size = [1] * count

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = parent[code]
        return code

    ends = list(zip(edges.a.tolist(), edges.b.tolist(), strict=True))
    for edge in np.lexsort((edges.b, edges.a, -edges.weight)).tolist():
        a, b = root(ends[edge][0]), root(ends[edge][1])
        if a != b and size[a] + size[b] <= most:
            parent[b] = a
            size[a] += size[b]
    inside: dict[int, list[int]] = {}
    for edge, (a, b) in enumerate(ends):
        if root(a) == root(b):
            inside.setdefault(root(a), []).append(edge)
    return list(inside.values())


def _group(members: Sequence[int], edges: _Edges, skus: Sequence[str], queries: Ids) -> Group:
    pairs = [
        Pair(skus[edges.a[e]], skus[edges.b[e]], float(edges.similarity[e]), int(edges.confusions[e])) for e in members
    ]
    codes = sorted({int(code) for e in members for code in (edges.a[e], edges.b[e])})
    wrong = sum(pair.confusions for pair in pairs)
    score = wrong / (int(queries[codes].sum()) + DOUBT * len(codes))
    ranked = sorted(pairs, key=lambda p: (-p.confusions, -p.similarity, p.a, p.b))
    return Group(tuple(skus[code] for code in codes), tuple(ranked), score)


def write_lookalikes(path: Path, groups: Sequence[Group]) -> None:
    """Write ``groups`` as CSV, one line per pair, groups numbered from 1. Raises ArtefactError on a full disk."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(HEAD)
    for number, group in enumerate(groups, start=1):
        for pair in group.pairs:
            table.writerow([number, safe_cell(pair.a), safe_cell(pair.b), f"{pair.similarity:.4f}", pair.confusions])
    artefact.write_file(path, stream.getvalue().encode("utf-8", "backslashreplace"))


def read_lookalikes(path: Path) -> list[tuple[str, ...]]:
    """Return the SKUs (sorted) of each group of a CSV with the columns group, sku and other, in the order of the file.

    Further columns are ignored, so a list made by hand will do. Raises DataError, naming file and line, for a file
    that cannot be read, a missing column, an empty cell, a SKU paired with itself or standing in two groups.
    """
    if not path.is_file():
        raise DataError(f"there is no list of look-alikes {shown(path)}", "make one with `skumatch eval`")
    table = read_table(path)
    at = [table.column(name) for name in HEAD[:3]]
    groups: dict[str, set[str]] = {}
    home: dict[str, str] = {}
    for number, cells in table.records:
        group, sku, other = (safe_text(cells[place]) for place in at)
        if not group or not sku or not other:
            raise DataError(f"{table.where(number)} has an empty cell", "fill in group, sku and other")
        if sku == other:
            raise DataError(f"{table.where(number)} pairs SKU '{sku}' with itself", "remove the line")
        for name in (sku, other):
            if home.setdefault(name, group) != group:
                said = f"{table.where(number)} has SKU '{name}' in group {group}, but it stands in group {home[name]}"
                raise DataError(said, "give each SKU one group")
        groups.setdefault(group, set()).update((sku, other))
    return [tuple(sorted(members)) for members in groups.values()]
