"""Embedding on Ray against the plain engine: the same vectors, and nothing lost or doubled by a kill.

    figures(work, data, weights, quick)

5,000 photos of the Grocery Store data set (300 made-up ones without it) go through ``skumatch embed`` on this machine,
through Ray with 2 workers, and through Ray again, killed once midway and resumed. All rates are of whole commands, with
starting Ray and opening the model.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PHOTOS, MADE_UP = 5000, 300
WORKERS = 2


def figures(work: Path, data: Path | None, weights: Path | None, quick: bool) -> dict[str, Any]:
    """Return counts, the least cosine, rates and the driver's peak of memory. Ends the script where a command fails."""
    work.mkdir(parents=True, exist_ok=True)
    real = data is not None and weights is not None and not quick and (data / "grocery-store").is_dir()
    photos = _grocery(data / "grocery-store") if real and data is not None else _made_up(work / "photos")
    table = work / "photos.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "sku"), *((str(path), path.parent.name) for path in photos)])
    model = _bundle(work / "model", weights if real else None)
    rows = 512 if real else 32
    found: dict[str, Any] = {"photos": len(photos), "model": "MobileNetV2" if real else "tiny", "shard rows": rows}
    command = _command(table, model, rows)
    cluster = ("--ray", "local", "--workers", str(WORKERS))
    found["plain"] = _run(command, work / "plain")
    found["ray"] = _run([*command, *cluster], work / "ray")
    found["killed after shards"] = _kill_midway([*command, *cluster], work / "resumed", len(photos) // rows // 2)
    found["resumed"] = _run([*command, *cluster], work / "resumed", fresh=False)
    whole, resumed = _rows(work / "plain"), _rows(work / "resumed")
    sources = [row["source"] for row in resumed]
    return {
        **found,
        "pictures": len(resumed),
        "duplicates": len(sources) - len(set(sources)),
        "gaps": len({row["source"] for row in whole} - set(sources)),
        "in order": sources == [row["source"] for row in whole],
        "min cosine": min(_least(whole, resumed), _least(whole, _rows(work / "ray"))),
    }


def _grocery(folder: Path) -> list[Path]:
    return sorted(path for split in ("train", "test", "val") for path in (folder / split).rglob("*.jpg"))[:PHOTOS]


def _made_up(folder: Path) -> list[Path]:
    from skumatch.synth import write_store

    if not folder.exists():
        write_store(folder, 30, 5, 5, 0)
    return sorted(folder.rglob("*.jpg"))[:MADE_UP]


def _bundle(store: Path, weights: Path | None) -> Path:
    """Publish the untouched encoder as a bundle, which workers open by its path."""
    from skumatch.model import Contents, save_bundle
    from skumatch.runtime.torch import make_spec
    from skumatch.towers.build import ModelSource, build

    if not (store / "CURRENT").exists():
        name = "timm:mobilenetv2_100" if weights else "open_clip:skumatch-tiny-96"
        tower = build(ModelSource(name, weights, random_init=weights is None))
        save_bundle(store, tower, None, make_spec(tower), Contents({}, tower.model.state_dict()))
    return store


def _command(table: Path, model: Path, rows: int) -> list[str]:
    how = ["--model", str(model), "--runtime", "torch", "--device", "cpu", "--shard-rows", str(rows), "--json"]
    return [str(Path(sys.executable).parent / "skumatch"), "embed", str(table), *how]


def _run(command: list[str], out: Path, fresh: bool = True) -> dict[str, Any]:
    """Run a job to its end; return its report, pictures per second and the peak of its process's memory."""
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    print("$ skumatch", *command[1:], "--out", out, flush=True)
    started, peak = time.perf_counter(), 0
    with _started(command, out) as job:
        while job.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, job.memory_info().rss)
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        if job.returncode or job.stdout is None:
            sys.exit(f"skumatch embed ended with {job.returncode}")
        report = json.loads(job.stdout.read())
    new = report["pictures"] - report["resumed"]
    return {**report, "seconds": seconds, "images/s": new / seconds, "driver peak MB": peak / 1e6}


def _started(command: list[str], out: Path) -> psutil.Popen:
    words = [*command, "--out", str(out)]
    return psutil.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)


def _kill_midway(command: list[str], out: Path, shards: int) -> int:
    """Begin a job and kill it with all that it started once so many shards are there; return how many there were."""
    shutil.rmtree(out, ignore_errors=True)
    with _started(command, out) as job:
        while job.poll() is None and len(list(out.glob("shard-*"))) < shards:
            time.sleep(0.05)
        if job.poll() is not None:
            sys.exit("it ended before it was killed")
        for process in (job, *job.children(recursive=True)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    if (out / "done.json").exists():
        sys.exit("it was killed too late")
    return len(list(out.glob("shard-*")))


def _rows(out: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return [row for path in sorted(out.glob("shard-*.parquet")) for row in parquet.read_table(path).to_pylist()]


def _least(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Return the smallest cosine of the vectors of the same pictures."""
    there = {row["source"]: row["vector"] for row in one}
    pairs = [(there[row["source"]], row["vector"]) for row in other]
    if any((a is None) != (b is None) for a, b in pairs):
        return -1.0
    return min(float(np.dot(a, b)) for a, b in pairs if a is not None)
