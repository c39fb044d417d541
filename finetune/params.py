"""Layer-wise learning rates: which block a parameter belongs to, counted from the input."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from skumatch.runtime.torch import memory_format

_BLOCK = re.compile(r"^(?:.*\.)?((?:blocks|resblocks|layers|layer|stages|h)\.?\d*(?:\.\d+)*)\.")  # the innermost
_LAST = re.compile(
    r"(?:^|\.)(proj|projection|head|norm|ln_post|post_layernorm|fc_norm|conv_head|bn2|attnpool|layernorm)(?:\.|$)"
)
_STEM = re.compile(r"(?:^|\.)(stem|patch_embed|embeddings)\.")  # holds a proj or norm of its own
_PLAIN = re.compile(r"position|pos_embed|cls_token|class_embedding")


def depths(image: nn.Module) -> dict[str, int]:
    """Return, per parameter name, 0 for the stem, then one more per block, and the highest for what follows them."""
    order: dict[str, int] = {}
    found: dict[str, int | None] = {}
    for name, _ in image.named_parameters():
        block = _BLOCK.search(name)
        if block:
            found[name] = order.setdefault(name[: block.end(1)], len(order) + 1)
        else:
            found[name] = None if _LAST.search(name) and not _STEM.search(name) else 0
    top = len(order) + 1
    return {name: top if depth is None else depth for name, depth in found.items()}


def is_transformer(image: nn.Module) -> bool:
    """Return whether the network attends (ViT); attention on top of convolutions does not count."""
    attends = any("attention" in type(m).__name__.lower() for m in image.modules())
    return attends and memory_format(image) != torch.channels_last


def parameter_groups(image: nn.Module, lr: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: learning rate ``lr`` at the top, times ``decay`` per block downwards.

    Norms, biases, class tokens and positions get no weight decay.
    """
    depth = depths(image)
    top = max(depth.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in image.named_parameters():
        decays = parameter.ndim >= 2 and not _PLAIN.search(name)
        group = groups.setdefault(
            (depth[name], decays),
            {"params": [], "lr": lr * decay ** (top - depth[name]), "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())
