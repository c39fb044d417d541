"""The gallery from 10,000 to 3.5 million views: speed against the matrix product, recall, memory, instant updates, and
the table of docs/scale.md, which goes on to 1,000 million views by computing (``gallery_scale.py`` says how).

    python bench/gallery.py [--quick] [--work DIR] [--table docs/scale.md] --json OUT

What the table supposes, none of it measured: --machine-gb and --machine-cores of a cluster's machines, --segment-views
in a segment. With --images-per-second it has the time of embedding; with --core-hour, --gb-hour (of memory) and
--gb-month (of disk), prices in one currency, it has costs.

Made-up look-alikes with fixed seeds (``gallery_index.py`` says how); no photos and no weights are needed. The largest
rung writes 17 GB into --work and removes them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import gallery_build
import gallery_index
import gallery_scale
import numpy as np
from common import Result, arguments, kept, machine

from skumatch.gallery import open_gallery
from skumatch.gallery_changes import add_views, remove_views
from skumatch.segment import NewView

CHANGED = 1000  # views added and removed
TIMES = 5
ROWS = {"10k": 10_000, "100k": 100_000, "1M": 1_000_000, "3.5M": 3_500_000}
QUICK = {"10k": 1000, "100k": 5000, "1M": 5000, "3.5M": 10_000}


def main() -> None:
    """Run all rungs, print the bars and the table, and write JSON."""
    table, assumed = extras()
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        os.environ["SKUMATCH_CACHE"] = str(work / "cache")  # notes of verified files go with them
        result.figures = measured(work, options.quick)
    state_bars(result)
    scales = {name: result.figures[f"{name} gallery"] for name in ("10k", "1M", "3.5M")}
    document = gallery_scale.document(scales, assumed, {**machine(), "quick": options.quick})
    result.figures["scale"] = document
    result.write(options.json)
    print(gallery_scale.section(document))
    if table:
        table.write_text(gallery_scale.replaced(table.read_text(), document))


def extras() -> tuple[Path | None, gallery_scale.Assumed]:
    """Take this script's own options off the command line, before those that all scripts have."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--machine-gb", type=float, default=gallery_scale.Assumed.machine_gb)
    parser.add_argument("--machine-cores", type=int, default=gallery_scale.Assumed.machine_cores)
    parser.add_argument("--segment-views", type=int)
    for name in ("--images-per-second", "--core-hour", "--gb-hour", "--gb-month"):
        parser.add_argument(name, type=float)
    own, sys.argv[1:] = parser.parse_known_args()
    given = vars(own)
    return given.pop("table"), gallery_scale.Assumed(**given)


def measured(work: Path, quick: bool) -> dict[str, Any]:
    """Return the figures of all rungs; those that are in ``work`` are not run again."""
    rows, folder = (QUICK, work / "quick") if quick else (ROWS, work / "rungs")
    found = {
        "100k": kept(folder / "100k.json", lambda: gallery_index.small(work, rows["100k"])),
        "1M": kept(folder / "1M.json", lambda: gallery_index.large(work, rows["1M"])),
    }
    for name, kind in {"10k": "exact", "1M": "ivf-rabitq", "3.5M": "ivf-rabitq"}.items():
        file = folder / f"{name}-gallery.json"
        found[f"{name} gallery"] = kept(file, partial(gallery_build.measured, work, rows[name], kind))
        if name == "1M":
            found["updates"] = kept(folder / "updates.json", lambda: updates(work, rows["1M"]))
        gallery_build.discard(work, rows[name])
    return found


def state_bars(result: Result) -> None:
    """Compare the figures with what is asked for."""
    small, large, change = (result.figures[name] for name in ("100k", "1M", "updates"))
    million, most = (result.figures[f"{name} gallery"] for name in ("1M", "3.5M"))
    rates = small["queries/s"]
    result.bar("100k: exact, of the bf16 matrix product", rates["exact"] / rates["gemm bf16"], 0.5, "least")
    result.bar("100k: exact, of the fp32 matrix product", rates["exact"] / rates["gemm fp32"], 0.5, "least")
    best = max(
        ("ivf-rabitq", "hnsw"), key=lambda kind: (small[kind]["recall@1"] >= 0.99, rates[kind])
    )  # the faster of those that answer well enough
    result.bar(f"100k: {best}, times exact", rates[best] / rates["exact"], 3, "least")
    result.bar(f"100k: {best}, recall@1", small[best]["recall@1"], 0.99, "least")
    result.bar(f"100k: {best}, top-5 overlap", small[best]["overlap@5"], 0.98, "least")
    result.bar("1M: ivf-rabitq, times exact", large["times exact"], 10, "least")
    result.bar("1M: recall@1", large["recall@1"], 0.99, "least")
    result.bar("1M: resident MB", million["search"]["anonymous bytes"]["index"] / 1e6, 700, "most")
    result.bar("3.5M: resident MB", most["search"]["anonymous bytes"]["index"] / 1e6, 3000, "most")
    result.bar("3.5M: recall@1", most["search"]["recall@1"], 0.99, "least")
    result.bar("3.5M: peak GB while building", most["build"]["peak bytes"] / 1e9, 24, "most")
    result.bar("1M: 1,000 added views are found after s, the slowest", max(change["added s"]), 2, "most")
    result.bar("1M: 1,000 removed views are gone after s, the slowest", max(change["removed s"]), 2, "most")
    result.bar("1M: added views that were not found", change["lost"], 0, "most")
    result.bar("1M: removed views that were returned", change["returned"], 0, "most")


def updates(work: Path, rows: int) -> dict[str, Any]:
    """Add and remove views of an indexed gallery in turn; return seconds until a reader elsewhere sees it."""
    store = gallery_build.stored(work, rows, "ivf-rabitq")
    gallery = open_gallery(store)
    reader = open_gallery(store)  # another opened gallery, as another process has it
    reader.search(np.ones((1, gallery_index.DIM), np.float32) / gallery_index.DIM**0.5, 5)
    found: dict[str, Any] = {"rows": rows, "added s": [], "removed s": [], "lost": 0, "returned": 0}
    for number in range(TIMES):
        views = new_views(number)
        vectors = np.stack([view.vector for view in views])
        started = time.perf_counter()
        gallery = add_views(gallery, views)
        reader = reader.refreshed()
        ids = reader.index.search(vectors[:1], 1)[1]
        found["added s"].append(time.perf_counter() - started)
        new = gallery.ids[-CHANGED:]
        found["lost"] += int(np.sum(reader.index.search(vectors, 1)[1][:, 0] != new)) + int(ids[0, 0] != new[0])
        started = time.perf_counter()
        gallery = remove_views(gallery, new.tolist())
        reader = reader.refreshed()
        reader.index.search(vectors[:1], 1)
        found["removed s"].append(time.perf_counter() - started)
        found["returned"] += int(np.isin(reader.index.search(vectors, 5)[1], new).sum())
    found["index"] = gallery.published.state.index is not None
    return found


def new_views(seed: int) -> list[NewView]:
    """Return made-up views of new SKUs."""
    vectors = gallery_index.look_alikes(CHANGED, gallery_index.DIM, np.random.default_rng((99, seed)))
    return [
        NewView(f"new-{seed}-{number}", "", f"{seed:08x}{number:056x}", gallery_build.THUMB, vector)
        for number, vector in enumerate(vectors)
    ]


if __name__ == "__main__":
    main()
