"""Which engine is the fastest for a model on this machine: measured once, then remembered.

Only exports whose answers were found within the limits take part. Kept in the user's cache folder, by model, exports,
processor, GPU and versions; a folder that cannot be written costs a new measurement each time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch import artefact
from skumatch.errors import ArtefactError, SkumatchError
from skumatch.machine import read_cpu
from skumatch.runtime.exports import EXPORTS, Way, candidates

if TYPE_CHECKING:
    from skumatch.encoder import Encoder
    from skumatch.model import Bundle

BATCH, ROUNDS = 8, 3
ENGINES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-cu13")


def choose(bundle: Bundle, device: str, runtime: str = "auto", precision: str | None = None) -> Way:
    """Return the fastest of the ``candidates`` to run ``bundle`` on ``device``.

    Raises ModelError where nothing fits what was asked for.
    """
    return max(rates(bundle, device, candidates(bundle, runtime, precision)), key=lambda found: found[1])[0]


def rates(bundle: Bundle, device: str, ways: list[Way]) -> list[tuple[Way, float]]:
    """Return images/s of ``ways`` on this machine, measured unless remembered; 0 for one that does not start here.

    One way alone is not measured.
    """
    if len(ways) == 1:
        return [(ways[0], 0.0)]
    file = artefact.cache_dir() / "runtimes.json"
    key = _key(bundle, device, [way.name for way in ways])
    known = _read(file)
    if key not in known:
        known[key] = [_measured(bundle, way, device) for way in ways]
        with contextlib.suppress(ArtefactError, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            artefact.write_file(file, json.dumps(known, indent=1).encode())
    return list(zip(ways, known[key], strict=True))


def rate(encoder: Encoder, batch: int = BATCH, rounds: int = ROUNDS) -> float:
    """Return images/s of ``encoder`` on random pictures, ``batch`` at a time: the median of ``rounds``."""
    side = encoder.spec.size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), np.uint8)
    encoder.encode(pixels)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        encoder.encode(pixels)
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds)


def _measured(bundle: Bundle, way: Way, device: str) -> float:
    try:
        return rate(way.open(bundle.folder, device))
    except SkumatchError:
        return 0.0  # an engine that does not start here is not the fastest


def _key(bundle: Bundle, device: str, ways: list[str]) -> str:
    cpu = read_cpu()
    versions = {}
    for name in ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    files = bundle.document["files"].get(EXPORTS)
    facts: list[Any] = [bundle.spec.digest, files, device, _gpu(device), ways, cpu.model, cpu.available, versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _gpu(device: str) -> str:
    """Return the model of the GPU that ``device`` may mean, "" where there is none."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return ""
    number = int(device.partition(":")[2] or 0)
    return torch.cuda.get_device_name(number) if number < torch.cuda.device_count() else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
