"""What two postings may have in common: a vector (of the picture or the title), weighted words, a perceptual hash.

A signal finds the nearest postings of each and scores any pair. It knows nothing about the other signals, or about how
alike is alike enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.hashes import alike, nearest_by_hash
from skumatch.catalogue.neighbours import Neighbours, Scores, empty
from skumatch.catalogue.tfidf import Tfidf, nearest_texts, similar
from skumatch.embed import Progress, cores, no_progress
from skumatch.index.approximate import ApproximateIndex, build
from skumatch.index.exact import ExactIndex
from skumatch.index.plan import Plan
from skumatch.phash import Hashes
from skumatch.spec import Ids, Vectors

Mask = NDArray[np.bool_]
EXACT_ROWS: Final = 60_000  # of vectors that are all compared; from there on lists are sooner (docs/catalogue.md)
QUERIES: Final = 4096  # postings asked at a time
PAIRS: Final = 8192  # pairs of vectors multiplied at a time: 32 MB of 512 numbers
SLACK: Final = 0.02  # by which an approximate score may be too low


class Signal(Protocol):
    """One way in which two postings can be alike. ``present`` bool (N,): which postings have it at all."""

    @property
    def name(self) -> str:
        """How features and files call it."""
        ...

    @property
    def present(self) -> Mask:
        """Which postings have it."""
        ...

    @property
    def middle(self) -> float:
        """The score of postings that have nothing to do with each other."""
        ...

    def nearest(self, k: int, progress: Progress = no_progress) -> Neighbours:
        """Return the ``k`` nearest other postings of each; of those that lack the signal none."""
        ...

    def scores(self, left: Ids, right: Ids) -> Scores:
        """Return how alike the pairs of places are, float32 (P,), 1 for equal; NaN where one lacks the signal."""
        ...


@dataclass(frozen=True)
class VectorSignal:
    """Unit rows float32 (N, D), zeros where absent; cosine.

    Neighbours reach ``floor``; ``middle``: the median of random pairs; ``seed`` of the index.
    """

    name: str
    vectors: Vectors
    present: Mask
    floor: float = 0.0
    middle: float = 0.0
    seed: int = 0
    exact_rows: int = EXACT_ROWS

    def nearest(self, k: int, progress: Progress = no_progress) -> Neighbours:
        """As Signal says; exact up to ``exact_rows`` postings, else by an approximate index."""
        there = np.flatnonzero(self.present)
        places, scores = empty(len(self.vectors), k)
        if len(there) < 2:
            return Neighbours(places, scores)
        index = self._index(there)
        for start in range(0, len(there), QUERIES):
            rows = there[start : start + QUERIES]
            best, found = index.search(np.ascontiguousarray(self.vectors[rows]), k + 1)
            best, found = _without_self(rows, best, found)
            good = (found >= 0) & (best >= self.floor)
            places[rows], scores[rows] = np.where(good, found, -1), np.where(good, best, 0)
            progress(len(rows))
        return Neighbours(places, scores)

    def _index(self, there: Ids) -> ExactIndex | ApproximateIndex:
        dim = self.vectors.shape[1]
        if len(there) <= self.exact_rows:
            index = ExactIndex(dim)
            every = len(there) == len(self.vectors)
            index.add(there, self.vectors if every else np.ascontiguousarray(self.vectors[there]))
            return index

        def blocks() -> Iterator[tuple[Ids, Vectors]]:
            for start in range(0, len(there), QUERIES):
                rows = there[start : start + QUERIES]
                yield rows, np.ascontiguousarray(self.vectors[rows])

        return build(Plan("ivf-rabitq", len(there), dim, self.seed), blocks)

    def scores(self, left: Ids, right: Ids) -> Scores:
        """As Signal says: cosines."""
        found = np.empty(len(left), np.float32)
        for start in range(0, len(left), PAIRS):
            part = slice(start, start + PAIRS)
            found[part] = np.einsum("ij,ij->i", self.vectors[left[part]], self.vectors[right[part]])
        return _masked(found, self.present, left, right)


@dataclass(frozen=True)
class TextSignal:
    """Weighted terms of titles; cosine. Neighbours reach ``floor``."""

    name: str
    tfidf: Tfidf
    floor: float = 0.1
    middle: float = 0.0

    @property
    def present(self) -> Mask:
        """Which titles have a term."""
        return np.asarray(np.diff(self.tfidf.matrix.indptr) > 0)

    def nearest(self, k: int, progress: Progress = no_progress) -> Neighbours:
        """As Signal says."""
        return nearest_texts(self.tfidf, k, self.floor, threads=cores(), progress=progress)

    def scores(self, left: Ids, right: Ids) -> Scores:
        """As Signal says: cosines."""
        return _masked(similar(self.tfidf, left, right), self.present, left, right)


@dataclass(frozen=True)
class HashSignal:
    """Perceptual hashes uint64 (N,); the share of equal bits."""

    hashes: Hashes
    present: Mask
    name: str = "hash"
    middle: float = 0.5

    def nearest(self, k: int, progress: Progress = no_progress) -> Neighbours:
        """As Signal says."""
        found = nearest_by_hash(self.hashes, self.present, k)
        progress(len(self.hashes))
        return found

    def scores(self, left: Ids, right: Ids) -> Scores:
        """As Signal says."""
        return _masked(alike(self.hashes, left, right), self.present, left, right)


def _masked(scores: Scores, present: Mask, left: Ids, right: Ids) -> Scores:
    scores[~(present[left] & present[right])] = np.nan
    return scores


def _without_self(rows: Ids, scores: Vectors, found: Ids) -> tuple[Vectors, Ids]:
    """Return answers (N, k) out of (N, k + 1): less the posting itself, or the last where it is not among them."""
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), found.shape[1] - 1)
    return scores[~own].reshape(shape), found[~own].reshape(shape)
