"""Encoders from transformers: CLIP (FashionCLIP too), SigLIP, and image-only models such as DINOv2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skumatch import hub
from skumatch.errors import HubError, ModelError
from skumatch.spec import Preprocess
from skumatch.towers.base import TextTower, Tower, fit_state, image_keys, load_state

TOKENIZER = "tokenizer"
POSITIONED = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")  # they interpolate positions when told to
ANY_SIZE = ("dinov2", "convnext", "convnextv2", "resnet")


class PooledImage(nn.Module):
    """The image side of a transformers model: (N, 3, S, S) to its pooled (and projected) vector."""

    def __init__(self, model: Any, own_size: int = 0) -> None:
        super().__init__()
        self.own_size = own_size  # of pictures whose positions are as they were trained; 0: the network takes any
        self.vision = getattr(model, "vision_model", model)
        self.projection = getattr(model, "visual_projection", None)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, D) features."""
        other = {"interpolate_pos_encoding": True} if self.own_size not in (0, images.shape[-1]) else {}
        pooled: Tensor = self.vision(pixel_values=images, **other).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


def load(identifier: str, weights: Path | None, random_init: bool, size: int | None) -> Tower:
    """Build ``hf:REPO`` (a hub repository or a local folder with config.json). Raises ModelError or HubError."""
    config = _json(_file(identifier, "config.json"))
    processor = _json(_file(identifier, "preprocessor_config.json"))
    if not all(processor.get(key) for key in ("image_mean", "image_std", "size")):
        raise ModelError(f"{identifier}: preprocessor_config.json lacks size, image_mean or image_std", "complete it")
    folder = Path(identifier)
    local = folder.is_dir()
    tokenizer = folder if local else _cached_tokenizer(identifier)
    name = folder.name if local else identifier  # the digest must not depend on where a folder lies
    tower = rebuild({"library": "hf", "model": name, "config": config, "processor": processor}, tokenizer)
    if size and size != tower.preprocess.size:
        if not tower.resizable:
            raise ModelError(f"hf:{identifier} takes {tower.preprocess.size} px only", "leave out --size")
        if size % tower.patch:
            raise ModelError(f"hf:{identifier} takes multiples of {tower.patch} px, not {size}", "choose another size")
        tower.preprocess = replace(tower.preprocess, size=size)
    if random_init:
        return tower
    source = weights or _weights(identifier)
    state = _current_names(tower.model, load_state(source))
    tower.report = fit_state(tower.model, state, image_keys(tower.model, tower.image), str(source))
    if any(key.startswith(("text_model.", "text_projection.")) for key in tower.report.missing):
        tower.text = None
    return tower


def _current_names(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` under the names that this version of transformers uses: published files keep older ones."""
    if set(model.state_dict()) <= set(state):
        return state
    from transformers.utils import logging as noise

    bar, level = noise.is_progress_bar_enabled(), noise.get_verbosity()
    noise.disable_progress_bar()
    noise.set_verbosity_error()
    try:
        loaded, info = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(state), output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        noise.set_verbosity(level)
        if bar:
            noise.enable_progress_bar()
    invented = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    found = {key: tensor for key, tensor in loaded.state_dict().items() if key not in invented}
    return {**found, **{key: state[key] for key in info["unexpected_keys"] if key in state}}


def _weights(identifier: str) -> Path:
    try:
        return _file(identifier, "model.safetensors")
    except HubError:
        hub.probe()  # the hub answers: this repository has no safetensors
        return _file(identifier, "pytorch_model.bin")


def _file(identifier: str, filename: str) -> Path:
    folder = Path(identifier)
    if not folder.is_dir():
        return hub.fetch(identifier, filename)
    if not (folder / filename).is_file():
        raise HubError(f"{folder} has no {filename}", "give a folder as save_pretrained writes it")
    return folder / filename


def _cached_tokenizer(identifier: str) -> Path | None:
    """Return the folder that the tokenizer's files were fetched to, None where the model has none."""
    found = None
    for filename in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        try:
            found = hub.fetch(identifier, filename).parent
        except HubError:
            continue
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON", "fetch the model again") from error


def rebuild(architecture: dict[str, Any], tokenizer: Path | None = None) -> Tower:
    """Build the network of ``architecture`` with random values, without a hub."""
    from transformers import AutoConfig, AutoModel

    config = dict(architecture["config"])
    try:
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        model = AutoModel.from_config(made)
    except (KeyError, ValueError) as error:
        raise ModelError(f"transformers cannot build hf:{architecture['model']} ({error})", "update it") from error
    model.float().eval()  # a config may ask for half precision, which only a device can decide
    vision = getattr(made, "vision_config", made)
    positioned = made.model_type in POSITIONED
    image = PooledImage(model, int(vision.image_size) if positioned else 0)
    how = _preprocess(architecture["processor"], vision)
    with torch.inference_mode():
        probe = image(torch.zeros(1, 3, how.size, how.size))
    return Tower(
        name=f"hf:{architecture['model']}",
        architecture=architecture,
        model=model,
        image=image,
        preprocess=how,
        dim=int(probe.shape[1]),
        resizable=positioned or made.model_type in ANY_SIZE,
        patch=int(vision.patch_size) if positioned or made.model_type == "dinov2" else 1,
        text=_text(model, made, tokenizer),
    )


def _preprocess(processor: dict[str, Any], vision: Any) -> Preprocess:
    """Read a transformers image processor: with a centre crop it is "crop", without one "squash"."""
    sizes = processor["size"]
    short = sizes if isinstance(sizes, int) else sizes.get("shortest_edge") or sizes.get("height")
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    side = crop if crop is None or isinstance(crop, int) else crop["height"]
    size = int(side or short or getattr(vision, "image_size", 224))
    whole = side is not None and "height" not in (sizes if isinstance(sizes, dict) else {})
    return Preprocess(
        size=size,
        mean=processor["image_mean"],
        std=processor["image_std"],
        resize="crop" if whole else "squash",
        crop_pct=min(1.0, size / int(short)) if whole and short else 1.0,
        interpolation="bilinear" if processor.get("resample") == 2 else "bicubic",
    )


def _text(model: Any, config: Any, source: Path | None) -> TextTower | None:
    if not hasattr(model, "get_text_features") or source is None or not any(source.glob("*token*")):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    length = config.text_config.max_position_embeddings

    def tokenize(texts: Sequence[str]) -> Tensor:
        found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = found["input_ids"]
        return ids

    def encode(ids: Tensor) -> Tensor:
        pooled: Tensor = model.get_text_features(input_ids=ids).pooler_output
        return pooled

    def save(folder: Path) -> None:
        tokenizer.save_pretrained(folder / TOKENIZER)

    return TextTower(tokenize, encode, save, length)
