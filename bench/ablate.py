"""Fine-tuning on real photos: the bars, what each part is worth, and titles as teachers.

Finished fine-tunes and figures are kept in ``--work``, so that a second run resumes: after 75 minutes nothing new is
started. The split test is looked at in the bars alone; the parts are measured on folds of the training photos.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablate_bars
import ablate_grid
import ablate_titles
import numpy as np
from ablate_bars import HOME_RECIPES
from ablate_shop import Shop
from common import Result, arguments, kept


def main() -> None:
    """Run what is not finished yet, print the tables and write the JSON."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        shop = Shop(options.data.absolute(), options.weights.absolute(), work, options.quick)

        def rung(name: str, run: Callable[[], Any]) -> Any:
            return kept(work / "rungs" / f"{name}.json", run)

        result.figures["bars"] = ablate_bars.measure(shop, rung)
        result.figures["titles"] = rung("titles", lambda: ablate_titles.measure(work / "titles", options.quick))
        result.figures["parts"] = ablate_grid.measure(shop, rung)
    tables(result.figures)
    if not options.quick:
        bars(result)
    result.write(options.json)


def tables(found: dict[str, Any]) -> None:
    """Print every figure."""
    print(
        f"\n{'trained on':22} {'all 81':>7} {'packaged':>9} {'catalogue':>10} {'fruit':>7}"
        f" {'clothes':>8} {'seconds':>8}"
    )
    groups = {"nothing (untouched)": [found["bars"]["untouched"]]} if "untouched" in found["bars"] else {}
    groups |= {name: runs for name, runs in found["bars"].items() if name not in ("untouched", "halves")}
    for name, runs in groups.items():
        for run in runs:
            places = ("all", "packaged", "catalogue", "fruit", "clothes")
            cells = [f"{run[place]['top1']:.1f}" if place in run else "" for place in places]
            widths = (7, 9, 10, 7, 8)
            line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            print(f"{name:22} {line} {run.get('seconds', 0):8.0f}")
    for seed, run in enumerate(found["bars"]["halves"]):
        print(
            f"half of the packages, seed {seed}: the other half"
            f" {run['untouched']['top1']:.1f} -> {run['tuned']['top1']:.1f}"
        )
    print(f"\n{'folds of the packages':44} {'packaged':>9} {'95 %':>13} {'catalogue':>10} {'fruit':>7} {'clothes':>8}")
    for name, places in found["parts"].items():
        own = places["packaged"]
        interval = f"{own['low']:.1f}-{own['high']:.1f}"
        print(
            f"{name:44} {own['top1']:9.1f} {interval:>13} {places['catalogue']['top1']:10.1f}"
            f" {places['fruit']['top1']:7.1f} {places['clothes']['top1']:8.1f}"
        )
    print(f"\ntitles, two crops per SKU: {json.dumps(found['titles'])}\n")


def mean(runs: list[dict[str, Any]], place: str) -> float:
    """Return the mean top-1 of several seeds."""
    return float(np.mean([run[place]["top1"] for run in runs]))


def bars(result: Result) -> None:
    """Claim the bars of a full run."""
    found = result.figures["bars"]
    before = found["untouched"]
    best = {place: max(mean(found[f"all, {name}"], place) for name in HOME_RECIPES) for place in ("all", "packaged")}
    result.bar("all 81 classes, better recipe, mean of seeds", best["all"], 87, "least")
    result.bar("the packaged classes, better recipe, mean of seeds", best["packaged"], 96, "least")
    default = found["all, default"]
    result.bar("all 81 classes, default recipe, mean of seeds", mean(default, "all"), 86, "least")
    result.bar("the packaged classes, default recipe, mean of seeds", mean(default, "packaged"), 95, "least")
    every = [run["seconds"] for name in HOME_RECIPES for run in found[f"all, {name}"]]
    result.bar("minutes of the slowest fine-tune", max(every) / 60, 60, "most")
    result.bar("packaged, one catalogue picture each", mean(default, "catalogue"), 60, "least")
    packaged, fruit = found["packaged only"], found["fruit only"]
    change = mean(packaged, "fruit") - before["fruit"]["top1"]
    result.bar("trained on packages: fruit against untouched", change, -0.5, "least")
    result.bar(
        "trained on fruit: packages against untouched",
        mean(fruit, "packaged") - before["packaged"]["top1"],
        5,
        "least",
    )
    for name, runs in (("packages", packaged), ("fruit", fruit)):
        lost = before["clothes"]["top1"] - mean(runs, "clothes")
        result.bar(f"trained on {name}: points lost on clothes", lost, 1, "most")
    gain = float(np.mean([run["gain"] for run in found["halves"]]))
    result.bar("packages never trained on: points above untouched", gain, 15, "least")
    titles = result.figures["titles"]["mean"]
    result.bar("titles: clip + arcface above arcface alone", titles["arcface + clip"] - titles["arcface"], 0, "least")


if __name__ == "__main__":
    main()
