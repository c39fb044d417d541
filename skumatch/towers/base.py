"""What the three libraries' encoders have in common, and loading weights into them.

A Tower is a bare network with its published preprocessing; it knows nothing about galleries, training or bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skumatch.errors import ModelError
from skumatch.spec import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Bpe:
    """open_clip's own tokenizer in parts: ids of pieces, which pairs are merged, best first, and the tokens that stand
    for themselves, those of start and end first."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    special: Sequence[str]


@dataclass(frozen=True)
class TextTower:
    """The text side of a model: ``tokenize`` gives int64 (N, L) ids, ``encode`` (N, D) float features.

    ``length``: L. ``cleaning``: what is done to texts first, by open_clip's name: "lower", "whitespace",
    "canonicalize", or "" for nothing. ``bpe``: the tokenizer where ``save_tokenizer`` has nothing to save.
    """

    tokenize: Callable[[Sequence[str]], Tensor]
    encode: Callable[[Tensor], Tensor]
    save_tokenizer: Callable[[Path], None]
    length: int
    cleaning: str = ""
    bpe: Bpe | None = None


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint fitted: keys the model wanted and did not get, and keys that it had no use for."""

    source: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report as lines for a person (none when all fitted)."""
        found = []
        for what, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                shown = ", ".join(keys[:4]) + (" ..." if len(keys) > 4 else "")
                found.append(f"{self.source}: {len(keys)} {what} keys ({shown})")
        return found


@dataclass
class Tower:
    """An encoder as a library gives it.

    ``image`` maps normalised float32 (N, 3, S, S) to (N, dim) and shares its parameters with ``model``, which is
    what gets saved. ``architecture`` rebuilds ``model`` without any hub. ``resizable``: takes any S that is a multiple
    of ``patch`` pixels, not only its own.
    """

    name: str
    architecture: dict[str, Any]
    model: nn.Module
    image: nn.Module
    preprocess: Preprocess
    dim: int
    resizable: bool
    text: TextTower | None = None
    patch: int = 1
    report: LoadReport = field(default_factory=lambda: LoadReport("random initialisation"))


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from .pt/.pth/.bin with ``weights_only``. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist", "give the path of a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise ModelError(f"{path} is not a readable state dict", "save it as safetensors") from error
    except Exception as error:
        # torch raises pickle.UnpicklingError for a file with code in it; naming it would import pickle.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(f"{path} holds more than tensors", "save its state dict as safetensors") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    state = {strip_prefix(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise ModelError(f"{path} holds no tensors", "give a state dict")
    return state


def strip_prefix(key: str) -> str:
    """Remove what DataParallel and torch.compile put before a parameter's name."""
    for prefix in ("module.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return key


def fit_state(model: nn.Module, state: Mapping[str, Tensor], image_keys: set[str], source: str) -> LoadReport:
    """Copy ``state`` into ``model``; refuse unless every one of ``image_keys`` is there with the right shape.

    Returns what was missing (outside the image tower) and unexpected. Raises ModelError.
    """
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state]
    lacking = [k for k in missing if k in image_keys and not k.endswith("num_batches_tracked")]
    if lacking:
        raise ModelError(
            f"{source} lacks {len(lacking)} of {len(image_keys)} image tower weights (first: {lacking[0]})",
            "give a checkpoint of this architecture",
        )
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if wrong:
        raise ModelError(
            f"{source} does not fit: {wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(wanted[wrong[0]].shape)}",
            "give a checkpoint of this architecture and image size",
        )
    model.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    unexpected = sorted(k for k in state if k not in wanted)
    return LoadReport(source, tuple(k for k in missing if k not in image_keys), tuple(unexpected))


def image_keys(model: nn.Module, image: nn.Module) -> set[str]:
    """Return the names in ``model.state_dict()`` that the image side uses (tensors shared with ``image``)."""
    own = {id(t) for t in (*image.parameters(), *image.buffers())}
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    state = model.state_dict()
    return {name for name, tensor in named if id(tensor) in own and name in state}
