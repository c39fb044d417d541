"""What the operating system says of this machine: processor, memory and folders, under the container's limits.

Affinity and cgroup (v1 and v2) limits are respected, since a container sees its host's cores and memory but may not
use them. Linux is read in detail; elsewhere unknown values are None. It knows nothing about torch or skumatch.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
ARM_FEATURES = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
NO_LIMIT = 2**60  # cgroup v1 says "no limit" with a huge number


@dataclass(frozen=True)
class Cpu:
    """The processor. ``physical`` cores (None: unknown), ``available``: cores that affinity and cgroup quota allow."""

    model: str
    physical: int | None
    logical: int
    available: float
    features: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory that this process may use; None where the system does not say."""

    total: int | None
    available: int | None


@dataclass(frozen=True)
class Folder:
    """A folder after a file was written to it, or to its nearest existing parent where it is yet to be made."""

    path: str
    writable: bool
    free_bytes: int | None
    reason: str = ""


def read_cpu(root: Path = ROOT) -> Cpu:
    """Return the processor as /proc/cpuinfo under ``root`` and this process's affinity and quota describe it."""
    blocks = [_fields(block) for block in _read(root / "proc/cpuinfo").split("\n\n") if block.strip()]
    first = blocks[0] if blocks else {}
    model = first.get("model name") or platform.processor() or platform.machine()
    flags = set((first.get("flags") or first.get("Features") or "").split())
    cores = {(b["physical id"], b["core id"]) for b in blocks if "physical id" in b and "core id" in b}
    features = tuple(name for name in (*FEATURES, *ARM_FEATURES) if name in flags)
    return Cpu(model, len(cores) or None, os.cpu_count() or 1, _available(root), features)


def usable_cores(root: Path = ROOT) -> int:
    """Return how many threads have a core each: what affinity and cgroup quota allow, rounded down, at least 1."""
    return max(1, int(_available(root)))


def allowed_cores() -> int:
    """Return the cores of this process's affinity, whatever its quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(root: Path = ROOT, environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep OpenMP and what stands on it (torch, BLAS, faiss) from more threads than this process may use at once.

    They go by affinity and do not see a container's quota, which stops threads beyond it in the midst of their work.
    Call it before they are imported; ``OMP_NUM_THREADS``, where it is set, stays as it is.
    """
    if usable_cores(root) < allowed_cores():
        environment.setdefault("OMP_NUM_THREADS", str(usable_cores(root)))


def read_memory(root: Path = ROOT) -> Memory:
    """Return main memory in bytes, the smaller of what the machine has and what its cgroups allow."""
    info = _fields(_read(root / "proc/meminfo"))
    total, available = _kilobytes(info.get("MemTotal")), _kilobytes(info.get("MemAvailable"))
    if total is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in _memory_limits(root):
        total = min(total or limit, limit)
        available = max(0, min(limit if available is None else available, limit - used))
    return Memory(total, available)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the cores' worth of time that the tightest cgroup allows, None without a limit."""
    quotas = []
    for folder in _cgroups(root, "cpu"):
        pair = _read(folder / "cpu.max").split()  # v2: "200000 100000" or "max 100000"
        pair = pair or [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]  # v1: -1: none
        with contextlib.suppress(ValueError, ZeroDivisionError):
            quotas.append(int(pair[0]) / int(pair[1]))
    return min((quota for quota in quotas if quota > 0), default=None)


def try_folder(path: Path) -> Folder:
    """Write a file to ``path`` (or its nearest existing parent), remove it, and report that and the free space."""
    shown = str(path).encode("utf-8", "backslashreplace").decode()
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    try:
        free = shutil.disk_usage(existing).free
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".skumatch-") as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return Folder(shown, False, None, error.strerror or str(error))
    return Folder(shown, True, free)


def _available(root: Path) -> float:
    return min(float(allowed_cores()), cpu_quota(root) or float("inf"))


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return this process's cgroup folders for ``controller`` (v1 and v2), each with all its parents."""
    folders: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = PurePosixPath(path.lstrip("/"))
        folders += [mount / group, *(mount / parent for parent in group.parents)]
    return folders


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes of each cgroup that limits memory; page cache that can go is not used."""
    found = []
    for folder in _cgroups(root, "memory"):
        for limit_name, used_name, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read(folder / limit_name).strip()
            if limit.isdigit() and int(limit) < NO_LIMIT:
                stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                used = int(_read(folder / used_name).strip() or 0) - int(stat.get(cache, 0))
                found.append((int(limit), max(0, used)))
    return found


def _fields(text: str) -> dict[str, str]:
    """Parse "name : value" lines as in /proc."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kilobytes(value: str | None) -> int | None:
    """Turn "123 kB" into bytes."""
    return int(value.split()[0]) * 1024 if value else None


def _read(path: Path) -> str:
    """Return a small system file's text, "" where it is absent or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
