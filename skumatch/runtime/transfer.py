"""Batches to a GPU and vectors back, from and to page-locked memory, so that copies run beside the network.

A batch may be given before the last one is done: it is copied on a stream of its own meanwhile. Torch keeps
page-locked memory for the next batch and gives it out again only when the copy is done. It knows nothing about
networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer:
    """Copies between the host and ``device``, a GPU, in the order of the current stream's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, array: NDArray[np.uint8]) -> Tensor:
        """Return uint8 ``array``, any strides, on the device; what the current stream is given next waits for it."""
        staged = torch.empty(array.shape, dtype=torch.uint8, pin_memory=True)
        staged.numpy()[...] = array
        with torch.cuda.stream(self._stream):
            there = staged.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        there.record_stream(current)
        return there

    def download(self, tensor: Tensor) -> Callable[[], NDArray[Any]]:
        """Begin to copy ``tensor`` to the host; return what waits for it and gives the array."""
        here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the decode threads need the core
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> NDArray[Any]:
            done.synchronize()
            found: NDArray[Any] = here.numpy().copy()  # page-locked memory is scarce: callers keep vectors
            return found

        return wait
