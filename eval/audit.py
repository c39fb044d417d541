"""Labels that the vectors contradict: crops, SKU folders that look like one product, folders that hold two.

Works on vectors and labels alone; it opens no picture and knows no manifest. It cannot tell a wrong label from a crop
that no encoder could recognise, so everything here is a ranked proposal for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.dataset import Row
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids

Floats = NDArray[np.float64]
Near = tuple[Row, float]  # a neighbour and its cosine similarity

RIDGE = 1.0  # in units of the mean variance per dimension
CERTAIN = 0.2  # from this score on the fix is a relabelling; below, a look
NEIGHBOURS = 10
BLOCK = 1 << 23  # numbers in one block of predictions (64 MiB)


@dataclass(frozen=True)
class LabelScores:
    """How well each crop fits its own label, predicted without that crop.

    ``score`` float64 (N,): best other SKU minus own SKU, about -1..1, above 0 where another SKU explains the crop
    better; -inf where the SKU has no second picture. ``proposed`` int64 (N,): that other SKU's code, -1 without one.
    """

    score: Floats
    proposed: Ids

    def ranked(self) -> Ids:
        """Return int64 (N,): places of the crops, most suspicious first, ties in input order."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True)
class Suspect:
    """One crop that another SKU explains better.

    ``score`` as in LabelScores. ``neighbours``: the nearest other crops, nearest first. ``agreement`` and
    ``support``: which share of them, 0..1, carries the crop's label and the proposed one.
    """

    row: Row
    proposed: str
    score: float
    agreement: float
    support: float
    neighbours: tuple[Near, ...]

    @property
    def kind(self) -> Literal["relabel", "look"]:
        """``relabel`` where the score is certain and the neighbours prefer the proposed SKU, else ``look``."""
        return "relabel" if self.score >= CERTAIN and self.support > self.agreement else "look"


def label_scores(views: Views, ridge: float = RIDGE) -> LabelScores:
    """Score every label by class-balanced ridge regression on one-hot labels, each crop left out in closed form.

    The margin is that of confident learning (Northcutt et al. 2021, self-confidence against the best other class). The
    leave-one-out prediction needs no refit: the residual is divided by 1 - leverage (Allen 1974). Every SKU weighs
    the same whatever its number of pictures. Of the methods compared on flipped labels (votes of k neighbours, nearest
    centroid, both whitened, and their sums) it ranks best, also with few pictures per SKU and when a burst of
    near-identical photos carries one wrong label: those vouch for each other as neighbours, less so in a regression.

    Memory: D x D, SKUs x D and one block of predictions. ``ridge`` above 0.
    """
    codes, skus, n = views.codes, len(views.skus), len(views)
    if skus < 2:
        return LabelScores(np.full(n, -np.inf), np.full(n, -1, np.int64))
    counts = np.bincount(codes, minlength=skus)
    weight = n / (skus * counts[codes])  # mean 1
    means = _means(views, counts)
    centre = means.mean(axis=0)
    means -= centre
    inverse = _inverse_covariance(views, weight, centre, ridge)
    classifier = inverse @ means.T * (n / skus)  # (D, SKUs)
    score, proposed = np.empty(n), np.empty(n, np.int64)
    step = max(1, BLOCK // max(skus, views.vectors.shape[1]))
    for start in range(0, n, step):
        at = slice(start, start + step)
        rows = views.vectors[at] - centre
        leverage = weight[at] * (np.einsum("nd,nd->n", rows @ inverse, rows) + 1 / n)
        fit = rows @ classifier + 1 / skus
        score[at], proposed[at] = _margins(fit, codes[at], np.minimum(leverage, 1 - 1e-6))
    score[counts[codes] < 2] = -np.inf
    return LabelScores(score, proposed)


def _margins(fit: Floats, codes: Ids, leverage: Floats) -> tuple[Floats, Ids]:
    """Return best other minus own and the best other SKU, from predictions ``fit`` that still include the crop."""
    line = np.arange(len(fit))
    own = (fit[line, codes] - leverage) / (1 - leverage)
    fit[line, codes] = -np.inf
    best = fit.argmax(axis=1)
    return fit[line, best] / (1 - leverage) - own, best.astype(np.int64)


def _means(views: Views, counts: Ids) -> Floats:
    """Return float64 (SKUs, D): the mean vector per SKU."""
    total = np.zeros((len(counts), views.vectors.shape[1]))
    np.add.at(total, views.codes, views.vectors)
    return total / counts[:, None]


def _inverse_covariance(views: Views, weight: Floats, centre: Floats, ridge: float) -> Floats:
    """Return float64 (D, D): the inverse of N times (weighted covariance + ridge)."""
    dim = len(centre)
    covariance = np.zeros((dim, dim))
    for start in range(0, len(views), max(1, BLOCK // dim)):
        at = slice(start, start + max(1, BLOCK // dim))
        rows = views.vectors[at] - centre
        covariance += (rows * weight[at, None]).T @ rows
    covariance /= len(views)
    covariance[np.diag_indices(dim)] += max(ridge * covariance.trace() / dim, 1e-9)
    inverse: Floats = np.linalg.inv(covariance) / len(views)
    return inverse


def suspects(views: Views, most: int = 200, scores: LabelScores | None = None) -> list[Suspect]:
    """Return up to ``most`` crops with a score above 0, most suspicious first, with their nearest crops as evidence.

    ``scores``: what ``label_scores(views)`` returned, to save computing it again.
    """
    found = scores or label_scores(views)
    places = found.ranked()[:most]
    places = places[found.score[places] > 0]
    if not len(places):
        return []
    index = ExactIndex(views.vectors.shape[1])
    index.add(np.arange(len(views), dtype=np.int64), views.vectors)
    near_scores, near = index.search(views.vectors[places], min(NEIGHBOURS + 1, len(views)))
    return [
        _suspect(views, int(at), found, [(int(i), float(s)) for i, s in zip(ids, sims, strict=True) if i != at])
        for at, ids, sims in zip(places, near, near_scores, strict=True)
    ]


def _suspect(views: Views, at: int, found: LabelScores, near: list[tuple[int, float]]) -> Suspect:
    row, proposed = views.rows[at], views.skus[found.proposed[at]]
    evidence = tuple((views.rows[i], min(similarity, 1.0)) for i, similarity in near[:NEIGHBOURS])
    labels = [other.sku for other, _ in evidence]
    agreement, support = (labels.count(sku) / len(labels) for sku in (row.sku, proposed))
    return Suspect(row, proposed, float(found.score[at]), agreement, support, evidence)


def typical(views: Views, most: int = 3) -> dict[str, tuple[Row, ...]]:
    """Return, per SKU, the rows of up to ``most`` pictures nearest to the SKU's mean vector."""
    means = _means(views, np.bincount(views.codes, minlength=len(views.skus)))
    fit = np.einsum("nd,nd->n", views.vectors, means[views.codes].astype(np.float32))
    order = np.lexsort((-fit, views.codes))
    chosen: dict[str, tuple[Row, ...]] = {}
    for sku, places in zip(views.skus, np.split(order, np.cumsum(np.bincount(views.codes))[:-1]), strict=True):
        chosen[sku] = tuple(views.rows[i] for i in places[:most])
    return chosen
