"""Which parameters are trained, and how fast: the block that each belongs to, counted from the input.

Knows the names that open_clip, timm and transformers give their layers, and nothing about data or objectives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from skumatch.errors import ModelError
from skumatch.finetune.lora import lora_names
from skumatch.finetune.parts import Mode
from skumatch.runtime.torch import memory_format

_BLOCK = re.compile(  # the innermost block of a parameter's name
    r"^(?:.*\.)?((?:blocks?|resblocks|layers?|stages?|h|features|denseblock\d+\.denselayer|s\d+\.b)\.?\d+(?:\.\d+)*)\."
)
_PROJECTION = re.compile(r"(?:^|\.)proj$")  # CLIP's: declared before the blocks, used behind them
_PLAIN = re.compile(r"position|pos_embed|cls_token|class_embedding")


def block_of(name: str) -> str | None:
    """Return the name of the innermost block that the tensor ``name`` belongs to, None for stem and top."""
    found = _BLOCK.search(name)
    return name[: found.end(1)] if found else None


def depths(image: nn.Module) -> dict[str, int]:
    """Return, per parameter name, 0 for the stem, then one more per block, and the highest for what follows them.

    Networks declare their layers in the order in which they run, so what stands between two blocks (a stage's norm)
    counts to the first. Where nothing follows the last block, that has the highest depth. A network without known
    blocks is all stem.
    """
    return _placed(image)[0]


def _placed(image: nn.Module) -> tuple[dict[str, int], int]:
    """Return (depth per parameter name, number of blocks)."""
    names = [name for name, _ in image.named_parameters()]
    blocks = {name: block for name in names if (block := block_of(name)) is not None}
    order = {block: depth for depth, block in enumerate(dict.fromkeys(blocks.values()), 1)}
    last = max((place for place, name in enumerate(names) if name in blocks), default=len(names))
    depth: dict[str, int] = {}
    reached = 0
    for place, name in enumerate(names):
        reached = max(reached, order[blocks[name]]) if name in blocks else reached
        behind = order and (place > last or (name not in blocks and _PROJECTION.search(name)))
        depth[name] = len(order) + 1 if behind else reached
    return depth, len(order)


def is_transformer(image: nn.Module) -> bool:
    """Return whether the network attends (ViT); attention on top of convolutions does not count."""
    attends = any("attention" in type(m).__name__.lower() for m in image.modules())
    return attends and memory_format(image) != torch.channels_last


def trainable(image: nn.Module, mode: Mode, freeze: float) -> list[str]:
    """Return the names of the parameters of ``image`` that are trained besides the training head.

    "head": none. "projection": what follows the last block (CLIP's projection, the last norm or convolution), or that
    block where nothing does. "lora": the matrices that ``add_lora`` put there. "full": all; with ``freeze`` > 0 all but
    the stem (a ViT's embeddings and positions too) and that share, 0..1, of the blocks, those nearest to the input.
    Raises ModelError where the blocks that this takes are not known.
    """
    if mode == "head":
        return []
    if mode == "lora":
        return lora_names(image)
    depth, blocks = _placed(image)
    if mode == "full" and freeze == 0:
        return list(depth)
    if blocks == 0:
        raise ModelError("the blocks of this network are not known", 'choose mode "full" with freeze = 0')
    highest = max(depth.values())
    first = highest if mode == "projection" else math.floor(freeze * blocks + 1e-9) + 1  # 0.29 * 100 is 28.999...
    return [name for name, place in depth.items() if place >= first]


def frozen_modules(image: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """Return the modules of which no parameter, own or further inside, is among the trained ones ``names``.

    Each is the outermost of its kind. In evaluation mode their batch statistics and dropout stand still. A module
    without parameters is in none but those around it.
    """
    trains: set[str] = set()
    for name in names:
        path = name
        while path:
            path = path.rpartition(".")[0]
            trains.add(path)
    return [
        module
        for path, module in image.named_modules()
        if path not in trains
        and (not path or path.rpartition(".")[0] in trains)
        and next(module.parameters(), None) is not None
    ]


def parameter_groups(
    image: nn.Module, names: Collection[str], lr: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW groups of the parameters ``names``: learning rate ``lr`` at the top, times ``decay`` per block
    downwards, whether or not what lies above is trained.

    Norms, biases, class tokens and positions get no weight decay.
    """
    depth = depths(image)
    top = max(depth.values(), default=0)
    wanted = set(names)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in image.named_parameters():
        if name not in wanted:
            continue
        decays = parameter.ndim >= 2 and not _PLAIN.search(name)
        group = groups.setdefault(
            (depth[name], decays),
            {"params": [], "lr": lr * decay ** (top - depth[name]), "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())
