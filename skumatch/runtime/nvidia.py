"""TensorRT, the GPUs that it builds engines for, and what two ways to build one have in common.

This is the only module that imports tensorrt.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.errors import ConfigError, DeviceError

PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Profile:
    """Batches that an engine takes: from one picture to ``most``, and fastest at ``usual``."""

    usual: int = 32
    most: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.usual <= self.most:
            raise ConfigError(f"no profile has batches of {self.usual}, at most {self.most}", "give 1 <= usual <= most")

    def shapes(self, side: int) -> list[tuple[int, int, int, int]]:
        """Return the least, the usual and the largest shape of pictures with ``side`` pixels."""
        return [(count, 3, side, side) for count in (1, self.usual, self.most)]


PROFILE = Profile()


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its number, its model and its compute capability ("9.0")."""

    number: int
    name: str
    capability: str


def settle(own: str, wanted: str, file: Path | str) -> str:
    """Return the precision to compute in for a network that is in its ``own``. Raises ConfigError when it has none."""
    if wanted not in PRECISIONS:
        raise ConfigError(f"TensorRT has no precision '{wanted}'", f"choose {', '.join(PRECISIONS)}")
    if own not in PRECISIONS:
        raise ConfigError(f"TensorRT cannot run {file}, which is in {own}", f"export it in {', '.join(PRECISIONS)}")
    if own == "fp32" and wanted == "fp16":
        # TensorRT alone would take norms and softmax to fp16 too; the exported file says what stays in float32.
        raise ConfigError(f"{file} is in fp32", "export it with `--format tensorrt --precision fp16`")
    return wanted if own == "fp32" else own


def library() -> Any:
    """Return the module of TensorRT. Raises ConfigError when it is not installed or its libraries cannot be loaded."""
    install = "pip install 'skumatch[tensorrt]'"
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise ConfigError("TensorRT is not installed", install) from error
    except (ImportError, OSError) as error:
        raise ConfigError(f"TensorRT cannot be loaded ({error})", install) from error
    return tensorrt


def version() -> str:
    """Return the version of TensorRT. Raises ConfigError when it is not installed."""
    return str(library().__version__)


def find_gpu(device: str = "auto") -> Gpu:
    """Return the GPU that ``device`` means. Raises ConfigError without TensorRT, DeviceError when it is not granted."""
    import torch

    from skumatch.runtime.torch import pick_device

    if device == "cpu":
        raise DeviceError("TensorRT runs on an NVIDIA GPU, not on the CPU", "choose another --runtime or --device cuda")
    library()
    if not torch.cuda.is_available():
        raise DeviceError("TensorRT needs an NVIDIA GPU and torch sees none", "see `skumatch doctor`")
    number = pick_device("cuda" if device == "auto" else device).index or 0
    facts = torch.cuda.get_device_properties(number)
    return Gpu(number, facts.name, f"{facts.major}.{facts.minor}")


def key_of(facts: dict[str, Any]) -> str:
    """Return the name of the folder in which what was built under ``facts`` is kept."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def timing_folder(gpu: Gpu) -> Path:
    """Return the folder of the timing cache, which TensorRT takes from no other GPU and no other version."""
    facts = {"gpu": gpu.name, "capability": gpu.capability, "tensorrt": version()}
    return artefact.cache_dir() / "tensorrt" / "timings" / key_of(facts)
