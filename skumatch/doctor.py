"""What hinders skumatch on this machine: versions, devices, runtimes that really run, hub and folders.

Every claim is tried, not looked up: a matrix product on each torch device, a session on each execution provider, a
request to the hub, a file written to the cache. It leaves nothing behind and knows nothing about workspaces.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import platform
import re
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from skumatch.errors import DeviceError
from skumatch.machine import Cpu, Folder, Memory, read_cpu, read_memory, try_folder
from skumatch.runtime.providers import CPU, Provider, probe_providers

if TYPE_CHECKING:
    import torch

# Shown name -> the distributions that provide it.
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
EXTRAS = ("milvus-lite", "pymilvus", "ray")  # named where they are installed
MISSING = "missing"
GIB = 1024**3
LEAST_CACHE, LEAST_TEMP, LEAST_MEMORY = 2 * GIB, GIB, 2 * GIB  # a large encoder; a page; torch with ViT-B/32
HUB_TIMEOUT, HUB_LIMIT = 3.0, 4.5  # seconds: per socket operation; in all, with name lookup and redirects
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Device:
    """One torch device after a matrix product on it. GPUs have a ``model``, ``memory`` in bytes and ``capability``."""

    name: str
    runs: bool
    reason: str = ""
    model: str = ""
    memory: int | None = None
    capability: str = ""


@dataclass(frozen=True)
class Hub:
    """Whether the hub that weights come from answers; ``detail`` says how, or why not."""

    endpoint: str
    state: Literal["reachable", "unreachable", "offline by setting", "not checked"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Everything found. ``torch``: facts about its build; each of ``problems`` says what hinders and what to do."""

    platform: str
    versions: dict[str, str]
    cpu: Cpu
    memory: Memory
    torch: dict[str, str]
    devices: tuple[Device, ...]
    providers: tuple[Provider, ...]
    hub: Hub
    cache: Folder
    temp: Folder
    problems: tuple[str, ...] = ()

    @property
    def torch_runs(self) -> bool:
        """Whether torch computes on the CPU, without which nothing else works."""
        return any(device.name == "cpu" and device.runs for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and ``torch_runs`` as JSON-ready values."""
        return asdict(self) | {"torch_runs": self.torch_runs}


def examine(offline: bool = False) -> Report:
    """Examine this machine, in a few seconds of which the hub takes at most 5. ``offline``: do not ask the hub."""
    from huggingface_hub import constants

    torch_facts, devices = examine_torch()
    try:
        providers = probe_providers()
    except DeviceError as error:
        providers = (Provider(CPU, False, error.what),)
    if constants.HF_HUB_OFFLINE:
        hub = Hub(public_url(constants.ENDPOINT), "offline by setting", "HF_HUB_OFFLINE is set")
    elif offline:
        hub = Hub(public_url(constants.ENDPOINT), "not checked", "--offline was given")
    else:
        hub = check_hub(constants.ENDPOINT)
    report = Report(
        platform=platform.platform(),
        versions=read_versions(),
        cpu=read_cpu(),
        memory=read_memory(),
        torch=torch_facts,
        devices=devices,
        providers=providers,
        hub=hub,
        cache=try_folder(Path(constants.HF_HUB_CACHE)),
        temp=_try_temp(),
    )
    return replace(report, problems=tuple(find_problems(report)))


def read_versions() -> dict[str, str]:
    """Return name -> version for skumatch, Python and what skumatch stands on, "missing" where it is absent."""
    from skumatch import __version__

    versions = {"skumatch": __version__, "python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        found = [(dist, _version(dist)) for dist in distributions]
        texts = [version if len(distributions) == 1 else f"{version} ({dist})" for dist, version in found if version]
        versions[name] = " and ".join(texts) or MISSING
    return versions | {name: version for name in EXTRAS if (version := _version(name))}


def examine_torch() -> tuple[dict[str, str], tuple[Device, ...]]:
    """Return facts about the torch build and its devices (the CPU first), each after a matrix product on it."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        return {}, (Device("cpu", False, _one_line(error)),)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")  # a driver that is too old is a warning and a False
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [_try_device("cpu"), *(_try_gpu(number) for number in range(gpus))]
        if torch.backends.mps.is_available():
            devices.append(_try_device("mps"))
    driver = re.search(r"\s(\d+\.\d+(\.\d+)*)\s", DRIVER.read_text()) if DRIVER.exists() else None
    facts = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda or "none",
        "driver": driver[1] if driver else "none",
        "note": _one_line(noted[0].message) if noted else "",
    }
    return facts, tuple(devices)


def check_hub(endpoint: str, timeout: float = HUB_TIMEOUT, limit: float = HUB_LIMIT) -> Hub:
    """Ask ``endpoint`` for its head; answers within ``limit`` seconds whatever the network does.

    The request runs in a thread of its own because a name lookup obeys no timeout.
    """
    answers: list[Hub] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(public_url(endpoint), timeout)), daemon=True)
    thread.start()
    thread.join(limit)
    return answers[0] if answers else Hub(public_url(endpoint), "unreachable", f"no answer within {limit:g} s")


def public_url(url: str) -> str:
    """Return ``url`` without a user name, password or query, fit for a report."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def find_problems(report: Report) -> list[str]:
    """Return what in ``report`` hinders matching, each as "what - what to do"."""
    found = [f"{name} is missing - install skumatch again" for name, v in report.versions.items() if v == MISSING]
    gpu = any(device.name.startswith("cuda") for device in report.devices)
    for name, version in report.versions.items():
        if " and " in version and name == "faiss" and report.versions.get("milvus-lite"):
            cure = "`pip install --force-reinstall --no-deps faiss-gpu`"
            if gpu:
                found.append(f"the faiss-cpu of milvus-lite hides faiss-gpu: indexes are trained on the CPU - {cure}")
        elif " and " in version:
            found.append(f"{version}: two builds of {name} overwrite each other - uninstall both, then install one")
    return found + _device_problems(report) + _supply_problems(report)


def _device_problems(report: Report) -> list[str]:
    """Problems with torch devices, execution providers and memory."""
    found = []
    for device in report.devices:
        if not device.runs:
            cure = "install torch again" if device.name == "cpu" else "update the driver or torch, or use --device cpu"
            found.append(f"torch cannot compute on {device.name}: {device.reason} - {cure}")
    gpus = [device for device in report.devices if device.name.startswith("cuda")]
    if report.torch.get("driver", "none") != "none" and not gpus:
        why = report.torch["note"] or f"torch is built for CUDA {report.torch['cuda']}"
        found.append(f"torch sees no GPU though an NVIDIA driver is here ({why}) - update the driver or torch")
    for provider in report.providers:
        wanted = provider.name == CPU or (provider.name == "CUDAExecutionProvider" and any(gpu.runs for gpu in gpus))
        if wanted and not provider.usable:
            found.append(f"ONNX Runtime cannot use {provider.name}: {provider.reason} - install what is missing")
    if report.memory.available is not None and report.memory.available < LEAST_MEMORY:
        found.append(f"only {gib(report.memory.available)} of memory are free - close programs or raise the limit")
    return found


def _supply_problems(report: Report) -> list[str]:
    """Problems with the hub and with folders."""
    found = []
    if report.hub.state == "unreachable":
        what = f"{report.hub.endpoint} cannot be reached ({report.hub.detail})"
        found.append(f"{what} - give weights as a file with --weights, or set HF_ENDPOINT to a mirror")
    for folder, least, what, variable in (
        (report.cache, LEAST_CACHE, "the weights cache", "HF_HOME"),
        (report.temp, LEAST_TEMP, "the folder for temporary files", "TMPDIR"),
    ):
        if not folder.writable:
            found.append(f"{what} {folder.path} cannot be written ({folder.reason}) - set {variable} to one that can")
        elif folder.free_bytes is not None and folder.free_bytes < least:
            free = gib(folder.free_bytes)
            found.append(f"{what} {folder.path} has only {free} free - make room or set {variable} to another")
    return found


def gib(size: int | None) -> str:
    """Return bytes as text in GiB."""
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _try_temp() -> Folder:
    try:
        return try_folder(Path(tempfile.gettempdir()))
    except FileNotFoundError as error:  # gettempdir tries all candidates itself and finds none to write to
        return Folder("/tmp", False, None, error.strerror or str(error))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _try_gpu(number: int) -> Device:
    """Return CUDA device ``number`` with its properties, after a matrix product on it."""
    import torch

    tried = _try_device(f"cuda:{number}")
    try:
        facts = torch.cuda.get_device_properties(number)
    except RuntimeError as error:
        return replace(tried, runs=False, reason=tried.reason or _one_line(error))
    return replace(tried, model=facts.name, memory=facts.total_memory, capability=f"{facts.major}.{facts.minor}")


def _try_device(name: str) -> Device:
    """Multiply two matrices of small integers on the device, exact in every float format, and check the product."""
    import torch

    def matrices(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.arange(64 * 64, device=device).reshape(64, 64)
        return (numbers % 7).to(dtype), (numbers % 5).to(dtype)

    left, right = matrices(torch.int64, "cpu")
    try:
        a, b = matrices(torch.float32, name)
        product = (a @ b).cpu().to(torch.int64)
    except RuntimeError as error:  # CUDA errors and "out of memory" are RuntimeErrors
        return Device(name, False, _one_line(error))
    right_numbers = torch.equal(product, left @ right)
    return Device(name, right_numbers, "" if right_numbers else "it computes wrong numbers")


def _ask(url: str, timeout: float) -> Hub:
    """Send one HEAD request; any answer below 500 means that the host is there."""
    if urlsplit(url).scheme not in ("http", "https"):
        return Hub(url, "unreachable", "HF_ENDPOINT is not an http(s) address")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout) as answer:
            return Hub(url, "reachable", f"HTTP {answer.status}")
    except urllib.error.HTTPError as error:
        with error:
            return Hub(url, "reachable" if error.code < 500 else "unreachable", f"HTTP {error.code}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Hub(url, "unreachable", _one_line(getattr(reason, "strerror", None) or reason))


def _one_line(error: object, limit: int = 160) -> str:
    """Return a message on one line, cut short."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
