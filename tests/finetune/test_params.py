"""What is trained and how fast, on encoders of all three libraries: convolutions, attention, and both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from skumatch.errors import ModelError
from skumatch.finetune.lora import add_lora
from skumatch.finetune.params import depths, frozen_modules, is_transformer, parameter_groups, trainable
from skumatch.finetune.parts import Lora
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

# Per network: its blocks, the side of a picture, modules that freeze = 0.4 freezes, and what "projection" trains.
FREEZES: dict[str, tuple[int, int, set[str], set[str]]] = {
    "timm:mobilenetv2_100": (
        17,
        64,
        {"conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"},
        {"conv_head.weight", "bn2.weight", "bn2.bias"},
    ),
    "timm:vit_tiny_patch16_224": (
        12,
        64,
        {"patch_embed", *(f"blocks.{i}" for i in range(4))},
        {"norm.weight", "norm.bias"},
    ),
    "timm:resnet18": (
        8,
        64,
        {"conv1", "bn1", "layer1", "layer2.0"},
        {f"layer4.1.{n}" for n in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")},
    ),
    "timm:convnext_atto": (
        15,
        64,
        {"stem", "stages.0", "stages.1", "stages.2.downsample"},
        {"head.norm.weight", "head.norm.bias"},
    ),
    "timm:pvt_v2_b0": (12, 64, {"patch_embed", "stages.0", "stages.1.downsample"}, set()),
    "timm:regnety_002": (13, 64, {"stem", "s1", "s2", "s3.b1", "s3.b2", "s3.b3"}, set()),
    "open_clip:skumatch-tiny-96": (
        4,
        96,
        {"conv1", "transformer.resblocks.0"},
        {"proj", "ln_post.weight", "ln_post.bias"},
    ),
    "open_clip:resnet": (
        5,
        64,
        {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2.0"},
        {"attnpool.positional_embedding"}
        | {f"attnpool.{p}_proj.{kind}" for p in ("q", "k", "v", "c") for kind in ("weight", "bias")},
    ),
    "hf:clip": (
        3,
        32,
        {"vision.embeddings", "vision.pre_layrnorm", "vision.encoder.layers.0"},
        {"projection.weight", "vision.post_layernorm.weight", "vision.post_layernorm.bias"},
    ),
}


def opened(name: str, hf_folder: Path) -> Tower:
    full = name if ":" in name else f"hf:{hf_folder / name}"
    return build(ModelSource(full, random_init=True))


def network(name: str) -> nn.Module:
    """Build the image tower ``name`` with random weights, small where the library allows it."""
    torch.manual_seed(0)
    if name == "open_clip:resnet":
        from open_clip.modified_resnet import ModifiedResNet

        resnet: nn.Module = ModifiedResNet([1, 2, 1, 1], output_dim=32, heads=4, image_size=64, width=16)
        return resnet
    if name == "hf:clip":
        return hf_clip()
    size = 64 if name == "timm:vit_tiny_patch16_224" else None
    return build(ModelSource(name, random_init=True, size=size)).image


def hf_clip() -> nn.Module:
    import transformers as hf

    from skumatch.towers.hf import PooledImage

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    vision = hf.CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=32, patch_size=16, projection_dim=12)
    return PooledImage(hf.CLIPVisionModelWithProjection(vision))


def train_only(image: nn.Module, names: list[str]) -> list[nn.Module]:
    """Set ``image`` up as stage 2 of training does; return the frozen modules."""
    image.train()
    for name, parameter in image.named_parameters():
        parameter.requires_grad_(name in names)
    frozen = frozen_modules(image, names)
    for module in frozen:
        module.eval()
    return frozen


def pictures(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def paths(image: nn.Module, modules: list[nn.Module]) -> set[str]:
    own = {id(module): path for path, module in image.named_modules()}
    return {own[id(module)] for module in modules}


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
    found = depths(image)
    groups = parameter_groups(image, list(found), 1e-3, 0.5, 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in image.parameters())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(image.named_parameters())
    stem, last = (
        next(p for key, p in named.items() if key.endswith(part)) for part in (PLACES[name][0], PLACES[name][3])
    )
    assert rates[id(stem)] < rates[id(last)] <= 1e-3
    deepest = max(found.values())
    for key, parameter in named.items():
        assert rates[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (deepest - found[key]))


@pytest.mark.parametrize("name", PLACES)
def test_norms_biases_and_positions_get_no_weight_decay(name: str, hf_folder: Path) -> None:
    image = opened(name, hf_folder).image
    groups = parameter_groups(image, list(depths(image)), 1e-3, 0.9, 0.1)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for key, parameter in image.named_parameters():
        plain = key.endswith("bias") or parameter.ndim < 2 or "pos" in key.rsplit(".", 2)[-1] or "cls_token" in key
        if plain:
            assert decay[id(parameter)] == 0, key
        elif key.endswith("weight") and "position" not in key:
            assert decay[id(parameter)] == 0.1, key


def test_groups_hold_the_named_parameters_only_at_the_rate_of_their_depth() -> None:
    image = network("timm:test_vit")
    names = ["blocks.4.mlp.fc1.weight", "blocks.4.norm1.weight", "norm.weight"]
    groups = parameter_groups(image, names, 1e-3, 0.5, 0.1)
    held = [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    assert held == [(2.5e-4, 0.0, 1), (2.5e-4, 0.1, 1), (1e-3, 0.0, 1)]  # a frozen layer above takes no rate away
    assert parameter_groups(image, [], 1e-3, 0.5, 0.1) == []


@pytest.mark.parametrize("name", PLACES)
def test_transformers_are_told_from_convolution_nets(name: str, hf_folder: Path) -> None:
    assert is_transformer(opened(name, hf_folder).image) == (name in TRANSFORMERS)


@pytest.mark.parametrize("name", FREEZES)
def test_a_frozen_share_of_the_blocks_is_the_networks_beginning(name: str) -> None:
    blocks, size, expected, _ = FREEZES[name]
    image = network(name)
    names = trainable(image, "full", 0.4)
    found = depths(image)
    assert max(depth for key, depth in found.items() if key not in names) == int(0.4 * blocks)
    frozen = train_only(image, names)
    assert paths(image, frozen) == expected
    reached: list[bool] = []
    for module in frozen:
        module.register_forward_hook(lambda module, entered, left: reached.append(left.requires_grad))
    before = {key: tensor.clone() for key, tensor in image.state_dict().items()}
    image(pictures(size)).square().sum().backward()
    assert len(reached) >= len(frozen) and not any(reached)  # no gradient flows into what is frozen
    for key, parameter in image.named_parameters():
        assert (parameter.grad is not None) == (key in names), key
    moved = {
        key.rpartition(".")[0] for key, tensor in image.state_dict().items() if not torch.equal(tensor, before[key])
    }
    assert not any(path == part or path.startswith(f"{part}.") for path in moved for part in expected)
    trained_norms = {path for path, m in image.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert moved == trained_norms


@pytest.mark.parametrize("name", FREEZES)
def test_each_mode_trains_its_part(name: str) -> None:
    blocks, _, _, behind = FREEZES[name]
    image = network(name)
    every = [key for key, _ in image.named_parameters()]
    found = depths(image)
    assert len({depth for depth in found.values() if 0 < depth <= blocks}) == blocks
    assert trainable(image, "head", 0.0) == []
    assert trainable(image, "lora", 0.0) == []  # nothing was added
    assert trainable(image, "full", 0.0) == every
    assert trainable(image, "full", 1e-6) == [key for key in every if found[key] > 0]
    last = trainable(image, "projection", 0.0)
    assert last == [key for key in every if found[key] == max(found.values())]
    assert not behind or set(last) == behind
    follows = set(found.values()) - set(range(blocks + 1))
    assert trainable(image, "full", 1.0) == (last if follows else [])


def test_a_share_that_is_a_whole_number_of_blocks_freezes_that_many() -> None:
    image = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(100))})
    assert len(trainable(image, "full", 0.29)) == 71  # 0.29 * 100 is 28.999... in floating point


def test_lora_mode_trains_the_low_rank_matrices_with_weight_decay_at_their_blocks_rate() -> None:
    image = network("open_clip:skumatch-tiny-96")
    plain = depths(image)
    adapted = add_lora(image, Lora(rank=4))
    names = trainable(image, "lora", 0.0)
    assert len(names) == 2 * len(adapted) == 2 * (4 * 4 + 1)
    found = depths(image)
    for key in names:
        path, _, rest = key.partition("parametrizations.")
        assert found[key] == plain[path + rest.partition(".")[0]], key
    groups = parameter_groups(image, names, 1e-3, 0.5, 0.1)
    assert sorted(group["lr"] for group in groups) == [1e-3 * 0.5**i for i in (4, 3, 2, 1, 0)]
    assert {group["weight_decay"] for group in groups} == {0.1}


@pytest.mark.parametrize("mode", ["head", "lora"])
def test_batch_norms_stand_still_where_only_head_or_updates_are_trained(mode: str) -> None:
    image = network("timm:test_efficientnet")
    if mode == "lora":
        add_lora(image, Lora())
    names = trainable(image, "lora" if mode == "lora" else "head", 0.0)
    train_only(image, names)
    norms = [module for module in image.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.weight.clone()) for norm in norms if norm.running_mean is not None]
    image(pictures(96))
    after = [(norm.running_mean, norm.weight) for norm in norms]
    assert len(before) == len(after) > 5
    for (mean, weight), (mean_after, weight_after) in zip(before, after, strict=True):
        assert mean_after is not None and torch.equal(mean, mean_after) and torch.equal(weight, weight_after)


def test_frozen_modules_are_the_outermost_and_all_is_frozen_where_nothing_is_trained() -> None:
    image = network("timm:test_vit")
    assert frozen_modules(image, []) == [image]
    assert frozen_modules(image, [key for key, _ in image.named_parameters()]) == []
    found = paths(image, frozen_modules(image, ["blocks.5.mlp.fc2.bias"]))
    inside = {"blocks.5.norm1", "blocks.5.attn", "blocks.5.norm2", "blocks.5.mlp.fc1"}
    assert {path for path in found if path.startswith("blocks.5")} >= inside
    assert {path for path in found if not path.startswith("blocks.5")} == {
        "patch_embed",
        "norm",
        *(f"blocks.{i}" for i in range(5)),
    }


@pytest.mark.parametrize(("mode", "freeze"), [("projection", 0.0), ("full", 0.5)])
def test_a_network_without_known_blocks_is_trained_in_full_or_refused(mode: Any, freeze: float) -> None:
    image = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert len(trainable(image, "full", 0.0)) == 4
    with pytest.raises(ModelError, match="blocks of this network"):
        trainable(image, mode, freeze)
