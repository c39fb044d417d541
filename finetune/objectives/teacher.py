"""Frozen networks that teach: the untouched encoder, or a larger one. They are no part of what is saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.runtime.torch import memory_format
from skumatch.spec import Preprocess
from skumatch.towers.base import Tower


class Frozen:
    """A network outside of the trained modules: neither its weights nor its gradients belong to the training."""

    def __init__(self, network: nn.Module, how: Preprocess, device: torch.device) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.network.to(device=device, memory_format=memory_format(network))  # type: ignore[call-overload]
        self.mean = torch.tensor(how.mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(how.std, device=device).view(1, 3, 1, 1) * 255

    def features(self, pictures: Tensor, size: int | None = None) -> Tensor:
        """Map float (N, 3, S, S) pictures in 0..255 to float32 (N, D) features, at ``size`` pixels where given."""
        with torch.no_grad():
            if size is not None and size != pictures.shape[-1]:
                pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
            found: Tensor = self.network((pictures - self.mean) / self.std)
            return found.float()


def untouched(tower: Tower, device: torch.device) -> Frozen:
    """Return ``tower`` as it is now."""
    return Frozen(tower.image, tower.preprocess, device)
