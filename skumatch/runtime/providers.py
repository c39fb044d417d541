"""ONNX Runtime's execution providers: which of them really run, and sessions that are what was asked for.

ONNX Runtime falls back to the CPU without an error when a provider's libraries or its device are missing, and
``get_available_providers`` lists what was compiled in, not what works. So a provider is believed only after a session
ran on it. This is the only module that imports onnxruntime; it knows nothing about encoders or galleries.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skumatch.errors import DeviceError

CPU = "CPUExecutionProvider"
SILENT = 4  # ONNX Runtime's severity "fatal": its own stderr lines repeat what is raised here

# An ONNX model of one node, y = x + x over four floats (IR 8, opset 17).
TINY_MODEL = (
    b'\x08\x08\x12\x00:;\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x07doublesZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x04b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x04B\x04\n\x00\x10\x11"
)

# The vendors' shared library behind a provider, and the libraries it links that pip puts in folders of their own.
LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
LINKED = ("cudart", "cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudnn", "nvinfer")  # each before its users


@dataclass(frozen=True)
class Provider:
    """One execution provider and whether a session ran on it; ``reason`` says why not ("" when usable)."""

    name: str
    usable: bool
    reason: str = ""


def probe_providers() -> tuple[Provider, ...]:
    """Run a one-node model on every provider of the installed ONNX Runtime, in its order of preference.

    Raises DeviceError when ONNX Runtime itself cannot be imported.
    """
    return tuple(probe(name) for name in available_providers())


def available_providers() -> list[str]:
    """Return the providers compiled into the installed ONNX Runtime. Raises DeviceError when it is not importable."""
    return list(_onnxruntime().get_available_providers())


def probe(name: str) -> Provider:
    """Run the one-node model on the provider ``name`` alone and report whether that worked."""
    x = np.arange(4, dtype=np.float32)
    try:
        session = open_session(TINY_MODEL, name, threads=1, strict=True)
        (y,) = session.run(None, {"x": x})
    except DeviceError as error:
        return Provider(name, False, error.what)
    except _vendor_errors() as error:
        return Provider(name, False, _one_line(error))
    if not np.array_equal(y, x + x):
        return Provider(name, False, "it computes wrong numbers")
    return Provider(name, True)


def open_session(model: bytes | Path, provider: str, *, threads: int = 0, strict: bool = False) -> Any:
    """Open an ``onnxruntime.InferenceSession`` for ``model`` (serialised bytes or a file) on ``provider`` alone.

    ``threads``: intra-op threads (0: ONNX Runtime chooses). ``strict``: every node must run on ``provider``; otherwise
    nodes it has no kernel for may run on the CPU. Raises DeviceError when the session is not granted ``provider``.
    """
    ort = _onnxruntime()
    if provider not in ort.get_available_providers():
        raise DeviceError(f"this ONNX Runtime was built without {provider}", "install a build that has it")
    if provider in LIBRARIES:
        _preload_linked()
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    if strict and provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    source = model if isinstance(model, bytes) else str(model)
    try:
        # enable_fallback=0: otherwise a failed provider is replaced by the CPU, with a print.
        session = ort.InferenceSession(source, options, providers=[provider], enable_fallback=0)
    except _vendor_errors() as error:
        reason = _missing_library(provider) or _one_line(error)
        raise DeviceError(reason, f"mend that or choose another provider than {provider}") from error
    if session.get_providers()[0] != provider:
        reason = _missing_library(provider) or f"ONNX Runtime granted {session.get_providers()[0]} instead"
        raise DeviceError(reason, f"mend that or choose another provider than {provider}")
    return session


def _onnxruntime() -> Any:
    """Import ONNX Runtime with its own stderr logging silenced."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise DeviceError(f"ONNX Runtime cannot be imported: {_one_line(error)}", "install onnxruntime") from error
    onnxruntime.set_default_logger_severity(SILENT)
    return onnxruntime


def _vendor_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions ONNX Runtime raises: they have no common base below Exception."""
    _onnxruntime()  # so that a missing package is a DeviceError here too
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (RuntimeError, ValueError, *own)


def _preload_linked() -> None:
    """Load the CUDA and TensorRT libraries that pip installed, so that the providers' libraries find them.

    The dynamic linker does not search pip's folders, and ONNX Runtime's own ``preload_dlls`` misses wheels that keep
    a library outside ``nvidia/cu<major>`` (cuRAND, for one).
    """
    if sys.platform != "linux":
        return
    folders = list(_pip_library_folders())
    for name in LINKED:
        for file in (found for folder in folders for found in sorted(folder.glob(f"lib{name}.so*"))):
            try:
                ctypes.CDLL(str(file))
            except OSError:
                continue  # of another CUDA version; what is really missing shows when the session opens


def _pip_library_folders() -> Iterator[Path]:
    """Yield the folders in which the NVIDIA wheels keep shared libraries."""
    for package, pattern in (("nvidia", "*/lib"), ("tensorrt_libs", "")):
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            yield from sorted(root.glob(pattern)) if pattern else [root]


def _missing_library(provider: str) -> str:
    """Return "LIBRARY is missing" when the dynamic linker cannot load the provider's library, else "".

    Call it only after ONNX Runtime has tried to load that library: its initialisers need ONNX Runtime's host object.
    """
    if provider not in LIBRARIES or sys.platform != "linux":
        return ""
    import onnxruntime

    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / LIBRARIES[provider]))
    except OSError as error:
        name, found, _ = str(error).partition(": cannot open shared object file")
        return f"{name} is missing" if found else _one_line(error)
    return ""


def _one_line(error: Exception, limit: int = 160) -> str:
    """Return the last sentence-like part of a vendor's message: without source positions, on one line, cut short."""
    text = " ".join(str(error).split())
    if text.startswith("/") and "&) " in text:  # "/onnxruntime_src/...cc:729 void f(Options&) the message"
        text = text.rpartition("&) ")[2]
    return text if len(text) <= limit else text[: limit - 3] + "..."
