"""Activations that are computed twice instead of kept: the encoders' own gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skumatch.errors import ModelError


@contextmanager
def checkpointed(image: nn.Module, wanted: bool) -> Iterator[None]:
    """Keep few activations of the image tower while training, where ``wanted``.

    timm and open_clip towers have ``set_grad_checkpointing``, Hugging Face's ``gradient_checkpointing_enable``. Raises
    ModelError where the tower has neither.
    """
    if not wanted:
        yield
        return
    modules: list[Any] = [m for m in image.modules() if hasattr(m, "set_grad_checkpointing")][:1]
    others: list[Any] = [m for m in image.modules() if hasattr(m, "gradient_checkpointing_enable")][:1]
    if not modules and not others:
        raise ModelError("this encoder cannot checkpoint its activations", "leave out --checkpointing")
    for module in modules:
        module.set_grad_checkpointing(True)
    for module in [] if modules else others:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        for module in modules:
            module.set_grad_checkpointing(False)
        for module in [] if modules else others:
            module.gradient_checkpointing_disable()
