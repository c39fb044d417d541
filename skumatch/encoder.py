"""The seam between pixels and vectors, and choosing what stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skumatch.errors import ConfigError, ModelError
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


def beginning(encoder: Encoder) -> Callable[[Any], Callable[[], Vectors]] | None:
    """Return how ``encoder`` takes pixels before it is done with the last ones: it gives what waits for the vectors.

    None where that would gain nothing: it computes where the caller does.
    """
    found: Callable[[Any], Callable[[], Vectors]] | None = getattr(encoder, "begin", None)
    return found


def pixels_on(encoder: Encoder) -> str:
    """Return the torch device, "cuda:0", on which ``encode`` takes pixels as a tensor too; "" for the host alone."""
    return str(getattr(encoder, "pixels_on", ""))


class TextEncoder(Protocol):
    """Turns texts into vectors in the space of the image vectors, where the model has a text tower."""

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Map N texts to float32 (N, D) rows of unit length."""
        ...


def open_engine(
    model: Path | str, device: str = "auto", runtime: str = "auto", precision: str | None = None
) -> Encoder:
    """Open a model for answering on the ``runtime`` "torch", "onnx", "openvino", "tensorrt", or "auto": any of them.

    ``model``: a bundle folder, a store of bundles, an exported ``.onnx`` or ``.xml`` file, or an untouched encoder by
    name, which torch runs. ``precision`` ("fp32", "fp16", "bf16", "int8"): None for any. Of several ways to run a
    bundle whose answers were found within the limits the fastest on this machine is taken, measured once and then
    remembered; torch in float32 is one of those of "auto". Raises ModelError, HubError, ArtefactError, DeviceError or
    ConfigError.
    """
    from skumatch.runtime.exports import RUNTIMES, Way

    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime '{runtime}'", f"choose {', '.join(RUNTIMES)}")
    folder = Path(model)
    if folder.suffix in (".onnx", ".xml"):
        own = {".onnx": "onnx", ".xml": "openvino"}[folder.suffix] if runtime == "auto" else runtime
        return Way(own, precision or "fp32", folder.name).open(folder.parent, device)
    if runtime == "torch" or not folder.is_dir():
        if runtime not in ("torch", "auto"):
            raise ModelError(f"{model} has no export", "fine-tune or calibrate it, then `skumatch export`")
        return open_encoder(model, device, precision or "fp32")
    from skumatch.model import open_bundle
    from skumatch.runtime.fastest import choose

    bundle = open_bundle(folder)
    return choose(bundle, device, runtime, precision).open(bundle.folder, device)


def open_encoder(model: Path | str | ModelSource, device: str = "auto", precision: str = "fp32") -> TorchEncoder:
    """Open a bundle folder (or a store of bundles), or an untouched encoder by name or ModelSource, run by torch.

    A bundle opens without any hub. Raises ModelError, HubError, ArtefactError, DeviceError or ConfigError.
    """
    from skumatch.runtime.torch import TorchEncoder, pick_device
    from skumatch.towers.build import ModelSource, build

    pick_device(device)
    if isinstance(model, ModelSource):
        return TorchEncoder(build(model), device=device, precision=precision)
    folder = Path(model)
    if folder.is_dir():
        from skumatch.model import open_bundle

        tower, served, spec = open_bundle(folder).load()
        return TorchEncoder(tower, served, device, spec, precision)
    if isinstance(model, Path) or ":" not in model:
        raise ModelError(f"model folder {model} does not exist", "give a folder that `skumatch finetune` wrote")
    return TorchEncoder(build(ModelSource(model)), device=device, precision=precision)
