"""The seam between pixels and vectors, and choosing what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from skumatch.errors import ModelError
from skumatch.spec import Pixels, Spec, Vectors

if TYPE_CHECKING:
    from skumatch.runtime.guard import Guard
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.towers.build import ModelSource


class Encoder(Protocol):
    """Turns pixels into vectors that may be compared by dot product."""

    @property
    def spec(self) -> Spec:
        """What this encoder is; galleries are tied to ``spec.digest``."""
        ...

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) rows of unit length."""
        ...


def asking(encoder: Encoder, vectors: Vectors) -> Vectors:
    """Return the rows to ask a gallery with, of what ``encoder`` gave of crops: as they are, unless guarded.

    Every search of crops goes through here; views of a gallery keep the vectors that the encoder gives.
    """
    guard: Guard | None = getattr(encoder, "guard", None)
    return vectors if guard is None or not len(vectors) else guard.asking(vectors)


class TextEncoder(Protocol):
    """Turns texts into vectors in the space of the image vectors, where the model has a text tower."""

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Map N texts to float32 (N, D) rows of unit length."""
        ...


def open_encoder(model: Path | str | ModelSource, device: str = "auto") -> TorchEncoder:
    """Open a bundle folder (or a store of bundles), or an untouched encoder by name or ModelSource.

    A bundle opens without any hub. Raises ModelError, HubError, ArtefactError or DeviceError.
    """
    from skumatch.runtime.torch import TorchEncoder, pick_device
    from skumatch.towers.build import ModelSource, build

    pick_device(device)
    if isinstance(model, ModelSource):
        return TorchEncoder(build(model), device=device)
    folder = Path(model)
    if folder.is_dir():
        from skumatch.model import open_bundle

        tower, served, spec = open_bundle(folder).load()
        return TorchEncoder(tower, served, device, spec)
    if isinstance(model, Path) or ":" not in model:
        raise ModelError(f"model folder {model} does not exist", "give a folder that `skumatch finetune` wrote")
    return TorchEncoder(build(ModelSource(model)), device=device)
