"""Encoders from timm: pooled features of any of its image models (image side only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skumatch import hub
from skumatch.errors import ModelError, nearest
from skumatch.spec import Preprocess
from skumatch.towers.base import Tower, fit_state, image_keys, load_state


def load(identifier: str, weights: Path | None, random_init: bool, size: int | None) -> Tower:
    """Build ``timm:IDENTIFIER`` with a local state dict, random values or its published weights.

    ``size`` changes the network's own image size where it has a fixed one. Raises ModelError or HubError.
    """
    require(identifier)
    tower = rebuild({"library": "timm", "model": identifier, "size": size})
    if random_init:
        return tower
    if weights is None:
        return _published(tower, identifier, size)
    state = load_state(weights)
    tower.report = fit_state(tower.model, state, image_keys(tower.model, tower.image), str(weights))
    return tower


def require(identifier: str) -> None:
    """Raise ModelError, naming the nearest, when timm has no such model."""
    import timm

    if not timm.is_model(identifier):
        near = nearest(identifier, list(timm.list_models()))
        raise ModelError(f"timm has no model '{identifier}'", f"nearest names are: {near or 'none similar'}")


def _published(tower: Tower, identifier: str, size: int | None) -> Tower:
    """Return ``tower`` with the weights its authors published, through timm's own checkpoint conversion."""
    import timm

    repo = timm.get_pretrained_cfg(identifier).hf_hub_id
    if not repo:
        raise ModelError(f"timm publishes no weights for '{identifier}'", "add --weights FILE or --random-init")
    path = hub.fetch(repo, "model.safetensors")
    sized = {"img_size": size} if size and not tower.resizable else {}
    tower.model = tower.image = timm.create_model(
        identifier, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(path)}, **sized
    )
    return tower


def rebuild(architecture: dict[str, Any]) -> Tower:
    """Build the network of ``architecture`` with random values, without a hub."""
    import timm
    from timm.data import resolve_model_data_config

    identifier, size = str(architecture["model"]), architecture.get("size")
    model = timm.create_model(identifier, pretrained=False, num_classes=0)
    published = resolve_model_data_config(model)
    resizable = not model.pretrained_cfg.get("fixed_input_size", False)
    if size and not resizable:
        model = timm.create_model(identifier, pretrained=False, num_classes=0, img_size=size)
    how = Preprocess(
        size=int(size or published["input_size"][-1]),
        mean=published["mean"],
        std=published["std"],
        resize="squash" if published.get("crop_mode") == "squash" else "crop",
        crop_pct=float(published["crop_pct"]),
        interpolation="bilinear" if published["interpolation"] == "bilinear" else "bicubic",
    )
    dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
    return Tower(f"timm:{identifier}", architecture, model, model, how, dim, resizable)
