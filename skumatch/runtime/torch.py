"""The torch engine: an encoder network that takes uint8 pixels and gives unit vectors.

Scaling to mean and std happens inside the network. It knows nothing about files, galleries or training.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skumatch.errors import ConfigError, DeviceError, ModelError
from skumatch.runtime.exact import exact_float32
from skumatch.runtime.folding import folded
from skumatch.runtime.guard import beside, twin_of
from skumatch.runtime.served import BOTH, Served
from skumatch.runtime.transfer import Transfer
from skumatch.spec import Pixels, Preprocess, Spec, Vectors, require_pixels, spec_digest
from skumatch.towers.base import Tower

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network(nn.Module):
    """Image tower, what is served on top of its features, and the untouched tower beside it where there is a guard."""

    mean: Tensor
    std: Tensor

    def __init__(self, image: nn.Module, how: Preprocess, served: Served | None = None) -> None:
        super().__init__()
        self.image = image
        self.served = served or Served()
        guard = self.served.guard
        self.twin = None if guard is None else twin_of(image, guard, how.size)
        self.register_buffer("mean", torch.tensor(how.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(how.std).view(1, 3, 1, 1) * 255, persistent=False)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Scale (N, 3, S, S) pixels in 0..255, uint8 or float, to the encoder's mean and std."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std

    def features(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, S, S) pixels in 0..255, uint8 or float, to the tower's (N, D) features, not normalised."""
        result: Tensor = self.image(self.scaled(pixels))
        return result

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, S, S) pixels to float32 (N, D) rows of unit length."""
        guard = self.served.guard
        if guard is None or self.twin is None:
            vectors: Tensor = self.served(self.features(pixels))
            return vectors
        tuned, untouched, half_way = self.twin(self.scaled(pixels))
        before = nn.functional.normalize(untouched.float(), dim=1)
        if guard.middle is None or half_way is None:
            return beside(before, self.served(tuned))
        return beside(before, guard.middle(half_way), self.served(tuned))


def reduce(network: Network, precision: torch.dtype) -> None:
    """Make the towers of ``network`` compute in ``precision``, from float32 pictures to float32 features."""
    towers = network.image if network.twin is None else network.twin
    towers.to(precision)
    towers.register_forward_pre_hook(lambda module, inputs: tuple(one.to(precision) for one in inputs))
    towers.register_forward_hook(lambda module, inputs, found: _floats(found))


def _floats(found: Any) -> Any:
    return found.float() if isinstance(found, Tensor) else tuple(None if one is None else one.float() for one in found)


def lean(network: Network, size: int) -> Network:
    """Return ``network`` as fast as its answers allow: batch norms folded, checked on random pictures of ``size``."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    return folded(network, probe.to(network.mean.device))


def tensors_digest(modules: Sequence[nn.Module | None]) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of all tensors in ``modules``."""
    total = hashlib.sha256()
    for position, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
            data = tensor.detach().cpu().contiguous()
            total.update(f"{position}.{name}|{data.dtype}|{tuple(data.shape)}|".encode())
            total.update(data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b"")
    return total.hexdigest()


def make_spec(tower: Tower, served: Served | None = None) -> Spec:
    """Return the Spec of ``tower`` serving ``served`` (None: its features).

    The digest covers all that changes an answer: tower, head, how both are weighted, whitening and guard.
    """
    served = served or Served()
    digest = spec_digest(tower.preprocess, tower.architecture, served.name, _weights_digest(tower, served))
    how = tower.preprocess
    return Spec(
        size=how.size,
        mean=how.mean,
        std=how.std,
        resize=how.resize,
        crop_pct=how.crop_pct,
        interpolation=how.interpolation,
        name=tower.name,
        dim=served.dim(tower.dim),
        layer=served.name,
        digest=digest,
    )


def _weights_digest(tower: Tower, served: Served) -> str:
    """Return one digest over the tensors; models that serve plain features or head keep the one they always had."""
    found = tensors_digest([tower.image, served.head])
    beyond = {name: t for name, t in served.tensors().items() if not name.startswith("skumatch_head.")}
    if not beyond and served.layer != BOTH:
        return found
    more = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(t, False) for name, t in beyond.items()})
    settings = json.dumps(served.settings(), sort_keys=True)
    return hashlib.sha256(f"{found}|{tensors_digest([more])}|{settings}".encode()).hexdigest()


def pick_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises DeviceError when it is not granted."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = wanted.partition(":")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", wanted):
        raise DeviceError(f"unknown device '{wanted}'", "choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device cuda was asked for but torch sees no usable GPU", "see `skumatch doctor`, or use cpu")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise DeviceError(f"there is no {wanted}", f"this machine has {torch.cuda.device_count()} GPUs")
    return torch.device(wanted)


def memory_format(image: nn.Module) -> torch.memory_format:
    """Return channels_last for convolution nets (faster on CPU and GPU), the plain layout for the rest."""
    convolutions = sum(isinstance(m, nn.Conv2d) for m in image.modules())
    return torch.channels_last if convolutions > 4 else torch.contiguous_format


class TorchEncoder:
    """An Encoder (and TextEncoder where the model has a text tower) run by torch.

    ``precision``: "fp32", "bf16" or "fp16", in which the towers compute; they are converted, so that the encoder is
    for answering alone. "fp32" is float32 in full on a GPU too: TF32 is off while the encoder's work is given to it.
    Raises DeviceError for a device that is not granted, ConfigError for an unknown precision.

    On a GPU ``begin`` takes a batch before the last one is done, and pixels may be tensors on ``pixels_on``.
    """

    def __init__(
        self,
        tower: Tower,
        served: Served | None = None,
        device: str = "auto",
        spec: Spec | None = None,
        precision: str = "fp32",
    ):
        if precision not in DTYPES:
            raise ConfigError(f"torch has no precision '{precision}'", f"choose {', '.join(DTYPES)}")
        self.spec = replace(spec or make_spec(tower, served), precision=precision)
        self.guard = None if served is None else served.guard
        self.tower = tower
        self.device = pick_device(device)
        self.format = memory_format(tower.image)
        tower.model.eval().to(self.device)
        network = Network(tower.image, self.spec, served).eval().to(self.device)
        on_gpu = self.device.type == "cuda"
        self._exact: Callable[[], AbstractContextManager[None]] = exact_float32 if on_gpu else nullcontext
        with self._exact():
            self.network = lean(network, self.spec.size)
        if precision != "fp32":
            reduce(self.network, DTYPES[precision])
        self.network = self.network.to(memory_format=self.format)
        there = next(self.network.buffers()).device  # with its number
        self._transfer = Transfer(there) if on_gpu else None
        self.begin: Callable[[Pixels | Tensor], Callable[[], Vectors]] | None = self._begin if on_gpu else None
        self.pixels_on = str(there) if on_gpu else ""

    @property
    def engine(self) -> str:
        """What runs it, in words."""
        return f"torch {self.spec.precision} on {self.device}"

    def encode(self, pixels: Pixels | Tensor) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) rows of unit length. Raises ModelError for another shape."""
        return self._begin(pixels)()

    def _begin(self, pixels: Pixels | Tensor) -> Callable[[], Vectors]:
        """Do what ``encode`` does up to the vectors; return what waits for them."""
        require_pixels(pixels, self.spec.size)
        if not len(pixels):
            return lambda: np.empty((0, self.spec.dim), np.float32)  # not every network takes an empty batch
        with torch.inference_mode(), self._exact():
            vectors = self.network(self._there(pixels).to(memory_format=self.format))
            if self._transfer is not None:
                return self._transfer.download(vectors)
        found: Vectors = vectors.numpy()
        return lambda: found

    def _there(self, pixels: Pixels | Tensor) -> Tensor:
        """Return pixels on the device."""
        if isinstance(pixels, Tensor):
            return pixels.to(self.device)
        if self._transfer is not None:
            return self._transfer.upload(pixels)
        # torch shares the array's memory: it warns about one that is read-only and refuses negative strides.
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Map N texts to float32 (N, D) rows of unit length. Raises ModelError where there is no text tower."""
        text = self.tower.text
        if text is None:
            raise ModelError(f"{self.spec.name} has no text tower", "use an open_clip or hf model that has one")
        with torch.inference_mode(), self._exact():
            features = text.encode(text.tokenize(texts).to(self.device))
            vectors: Vectors = nn.functional.normalize(features.float(), dim=1).cpu().numpy()
        return vectors
