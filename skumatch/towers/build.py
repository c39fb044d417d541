"""From a name such as ``open_clip:ViT-B-32/openai`` to a Tower, and back from a bundle's architecture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from skumatch.errors import ModelError, nearest
from skumatch.spec import Preprocess, ResizeMode
from skumatch.towers.base import Tower

DEFAULT_MODEL = "open_clip:ViT-B-32/datacomp_xl_s13b_b90k"
LIBRARIES = ("open_clip", "timm", "hf")


@dataclass(frozen=True)
class ModelSource:
    """Which pretrained encoder to start from.

    ``name`` is ``open_clip:MODEL[/PRETRAINED]``, ``timm:MODEL`` or ``hf:REPO``. ``weights``: a local state dict in
    place of the published one. ``resize``, ``size``, ``crop_pct`` override the published preprocessing.
    """

    name: str = DEFAULT_MODEL
    weights: Path | None = None
    random_init: bool = False
    seed: int = 0
    resize: ResizeMode | None = None
    size: int | None = None
    crop_pct: float | None = None


def split_name(name: str) -> tuple[str, str]:
    """Return (library, identifier) of a model name. Raises ModelError."""
    library, colon, identifier = name.partition(":")
    if not colon or not identifier or library not in LIBRARIES:
        near = nearest(library, list(LIBRARIES))
        hint = f"did you mean {near}:...? " if near and library not in LIBRARIES else ""
        raise ModelError(
            f"'{name}' is neither a model folder nor a model name",
            f"{hint}write open_clip:MODEL[/PRETRAINED], timm:MODEL or hf:REPO",
        )
    return library, identifier


def build(source: ModelSource) -> Tower:
    """Build the encoder that ``source`` names, with weights. Raises ModelError or HubError."""
    import torch

    library, identifier = split_name(source.name)
    torch.manual_seed(source.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations are not the user's business
        if library == "open_clip":
            from skumatch.towers import open_clip as module
        elif library == "timm":
            from skumatch.towers import timm as module  # type: ignore[no-redef]
        else:
            from skumatch.towers import hf as module  # type: ignore[no-redef]
        tower = module.load(identifier, source.weights, source.random_init, source.size)
    tower.preprocess = override(tower.preprocess, source)
    return tower


class Overrides(Protocol):
    """Settings that replace an encoder's published preprocessing; None keeps it."""

    @property
    def resize(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def crop_pct(self) -> float | None: ...


def check_name(name: str) -> None:
    """Raise ModelError, naming the nearest, when no such encoder can exist. Builds and fetches nothing."""
    library, identifier = split_name(name)
    if library == "open_clip":
        from skumatch.towers import open_clip

        open_clip.find(identifier)
    elif library == "timm":
        from skumatch.towers import timm

        timm.require(identifier)


def override(published: Preprocess, source: Overrides) -> Preprocess:
    """Return ``published`` with what ``source`` sets; a crop_pct asks for resize mode crop."""
    changes: dict[str, Any] = {}
    if source.size:
        changes["size"] = source.size
    if source.resize:
        changes["resize"] = source.resize
    if source.crop_pct is not None:
        if (source.resize or published.resize) != "crop":
            raise ModelError("crop_pct goes with resize mode crop", "add --resize crop or leave out --crop-pct")
        changes["crop_pct"] = source.crop_pct
    return replace(published, **changes)


def rebuild(architecture: dict[str, Any], folder: Path) -> Tower:
    """Build the network of a bundle at ``folder`` with random values, without any hub. Raises ModelError."""
    library = architecture.get("library")
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "open_clip":
            from skumatch.towers import open_clip

            return open_clip.rebuild(architecture, tokenizer)
        if library == "timm":
            from skumatch.towers import timm

            return timm.rebuild(architecture)
        if library == "hf":
            from skumatch.towers import hf

            return hf.rebuild(architecture, tokenizer)
    raise ModelError(f"unknown library '{library}' in {folder}", "open it with the version that wrote it")
