"""Synthetic catalogues of ten thousand to a million postings through ``skumatch dedupe``: time, memory, growth.

Each size runs in a process of its own, as a user would start it, with vectors that were made before. Time per posting
is of the whole command but its start; searching is the time in which neighbours are found. And from how many vectors on
lists find neighbours sooner than comparing all.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, kept, skumatch
from duplicates_synthetic import make_synthetic

from skumatch.catalogue.dedupe import Looks, vector_signal
from skumatch.catalogue.neighbours import Neighbours
from skumatch.catalogue.postings import read_catalogue

SIZES, QUICK = (10_000, 100_000, 1_000_000), (1_000, 10_000)
LISTS = (30_000, 60_000, 120_000)  # vectors searched in both ways
GROWTH = 3.5  # of the time per posting, per tenfold
MEMORY = 8.0  # GB


def scale(work: Path, result: Result) -> None:
    """Measure each size and claim the bars."""
    found = {}
    for size in QUICK if result.quick else SIZES:
        found[size] = kept(work / f"{size}.json", lambda size=size: _measured(work / str(size), size))
        one = found[size]
        print(
            f"{size:>9,} postings: {one['seconds']:8.1f} s, {1e3 * one['seconds'] / size:6.3f} ms each, "
            f"{100 * one['searching']:4.1f} % searching, {one['memory']:.2f} GB, F1 {one['f1']:.3f}"
        )
    result.figures["scale"] = {str(size): one for size, one in found.items()}
    sizes = list(found)
    for small, large in pairwise(sizes):
        grown = found[large]["seconds"] / large / (found[small]["seconds"] / small)
        print(f"{small:,} to {large:,}: time per posting times {grown:.2f}")
        result.bar(f"{small} to {large} postings: growth of the time per posting", grown, GROWTH, "most")
    result.bar(f"{sizes[-1]} postings: peak memory, GB", found[sizes[-1]]["memory"], MEMORY, "most")


def _measured(folder: Path, size: int) -> dict[str, Any]:
    """Make a catalogue, deduplicate it in another process, and return what that told."""
    if not (folder / "vectors.npy").exists():
        make_synthetic(folder, size, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    begun = time.perf_counter()
    said = skumatch(
        "dedupe",
        str(folder / "postings.csv"),
        "--vectors",
        str(folder / "vectors.npy"),
        "--out",
        str(folder / "out"),
        "--eval",
        "--json",
        cwd=folder,
    )
    whole = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    facts = json.loads(said)
    shutil.rmtree(folder)
    if peak == before:
        sys.exit(f"an earlier command took more memory than that of {size:,} postings: run it alone")
    seconds = facts["seconds"]
    searching = sum(took for what, took in seconds.items() if what.startswith("neighbours"))
    return {
        "seconds": sum(seconds.values()),
        "whole": whole,
        "stages": seconds,
        "searching": searching / sum(seconds.values()),
        "memory": peak * 1024 / 1e9,
        "pairs": facts["pairs"],
        "f1": facts["eval"]["f1"]["value"],
    }


def lists(work: Path, result: Result) -> None:
    """Find the 50 neighbours of every vector by comparing all, and by lists: seconds of both, and the share of what
    comparing all finds that lists find, too: of all pairs, and of those of one product."""
    for rows in LISTS:
        one = kept(work / f"lists{rows}.json", lambda rows=rows: _both_ways(work / f"lists{rows}", rows))
        result.figures[f"{rows} vectors"] = one
        print(
            f"{rows:>9,} vectors: all compared in {one['exact']:.1f} s, lists {one['lists']:.1f} s, "
            f"recall {100 * one['recall']:.2f} %, of pairs of one product {100 * one['recall_same']:.2f} %"
        )


def _both_ways(folder: Path, rows: int) -> dict[str, float]:
    make_synthetic(folder, rows, 0)
    vectors = np.load(folder / "vectors.npy")
    groups = read_catalogue(folder / "postings.csv").groups
    shutil.rmtree(folder)
    assert groups is not None
    signal = vector_signal("image", vectors, np.ones(rows, bool), Looks())
    seconds, found = {}, {}
    for name, most in (("exact", rows), ("lists", 0)):
        begun = time.perf_counter()
        found[name] = _keys(replace(signal, exact_rows=most).nearest(Looks().k))
        seconds[name] = time.perf_counter() - begun
    hit = np.isin(found["exact"], found["lists"])
    same = groups[found["exact"] // rows] == groups[found["exact"] % rows]
    return {**seconds, "recall": float(hit.mean()), "recall_same": float(hit[same].mean())}


def _keys(near: Neighbours) -> np.ndarray:
    left, right = near.pairs()
    return left * len(near) + right
