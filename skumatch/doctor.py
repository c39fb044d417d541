"""What this machine offers skumatch: versions, processor, memory, GPUs, runtimes that really run, hub and folders.

Every claim is tried, not looked up: a matrix product on each device, a session on each execution provider, a file
written and removed in the cache. It changes nothing, loads no encoder and knows nothing about workspaces.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from skumatch import __version__
from skumatch.errors import DeviceError
from skumatch.runtime.providers import CPU, Provider, probe_providers

# Shown name -> distributions that provide it.
PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "open_clip_torch": ("open_clip_torch",),
    "timm": ("timm",),
    "transformers": ("transformers",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "pyarrow": ("pyarrow",),
}
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
ARM_FEATURES = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
GIB = 1024**3
LEAST_CACHE, LEAST_TEMP, LEAST_MEMORY = 2 * GIB, 1 * GIB, 2 * GIB  # one large encoder; a page; torch and ViT-B/32
HUB_TIMEOUT, HUB_LIMIT = 3.0, 4.5  # seconds: per socket operation; in all, name lookup and redirects included

HubState = Literal["reachable", "unreachable", "offline by setting", "not checked"]


@dataclass(frozen=True)
class Cpu:
    """The processor. ``physical`` cores (None: unknown), ``available``: cores that affinity and cgroup quota allow."""

    model: str
    physical: int | None
    logical: int
    available: float
    features: tuple[str, ...]
    torch_capability: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory under the cgroup limit, None where the system does not say."""

    total: int | None
    available: int | None


@dataclass(frozen=True)
class Device:
    """One torch device after a matrix product on it. GPUs have ``memory`` in bytes and a compute ``capability``."""

    name: str
    runs: bool
    reason: str = ""
    model: str = ""
    memory: int | None = None
    capability: str = ""


@dataclass(frozen=True)
class Hub:
    """Whether the hub that weights come from answers; ``detail`` says how or why not."""

    endpoint: str
    state: HubState
    detail: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder after a file was written to it (to its nearest existing parent where it is yet to be made)."""

    path: str
    writable: bool
    free_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything found; each of ``problems`` hinders the main job and says what to do."""

    skumatch: str
    python: str
    platform: str
    versions: dict[str, str]
    cpu: Cpu
    memory: Memory
    cuda: dict[str, str]
    devices: tuple[Device, ...]
    providers: tuple[Provider, ...]
    hub: Hub
    cache: Folder
    temp: Folder
    problems: tuple[str, ...] = ()

    @property
    def torch_runs(self) -> bool:
        """Whether torch computes on the CPU, without which nothing else can work."""
        return any(device.name == "cpu" and device.runs for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self) | {"torch_runs": self.torch_runs}


def examine(offline: bool = False) -> Report:
    """Examine this machine; a few seconds, of which the hub takes at most 5. ``offline``: do not ask the hub."""
    from huggingface_hub import constants

    from skumatch import doctor_advice

    cpu, devices = read_cpu(), torch_devices()
    try:
        providers = probe_providers()
    except DeviceError as error:
        providers = (Provider("onnxruntime", False, error.what),)
    if constants.HF_HUB_OFFLINE:
        hub = Hub(public_url(constants.ENDPOINT), "offline by setting", "HF_HUB_OFFLINE")
    elif offline:
        hub = Hub(public_url(constants.ENDPOINT), "not checked", "--offline")
    else:
        hub = check_hub(constants.ENDPOINT)
    raise NotImplementedError
