"""Matching against the bare encoder, start-up time, and memory over many crops.

The bare encoder encodes batches that are decoded already; ``match`` reads, decodes, encodes, searches and writes.
Both run in one process, in turns, and the ratio of their median rates is reported.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import Result, arguments, skumatch

BATCH = 32
ROUNDS = 5


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = synthetic(work)
        grocery = options.data / "grocery-store"
        if grocery.is_dir() and options.weights.exists() and not options.quick:
            photos = sorted(p for p in (grocery / "test").rglob("*.jpg"))[:500]
            found = rates(work, photos, ("timm:mobilenetv2_100", options.weights))
        else:
            photos = sorted((store / "test").rglob("*.jpg"))[: 60 if options.quick else 500]
            found = rates(work, photos, ("open_clip:skumatch-tiny-96", None))
        result.figures["rates"] = found
        result.figures["help seconds"] = start_up(3 if options.quick else 15)
        result.figures["memory"] = memory(work, store, 2_000 if options.quick else 100_000)
    print(f"\n{found['crops']} crops, batch {BATCH}, {found['model']}")
    print(f"bare encoder {found['bare']:.1f} images/s, match {found['match']:.1f} images/s: {found['fraction']:.1%}")
    print(f"skumatch --help: {result.figures['help seconds']:.3f} s (median)")
    print(
        "memory: {crops:,} crops, {peak_gb:.2f} GB resident at most, {rate:.0f} crops/s\n".format(
            **result.figures["memory"]
        )
    )
    result.bar("match over 500 photos: fraction of the bare encoder's rate", found["fraction"], 0.85, "least")
    result.bar("skumatch --help: median seconds", result.figures["help seconds"], 0.5, "most")
    result.bar("match over 100,000 crops: GB resident", result.figures["memory"]["peak_gb"], 2.5, "most")
    result.write(options.json)


def synthetic(work: Path) -> Path:
    """Render a small store."""
    from skumatch.synth import write_store

    return write_store(work / "store", 60, 5, 10, 0)


def rates(work: Path, photos: list[Path], model: tuple[str, Path | None]) -> dict[str, Any]:
    """Return images/s of the bare encoder and of the whole match, measured in turns."""
    from skumatch.dataset import Row
    from skumatch.embed import Pipeline
    from skumatch.encoder import open_encoder
    from skumatch.enrol import Supply, build_gallery
    from skumatch.images import load_pixels
    from skumatch.match import Matcher
    from skumatch.results import ResultFile, records
    from skumatch.towers.build import ModelSource

    name, weights = model
    encoder = open_encoder(ModelSource(name, weights, random_init=weights is None))
    rows = [Row(path, path.parent.name, "gallery") for path in photos]
    matcher = Matcher(
        encoder, build_gallery(work / "gallery", Supply.of(rows), encoder, Pipeline()).gallery, Pipeline(BATCH)
    )
    pixels = np.stack([load_pixels(path, encoder.spec) for path in photos])

    def bare() -> None:
        for start in range(0, len(pixels), BATCH):
            encoder.encode(pixels[start : start + BATCH])

    def match() -> None:
        with ResultFile(work / "matches.csv") as out:
            for found in matcher.stream(photos, 5):
                out.write(records(found))

    measured: dict[str, list[float]] = {"bare": [], "match": []}
    for job in (bare, match):
        job()
    for _ in range(ROUNDS):
        for key, job in (("bare", bare), ("match", match)):
            started = time.perf_counter()
            job()
            measured[key].append(len(photos) / (time.perf_counter() - started))
    median = {key: statistics.median(values) for key, values in measured.items()}
    return {"model": name, "crops": len(photos), **median, "fraction": median["match"] / median["bare"]}


def start_up(times: int) -> float:
    """Return the median seconds of ``skumatch --help``."""
    command = [str(Path(sys.executable).parent / "skumatch"), "--help"]
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def memory(work: Path, store: Path, crops: int) -> dict[str, Any]:
    """Match ``crops`` hard links to rendered crops with the small model; return the peak of resident memory."""
    space = work / "space"
    skumatch(
        "init", str(space), "--data", str(store), "--model", "open_clip:skumatch-tiny-96", "--random-init", cwd=work
    )
    skumatch("gallery", "build", cwd=space)
    pictures = sorted((store / "test").rglob("*.jpg"))
    many = work / "many"
    many.mkdir()
    for number in range(crops):
        os.link(pictures[number % len(pictures)], many / f"{number:07d}.jpg")
    command = [str(Path(sys.executable).parent / "skumatch"), "match", str(many), "--out", str(work / "many.csv")]
    started = time.perf_counter()
    process = psutil.Popen(command, cwd=space, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    if process.wait():
        sys.exit("skumatch match failed")
    lines = sum(1 for _ in (work / "many.csv").open())
    if lines != 5 * crops + 1:
        sys.exit(f"{lines} lines for {crops} crops")
    return {"crops": crops, "peak_gb": peak / 1e9, "rate": crops / (time.perf_counter() - started)}


if __name__ == "__main__":
    main()
