"""Evaluation and decisions on real photos: every protocol on the Grocery Store, the open set, audit, leaks, speed.

Public commands where there is one: two fine-tunes of the `quick` recipe (all SKUs; a fifth held out), ten more on
packaged SKUs with a third held out. With ``--work`` finished rungs are kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluation_audit
import evaluation_leaks
import evaluation_speed
import numpy as np
from common import Result, arguments, skumatch

MODEL = "timm:mobilenetv2_100"
PACKAGED = ("--where", "department=packages")
DRAWS = 10
SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    """Run the rungs that are not finished yet, print the tables and write the JSON."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    photos, weights = options.data.absolute() / "grocery-store", options.weights.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        found = result.figures
        if not (work / "skumatch.toml").exists():
            where = ("--data", str(photos), "--model", MODEL, "--weights", str(weights))
            skumatch("init", str(work), *where, cwd=Path.cwd())
        found["leaks"] = rung(work, "leaks", lambda: evaluation_leaks.measure(photos, weights, 0, options.quick))
        found["audit"] = rung(work, "audit", lambda: evaluation_audit.measure(photos, weights, SEEDS, options.quick))
        found["open set"] = [open_set(work, seed, options.quick) for seed in range(1 if options.quick else DRAWS)]
        if not options.quick:
            found["protocols"] = rung(work, "protocols", lambda: protocols(work))
            found["held-out SKUs"] = rung(work, "held-out", lambda: held_out(work))
        found["speed"] = rung(work, "speed", lambda: evaluation_speed.measure(options.quick))
    tables(found)
    bars(result)
    result.write(options.json)


def rung(work: Path, name: str, run: Callable[[], Any]) -> Any:
    """Return what ``run`` measured, from ``work`` where it was measured before."""
    file = work / f"rung-{name}.json"
    if not file.exists():
        measured = run()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measured))
    return json.loads(file.read_text())


def train(work: Path, store: str, *words: str) -> None:
    """Fine-tune once into ``store``."""
    if not (work / store / "CURRENT").exists():
        skumatch("finetune", "--recipe", "quick", "--out", str(work / store), *words, cwd=work)


def evaluate(work: Path, name: str, *words: str) -> dict[str, Any]:
    """Run ``skumatch eval`` and return eval.json."""
    skumatch("eval", "--out", str(work / name), *words, cwd=work)
    document: dict[str, Any] = json.loads((work / name / "eval.json").read_text())
    return document


def open_set(work: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Train on two thirds of the packaged SKUs; fit and judge decisions with the others as unknown products."""

    def run() -> dict[str, Any]:
        store, short = f"open-set/seed-{seed}", ("--epochs", "1", "--size", "64") if quick else ()
        train(work, store, *PACKAGED, "--hold-out", "0.33", "--seed", str(seed), *short)
        asked = ("--protocol", "open-set", "--target-far", "0.05", "--seed", str(seed))
        document = evaluate(work, f"{store}-eval", "--model", str(work / store), *PACKAGED, *asked)
        return {key: value for key, value in document["open_set"].items() if key not in ("oscr_curve", "histogram")}

    found: dict[str, Any] = rung(work, f"open-set-{seed}", run)
    return found


def protocols(work: Path) -> dict[str, Any]:
    """Every protocol with a model trained on all SKUs, beside the untouched encoder, and robustness."""
    train(work, "models")
    return {
        name: evaluate(work, f"eval-{name}", "--baseline", *words)
        for name, words in (("all", ("--robustness",)), ("packaged", PACKAGED))
    }


def held_out(work: Path) -> dict[str, Any]:
    """The protocols with a model that never saw a fifth of the SKUs."""
    train(work, "held-out", "--hold-out", "0.2")
    return evaluate(work, "eval-held-out", "--baseline", "--model", str(work / "held-out"))


def tables(found: dict[str, Any]) -> None:
    """Print every protocol in one table, then the open set, robustness, audit, leaks and speed."""
    print(f"\n{'protocol':52} {'top-1':>6} {'95 %':>13} {'top-5':>6} {'mAP@R':>6} {'untouched':>10}")
    documents = {**found.get("protocols", {}), "a fifth held out": found.get("held-out SKUs")}
    for name, document in documents.items():
        for one in (document or {"protocols": []})["protocols"]:
            low, high = one["ci95"]["1"]
            print(
                f"{name + ': ' + one['title']:52} {100 * one['topk']['1']:6.1f} {100 * low:6.1f}-{100 * high:5.1f} "
                f"{100 * one['topk']['5']:6.1f} {100 * one['map_at_r']:6.1f} {100 * one['baseline']['topk']['1']:10.1f}"
            )
    for kind, cells in found.get("protocols", {}).get("all", {}).get("robustness", {}).get("kinds", {}).items():
        print(f"{'robustness: ' + kind:52}", *(f"{100 * cell['top1']:6.1f}" for cell in cells))
    print(f"\n{'open set, packaged':20} {'FAR':>6} {'accepted':>9} {'right':>6} {'AUROC':>6} {'OSCR':>6} {'FPR95':>6}")
    for seed, one in enumerate(found["open set"]):
        keys = ("far", "accepted", "accuracy_accepted", "auroc", "oscr", "fpr95")
        print(f"seed {seed:<15}", *(f"{100 * one[key]:6.1f}" for key in keys))
    for name in ("audit", "leaks", "speed"):
        print(f"\n{name}: {json.dumps(found[name])}")
    print()


def bars(result: Result) -> None:
    """Claim the bars of a full run."""
    found = result.figures
    audit, leaks, speed = found["audit"], found["leaks"], found["speed"]
    result.bar("flipped labels in the top tenth, mean of seeds", audit["mean"]["found in the top 10 %"], 0.8, "least")
    result.bar("planted near-duplicates found", leaks["found"], 0.95, "least")
    result.bar("false near-duplicates", leaks["false"], 0.01, "most")
    for key, limit, at in (("far", 0.10, "most"), ("accuracy_accepted", 0.97, "least")):
        mean = float(np.mean([one[key] for one in found["open set"]]))
        result.bar(f"open set, mean of draws: {key}", mean, limit, at)
    result.bar("resident GB beyond the inputs", speed["resident_gb_beyond_inputs"], 2.5, "most")
    result.bar("search as a share of the GEMM rate", speed["search_share_of_gemm"], 0.6, "least")


if __name__ == "__main__":
    main()
