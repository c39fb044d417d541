"""Fitting the guard: which pictures are near enough to the training pictures to trust the tuned encoder with.

Only vectors of the untouched encoder count here. Knows nothing about networks or files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skumatch.finetune.params import block_of
from skumatch.runtime.guard import Guard
from skumatch.spec import Ids, Vectors

CENTRES = 8  # 4 to 64 separate a shop from clothes about alike
ROUNDS = 15
FOLDS = 5
TAIL = 5.0  # percent of the crops of SKUs left out that lie under the threshold
WIDTH = 0.25  # of the distance from the threshold to their median: how soft it is


def fit_guard(vectors: Vectors, labels: Ids, seed: int) -> Guard:
    """Return the guard of training pictures with ``vectors`` (N, D), the untouched encoder's unit rows.

    The threshold comes from SKUs that the centres do not know: a fifth of the SKUs is left out in turn and its
    pictures' cosines with the nearest centre of the others are gathered. Their 5 % quantile is the threshold: new
    SKUs of the same kind of shop are let through, other things are not. ``labels`` int64 (N,). N must be at least 1.
    """
    left_out = np.concatenate(_left_out(vectors, labels, seed))
    low, middle = np.percentile(left_out, [TAIL, 50])
    spread = max(float(middle - low), 1e-3)
    centres = torch.from_numpy(spherical_kmeans(vectors, CENTRES, seed))
    return Guard(centres, float(low), WIDTH * spread)


def remember(guard: Guard, image: nn.Module, untouched: Mapping[str, Tensor]) -> Guard:
    """Return ``guard`` with what training changed: the tensors of ``untouched`` that ``image`` has otherwise, and the
    blocks in front of the first that changed."""
    state = image.state_dict()
    differing = {
        name: tensor
        for name, tensor in untouched.items()
        if tensor.is_floating_point() and not torch.equal(tensor, state[name].cpu())
    }
    return Guard(guard.centres, guard.threshold, guard.softness, differing, shared_blocks(image, differing))


def shared_blocks(image: nn.Module, differing: Collection[str]) -> tuple[str, ...]:
    """Return the blocks of ``image`` in front of the first with a tensor in ``differing``, and that one; empty where
    no block is shared or something in front of it changed."""
    names = list(image.state_dict())
    blocks = list(dict.fromkeys(block for name in names if (block := block_of(name)) is not None))
    changed = {block_of(name) for name in differing}
    first = next((number for number, block in enumerate(blocks) if block in changed), 0)
    before = names[: names.index(next((n for n in names if block_of(n) == blocks[first]), names[0]))] if blocks else []
    if not first or set(before) & set(differing):
        return ()
    return tuple(blocks[: first + 1])


def _left_out(vectors: Vectors, labels: Ids, seed: int) -> list[NDArray[np.float32]]:
    """Return, fold by fold of SKUs, the cosine of each picture with the nearest centre of the other folds."""
    skus = np.random.default_rng((seed, 11)).permutation(np.unique(labels))
    found = []
    for fold in range(min(FOLDS, len(skus))):
        out = np.isin(labels, skus[fold::FOLDS])
        if out.any() and not out.all():
            found.append((vectors[out] @ spherical_kmeans(vectors[~out], CENTRES, seed).T).max(1))
    return found or [np.ones(1, np.float32)]


def spherical_kmeans(vectors: Vectors, count: int, seed: int) -> Vectors:
    """Return up to ``count`` unit rows: cluster means of unit rows ``vectors`` (N, D) under cosine.

    Dhillon and Modha, "Concept decompositions" (2001), from seeded picks of the rows; an empty cluster keeps its
    centre.
    """
    start = np.random.default_rng((seed, 12)).choice(len(vectors), min(count, len(vectors)), replace=False)
    centres: Vectors = vectors[np.sort(start)].astype(np.float32)
    for _ in range(ROUNDS):
        nearest = (vectors @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centres).astype(np.float32)
    return centres
