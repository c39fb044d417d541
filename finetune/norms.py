"""Batch statistics: estimated anew for mixed weights, or kept as they were. Knows nothing about training or files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(image: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of ``image`` that keep running statistics."""
    return [m for m in image.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def has_batch_norm(image: nn.Module) -> bool:
    """Return whether ``image`` keeps batch statistics."""
    return bool(norms_of(image))


def freeze_norms(image: nn.Module) -> None:
    """Put every batch norm in evaluation mode: its statistics stand still. To be called after ``image.train()``."""
    for norm in norms_of(image):
        norm.eval()


@contextmanager
def standing(image: nn.Module) -> Iterator[None]:
    """Keep the running statistics of ``image`` as they are while it is in training mode."""
    before = [(norm, norm.momentum) for norm in norms_of(image)]
    for norm, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum


def reestimate(image: nn.Module, batches: Iterable[Tensor], skip: Collection[nn.Module] = ()) -> None:
    """Estimate the running statistics of ``image`` on ``batches`` of normalised pictures, float (N, 3, S, S).

    Mixing weights leaves statistics that belong to neither network (Izmailov et al., "Averaging weights leads to wider
    optima", 2018, section 3). Means over all batches replace the old ones; everything else, dropout too, stays as in
    evaluation. Modules in ``skip``, and what is inside them, keep theirs. Without batches nothing changes.
    """
    kept = {id(inside) for module in skip for inside in module.modules()}
    norms = [norm for norm in norms_of(image) if id(norm) not in kept]
    before = [(norm.momentum, norm.training) for norm in norms]
    modes = [(module, module.training) for module in image.modules()]
    image.eval()
    started = False
    try:
        with torch.no_grad():
            for batch in batches:
                if not started:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # a plain mean over all batches
                        norm.train()
                    started = True
                image(batch)
    finally:
        for module, training in modes:
            module.training = training
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
