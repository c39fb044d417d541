"""The nearest postings by perceptual hash, without comparing all with all.

Two hashes of 64 bits that differ in at most three agree in one of their four words of 16 bits (Norouzi et al. 2012,
"Fast search in Hamming space with multi-index hashing", section 3): only postings that share a word are compared. Knows
nothing about pictures.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.neighbours import Neighbours, Scores, top_pairs
from skumatch.phash import Hashes
from skumatch.spec import Ids

BITS: Final = 64
WORDS: Final = 4
NEAR: Final = WORDS - 1  # bits in which neighbours may differ
MOST: Final = 64  # postings next to one another under a word that are compared: blank pictures share theirs


def alike(hashes: Hashes, left: Ids, right: Ids) -> Scores:
    """Return the share of equal bits, float32 (P,) in 0..1, of the pairs of places ``left`` and ``right``."""
    differ = np.bitwise_count(hashes[left] ^ hashes[right])
    return np.asarray(1 - differ.astype(np.float32) / BITS, np.float32)


def nearest_by_hash(hashes: Hashes, present: NDArray[np.bool_], k: int) -> Neighbours:
    """Return, per posting, the ``k`` others whose hashes differ in at most three bits; score: the share of equal bits.

    ``hashes`` uint64 (N,), of those that are ``present``. Exact, but for a word that more than 64 postings share: there
    a posting is compared with the 64 after it in the order of the whole hashes, where equal ones lie together.
    """
    there = np.flatnonzero(present)
    keys = [np.empty(0, np.int64)]
    for word in range(WORDS):
        keys.append(_sharing(hashes[there], word))
    found = np.unique(np.concatenate(keys))
    left, right = there[found // max(1, len(there))], there[found % max(1, len(there))]
    return top_pairs(len(hashes), left, right, alike(hashes, left, right), k)


def _sharing(hashes: Hashes, word: int) -> Ids:
    """Return left * M + right of the pairs of places that share the 16 bits of ``word`` and differ in few bits."""
    values = (hashes >> np.uint64(16 * word)) & np.uint64(0xFFFF)
    order = np.lexsort((hashes, values))
    ranked, whole = values[order], hashes[order]
    found = [np.empty(0, np.int64)]
    for step in range(1, min(MOST, len(order) - 1) + 1):
        near = np.flatnonzero(ranked[step:] == ranked[:-step])
        if not len(near):
            break
        near = near[np.bitwise_count(whole[near] ^ whole[near + step]) <= NEAR]
        one, other = order[near], order[near + step]
        found.append(np.minimum(one, other) * len(order) + np.maximum(one, other))
    return np.concatenate(found).astype(np.int64)
