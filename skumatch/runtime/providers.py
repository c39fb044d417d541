"""ONNX Runtime's execution providers: which of them really run, and sessions that are what was asked for.

ONNX Runtime falls back to the CPU without an error when a provider's libraries or its device are missing, and
``get_available_providers`` lists what was compiled in, not what works. So a provider is believed only after a session
ran on it. This is the only module that imports onnxruntime; it knows nothing about encoders or galleries.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skumatch.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
SILENT = 4  # ONNX Runtime's severity "fatal": its own stderr lines repeat what is raised here

# An ONNX model of one node, y = x + x over four floats (IR 8, opset 17).
TINY_MODEL = (
    b'\x08\x08\x12\x00:;\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x07doublesZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x04b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x04B\x04\n\x00\x10\x11"
)

# The vendors' shared library behind a provider, and the libraries it links that pip puts in folders of their own.
LIBRARIES = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
LINKED = (  # each before its users
    "cudart",
    "cublasLt",
    "cublas",
    "nvrtc",
    "curand",
    "cufft",
    "cudnn",
    "nvinfer",
    "nvonnxparser",
)


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


@functools.cache
def grants_cuda() -> bool:
    """Return whether a session really runs on an NVIDIA GPU; tried once, and only where a driver is installed."""
    if sys.platform not in ("linux", "win32"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1" if sys.platform == "linux" else "nvcuda.dll")
    except OSError:
        return False
    return CUDA in available_providers() and probe(CUDA).usable


def device_array(shape: Sequence[int], dtype: type[np.generic], device: str, index: int) -> Any:
    """Return an uninitialised ``onnxruntime.OrtValue`` on ``device``, "cpu" or "cuda", number ``index``."""
    return _onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, index)


def version() -> str:
    """Return the version of the installed ONNX Runtime. Raises DeviceError when it is not importable."""
    return str(_onnxruntime().__version__)


def open_session(
    model: bytes | Path,
    provider: str,
    *,
    threads: int = 0,
    strict: bool = False,
    behind: Sequence[str] = (),
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> Any:
    """Open an ``onnxruntime.InferenceSession`` for ``model`` (serialised bytes or a file) on ``provider``.

    ``behind``: providers that take the nodes for which those before them have no kernel. ``threads``: intra-op threads
    (0: ONNX Runtime chooses). ``strict``: every node must run on one of the providers named; otherwise nodes that none
    has a kernel for may run on the CPU. ``options``: the providers' own, by provider. Raises DeviceError when the
    session is not granted every provider named.
    """
    ort = _onnxruntime()
    asked = [provider, *behind]
    for name in asked:
        if name not in ort.get_available_providers():
            raise DeviceError(f"this ONNX Runtime was built without {name}", "install a build that has it")
    if any(name in LIBRARIES for name in asked):
        _preload_linked()
    settings = ort.SessionOptions()
    settings.log_severity_level = SILENT
    settings.intra_op_num_threads = threads
    if strict and CPU not in asked:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    source = model if isinstance(model, bytes) else str(model)
    wanted = [(name, dict((options or {}).get(name, {}))) for name in asked]
    try:
        # enable_fallback=0: otherwise a failed provider is replaced by the CPU, with a print.
        session = ort.InferenceSession(source, settings, providers=wanted, enable_fallback=0)
    except _vendor_errors() as error:
        reason = next(filter(None, map(_missing_library, asked)), "") or _one_line(error)
        raise DeviceError(reason, f"mend that or choose another provider than {provider}") from error
    granted = session.get_providers()
    for place, name in enumerate(asked):
        if granted[place : place + 1] != [name]:
            reason = _missing_library(name) or f"ONNX Runtime granted {', '.join(granted)} instead of {name}"
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
