"""Starting ``train_worker.py`` in one process or several, killing it, and reading what came of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.finetune.train_worker import WRITTEN

WORKER = Path(__file__).with_name("train_worker.py")
VIT: dict[str, Any] = {"model": "timm:test_vit", "size": 64}
NET: dict[str, Any] = {"model": "timm:test_efficientnet", "size": 32}
SHORT: dict[str, Any] = {
    "epochs": 4,
    "head_epochs": 1,
    "batch": 4,
    "embedding": 16,
    "val_views": 1,
    "lr_transformer": 1e-4,
    "compute": {"precision": "fp32"},
}
ARCFACE: dict[str, Any] = {"objectives": {"arcface": 1.0, "retain": 1.0}}
SUPCON: dict[str, Any] = {"objectives": {"arcface": 0.0, "supcon": 1.0}, "sampler": {"draw": "pk", "per_sku": 2}}
ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "arcface, transformer": (ARCFACE, VIT),
    "supcon, transformer": (SUPCON, VIT),
    "arcface, frozen norms": ({**ARCFACE, "batch_norm": "frozen"}, NET),
    "supcon, frozen norms": ({**SUPCON, "batch_norm": "frozen"}, NET),
}
KILLED: dict[str, Any] = {
    "epochs": 4,
    "head_epochs": 1,
    "batch": 4,
    "embedding": 16,
    "lr_conv": 1e-3,
    "objectives": {"arcface": 1.0, "supcon": 0.5, "retain": 0.5},
    "sampler": {"refresh": True, "group": 2},
    "after": {"soup": 2},
    "augment": {"bleed": 0.3, "cut_out": 0.2},
}


def command(processes: int, worker: Path, *arguments: Path) -> list[str]:
    """Return how to start ``worker`` in so many processes."""
    started = [sys.executable]
    if processes > 1:
        started += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*started, str(worker), *map(str, arguments)]


def surroundings() -> dict[str, str]:
    """Return the environment to start it in: one thread each, and this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def job_for(data: Path, out: Path, recipe: dict[str, Any], model: dict[str, Any], **how: Any) -> Path:
    """Write the job file of a fine-tune of ``data`` into ``out``, a new folder, and return it."""
    out.mkdir(parents=True)
    job = {"data": str(data), "out": str(out), "steps": str(out / "steps"), "recipe": recipe, "resume": False}
    (out / "job.json").write_text(json.dumps({**job, **model, **how}))
    return out / "job.json"


def trained(job: Path, processes: int) -> dict[str, Any]:
    """Train to the end in so many processes and return what the first one wrote. Raises RuntimeError."""
    done = subprocess.run(
        command(processes, WORKER, job), capture_output=True, text=True, env=surroundings(), check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads((job.parent / WRITTEN).read_text())
    return found


def losses_apart(data: Path, out: Path, recipe: dict[str, Any], model: dict[str, Any]) -> list[float]:
    """Return by how much the losses of two processes differ from those of one, step by step."""
    one, two = (trained(job_for(data, out / str(n), {**SHORT, **recipe}, model), n)["losses"] for n in (1, 2))
    return [abs(a - b) for a, b in zip(one, two, strict=True)]


def kill_at(step: int, later: float, processes: int, job: Path) -> bool:
    """Start, kill all processes ``later`` seconds after ``step`` steps, and return whether they were still running."""
    steps, quiet = job.parent / "steps", subprocess.DEVNULL
    steps.unlink(missing_ok=True)
    started = subprocess.Popen(command(processes, WORKER, job), stdout=quiet, stderr=quiet, env=surroundings())
    try:
        deadline = time.monotonic() + 180
        while _done(steps) < step and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(later)
        return started.poll() is None
    finally:
        if started.poll() is None:
            whole = psutil.Process(started.pid)
            family = [whole, *whole.children(recursive=True)]  # torchrun's are in sessions of their own
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family)
        started.wait()


def _done(file: Path) -> int:
    return file.read_text().count(".") if file.exists() else 0


def killed_and_resumed(data: Path, out: Path, trial: int, processes: int, steps: int) -> dict[str, Any]:
    """Kill a fine-tune of ``steps`` steps at a random moment, and again while it catches up, and return what came of it
    after a last resume. Checkpoints are written after each step in half of the trials, else after each epoch."""
    rng = random.Random(trial)
    save_every = (0.0, 300.0)[trial // 2 % 2]
    job = job_for(data, out, KILLED, NET, resume=True, save_every=save_every)
    for _ in range(2):
        kill_at(rng.randrange(1, steps + 1), rng.random() / 10, processes, job)
        if (out / WRITTEN).exists():
            break
    return trained(job, processes)
