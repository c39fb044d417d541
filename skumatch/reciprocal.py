"""k-reciprocal re-ranking of one query's candidates: who are neighbours of each other, not only near the query.

Plain arrays in and out; it knows nothing about galleries or SKUs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skumatch.spec import Ids, Vectors


def reciprocal_scores(cosine: Vectors, neighbours: int, strength: float) -> NDArray[np.float64]:
    """Return the score (M,) of each of M candidates, -1..1, larger is better.

    ``cosine`` (M + 1, M + 1): similarities of the query (row 0) and its candidates. ``neighbours``: k1 of the paper;
    k2 is 3/10 of it, as there (20 and 6). ``strength`` is 1 - lambda: the score is
    ``strength * Jaccard similarity of the neighbourhoods + (1 - strength) * cosine``. Zhong et al. 2017, "Re-ranking
    person re-identification with k-reciprocal encoding", sections 3.2 to 3.5, with 1 - cosine as the distance; the
    paper's gallery is here the candidates of one query.
    """
    own = cosine.copy()
    np.fill_diagonal(own, np.inf)  # a point is its own first neighbour, whatever rounding or an identical view says
    order = np.argsort(-own, axis=1)[:, : neighbours + 1]
    weights = _encoded(cosine, order, neighbours)
    averaged = _marked(order[:, : max(1, round(0.3 * neighbours))]) @ weights  # its sum: the size cancels out below
    shared = np.minimum(averaged[0], averaged[1:]).sum(axis=1) / np.maximum(averaged[0], averaged[1:]).sum(axis=1)
    scores: NDArray[np.float64] = strength * shared.astype(np.float64) + (1 - strength) * cosine[0, 1:]
    return scores


def _encoded(cosine: Vectors, order: Ids, neighbours: int) -> NDArray[np.float32]:
    """Return each point's weights over its expanded k-reciprocal set (sections 3.2 and 3.3)."""
    near, half = _mutual(order), _mutual(order[:, : round(neighbours / 2) + 1])
    joins = near * (near @ half.T >= 2 / 3 * half.sum(axis=1) - 1e-6)  # [p, q]: does q bring its neighbours to p
    members = (near + joins @ half) > 0
    return np.where(members, np.exp(cosine - 1), 0).astype(np.float32)


def _mutual(order: Ids) -> NDArray[np.float32]:
    """Return 1 where two points are among each other's nearest, else 0."""
    near = _marked(order)
    return near * near.T


def _marked(order: Ids) -> NDArray[np.float32]:
    """Return (N, N): 1 at the nearest points ``order`` (N, k) of each, else 0."""
    near = np.zeros((len(order), len(order)), np.float32)
    np.put_along_axis(near, order, 1, 1)
    return near
