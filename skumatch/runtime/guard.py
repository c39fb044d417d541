"""The guard of a fine-tuned encoder: the untouched one stays inside and answers for crops that training never knew.

A fine-tuned encoder is better at home and worse elsewhere. A guarded one gives both its untouched vector u and its
tuned vector v, side by side. How far v is to be trusted is a question to the crop that asks, by how near its u lies
to those of the training pictures: with g from 0 to 1 the score of a view is (1 - g) cos(u, u') + g cos(v, v'). Views
of the gallery carry both in full, so that catalogue pictures, which look unlike any crop, are told apart by v where
the crop is known. Blocks that were not trained run once for both. What they give, half-way through the network, is a
third vector m, which new products of a shop are told apart by: the score becomes (1 - h) of the above plus
h cos(m, m'). Knows nothing about training or files.
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


class Middle(nn.Module):
    """The vector from half-way: what the last shared block gives, averaged over the picture, and when it counts.

    ``whiten``: linear, without bias, on the unit average. A crop that is as near to the guard's centres as
    ``threshold`` (a cosine, lower than the guard's) or nearer is compared by it too: with the weight ``far`` where the
    tuned vector does not count (g = 0), falling to ``near`` where it counts in full (g = 1), 0..1.
    """

    def __init__(self, whiten: nn.Linear, threshold: float, far: float, near: float) -> None:
        super().__init__()
        self.whiten = whiten
        self.threshold = threshold
        self.far = far
        self.near = near

    @property
    def width(self) -> int:
        """The length of its vectors."""
        return self.whiten.out_features

    def forward(self, averages: Tensor) -> Tensor:
        """Map float (N, C) averages to float32 (N, ``width``) unit rows."""
        return F.normalize(self.whiten(F.normalize(averages.float(), dim=1)), dim=1)

    def weight(self, nearest: Tensor, share: Tensor, softness: float) -> Tensor:
        """Return h (N, 1), of cosines with the ``nearest`` centre (N, 1) and g (N, 1)."""
        return (self.far + (self.near - self.far) * share) * torch.sigmoid((nearest - self.threshold) / softness)


class Guard(nn.Module):
    """Says how far a picture is one of those that the encoder was trained for, and remembers the untouched weights.

    ``centres`` float32 (K, D): unit rows, the untouched encoder's vectors of the training pictures in K clusters.
    ``threshold``: cosine with the nearest centre at which g is half way up; ``softness``: the logistic's width.
    ``differing``: the untouched image tower's tensors that training changed, by name. ``blocks``: the network's blocks
    that it did not change, in order from the input, then the first that it did; empty where that is not known.
    ``middle``: the vector of what enters the last of ``blocks``; None where it is not used.
    """

    centres: Tensor

    def __init__(
        self,
        centres: Tensor,
        threshold: float,
        softness: float,
        differing: Mapping[str, Tensor] | None = None,
        blocks: tuple[str, ...] = (),
        middle: Middle | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("centres", centres)
        self.threshold = threshold
        self.softness = softness
        self.differing = dict(differing or {})
        self.blocks = blocks
        self.middle = middle

    @property
    def width(self) -> int:
        """How many columns a guarded encoder's rows have beyond the tuned vector's."""
        return self.centres.shape[1] + (0 if self.middle is None else self.middle.width)

    def forward(self, untouched: Tensor) -> Tensor:
        """Map unit rows (N, D) of the untouched encoder to g (N, 1), 0..1."""
        return self._share(self._nearest(untouched))

    def asking(self, vectors: Vectors) -> Vectors:
        """Return float32 rows to ask a gallery with, of what the encoder gave of the crops, (N, ``width`` + E) both.

        Their dot product with a view's row is (1 - h) ((1 - g) cos(u, u') + g cos(v, v')) + h cos(m, m'), h being 0
        without a ``middle``; they are not of unit length.
        """
        with torch.no_grad():
            asked: Vectors = self.asked(torch.from_numpy(np.ascontiguousarray(vectors)).float()).numpy()
        return asked

    def asked(self, rows: Tensor) -> Tensor:
        """Do for float32 (N, ``width`` + E) tensors what ``asking`` does for arrays."""
        dim = self.centres.shape[1]
        widths = [dim, self.width - dim, rows.shape[1] - self.width]
        untouched, half_way, tuned = (F.normalize(part, dim=1) for part in torch.split(rows, widths, 1))
        nearest = self._nearest(untouched)
        share = self._share(nearest)
        rest = torch.ones_like(share)
        if self.middle is not None:
            rest = rest - self.middle.weight(nearest, share, self.softness)
        parts = [rest * (1 - share) * untouched, (1 - rest) * half_way, rest * share * tuned]
        return (2 if self.middle is None else 3) ** 0.5 * torch.cat(parts, 1)

    def _nearest(self, untouched: Tensor) -> Tensor:
        return F.linear(untouched, self.centres.to(untouched.device)).amax(1, keepdim=True)

    def _share(self, nearest: Tensor) -> Tensor:
        return torch.sigmoid((nearest - self.threshold) / self.softness)


def beside(*parts: Tensor) -> Tensor:
    """Return unit rows of several times N unit rows, side by side."""
    rows: Tensor = torch.cat(parts, 1) * len(parts) ** -0.5
    return rows


def average(inside: Tensor, count: int) -> Tensor:
    """Return (``count``, C): the average over each picture of what flows inside a network.

    ``inside``: (N, C, H, W), (N, H, W, C) or tokens (N, T, C) or (T, N, C), N being ``count``. Pictures are square, so
    that two equal axes are places.
    """
    if inside.ndim == 3:
        return inside.mean(1 if inside.shape[0] == count else 0)
    places = (1, 2) if inside.shape[1] == inside.shape[2] != inside.shape[3] else (2, 3)
    return inside.mean(places)


class Twin(nn.Module):
    """Two image towers of one architecture, which run the blocks that they have in common once.

    ``untouched`` None: training changed nothing in the tower. ``blocks``: names of the blocks that both have in common,
    in order from the input, then the first that differs; empty: not known. ``shared``: whether the first of them run
    for ``image`` alone.
    """

    def __init__(
        self, image: nn.Module, untouched: nn.Module | None, blocks: tuple[str, ...] = (), shared: bool = False
    ) -> None:
        super().__init__()
        self.image = image
        self.untouched = untouched
        self._seen = _Seen() if untouched is not None and blocks else None
        if untouched is None or self._seen is None:
            return
        (image if shared else untouched).get_submodule(blocks[-1]).register_forward_pre_hook(self._seen.keep)
        if shared:
            for name in blocks[:-1]:
                _replace(untouched, name, _Skip())
            _replace(untouched, blocks[-1], _Resume(untouched.get_submodule(blocks[-1]), self._seen))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Map normalised pictures (N, 3, S, S) to (features of ``image``, features of ``untouched``, (N, D) each, and
        the (N, C) average of what enters the last of the blocks, None where they are not known)."""
        tuned = self.image(pictures)
        untouched = tuned if self.untouched is None else self.untouched(pictures)
        return tuned, untouched, None if self._seen is None else average(self._seen.local.entered, pictures.shape[0])


class HalfWay(nn.Module):
    """An image tower that gives (N, D + C) rows: its features and what enters ``block`` on average, both unit rows."""

    def __init__(self, image: nn.Module, block: str) -> None:
        super().__init__()
        self.image = image
        self._seen = _Seen()
        self._hook = image.get_submodule(block).register_forward_pre_hook(self._seen.keep)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map normalised pictures (N, 3, S, S)."""
        features = F.normalize(self.image(pictures).float(), dim=1)
        return torch.cat(
            [features, F.normalize(average(self._seen.local.entered, pictures.shape[0]).float(), dim=1)], 1
        )

    def close(self) -> None:
        """Leave the image tower as it was."""
        self._hook.remove()


class _Seen:
    """What entered a block, per thread: ``keep`` is a forward pre-hook, ``local.entered`` the last tensor."""

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
        return Twin(image, untouched, guard.blocks, True)
    return Twin(image, untouched, guard.blocks)


def _shares(image: nn.Module, untouched: nn.Module, blocks: tuple[str, ...], size: int) -> bool:
    first = next(image.parameters())
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn((2, 3, size, size), generator=generator).to(first.device, first.dtype)
    tried = Twin(copy.deepcopy(image).eval(), copy.deepcopy(untouched), blocks, True)
    with torch.no_grad():
        _, shared, _ = tried(pictures)
        whole = untouched(pictures)
    return bool(F.cosine_similarity(shared.float(), whole.float(), dim=1).min() > AGREES)
