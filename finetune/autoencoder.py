"""A small convolutional autoencoder: the reference that learns from pictures alone, without any labels.

Its code of a picture is compared by Euclidean distance (Masci et al. 2011, "Stacked convolutional auto-encoders for
hierarchical feature extraction"). It is there to be beaten. Knows nothing about files, postings or groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.errors import ConfigError, DataError, ModelError
from skumatch.finetune.parts import within
from skumatch.spec import Ids, Pixels, require_pixels

DOWN = 16  # four layers of stride 2
BLOCK = 256  # pictures encoded at once
Told = Callable[[int, float], None]  # after each epoch: its number from 1, and its mean loss


@dataclass(frozen=True)
class AutoencoderHow:
    """How to train one: pictures of ``size`` px (a multiple of 16), ``width`` channels after the first layer, twice
    and four times as many after the next two, and twice as many in the code. ``device``: "cpu", "cuda", "cuda:N".

    Raises ConfigError for values out of range.
    """

    seed: int = 0
    epochs: int = 20
    size: int = 64
    width: int = 16
    batch: int = 64
    lr: float = 2e-3
    device: str = "cpu"

    def __post_init__(self) -> None:
        within("autoencoder", self, seed=(0, 2**31 - 1), epochs=(1, 10_000), size=(32, 256), width=(2, 256))
        within("autoencoder", self, batch=(2, 65_536), lr=(1e-6, 1))
        if self.size % DOWN:
            raise ConfigError(f"autoencoder: size is {self.size}", f"choose a multiple of {DOWN}")

    @property
    def dim(self) -> int:
        """Numbers in the code of a picture."""
        return 2 * self.width * (self.size // DOWN) ** 2


class Network(nn.Module):
    """Four convolutions of stride 2 down to the code, and as many back up to the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sides = (3, width, 2 * width, 4 * width, 2 * width)
        self.down = nn.Sequential(*_layers(sides, _shrinking))
        self.up = nn.Sequential(*_layers(sides[::-1], _growing))

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float (N, 3, S, S) in 0..1 to what is left of it after the code, in 0..1 too."""
        found: Tensor = torch.sigmoid(self.up(self.down(pictures)))
        return found


def _shrinking(inward: int, outward: int) -> nn.Module:
    return nn.Conv2d(inward, outward, 3, stride=2, padding=1)


def _growing(inward: int, outward: int) -> nn.Module:
    return nn.ConvTranspose2d(inward, outward, 4, stride=2, padding=1)


def _layers(sides: Sequence[int], make: Callable[[int, int], nn.Module]) -> list[nn.Module]:
    """Return the layers between ``sides`` channels, each but the last with batch norm and ReLU behind it."""
    found: list[nn.Module] = []
    for inward, outward in pairwise(sides[:-1]):
        found += [make(inward, outward), nn.BatchNorm2d(outward), nn.ReLU(inplace=True)]
    return [*found, make(sides[-2], sides[-1])]


@dataclass(frozen=True)
class Autoencoder:
    """A trained ``network``, how it was trained and the mean loss (squared error) of each epoch."""

    network: Network
    how: AutoencoderHow
    losses: tuple[float, ...]

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the codes float32 (N, D) of ``pixels`` uint8 (N, 3, S, S); not of unit length.

        Raises ModelError for pixels of another size or type.
        """
        require_pixels(pixels, self.how.size)
        found = np.empty((len(pixels), self.how.dim), np.float32)
        for start in range(0, len(pixels), BLOCK):
            code = self.network.down(_scaled(pixels[start : start + BLOCK], self.how.device))
            found[start : start + BLOCK] = code.flatten(1).float().cpu().numpy()
        return found


def train_autoencoder(pixels: Pixels, how: AutoencoderHow, told: Told | None = None) -> Autoencoder:
    """Train on ``pixels`` uint8 (N, 3, S, S), which may be a memory map: only the pictures of a batch are read.

    Same seed, same codes (on one device, with as many threads). Raises DataError for fewer than two pictures,
    ModelError for pixels of another size or type and when the loss is not finite.
    """
    require_pixels(pixels, how.size)
    if len(pixels) < 2:
        raise DataError(f"{len(pixels)} pictures are too few for an autoencoder", "give at least two")
    with torch.random.fork_rng(devices=[]):  # whoever calls keeps their own random numbers
        torch.manual_seed(how.seed)
        network = Network(how.width).to(how.device)
    steps = how.epochs * len(_batches(len(pixels), how, 0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.lr)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=max(2, steps))
    losses = []
    network.train()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in range(how.epochs):
            total = 0.0
            for places in _batches(len(pixels), how, epoch):
                total += len(places) * _step(network, optimizer, _scaled(pixels[np.sort(places)], how.device))
                course.step()
            losses.append(total / len(pixels))
            if not np.isfinite(losses[-1]):
                raise ModelError(f"the autoencoder's loss is {losses[-1]}", "choose a lower lr")
            if told is not None:
                told(epoch + 1, losses[-1])
    return Autoencoder(network.eval(), how, tuple(losses))


def _batches(count: int, how: AutoencoderHow, epoch: int) -> list[Ids]:
    """Return the places of each batch of an epoch: all pictures once, in batches of about equal size."""
    order = np.random.default_rng((how.seed, epoch)).permutation(count)
    return np.array_split(order, max(1, round(count / how.batch)))


def _step(network: Network, optimizer: torch.optim.Optimizer, pictures: Tensor) -> float:
    """Take one step and return the loss before it."""
    loss = F.mse_loss(network(pictures), pictures)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _scaled(pixels: Pixels, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).float() / 255
