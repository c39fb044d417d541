"""Encoders from open_clip: the image tower, and the text tower with its tokenizer where both can be rebuilt offline."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skumatch import hub
from skumatch.errors import HubError, ModelError, nearest
from skumatch.spec import Preprocess
from skumatch.towers.base import Bpe, TextTower, Tower, fit_state, image_keys, load_state
from skumatch.towers.positions import with_any_size

CONFIGS = Path(__file__).parent / "configs"
TOKENIZER = "tokenizer"


def load(identifier: str, weights: Path | None, random_init: bool, size: int | None) -> Tower:
    """Build ``open_clip:MODEL[/PRETRAINED]`` with a local state dict, random values or published weights.

    Raises ModelError for unknown names or unfit weights, HubError when published weights are not to be had.
    """
    name, tag, config, published = find(identifier)
    if size:
        config["vision_cfg"]["image_size"] = size
    if published.get("quick_gelu"):
        config["quick_gelu"] = True
    tokenizer = _hub_tokenizer(config)
    architecture = {"library": "open_clip", "model": identifier, "config": config, "preprocess": _published(published)}
    source = None if random_init else weights or _fetch(name, tag, published)
    tower = rebuild(architecture, tokenizer)
    if source is not None:
        _load_weights(tower, source)
    return tower


def find(identifier: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Return (model, tag, its configuration, the tag's settings). Raises ModelError, naming the nearest."""
    import open_clip

    open_clip.add_model_config(CONFIGS)
    name, _, tag = identifier.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        near = nearest(name, list(open_clip.list_models()))
        raise ModelError(f"open_clip has no model '{name}'", f"nearest names are: {near or 'none similar'}")
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if tag and not published:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ModelError(f"open_clip has no weights '{tag}' for '{name}'", f"its weights are: {tags}")
    return name, tag, config, published


def _published(tag: dict[str, Any]) -> dict[str, Any]:
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {key: tag[key] for key in keys if tag.get(key) is not None}


def _fetch(name: str, tag: str, published: dict[str, Any]) -> Path:
    """Return the local path of published weights, preferring safetensors."""
    if not tag:
        raise ModelError(
            f"'open_clip:{name}' names no weights", f"write open_clip:{name}/TAG, or add --weights FILE / --random-init"
        )
    repo, _, filename = str(published.get("hf_hub") or "").rpartition("/")
    if not repo:
        raise ModelError(f"the weights '{tag}' of '{name}' are not on the hub", "download them and give --weights FILE")
    if filename:
        return hub.fetch(repo, filename)
    try:
        return hub.fetch(repo, "open_clip_model.safetensors")
    except HubError:
        hub.probe()  # the hub answers: this repository has no safetensors
        return hub.fetch(repo, "open_clip_pytorch_model.bin")


def _load_weights(tower: Tower, source: Path) -> None:
    """Fit a full CLIP state dict, or one of the image tower alone, into ``tower``."""
    import open_clip

    state = load_state(source)
    if not any(key.startswith(("visual.", "image.")) for key in state):
        state = {f"visual.{key}": value for key, value in state.items()}
    own = tower.model.state_dict()
    if any(key.startswith("text.") for key in own) and not any(key.startswith("text.") for key in state):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    if "visual.positional_embedding" in state and hasattr(tower.model, "visual"):
        open_clip.model.resize_pos_embed(state, tower.model)
    keys = image_keys(tower.model, tower.image)
    tower.report = fit_state(tower.model, state, keys, str(source))
    if any(not key.startswith("visual.") and key not in ("logit_scale", "logit_bias") for key in tower.report.missing):
        tower.text = None  # without its weights the text tower would answer at random


def rebuild(architecture: dict[str, Any], tokenizer: Path | str | None = None) -> Tower:
    """Build the network of ``architecture`` with random values, without a hub.

    ``tokenizer``: folder of a saved tokenizer, for models whose tokenizer is not open_clip's own.
    """
    config = json.loads(json.dumps(architecture["config"]))
    model = _image_only(config) if config["text_cfg"].get("hf_model_name") else _whole(config)
    how = _preprocess(architecture, model)
    patch = _patch(model.visual)
    if patch > 1:
        with_any_size(model.visual, patch)
    kind = type(model.visual).__name__
    tower = Tower(
        name=f"open_clip:{str(architecture['model']).partition('/')[0]}",
        architecture=architecture,
        model=model,
        image=model.visual,
        preprocess=how,
        dim=int(config["embed_dim"]),
        resizable=patch > 1 or not ("Transformer" in kind or "Timm" in kind or hasattr(model.visual, "attnpool")),
        patch=patch,
    )
    if not isinstance(model, ImageOnly):
        tower.text = _text(model, config, tokenizer)
    return tower


def _patch(visual: Any) -> int:
    """Return the patch size of open_clip's own VisionTransformer with learned positions, else 1."""
    side = getattr(visual, "patch_size", None)
    learned = getattr(visual, "positional_embedding", None)
    if type(visual).__name__ != "VisionTransformer" or not isinstance(learned, nn.Parameter) or side is None:
        return 1
    sides = side if isinstance(side, (tuple, list)) else (side, side)
    return int(sides[0]) if sides[0] == sides[1] and learned.requires_grad else 1


class ImageOnly(nn.Module):
    """The image tower alone, under the name it has in full checkpoints."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


def _image_only(config: dict[str, Any]) -> Any:
    """Build the image tower only: a text tower from another hub repository cannot be rebuilt offline."""
    import open_clip

    build = open_clip.model._build_vision_tower
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    return ImageOnly(build(config["embed_dim"], vision, config.get("quick_gelu", False)))


def _whole(config: dict[str, Any]) -> Any:
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # open_clip warns that nothing was loaded: here that is the intention
        try:
            return open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        finally:
            logging.disable(previous)


def _preprocess(architecture: dict[str, Any], model: Any) -> Preprocess:
    import open_clip

    published = architecture["preprocess"]
    size = model.visual.image_size
    modes = {"shortest": "crop", "squash": "squash", "longest": "pad"}
    return Preprocess(
        size=int(size[0] if isinstance(size, (tuple, list)) else size),
        mean=published.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        std=published.get("std") or open_clip.OPENAI_DATASET_STD,
        resize=modes[published.get("resize_mode") or "shortest"],  # type: ignore[arg-type]
        crop_pct=1.0,
        interpolation="bilinear" if published.get("interpolation") == "bilinear" else "bicubic",
    )


def _hub_tokenizer(config: dict[str, Any]) -> str | None:
    """Return the repository of a tokenizer that is not open_clip's own."""
    return config["text_cfg"].get("hf_tokenizer_name") or None


def _text(model: Any, config: dict[str, Any], tokenizer: Path | str | None) -> TextTower | None:
    """Return the text side, or None where its tokenizer is not on this machine and cannot be had."""
    import open_clip

    length = int(config["text_cfg"].get("context_length", 77))
    options = config["text_cfg"].get("tokenizer_kwargs", {})
    if _hub_tokenizer(config) is None:
        own = open_clip.SimpleTokenizer(context_length=length, **options)
        return TextTower(
            lambda texts: _ids(own(list(texts))),
            model.encode_text,
            lambda folder: None,
            length,
            options.get("clean", "lower"),
            _bpe(own),
        )
    if tokenizer is None:
        return None
    if not isinstance(tokenizer, Path):
        try:
            hub.fetch(str(tokenizer), "tokenizer_config.json")
        except HubError:
            return None
    other = open_clip.tokenizer.HFTokenizer(
        str(tokenizer), context_length=length, tokenizer_mode=config["text_cfg"].get("tokenizer_mode"), **options
    )

    def save(folder: Path) -> None:
        other.tokenizer.save_pretrained(folder / TOKENIZER)

    def tokenize(texts: Sequence[str]) -> Tensor:
        return _ids(other(list(texts)))

    return TextTower(tokenize, model.encode_text, save, length, options.get("clean", "whitespace"))


def _bpe(tokenizer: Any) -> Bpe | None:
    """Return the parts of open_clip's own tokenizer, None where it drops words by chance."""
    if tokenizer.reduction_fn is not None:
        return None
    special = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
    return Bpe(tokenizer.encoder, list(tokenizer.bpe_ranks), special)


def _ids(tokens: Any) -> Tensor:
    return torch.as_tensor(tokens, dtype=torch.int64)
