"""Which kind of index a gallery gets, how well it answers, and the least effort that answers well enough.

Nothing is decided by the clock: rates are reported and never compared. Knows nothing about files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ConfigError, GalleryError
from skumatch.index import Index
from skumatch.index.approximate import ApproximateIndex
from skumatch.index.exact import ExactIndex
from skumatch.index.parts import Parts
from skumatch.spec import Ids, Vectors

Kind = Literal["exact", "hnsw", "ivf-rabitq"]
EXACT_NUMBERS = 1 << 26  # rows times columns up to which a CPU compares all: 131,072 x 512, about 600 queries/s
GPU_BYTES: Final = 16 << 30  # of vectors that a GPU is given unless the caller says how much it has
TOP = 5
COSINE = 0.8  # of a crop with its own view
SAMPLE = 1000
RECALL, OVERLAP = 0.99, 0.98
EQUAL = 1e-6  # scores so near are one: a duplicate is no miss
BATCH = 64


def chosen(kind: Kind | Literal["auto"], rows: int, dim: int, memory: int | None = None, device: str = "cpu") -> Kind:
    """Return the kind of index for ``rows`` vectors of ``dim``; "auto" decides by size, anything else is what it says.

    On a CPU, "exact" up to 2**26 numbers and "ivf-rabitq" beyond, unless that does not fit into ``memory`` bytes: the
    exact search reads memory maps and needs none of its own. On a GPU ("cuda", "cuda:N"), "exact" while 2 bytes per
    number fit into ``memory`` of the GPU (default 16 GiB). Never "hnsw": at 100,000 x 512 and the same recall it took
    six times as long to build, more memory, and twice as long per batch of 64; it is sooner with one query at a time
    (docs/gallery.md has the figures). Raises ConfigError for an unknown kind.
    """
    kinds = ("auto", *get_args(Kind))
    if kind not in kinds:
        raise ConfigError(f"unknown index kind '{kind}'", f"choose {', '.join(kinds)}")
    if kind != "auto":
        return kind
    if device.startswith("cuda"):
        return "exact" if 2 * rows * dim <= (GPU_BYTES if memory is None else memory) else "ivf-rabitq"
    fits = memory is None or index_bytes("ivf-rabitq", rows, dim) <= memory
    return "ivf-rabitq" if rows * dim > EXACT_NUMBERS and fits else "exact"


def index_bytes(kind: Kind, rows: int, dim: int) -> int:
    """Return about how much memory an index takes on a CPU beside the vectors on disk: codes, links, ids, marks."""
    per_row = {"exact": 1, "hnsw": dim + 64 * 4 + 24, "ivf-rabitq": dim + dim // 8 + 40}[kind]
    return rows * per_row


@dataclass(frozen=True)
class Questions:
    """Q queries, float32 (Q, D), and the right answers: cosines (Q, 5), -inf where there are fewer.

    ``drop`` int64 (Q,): a view that does not count as an answer, -1 for none.
    """

    queries: Vectors
    drop: Ids
    cosines: Vectors
    seed: int


@dataclass(frozen=True)
class Figures:
    """How an index answers. ``recall``: how often its best answer is as near as the nearest view, 0..1; ``overlap``:
    how many of its five are as near as the fifth nearest. Over all queries, and over the half where it is lower.
    ``rate`` and ``exact_rate``: queries/s in batches of 64, on this machine.
    """

    recall: float
    recall_lower: float
    overlap: float
    overlap_lower: float
    rate: float
    exact_rate: float
    effort: int | None
    sample: int
    seed: int
    rows: int

    @property
    def good(self) -> bool:
        """Whether recall is .99 and overlap .98 on both halves."""
        return self.recall_lower >= RECALL and self.overlap_lower >= OVERLAP

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


def questions(
    exact: Index, ids: Ids, vectors_of: Callable[[Ids], Vectors], seed: int = 0, sample: int = SAMPLE
) -> Questions:
    """Draw ``sample`` views of ``ids`` (or as many as there are) and ask ``exact``, which holds these ids, about them.

    Half are asked for their nearest other view. The others are asked with noise in a random direction, so that their
    cosine with their own view is 0.8: a crop is never its view. Raises GalleryError for fewer than two ids.
    """
    count = min(sample, len(ids))
    if count < 2:
        raise GalleryError("an index of fewer than two views has none to compare", "add views, or choose --kind exact")
    rng = np.random.default_rng(seed)
    asked = rng.permutation(np.sort(rng.choice(ids, count, replace=False)))
    vectors = np.array(vectors_of(asked), np.float32)
    half = count // 2
    vectors[half:] = noisy(vectors[half:], COSINE, rng)
    drop = np.where(np.arange(count) < half, asked, -1)
    answers = [_answers(exact, vectors[i : i + BATCH], drop[i : i + BATCH]) for i in range(0, count, BATCH)]
    return Questions(vectors, drop, np.concatenate(answers), seed)


def noisy(vectors: Vectors, cosine: float, rng: np.random.Generator) -> Vectors:
    """Return unit rows (N, D) in random directions at ``cosine`` from the unit rows ``vectors``."""
    noise = rng.standard_normal(vectors.shape, np.float32)
    noise -= np.sum(noise * vectors, axis=1, keepdims=True) * vectors
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    mixed: Vectors = (cosine * vectors + (1 - cosine**2) ** 0.5 * noise).astype(np.float32)
    return mixed


def measured(index: Index, exact: Index, asked: Questions, effort: int | None = None) -> Figures:
    """Return how ``index`` answers; its scores must be cosines in float32, as those of ``Parts`` are."""
    begun = time.perf_counter()
    parts = [slice(start, start + BATCH) for start in range(0, len(asked.queries), BATCH)]
    found = np.concatenate([_answers(index, asked.queries[part], asked.drop[part]) for part in parts])
    ended = time.perf_counter()
    for part in parts[:2]:
        exact.search(asked.queries[part], TOP + 1)
    compared = sum(len(asked.queries[part]) for part in parts[:2])
    recall, overlap = scored(found, asked.cosines)
    crops = asked.drop < 0
    halves = [(float(recall[half].mean()), float(overlap[half].mean())) for half in (crops, ~crops)]
    return Figures(
        recall=float(recall.mean()),
        recall_lower=min(half[0] for half in halves),
        overlap=float(overlap.mean()),
        overlap_lower=min(half[1] for half in halves),
        rate=len(asked.queries) / (ended - begun),
        exact_rate=compared / (time.perf_counter() - ended),
        effort=effort,
        sample=len(asked.queries),
        seed=asked.seed,
        rows=len(index),
    )


def scored(found: Vectors, right: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, per query, whether the best of ``found`` cosines (Q, 5) is as near as the nearest of ``right`` (Q, 5),
    and the share of ``found`` as near as the farthest of ``right``; both -inf where there are fewer."""
    there = ~np.isneginf(right)
    least = np.where(there, right, np.inf).min(axis=1, keepdims=True)
    near = np.sum(found >= least - EQUAL, axis=1) / np.maximum(there.sum(axis=1), 1)
    return (found[:, 0] >= right[:, 0] - EQUAL).astype(np.float64), np.minimum(near, 1.0)


def tuned(
    index: ApproximateIndex, exact: Index, vectors_of: Callable[[Ids], Vectors], seed: int = 0, sample: int = SAMPLE
) -> tuple[ApproximateIndex, Figures]:
    """Return ``index`` at the least effort with recall .99 and overlap .98 on both halves of the questions.

    Where no effort reaches that, the one with the best recall and overlap; its Figures say how far it came. ``exact``
    holds the same views.
    """
    asked = questions(exact, index.ids(), vectors_of, seed, sample)
    best: tuple[ApproximateIndex, Figures] | None = None
    effort = min(8, index.most_effort)
    while True:
        now = index.with_effort(effort)
        figures = measured(Parts(now, ExactIndex(index.dim), vectors_of), exact, asked, effort)
        if best is None or _worth(figures) > _worth(best[1]):
            best = now, figures
        if figures.good or effort >= index.most_effort:
            return best
        effort = min(index.most_effort, 2 * effort)


def _worth(figures: Figures) -> tuple[float, float]:
    """Rank figures: recall as far as it is asked for, then overlap."""
    return min(figures.recall_lower, RECALL), figures.overlap_lower


def _answers(index: Index, queries: Vectors, drop: Ids) -> Vectors:
    """Return the cosines (N, 5) of the nearest views but the one to ``drop``, -inf where there are fewer."""
    scores, ids = index.search(queries, TOP + 1)
    scores = np.where((ids == drop[:, None]) & (ids >= 0), np.float32(-np.inf), scores)
    ordered: Vectors = -np.sort(-scores, axis=1)[:, :TOP]
    return ordered
