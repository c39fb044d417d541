"""The ONNX Runtime engine: an exported network that takes uint8 pixels and gives unit vectors.

It knows nothing about how the file was made.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.errors import DeviceError, ModelError
from skumatch.machine import usable_cores
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.providers import CPU, CUDA, device_array, grants_cuda, open_session
from skumatch.spec import Pixels, Vectors, require_pixels

if TYPE_CHECKING:
    from torch import Tensor

INPUT, OUTPUT = "images", "embeddings"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}

# TF32 has 10 bits of mantissa: a float32 file would give other vectors. Searching for the fastest convolution by
# trying all would be done again for each batch of another size.
ON_CUDA = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


class OnnxEncoder:
    """An Encoder run by ONNX Runtime from an exported ``file``.

    ``device``: "cpu", "cuda" (the first GPU), "cuda:N", or "auto": the first GPU where ONNX Runtime really runs on it,
    else the CPU; for an int8 file, which is made for CPUs, always the CPU. Raises ModelError for a file
    that was not exported by skumatch, DeviceError when the device is not granted.

    On a GPU pixels may be tensors on ``pixels_on``.
    """

    def __init__(self, file: Path, device: str = "auto", threads: int = 0) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
            raise DeviceError(f"unknown device '{device}'", "choose auto, cpu, cuda or cuda:N")
        if not file.is_file():
            raise ModelError(f"there is no {file}", "write it with `skumatch export`")
        threads = threads or usable_cores()
        chosen = device if device != "auto" else "cuda" if grants_cuda() else "cpu"
        self.session, passport = _opened(file, chosen, threads)
        if device == "auto" and chosen == "cuda" and passport.spec.precision == "int8":
            chosen = "cpu"
            self.session, passport = _opened(file, chosen, threads)
        self.device = chosen
        self.spec, self.guard = passport.spec, passport.guard
        self._bound = None if chosen == "cpu" else Bound(self.session, self.spec.dim, "cuda", _index(chosen))
        self.pixels_on = _torch_device(chosen)

    @property
    def engine(self) -> str:
        """What runs it, in words."""
        return f"onnx {self.spec.precision} on {self.device}"

    def encode(self, pixels: Pixels | Tensor) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) rows of unit length. Raises ModelError for another shape."""
        require_pixels(pixels, self.spec.size)
        if not len(pixels):
            return np.empty((0, self.spec.dim), np.float32)
        if self._bound is not None:
            return self._bound.run(pixels)
        vectors: Vectors = self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})[0]
        return vectors


class Bound:
    """A session whose input and output stay on ``device`` ("cuda", or "cpu"), in buffers kept per batch size.

    ONNX Runtime's Python API has no page-locked memory of the CUDA provider: an array is copied from where it lies, a
    tensor that is there already not at all. Safe to call from several threads, which take turns.
    """

    KEPT = 4  # batch sizes: a full one, the last of a stream, and what a service makes of its requests

    def __init__(self, session: Any, dim: int, device: str, index: int) -> None:
        self.session = session
        self.dim = dim
        self.device = device
        self.index = index
        self._buffers: dict[int, tuple[Any, Any]] = {}
        self._lock = threading.Lock()

    def run(self, pixels: Pixels | Tensor) -> Vectors:
        """Map uint8 (N, 3, S, S), an array or a tensor on the device, to float32 (N, D)."""
        with self._lock:
            binding = self.session.io_binding()
            given, taken = self._buffers_for(tuple(pixels.shape))
            if isinstance(pixels, np.ndarray):
                given.update_inplace(np.ascontiguousarray(pixels))
                binding.bind_ortvalue_input(INPUT, given)
            else:
                self._bind_tensor(binding, pixels)
            binding.bind_ortvalue_output(OUTPUT, taken)
            self.session.run_with_iobinding(binding)  # returns when the GPU is done
            vectors: Vectors = np.array(taken.numpy())  # on a CPU the buffer's own memory, which is used again
        return vectors

    def _bind_tensor(self, binding: Any, pixels: Tensor) -> None:
        if not pixels.is_contiguous() or pixels.device.type != self.device:
            raise ModelError(f"a tensor on {pixels.device} is not contiguous on {self.device}", "report this as a bug")
        if self.device == "cuda":
            import torch

            torch.cuda.current_stream(pixels.device).synchronize()  # ONNX Runtime reads it on a stream of its own
        shape = tuple(pixels.shape)
        binding.bind_input(INPUT, self.device, self.index, np.uint8, shape, pixels.data_ptr())

    def _buffers_for(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return (input, output) for a batch of ``shape``."""
        count = shape[0]
        if count not in self._buffers:
            if len(self._buffers) == self.KEPT:
                self._buffers.pop(next(iter(self._buffers)))
            given = device_array(shape, np.uint8, self.device, self.index)
            self._buffers[count] = (given, device_array((count, self.dim), np.float32, self.device, self.index))
        return self._buffers[count]


def _opened(file: Path, device: str, threads: int) -> tuple[Any, Passport]:
    kind = device.partition(":")[0]
    options = {CUDA: {"device_id": str(_index(device)), **ON_CUDA}}
    session = open_session(file, PROVIDERS[kind], threads=threads, options=options)
    passport = Passport.read(session.get_modelmeta().custom_metadata_map.get(KEY), str(file)).of_pixels(str(file))
    if (takes := session.get_inputs()[0].name) != INPUT:
        raise ModelError(f"{file} takes {takes}, not {INPUT}", "give a model's image tower")
    return session, passport


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _torch_device(device: str) -> str:
    """Return the torch device that is ``device``, "" where torch has none: then pixels come from the host."""
    if device == "cpu":
        return ""
    import torch

    return f"cuda:{_index(device)}" if torch.cuda.is_available() else ""
