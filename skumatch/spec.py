"""What an encoder is: its preprocessing, its output and the digest that ties galleries to it.

A Spec travels beside the weights and inside every gallery. It knows nothing about torch or any runtime.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ModelError

Image = NDArray[np.uint8]  # (H, W, 3) RGB, upright
Pixels = NDArray[np.uint8]  # (N, 3, S, S): resized and cropped, still uint8
Vectors = NDArray[np.float32]  # (N, D): rows of unit length
Ids = NDArray[np.int64]  # (N,) or (N, K)

ResizeMode = Literal["crop", "squash", "pad"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Preprocess:
    """How an upright RGB image becomes the (3, S, S) pixels an encoder takes.

    ``size``: S in pixels. ``resize``: "crop" (short side to ``floor(size / crop_pct)``, centre crop), "squash" (both
    sides to S) or "pad" (long side to S, the rest filled with ``mean``). ``crop_pct`` in (0, 1], used by "crop" alone.
    ``mean`` and ``std``: per RGB channel, for values in 0..1; applied inside the network, not by the host.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: ResizeMode
    crop_pct: float
    interpolation: Interpolation

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not 8 <= self.size <= 4096:
            raise ModelError(f"image size {self.size} is out of range", "choose 8 to 4096 pixels")
        if not 0.1 <= self.crop_pct <= 1:
            raise ModelError(f"crop_pct {self.crop_pct} is out of range", "choose 0.1 to 1")
        if self.resize not in get_args(ResizeMode):
            raise ModelError(f"unknown resize mode '{self.resize}'", "choose crop, squash or pad")
        if self.interpolation not in get_args(Interpolation):
            raise ModelError(f"unknown interpolation '{self.interpolation}'", "choose bicubic or bilinear")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError("mean and std need three values each, std above 0", "correct the encoder's settings")


@dataclass(frozen=True)
class Spec(Preprocess):
    """An encoder's identity: ``Preprocess`` plus name, output width, served layer and digest.

    ``digest`` is a SHA-256 over architecture, weights and every field but ``precision``: two encoders share it exactly
    when their vectors may be compared. ``precision`` ("fp32", "bf16", ...) is left out so that a reduced-precision
    engine which passed the parity gate can query the same gallery.
    """

    name: str
    dim: int
    layer: str
    digest: str
    precision: str = "fp32"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Spec:
        """Build a Spec from ``to_json`` output. Raises ModelError when a field is missing or unknown."""
        names = {f.name for f in fields(Spec)}
        if not isinstance(data, dict) or set(data) != names:
            raise ModelError("the encoder's spec is incomplete", "rebuild the model or gallery with this version")
        return Spec(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def preprocess_of(spec: Spec) -> Preprocess:
    """Return the plain ``Preprocess`` part of ``spec``."""
    return Preprocess(**{f.name: getattr(spec, f.name) for f in fields(Preprocess)})


def spec_digest(preprocess: Preprocess, architecture: dict[str, Any], layer: str, weights_digest: str) -> str:
    """Return the SHA-256 hex digest over an encoder's architecture, weights, preprocessing and served layer."""
    document = {
        "architecture": architecture,
        "layer": layer,
        "preprocess": asdict(preprocess),
        "weights": weights_digest,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def require_pixels(pixels: Any, side: int) -> None:
    """Raise ModelError unless ``pixels``, an array or a tensor, is uint8 (N, 3, ``side``, ``side``)."""
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[1:] != (3, side, side) or dtype != "uint8":
        raise ModelError(f"pixels are {dtype} {shape}", f"give uint8 (N, 3, {side}, {side})")
