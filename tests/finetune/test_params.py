"""Layer-wise learning rates on the encoders that skumatch opens: all three libraries, convolutions and attention."""

from __future__ import annotations

from pathlib import Path

import pytest

from skumatch.finetune.params import depths, is_transformer, parameter_groups
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build

# Per network: a parameter of its stem, one of an early and one of a late block, and one behind all blocks.
PLACES = {
    "open_clip:skumatch-tiny-96": ("conv1.weight", "resblocks.0.attn", "resblocks.3.mlp", "proj"),
    "timm:test_efficientnet": ("conv_stem.weight", "blocks.0.0.conv", "blocks.4.0.conv_pw", "conv_head.weight"),
    "timm:test_resnet": ("conv1.0.weight", "layer1.0.conv1", "layer4.0.conv1", "layer4.0.conv2.weight"),
    "timm:test_convnext": ("stem.0.weight", "stages.0.blocks.0", "stages.3.blocks.1", "head.norm.weight"),
    "timm:test_vit": ("patch_embed.proj.weight", "blocks.0.attn", "blocks.5.mlp", "norm.weight"),
    "clip": ("patch_embedding.weight", "layers.0.self_attn", "layers.0.mlp", "projection.weight"),
    "siglip": ("patch_embedding.weight", "layers.0.self_attn", "layers.0.mlp", "head.probe"),
    "dinov2": ("patch_embeddings.projection.weight", "layer.0.attention", "layer.0.mlp", "layernorm.weight"),
}
TRANSFORMERS = {"open_clip:skumatch-tiny-96", "timm:test_vit", "clip", "siglip", "dinov2"}


def opened(name: str, hf_folder: Path) -> Tower:
    full = name if ":" in name else f"hf:{hf_folder / name}"
    return build(ModelSource(full, random_init=True))


@pytest.mark.parametrize("name", PLACES)
def test_depth_grows_towards_the_output(name: str, hf_folder: Path) -> None:
    image = opened(name, hf_folder).image
    found = depths(image)
    assert set(found) == {key for key, _ in image.named_parameters()}

    def depth(part: str) -> int:
        values = {value for key, value in found.items() if part in key and (part != "proj" or key == part)}
        assert len(values) == 1, f"{part}: {values}"
        return values.pop()

    stem, early, late, last = (depth(part) for part in PLACES[name])
    assert stem == 0
    assert stem < early <= late <= last
    blocks = {"open_clip:skumatch-tiny-96": 4, "timm:test_vit": 6}.get(name)
    if blocks:
        assert (early, late, last) == (1, blocks, blocks + 1)


@pytest.mark.parametrize("name", PLACES)
def test_every_parameter_is_in_exactly_one_group_with_its_depths_rate(name: str, hf_folder: Path) -> None:
    image = opened(name, hf_folder).image
    groups = parameter_groups(image, 1e-3, 0.5, 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in image.parameters())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(image.named_parameters())
    stem, last = (
        next(p for key, p in named.items() if key.endswith(part)) for part in (PLACES[name][0], PLACES[name][3])
    )
    assert rates[id(stem)] < rates[id(last)] <= 1e-3
    found = depths(image)
    deepest = max(found.values())
    for key, parameter in named.items():
        assert rates[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (deepest - found[key]))


@pytest.mark.parametrize("name", PLACES)
def test_norms_biases_and_positions_get_no_weight_decay(name: str, hf_folder: Path) -> None:
    image = opened(name, hf_folder).image
    decay = {id(p): g["weight_decay"] for g in parameter_groups(image, 1e-3, 0.9, 0.1) for p in g["params"]}
    for key, parameter in image.named_parameters():
        plain = key.endswith("bias") or parameter.ndim < 2 or "pos" in key.rsplit(".", 2)[-1] or "cls_token" in key
        if plain:
            assert decay[id(parameter)] == 0, key
        elif key.endswith("weight") and "position" not in key:
            assert decay[id(parameter)] == 0.1, key


@pytest.mark.parametrize("name", PLACES)
def test_transformers_are_told_from_convolution_nets(name: str, hf_folder: Path) -> None:
    assert is_transformer(opened(name, hf_folder).image) == (name in TRANSFORMERS)
