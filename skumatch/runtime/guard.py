"""The guard of a fine-tuned encoder: the untouched one stays inside and answers for crops that training never knew.

A fine-tuned encoder is better at home and worse elsewhere. A guarded one gives both its untouched vector u and its
tuned vector v, side by side. How far v is to be trusted is a question to the crop that asks, by how near its u lies
to those of the training pictures: with g from 0 to 1 the score of a view is (1 - g) cos(u, u') + g cos(v, v'). Views
of the gallery carry both in full, so that catalogue pictures, which look unlike any crop, are told apart by v where
the crop is known. Blocks that were not trained run once for both. Knows nothing about training or files.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.spec import Vectors

AGREES = 0.9999  # cosine that sharing blocks must keep with running both networks in full


class Guard(nn.Module):
    """Says how far a picture is one of those that the encoder was trained for, and remembers the untouched weights.

    ``centres`` float32 (K, D): unit rows, the untouched encoder's vectors of the training pictures in K clusters.
    ``threshold``: cosine with the nearest centre at which g is half way up; ``softness``: the logistic's width.
    ``differing``: the untouched image tower's tensors that training changed, by name. ``blocks``: the network's blocks
    that it did not change, in order from the input, then the first that it did; empty where that is not known.
    """

    centres: Tensor

    def __init__(
        self,
        centres: Tensor,
        threshold: float,
        softness: float,
        differing: Mapping[str, Tensor] | None = None,
        blocks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.register_buffer("centres", centres)
        self.threshold = threshold
        self.softness = softness
        self.differing = dict(differing or {})
        self.blocks = blocks

    def forward(self, untouched: Tensor) -> Tensor:
        """Map unit rows (N, D) of the untouched encoder to g (N, 1), 0..1."""
        nearest = F.linear(untouched, self.centres.to(untouched.device)).amax(1, keepdim=True)
        share: Tensor = torch.sigmoid((nearest - self.threshold) / self.softness)
        return share

    def asking(self, vectors: Vectors) -> Vectors:
        """Return float32 (N, D + E) rows to ask a gallery with, of what the encoder gave of the crops.

        Their dot product with a view's row is (1 - g) cos(u, u') + g cos(v, v'); they are not of unit length.
        """
        dim = self.centres.shape[1]
        with torch.no_grad():
            both = torch.from_numpy(np.ascontiguousarray(vectors)).float()
            untouched, tuned = F.normalize(both[:, :dim], dim=1), F.normalize(both[:, dim:], dim=1)
            share = self(untouched)
            rows: Vectors = (2**0.5 * torch.cat([(1 - share) * untouched, share * tuned], 1)).numpy()
        return rows


def beside(untouched: Tensor, tuned: Tensor) -> Tensor:
    """Return unit rows (N, D + E) of unit rows ``untouched`` (N, D) and ``tuned`` (N, E)."""
    rows: Tensor = torch.cat([untouched, tuned], 1) * 0.5**0.5
    return rows


class Twin(nn.Module):
    """Two image towers of one architecture, which run the blocks that they have in common once.

    ``untouched`` None: training changed nothing in the tower. ``blocks``: names of the blocks that both share, in order
    from the input, then the first that differs; empty: nothing is shared.
    """

    def __init__(self, image: nn.Module, untouched: nn.Module | None, blocks: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.image = image
        self.untouched = untouched
        self._seen = _Seen()
        if untouched is not None and blocks:
            image.get_submodule(blocks[-1]).register_forward_pre_hook(self._seen.keep)
            for name in blocks[:-1]:
                _replace(untouched, name, _Skip())
            _replace(untouched, blocks[-1], _Resume(untouched.get_submodule(blocks[-1]), self._seen))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised pictures (N, 3, S, S) to (features of ``image``, features of ``untouched``), (N, D) each."""
        tuned = self.image(pictures)
        return tuned, tuned if self.untouched is None else self.untouched(pictures)


class _Seen:
    """What entered the first block that differs, per thread."""

    def __init__(self) -> None:
        self.local = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seen:
        return _Seen()

    def keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.local.entered = inputs[0]


class _Skip(nn.Module):
    """Stands for a shared block: its work was done."""

    def forward(self, entered: Tensor, *others: Any, **named: Any) -> Tensor:
        return entered


class _Resume(nn.Module):
    """The first block that differs, which goes on from what the other tower's shared blocks gave."""

    def __init__(self, block: nn.Module, seen: _Seen) -> None:
        super().__init__()
        self.block = block
        self.seen = seen

    def forward(self, entered: Tensor, *others: Any, **named: Any) -> Any:
        return self.block(self.seen.local.entered, *others, **named)


def _replace(network: nn.Module, name: str, other: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, other)


def twin_of(image: nn.Module, guard: Guard, size: int) -> Twin:
    """Return ``image`` beside the untouched network that ``guard`` remembers.

    The guard's blocks are shared where random pictures of ``size`` pixels show that the answers stay the same; where
    they do not (a network that is no plain chain of blocks), both towers run in full.
    """
    if not guard.differing:
        return Twin(image, None)
    untouched = copy.deepcopy(image)
    untouched.load_state_dict({**untouched.state_dict(), **guard.differing})
    untouched.requires_grad_(False).eval()
    if guard.blocks and _shares(image, untouched, guard.blocks, size):
        return Twin(image, untouched, guard.blocks)
    return Twin(image, untouched)


def _shares(image: nn.Module, untouched: nn.Module, blocks: tuple[str, ...], size: int) -> bool:
    first = next(image.parameters())
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn((2, 3, size, size), generator=generator).to(first.device, first.dtype)
    tried = Twin(copy.deepcopy(image).eval(), copy.deepcopy(untouched), blocks)
    with torch.no_grad():
        _, shared = tried(pictures)
        whole = untouched(pictures)
    return bool(F.cosine_similarity(shared.float(), whole.float(), dim=1).min() > AGREES)
