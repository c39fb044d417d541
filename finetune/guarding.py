"""Fitting the guard: which pictures are near enough to the training pictures to trust the tuned encoder with.

Only vectors of the untouched encoder count here. Knows nothing about networks or files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skumatch.finetune.params import block_of
from skumatch.finetune.validate import better
from skumatch.runtime.guard import Guard, Middle
from skumatch.spec import Ids, Vectors
from skumatch.technique_store import unit_rows

CENTRES = 8  # 4 to 64 separate a shop from clothes about alike
ROUNDS = 15
FOLDS = 5
TAIL = 5.0  # percent of the crops of SKUs left out that lie under the threshold
WIDTH = 0.25  # of the distance from the threshold to their median: how soft it is
REACH = 0.75  # of the same distance: how much further than the tuned vector the one from half-way is trusted
FAR, NEAR = 0.3, 0.05  # weight of the vector from half-way without the tuned one, and beside it
RIDGE = 0.1  # of the mean eigenvalue, added to all


@dataclass(frozen=True)
class Inside:
    """Pictures as the untouched encoder sees them: ``features`` (N, D) and averages from half-way ``middle`` (N, C),
    unit rows both, and the SKU of each as a number, ``codes`` int64 (N,)."""

    features: Vectors
    middle: Vectors
    codes: Ids

    def take(self, places: NDArray[np.bool_]) -> Inside:
        """Return some of them."""
        return Inside(self.features[places], self.middle[places], self.codes[places])


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


def fit_middle(guard: Guard, views: Inside, queries: Inside) -> Middle | None:
    """Return the vector from half-way for ``guard``, None where it is of no use.

    It is whitened by how the pictures of one SKU differ (``within_sku``). It is not used without ``queries``, nor where
    on those of SKUs that the whitening did not learn from the untouched features alone are better beyond chance.
    """
    skus = np.unique(views.codes)
    alone, both = [np.zeros(0, bool)], [np.zeros(0, bool)]
    for fold in range(min(FOLDS, len(skus))):
        out = skus[fold::FOLDS]
        asked = queries.take(np.isin(queries.codes, out))
        learnt = within_sku(*_pair(views.take(~np.isin(views.codes, out))))
        if learnt is None or not len(asked.codes):
            continue
        scores = asked.features @ views.features.T
        alone.append(views.codes[scores.argmax(1)] == asked.codes)
        scores = (1 - FAR) * scores + FAR * (_mapped(learnt, asked.middle) @ _mapped(learnt, views.middle).T)
        both.append(views.codes[scores.argmax(1)] == asked.codes)
    whiten = within_sku(*_pair(views))
    if whiten is None or len(both) == 1 or better(np.concatenate(alone), np.concatenate(both)):
        return None
    return Middle(whiten, guard.threshold - REACH * guard.softness / WIDTH, FAR, NEAR)


def within_sku(vectors: Vectors, labels: Ids) -> nn.Linear | None:
    """Return the linear layer that makes the scatter of unit rows ``vectors`` (N, D) within one SKU alike in all
    directions, None where no SKU has two different pictures.

    Hatch, Kajarekar and Stolcke, "Within-class covariance normalization for SVM-based speaker recognition" (Interspeech
    2006), with a ridge. In float64. ``labels`` int64 (N,).
    """
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wide = vectors.astype(np.float64)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, places, wide)
    scattered = wide - (means / counts[:, None])[places]
    values, columns = np.linalg.eigh(scattered.T @ scattered / max(1, len(vectors)))
    values = np.maximum(values, 0) + RIDGE * max(float(values.mean()), 0)
    if not values.min() > 1e-12:
        return None
    layer = nn.Linear(vectors.shape[1], vectors.shape[1], bias=False)
    layer.weight.data.copy_(torch.from_numpy((columns / np.sqrt(values / values.mean())) @ columns.T))
    return layer.requires_grad_(False)


def _pair(pictures: Inside) -> tuple[Vectors, Ids]:
    return pictures.middle, pictures.codes


def _mapped(layer: nn.Linear, vectors: Vectors) -> Vectors:
    rows: Vectors = vectors @ layer.weight.numpy().T
    return unit_rows(rows)


def remember(guard: Guard, image: nn.Module, untouched: Mapping[str, Tensor]) -> Guard:
    """Return ``guard`` with what training changed: the tensors of ``untouched`` that ``image`` has otherwise, and the
    blocks in front of the first that changed; without its middle where there are none."""
    changed = differing(untouched, image.state_dict())
    blocks = shared_blocks(image, changed)
    middle = guard.middle if blocks else None
    kept = {name: untouched[name] for name in changed}
    return Guard(guard.centres, guard.threshold, guard.softness, kept, blocks, middle)


def differing(untouched: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of ``untouched`` that training changed, in order."""
    return [
        name
        for name, tensor in untouched.items()
        if tensor.is_floating_point() and not torch.equal(tensor, state[name].cpu())
    ]


def shared_blocks(image: nn.Module, changed: Collection[str]) -> tuple[str, ...]:
    """Return the blocks of ``image`` in front of the first with a tensor in ``changed``, and that one; empty where
    no block is shared or something in front of it changed."""
    names = list(image.state_dict())
    blocks = list(dict.fromkeys(block for name in names if (block := block_of(name)) is not None))
    trained = {block_of(name) for name in changed}
    first = next((number for number, block in enumerate(blocks) if block in trained), 0)
    before = names[: names.index(next((n for n in names if block_of(n) == blocks[first]), names[0]))] if blocks else []
    if not first or set(before) & set(changed):
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
