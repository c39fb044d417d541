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
    fixed = bool(timm.get_pretrained_cfg(identifier).fixed_input_size)
    options = _options(size, fixed, tower.patch)
    tower.model = tower.image = timm.create_model(
        identifier, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(path)}, **options
    )
    return tower


def rebuild(architecture: dict[str, Any]) -> Tower:
    """Build the network of ``architecture`` with random values, without a hub."""
    import timm
    from timm.data import resolve_model_data_config

    identifier, size = str(architecture["model"]), architecture.get("size")
    plain = timm.create_model(identifier, pretrained=False, num_classes=0)
    published = resolve_model_data_config(plain)
    fixed = bool(plain.pretrained_cfg.get("fixed_input_size", False))
    patch = _patch(plain)
    options = _options(size, fixed, patch)
    model = timm.create_model(identifier, pretrained=False, num_classes=0, **options) if options else plain
    how = Preprocess(
        size=int(size or published["input_size"][-1]),
        mean=published["mean"],
        std=published["std"],
        resize="squash" if published.get("crop_mode") == "squash" else "crop",
        crop_pct=float(published["crop_pct"]),
        interpolation="bilinear" if published["interpolation"] == "bilinear" else "bicubic",
    )
    dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
    resizable = not fixed or patch > 1
    return Tower(f"timm:{identifier}", architecture, model, model, how, dim, resizable, patch=patch)


def _patch(model: Any) -> int:
    """Return the patch size of a transformer that can resample its positions, 1 for every other network."""
    sides = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if not hasattr(model, "dynamic_img_size") or sides is None:
        return 1
    height, width = sides
    return int(height) if height == width else 1


def _options(size: int | None, fixed: bool, patch: int) -> dict[str, Any]:
    """Return what timm is told so that the network takes ``size``, and any other where it is a transformer."""
    dynamic = {"dynamic_img_size": True} if patch > 1 else {}
    return {"img_size": size, **dynamic} if size and fixed else dynamic
