"""Low-rank updates on encoders of all three libraries: they start as nothing, learn, and leave no trace but theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skumatch.errors import ModelError
from skumatch.finetune.lora import LowRank, add_lora, lora_names, merge_lora, merged_state
from skumatch.finetune.parts import Lora
from skumatch.towers.build import ModelSource, build

HOW = Lora(rank=4, alpha=8.0)
# Per network: the side of its pictures, how many weights are adapted, and some of them.
NETWORKS = {
    "open_clip:skumatch-tiny-96": (
        96,
        4 * 4 + 1,
        {"proj", "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.attn.out_proj.weight"},
    ),
    "open_clip:resnet": (64, 18, {"layer1.0.conv1.weight", "attnpool.v_proj.weight"}),
    "timm:test_efficientnet": (96, 11, {"blocks.1.0.conv_pwl.weight", "conv_head.weight"}),
    "timm:resnet18": (64, 3, {"layer2.0.downsample.0.weight"}),
    "timm:test_convnext": (96, 18, {"stages.0.blocks.0.mlp.fc1.weight"}),
    "timm:test_vit": (160, 24, {"blocks.0.attn.qkv.weight", "blocks.5.mlp.fc2.weight"}),
    "clip": (32, 7, {"projection.weight"}),
    "siglip": (32, 10, {"vision.head.attention.in_proj_weight"}),
    "dinov2": (32, 6, {"vision.encoder.layer.0.mlp.fc1.weight"}),
}
each_network = pytest.mark.parametrize("name", NETWORKS)
Opened = Callable[[str], nn.Module]


@pytest.fixture
def opened(hf_folder: Path) -> Opened:
    """Return a function that builds an image tower with random weights, its first tensors drawn from a fixed seed."""

    def build_image(name: str) -> nn.Module:
        torch.manual_seed(0)
        if name == "open_clip:resnet":
            from open_clip.modified_resnet import ModifiedResNet

            resnet: nn.Module = ModifiedResNet([1, 2, 1, 1], output_dim=32, heads=4, image_size=64, width=16)
            return resnet.eval()
        full = name if ":" in name else f"hf:{hf_folder / name}"
        return build(ModelSource(full, random_init=True)).image.eval()

    return build_image


def answers(image: nn.Module, size: int) -> Tensor:
    first = next(image.parameters())
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = image(pictures.to(first.dtype))
    return found.float()


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def excite(image: nn.Module) -> None:
    """Give every B random values, as if it had been trained."""
    generator = torch.Generator().manual_seed(2)
    for module in image.modules():
        if isinstance(module, LowRank):
            module.up.data.normal_(0, 0.05, generator=generator)


@each_network
def test_updates_start_as_nothing_learn_and_merge(name: str, opened: Opened) -> None:
    size, count, some = NETWORKS[name]
    image = opened(name)
    shapes = [(key, tensor.shape) for key, tensor in image.state_dict().items()]
    kinds = [type(module) for module in image.modules()]
    untouched = answers(image, size)
    adapted = add_lora(image, HOW)
    assert len(adapted) == len(set(adapted)) == count and some <= set(adapted)
    assert distance(answers(image, size), untouched) < 1e-6
    excite(image)
    changed = answers(image, size)
    assert torch.isfinite(changed).all() and not torch.equal(changed, untouched)
    merged = merged_state(image)
    assert torch.equal(answers(image, size), changed)
    merge_lora(image)
    assert distance(answers(image, size), changed) < 1e-5
    assert [(key, tensor.shape) for key, tensor in image.state_dict().items()] == shapes
    assert [type(module) for module in image.modules()] == kinds and not lora_names(image)
    assert list(merged) == list(image.state_dict())
    assert all(torch.equal(tensor, merged[key]) for key, tensor in image.state_dict().items())
    fresh = opened(name)
    fresh.load_state_dict(merged)
    assert distance(answers(fresh, size), changed) < 1e-5


@each_network
def test_one_step_trains_the_updates_and_nothing_else(name: str, opened: Opened) -> None:
    size = NETWORKS[name][0]
    image = opened(name)
    adapted = add_lora(image, HOW)
    names = set(lora_names(image))
    assert len(names) == 2 * len(adapted)
    assert {key for key, p in image.named_parameters() if p.requires_grad} == names
    excite(image)  # while B is zero, A has no gradient
    before = {key: tensor.clone() for key, tensor in image.state_dict().items()}
    image.train()
    for module in image.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.AdamW([p for p in image.parameters() if p.requires_grad], lr=1e-2)
    image(torch.randn(2, 3, size, size)).square().mean().backward()
    assert {key for key, p in image.named_parameters() if p.grad is not None} == names
    optimizer.step()
    moved = {key for key, tensor in image.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == names


def test_attention_is_the_same_on_its_fast_path_and_off_it(opened: Opened) -> None:
    image = opened("open_clip:skumatch-tiny-96")
    attention = next(module for module in image.modules() if isinstance(module, nn.MultiheadAttention))
    add_lora(image, HOW)
    excite(image)
    tokens = torch.randn(2, 5, attention.embed_dim)
    slow = attention(tokens, tokens, tokens, need_weights=False)[0]
    assert slow.requires_grad
    with torch.inference_mode():
        fast = attention(tokens, tokens, tokens, need_weights=False)[0]
    assert torch.allclose(slow, fast, atol=1e-5)
    merge_lora(attention)
    assert torch.allclose(attention(tokens, tokens, tokens, need_weights=False)[0], slow, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "path", "weight"),
    [
        ("open_clip:skumatch-tiny-96", "transformer.resblocks.1.attn", "in_proj_weight"),
        ("timm:test_vit", "blocks.1.attn.qkv", "weight"),
    ],
)
def test_query_key_and_value_each_get_an_update_of_full_rank(name: str, path: str, weight: str, opened: Opened) -> None:
    image = opened(name)
    before = getattr(image.get_submodule(path), weight).detach().clone()
    add_lora(image, HOW)
    excite(image)
    update = getattr(image.get_submodule(path), weight).detach() - before
    spaces = [torch.linalg.svd(part)[2][:4] for part in update.chunk(3)]
    assert [int(torch.linalg.matrix_rank(part, rtol=1e-3)) for part in update.chunk(3)] == [4, 4, 4]
    overlap = (spaces[0] @ spaces[1].T).square().sum() / 4
    assert overlap < 0.9  # each part reads the tokens through an A of its own


def test_the_update_is_alpha_over_rank_times_b_a() -> None:
    layer = nn.Linear(6, 10)
    before = layer.weight.detach().clone()
    assert add_lora(layer, Lora(rank=2, alpha=3.0)) == ["weight"]
    update = next(module for module in layer.modules() if isinstance(module, LowRank))
    nn.init.normal_(update.up)
    assert update.down.shape == (2, 6) and update.up.shape == (10, 2)
    assert torch.allclose(layer.weight, before + 1.5 * update.up @ update.down, atol=1e-6)


def test_a_rank_larger_than_the_matrix_is_lowered() -> None:
    layers = nn.ModuleDict(
        {"small": nn.Linear(3, 10), "qkv": nn.Linear(8, 6), "attention": nn.MultiheadAttention(8, 2)}
    )
    add_lora(layers, Lora(rank=64, alpha=6.0))
    ranks = {path.partition(".")[0]: m for path, m in layers.named_modules() if isinstance(m, LowRank)}
    assert (ranks["small"].rank, ranks["small"].scale) == (3, 2.0)
    assert (ranks["qkv"].rank, ranks["qkv"].parts, ranks["qkv"].down.shape) == (2, 3, (6, 8))
    in_projection = layers["attention"].get_submodule("parametrizations.in_proj_weight.0")
    assert isinstance(in_projection, LowRank) and in_projection.rank == 8
    assert layers["qkv"](torch.randn(2, 8)).shape == (2, 6)


def test_the_same_seed_draws_the_same_matrices(opened: Opened) -> None:
    def drawn(seed: int) -> list[Tensor]:
        image = opened("timm:test_vit")
        torch.manual_seed(seed)
        add_lora(image, HOW)
        named = dict(image.named_parameters())
        return [named[name].detach() for name in lora_names(image)]

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[::2], other[::2], strict=True))
    assert all(float(up.abs().max()) == 0 for up in first[1::2])


@pytest.mark.parametrize("name", ["open_clip:skumatch-tiny-96", "timm:test_efficientnet"])
def test_copies_live_on_when_another_is_merged(name: str, opened: Opened) -> None:
    size = NETWORKS[name][0]
    image = opened(name)
    add_lora(image, HOW)
    excite(image)
    expected = answers(image, size)
    twin = copy.deepcopy(image)
    merge_lora(image)
    assert torch.equal(answers(twin, size), expected) and lora_names(twin)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert distance(answers(image, size), expected) < 1e-5  # they share no memory
    merge_lora(twin)
    assert list(twin.state_dict()) == list(image.state_dict())


@each_network
def test_a_bf16_copy_takes_parameters_by_order_and_gives_gradients_back(name: str, opened: Opened) -> None:
    size = NETWORKS[name][0]
    image = opened(name)
    add_lora(image, HOW)
    low = copy.deepcopy(image).to(torch.bfloat16)
    excite(image)
    with torch.no_grad():
        for copied, own in zip(low.parameters(), image.parameters(), strict=True):
            copied.copy_(own)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert distance(answers(low, size), answers(image, size)) < 0.1
    low(torch.randn(2, 3, size, size).bfloat16()).float().square().mean().backward()
    given = [key for key, p in low.named_parameters() if p.grad is not None]
    assert given == [key for key, p in image.named_parameters() if p.requires_grad]


def test_the_state_dict_of_an_adapted_network_goes_round(opened: Opened) -> None:
    image, other = opened("open_clip:skumatch-tiny-96"), opened("open_clip:skumatch-tiny-96")
    add_lora(image, HOW)
    add_lora(other, HOW)
    excite(image)
    assert distance(answers(other, 96), answers(image, 96)) > 1e-3
    other.load_state_dict(copy.deepcopy(image.state_dict()))
    assert torch.equal(answers(other, 96), answers(image, 96))


def test_what_merged_state_returns_does_not_follow_further_training(opened: Opened) -> None:
    image = opened("timm:test_efficientnet")
    add_lora(image, HOW)
    state = merged_state(image)
    kept = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        for tensor in (*image.parameters(), *image.buffers()):
            tensor.fill_(1)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in state.items())


def test_a_network_without_updates_is_left_as_it_is(opened: Opened) -> None:
    image = opened("timm:test_vit")
    own = image.state_dict()
    merge_lora(image)
    assert list(image.state_dict()) == list(own) and not parametrize.is_parametrized(image)
    assert all(torch.equal(tensor, own[key]) for key, tensor in merged_state(image).items())
    assert lora_names(image) == []


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    image = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    image[1].weight = image[0].weight
    assert add_lora(image, HOW) == ["2.weight"]
    merge_lora(image)
    assert image[1].weight is image[0].weight


def test_grouped_and_wider_convolutions_are_left_alone_and_nothing_to_adapt_is_refused() -> None:
    image = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ModelError, match="no linear layer"):
        add_lora(image, HOW)
    image.append(nn.Conv2d(4, 8, 1))
    assert add_lora(image, HOW) == ["3.weight"]
    with pytest.raises(ModelError, match="no linear layer"):
        add_lora(image, HOW)  # adapted already
