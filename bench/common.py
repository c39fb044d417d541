"""What the benchmark scripts share: arguments, running public commands, bars, and the JSON they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MINUTES = 75  # after these no further rung is begun
_STARTED = time.perf_counter()


def arguments(description: str) -> argparse.Namespace:
    """Parse ``[--quick] [--data DIR] [--weights FILE] [--work DIR] --json OUT``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smoke version, claims no bars")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="data root with grocery-store/ in it")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors")
    parser.add_argument("--work", type=Path, help="keep finished rungs here, so that a second run resumes")
    parser.add_argument("--json", type=Path, required=True, help="file for bars and figures")
    options = parser.parse_args()
    if options.weights.is_dir():
        options.weights = options.weights / "mobilenetv2_100_imagenet.safetensors"
    for name in ("data", "weights", "work", "json"):  # commands run in other folders
        given = getattr(options, name)
        setattr(options, name, given and given.resolve())
    return options


def kept(file: Path, run: Callable[[], Any]) -> Any:
    """Return what ``run`` measured, from ``file`` where it was measured before. Ends the script when time is up."""
    if not file.exists():
        if time.perf_counter() - _STARTED > 60 * MINUTES:
            raise SystemExit(f"{MINUTES} minutes are over; with --work, run it again: what is finished is kept")
        print(f"running {file.stem}", flush=True)
        measured = run()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measured))
    return json.loads(file.read_text())


@dataclass
class Result:
    """Bars and figures of one script."""

    quick: bool
    bars: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def bar(self, name: str, value: float, limit: float, at: str) -> None:
        """Record a figure against its limit; ``at`` is "least" or "most". A quick run claims nothing."""
        if not self.quick:
            holds = value >= limit if at == "least" else value <= limit
            self.bars.append({"name": name, "value": value, "limit": limit, "at": at, "holds": holds})

    def write(self, path: Path) -> None:
        """Print the bars as a table and write everything as JSON."""
        for bar in self.bars:
            sign = ">=" if bar["at"] == "least" else "<="
            print(f"{'ok  ' if bar['holds'] else 'MISS'} {bar['name']:60} {bar['value']:10.4g} {sign} {bar['limit']:g}")
        document = {"bars": self.bars, "machine": machine(), "commit": commit(), "figures": self.figures}
        path.write_text(json.dumps(document, indent=1) + "\n")


def skumatch(*words: str, cwd: Path) -> str:
    """Run the installed command and return its stdout; its stderr passes through. Ends the script when it fails."""
    command = [str(Path(sys.executable).parent / "skumatch"), *words]
    print("$ skumatch", *words, flush=True)
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"skumatch {words[0]} ended with {done.returncode}")
    return done.stdout


def timed(*words: str, cwd: Path) -> float:
    """Run the command and return the seconds it took."""
    started = time.perf_counter()
    skumatch(*words, cwd=cwd)
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "processor": platform.machine(), "python": platform.python_version()}


def commit() -> str:
    """Return the checkout's commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
