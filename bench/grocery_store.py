"""The main job on real photos: Grocery Store data set, MobileNetV2, through the public commands.

Untouched and fine-tuned top-1/3/5 over all 81 classes and over the 31 packaged ones against their own gallery.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import Result, arguments, skumatch, timed

MODEL = "timm:mobilenetv2_100"
PACKAGED = ("--where", "department=packages")


def main() -> None:
    """Run the rungs that are not finished yet and print the table."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        if not (work / "skumatch.toml").exists():
            data, weights = options.data.absolute() / "grocery-store", options.weights.absolute()
            skumatch(
                "init", str(work), "--data", str(data), "--model", MODEL, "--weights", str(weights), cwd=Path.cwd()
            )
        measure(work, result)
    table(result.figures)
    bars(result)
    result.write(options.json)


def measure(work: Path, result: Result) -> None:
    """Fill ``result.figures``: untouched, seconds of the fine-tune, fine-tuned."""
    figures = result.figures
    source = ("--model", str(untouched(work)))
    where = PACKAGED if result.quick else ()
    figures["untouched, packaged"] = evaluate(work, "untouched-packaged", *source, *PACKAGED)
    if not result.quick:
        figures["untouched, all"] = evaluate(work, "untouched-all", *source)
    seconds = work / "finetune-seconds.json"
    if not seconds.exists():
        shutil.rmtree(work / "models", ignore_errors=True)
        short = ("--epochs", "1", "--size", "64") if result.quick else ()
        seconds.write_text(json.dumps(timed("finetune", "--recipe", "quick", *short, *where, cwd=work)))
    figures["finetune seconds"] = json.loads(seconds.read_text())
    figures["fine-tuned, packaged"] = evaluate(work, "tuned-packaged", *PACKAGED)
    if not result.quick:
        figures["fine-tuned, all"] = evaluate(work, "tuned-all")


def untouched(work: Path) -> Path:
    """Publish the untouched encoder as a bundle, so that it can be evaluated beside the fine-tuned one."""
    from skumatch.model import Contents, save_bundle
    from skumatch.runtime.torch import make_spec
    from skumatch.towers.build import build
    from skumatch.workspace import Workspace

    store = work / "untouched"
    if not (store / "CURRENT").exists():
        tower = build(Workspace.find(work).source())
        save_bundle(store, tower, None, make_spec(tower), Contents({}, tower.model.state_dict()))
    return store


def evaluate(work: Path, name: str, *words: str) -> dict[str, Any]:
    """Run ``skumatch eval`` once and return eval.json."""
    out = work / name
    if not (out / "eval.json").exists():
        skumatch("eval", "--topk", "5", "--out", str(out), *words, cwd=work)
    document: dict[str, Any] = json.loads((out / "eval.json").read_text())
    return {key: document[key] for key in ("queries", "gallery_views", "skus", "topk", "ci95", "topk_views", "leaks")}


def table(figures: dict[str, Any]) -> None:
    """Print top-1/3/5 per rung."""
    print(f"\n{'Grocery Store, MobileNetV2':28} {'top-1':>7} {'95 %':>15} {'top-3':>7} {'top-5':>7} {'views 3/5':>15}")
    for name, found in figures.items():
        if isinstance(found, dict):
            top, views, (low, high) = found["topk"], found["topk_views"], found["ci95"]["1"]
            print(
                f"{name:28} {100 * top['1']:7.1f} {100 * low:7.1f}-{100 * high:.1f}  {100 * top['3']:7.1f} "
                f"{100 * top['5']:7.1f} {100 * views['3']:8.1f}/{100 * views['5']:.1f}"
            )
    print(f"fine-tuning took {figures['finetune seconds']:.0f} s\n")


def bars(result: Result) -> None:
    """Claim the bars of a full run."""
    if result.quick:
        return
    top1 = {name: 100 * found["topk"]["1"] for name, found in result.figures.items() if isinstance(found, dict)}
    for name, low, high in (("untouched, all", 62.8, 64.8), ("untouched, packaged", 50.4, 53.4)):
        result.bar(f"{name}: top-1", top1[name], low, "least")
        result.bar(f"{name}: top-1 ", top1[name], high, "most")
    result.bar("fine-tuned, all: top-1", top1["fine-tuned, all"], 83, "least")
    result.bar("fine-tuned, packaged: top-1", top1["fine-tuned, packaged"], 91, "least")
    result.bar("finetune --recipe quick: seconds", result.figures["finetune seconds"], 600, "most")


if __name__ == "__main__":
    main()
