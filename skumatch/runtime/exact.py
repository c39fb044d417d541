"""Float32 that is float32: no TF32 (10 bits of mantissa) in products and convolutions while a block runs.

Torch keeps these settings for the whole process and allows TF32 in convolutions by default. They are read when work is
given to the GPU, so that it is enough to change them meanwhile; another thread that wants TF32 does without it for that
long.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

REDUCED = ("tf32", "bf16")
_lock = threading.Lock()
_inside = 0
_before: list[tuple[Any, str]] = []


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 on a GPU in full inside the block, on any thread; outside all is as it was."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    """Turn TF32 off and remember where it was on: the first of several threads that are inside at a time."""
    global _inside
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):  # type: ignore[attr-defined]
            if setting.fp32_precision in REDUCED:
                _before.append((setting, setting.fp32_precision))
                setting.fp32_precision = "ieee"


def _leave() -> None:
    """Turn it on again: the last that leaves."""
    global _inside
    with _lock:
        _inside -= 1
        while _inside == 0 and _before:
            setting, precision = _before.pop()
            setting.fp32_precision = precision
