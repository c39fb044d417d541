"""Ways to answer better from the same vectors: vote, prototypes, query expansion, augmentation, re-ranking.

Each ends in k distinct SKUs with the view that won, as the plain search does. Whether one is worth switching on is
measured by ``skumatch.eval.sweep``, never assumed. Knows nothing about pictures, files or thresholds.

| name       | searches per query | score of a SKU                                                                  |
|------------|--------------------|---------------------------------------------------------------------------------|
| nearest    | 1                  | cosine of its best view                                                         |
| vote       | 1                  | cosine that all n voters would need to weigh together what its views weigh      |
| prototype  | 1                  | weighted mean of best view's and prototype's cosine                             |
| expand     | 2                  | cosine of its best view to the expanded query                                   |
| augment    | 1                  | cosine of its best augmented view                                               |
| reciprocal | 1                  | weighted mean of its best view's cosine and neighbourhood overlap (0..1)        |

All lie in -1..1 but "vote", which can be lower by ``temperature * ln(neighbours)``. They are not the same scale:
thresholds measured with one technique do not fit another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ConfigError, GalleryError, nearest
from skumatch.index import Index
from skumatch.nearest import Nearest, first_k_distinct, nearest_skus
from skumatch.reciprocal import reciprocal_scores
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import AugmentedStore, Store, augment, mixed, rows_of

Name = Literal["nearest", "vote", "prototype", "expand", "augment", "reciprocal"]
BLOCK = 32  # queries re-scored at a time

USES: Final[dict[Name, tuple[str, ...]]] = {
    "nearest": (),
    "vote": ("neighbours", "temperature"),
    "prototype": ("strength", "candidates"),
    "expand": ("neighbours", "alpha"),
    "augment": ("neighbours", "alpha", "same_sku"),
    "reciprocal": ("neighbours", "strength", "candidates"),
}
RANGES: Final[dict[str, tuple[float, float]]] = {
    "neighbours": (1, 1000),
    "strength": (0, 1),
    "alpha": (0, 100),
    "temperature": (0.005, 1),
    "candidates": (2, 1000),
}
WHOLE: Final = ("neighbours", "candidates")


@dataclass(frozen=True)
class Technique:
    """A technique and its settings; ``USES`` says which settings a technique has, the others do not count.

    ``neighbours``: views that vote, are mixed in, or count as neighbours (k1 of re-ranking), 1..1000. ``strength``:
    weight of the prototype or of re-ranking against the plain cosine, 0..1. ``alpha``: power on a neighbour's cosine,
    0..100. ``temperature``: cosine difference at which a vote weighs e times less, 0.005..1. ``candidates``: views
    that are re-scored, 2..1000. ``same_sku``: augment with views of the same SKU only. Raises ConfigError.
    """

    name: Name
    neighbours: int = 10
    strength: float = 0.5
    alpha: float = 3.0
    temperature: float = 0.05
    candidates: int = 200
    same_sku: bool = True

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            near = nearest(str(self.name), list(get_args(Name))) or ", ".join(get_args(Name))
            raise ConfigError(f"unknown technique '{self.name}'", f"choose {near}")
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            kinds = (int,) if key in WHOLE else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                whole = "a whole number" if key in WHOLE else "a number"
                raise ConfigError(
                    f"{key} {value!r} of technique '{self.name}' is out of range", f"give {whole} {low} to {high}"
                )
        if not isinstance(self.same_sku, bool):
            raise ConfigError(f"same_sku {self.same_sku!r} is not true or false", "give one of them")

    def __str__(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.to_json().items() if key != "name")
        return f"{self.name} ({settings})" if settings else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the name and the settings that it uses."""
        return {"name": self.name} | {key: getattr(self, key) for key in USES[self.name]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Technique:
        """Build a Technique from ``to_json`` output; settings left out take their defaults.

        Raises ConfigError for an unknown name, a setting that the technique does not have or one out of range.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise ConfigError("the technique has no name", f"choose {', '.join(get_args(Name))}")
        technique = Technique(name=data["name"])
        for key in data:
            if key != "name" and key not in USES[technique.name]:
                has = ", ".join(USES[technique.name]) or "none"
                raise ConfigError(f"technique '{technique.name}' has no setting '{key}'", f"its settings are: {has}")
        return Technique(**data)


NEAREST: Final = Technique("nearest")


@dataclass(frozen=True)
class _Candidates:
    """The nearest views of N queries: ``scores`` (N, F) cosine, ``codes`` and ``ids`` (N, F), -1 where none."""

    scores: Vectors
    codes: Ids
    ids: Ids


def reads_all(technique: Technique) -> bool:
    """Return whether ``prepared`` reads all views of the store, and so needs their ids."""
    return technique.name == "augment"


def prepared(technique: Technique, store: Store, ids: Ids, make_index: Callable[[], Index]) -> Store:
    """Return the store that ``search`` needs: for "augment" one with an augmented index, else ``store`` itself.

    ``ids``: all views of the store; ``make_index`` returns an empty index. See ``technique_store.augment`` for cost.
    """
    if not reads_all(technique):
        return store
    return augment(store, ids, make_index(), technique.neighbours, technique.alpha, technique.same_sku)


def search(technique: Technique, store: Store, queries: Vectors, k: int) -> Nearest:
    """Return the k nearest distinct SKUs of float32 (N, D) unit rows, ranked by ``technique``.

    Only the nearest views are re-scored, never the whole gallery; SKUs beyond them fill up to k. Scores are sorted;
    the module says what they mean. Raises GalleryError when ``k`` is below 1 or ``store`` was not ``prepared``.
    """
    if k < 1:
        raise GalleryError(f"k is {k}", "ask for at least one SKU")
    _require(technique, store)
    if technique.name in ("nearest", "augment"):
        return nearest_skus(store.index, store.codes, queries, k)
    if technique.name == "expand" or not len(queries):
        return nearest_skus(store.index, store.codes, _expanded(technique, store, queries), k)
    score = _SCORES[technique.name]
    parts = []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        near = _fetch(store, block, technique.neighbours if technique.name == "vote" else technique.candidates)
        scores = score(technique, store, block, near)
        parts.append(_top(*_filled(store, block, k, near, scores, _without_votes(technique)), k))
    return Nearest(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.skus for part in parts]),
        np.concatenate([part.views for part in parts]),
    )


def _require(technique: Technique, store: Store) -> None:
    """Raise GalleryError unless ``store`` is augmented exactly as ``technique`` says."""
    made = (store.neighbours, store.alpha, store.same_sku) if isinstance(store, AugmentedStore) else None
    wanted = (technique.neighbours, technique.alpha, technique.same_sku) if technique.name == "augment" else None
    if made != wanted:
        raise GalleryError(f"the gallery was not prepared for '{technique}'", "open it with this technique")


def _fetch(store: Store, queries: Vectors, views: int) -> _Candidates:
    """Return the nearest ``views`` views."""
    total = len(store.index)
    if not total:
        none = np.empty((len(queries), 0), np.int64)
        return _Candidates(none.astype(np.float32), none, none)
    scores, ids = store.index.search(queries, min(total, views))
    codes = np.full(ids.shape, -1, np.int64)
    codes[ids >= 0] = store.codes(ids[ids >= 0])
    return _Candidates(scores, codes, ids)


def _filled(
    store: Store, queries: Vectors, k: int, near: _Candidates, scores: NDArray[np.float64], less: float
) -> tuple[_Candidates, NDArray[np.float64]]:
    """Return candidates and scores with further SKUs where those ``near`` show fewer than k.

    The further ones come after all that were re-scored, in the plain order, with their cosine ``less`` a constant: a
    query's first answers must not depend on how many are asked for.
    """
    short = np.flatnonzero(first_k_distinct(near.codes, k).sum(axis=1) < k)
    if not len(short) or near.ids.shape[1] >= len(store.index):
        return near, scores
    more = nearest_skus(store.index, store.codes, queries[short], k)
    new = (more.skus >= 0) & ~(more.skus[:, :, None] == near.codes[short][:, None, :]).any(axis=2)
    cosine, codes, ids = np.full((len(queries), k), -np.inf, np.float32), *np.full((2, len(queries), k), -1, np.int64)
    cosine[short] = np.where(new, more.scores, -np.inf)
    codes[short], ids[short] = np.where(new, more.skus, -1), np.where(new, more.views, -1)
    lowest = np.where(near.ids >= 0, scores, np.inf).min(axis=1, keepdims=True)
    extra = np.minimum(cosine.astype(np.float64) - less, lowest)
    filled = _Candidates(
        np.concatenate([near.scores, cosine], axis=1),
        np.concatenate([near.codes, codes], axis=1),
        np.concatenate([near.ids, ids], axis=1),
    )
    return filled, np.concatenate([scores, extra], axis=1)


def _without_votes(technique: Technique) -> float:
    """Return how far the score of a SKU without a vote lies below its cosine; 0 for techniques that do not vote."""
    return technique.temperature * float(np.log(technique.neighbours)) if technique.name == "vote" else 0.0


def _top(candidates: _Candidates, scores: NDArray[np.floating[Any]], k: int) -> Nearest:
    """Return the k SKUs with the highest view ``scores`` (N, F); equal scores: the nearer view first."""
    order = np.argsort(np.where(candidates.ids >= 0, -scores, np.inf), axis=1, kind="stable")
    codes = np.take_along_axis(candidates.codes, order, 1)
    keep = first_k_distinct(codes, k)
    place = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(keep, place, 1)

    def best(values: NDArray[Any], missing: float) -> NDArray[Any]:
        chosen = np.take_along_axis(np.take_along_axis(values, order, 1), place, 1)
        found = np.where(there, chosen, missing)
        return np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=missing)

    return Nearest(
        best(scores, -np.inf).astype(np.float32),
        best(candidates.codes, -1).astype(np.int64),
        best(candidates.ids, -1).astype(np.int64),
    )


def _vote(technique: Technique, store: Store, queries: Vectors, near: _Candidates) -> NDArray[np.float64]:
    """Add up the nearest views per SKU, each weighing exp(cosine / temperature).

    The SKU's sum is spread over all voters and turned back into a cosine, which keeps the order.
    """
    there = near.ids >= 0
    top = near.scores.max(axis=1, keepdims=True, initial=-1)  # keeps exp from vanishing
    weights = np.where(there, np.exp((near.scores.astype(np.float64) - top) / technique.temperature), 0)
    rows = np.arange(len(queries))[:, None]
    _, group = np.unique((rows * (near.codes.max(initial=0) + 2) + near.codes + 1).ravel(), return_inverse=True)
    total = np.bincount(group, weights.ravel())[group].reshape(weights.shape)
    share = np.log(np.where(there, total, 1) / technique.neighbours)
    return np.where(there, top + technique.temperature * share, -np.inf)


def _prototype(technique: Technique, store: Store, queries: Vectors, near: _Candidates) -> NDArray[np.float64]:
    """Mix each view's cosine with the cosine of its SKU's prototype."""
    vectors, codes = store.prototypes()
    there = near.codes >= 0
    wanted, place = np.unique(near.codes[there], return_inverse=True)
    cosine = queries @ vectors[np.searchsorted(codes, wanted)].T
    scores = np.full(near.scores.shape, -np.inf)
    scores[there] = cosine[np.nonzero(there)[0], place] * technique.strength
    scores[there] += near.scores[there] * (1 - technique.strength)
    return scores


def _reciprocal(technique: Technique, store: Store, queries: Vectors, near: _Candidates) -> NDArray[np.float64]:
    """Re-rank the candidates of each query by the neighbours that they share with it."""
    scores = np.full(near.scores.shape, -np.inf)
    for line, query in enumerate(queries):
        there = np.flatnonzero(near.ids[line] >= 0)
        points = np.concatenate([query[None], store.vectors_of(near.ids[line, there])])
        scores[line, there] = reciprocal_scores(points @ points.T, technique.neighbours, technique.strength)
    return scores


def _expanded(technique: Technique, store: Store, queries: Vectors) -> Vectors:
    """Return the queries, each mixed with its nearest views."""
    count = min(len(store.index), technique.neighbours)
    parts = [queries[:0]]
    for start in range(0, len(queries) if count else 0, BLOCK):
        block = queries[start : start + BLOCK]
        scores, ids = store.index.search(block, count)
        parts.append(mixed(block, scores, rows_of(store, ids, block.shape[1]), technique.alpha))
    return np.concatenate(parts) if count else queries


_SCORES: Final = {"vote": _vote, "prototype": _prototype, "reciprocal": _reciprocal}
