"""Neighbourhood blending: each vector becomes the mean of its own and of its near neighbours', weighted by cosine.

Postings of one product move together, and more so each time (iterative neighbourhood blending, as the first place of
the Shopee task describes it; the same thing as database-side augmentation, Arandjelovic and Zisserman 2012, "Three
Things Everyone Should Know to Improve Object Retrieval", section 4, within one set). Knows nothing about what a vector
is of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from skumatch.catalogue.neighbours import Neighbours
from skumatch.catalogue.signals import VectorSignal
from skumatch.embed import Progress, no_progress

ROWS: Final = 4096  # postings blended at a time


def blended(signal: VectorSignal, near: Neighbours, floor: float, progress: Progress = no_progress) -> VectorSignal:
    """Return ``signal`` with each of its vectors blended with those of ``near`` whose score is at least ``floor``.

    Takes as much memory as the vectors do, once more.
    """
    vectors = np.empty(signal.vectors.shape, np.float32)
    for start in range(0, len(vectors), ROWS):
        part = slice(start, min(start + ROWS, len(vectors)))
        mixed = np.array(signal.vectors[part], np.float32)
        places, scores = near.places[part], near.scores[part]
        for column in range(places.shape[1]):
            rows = np.flatnonzero((places[:, column] >= 0) & (scores[:, column] >= floor))
            if not len(rows):
                break
            mixed[rows] += scores[rows, column, None] * signal.vectors[places[rows, column]]
        vectors[part] = mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
        progress(part.stop - part.start)
    return replace(signal, vectors=vectors)
