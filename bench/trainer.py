"""The trainer against a bare loop, waiting for pictures, several processes, kill trials, memory.

Finished rungs are kept in ``--work``, so that a second run resumes. The bare loop runs forward and backward of the same
network, head and objective on batches that lie in memory. Both run in one process, in turns. On a CPU MobileNetV2
learns the photos of Grocery Store; where there is an NVIDIA GPU, CLIP's ViT-B/32 and B/16 too, in bf16, 256 pictures at
a time, on a synthetic store.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Result, arguments, kept

from skumatch.dataset import Dataset
from skumatch.finetune.objectives.base import Seen, Setting
from skumatch.finetune.recipe import Recipe, load_recipe
from skumatch.finetune.run import Job, finetune
from skumatch.finetune.state import TrainState
from skumatch.finetune.trainer import Silent
from skumatch.readers import open_dataset
from skumatch.runtime.torch import memory_format
from skumatch.synth import write_store
from skumatch.towers.build import ModelSource, build

sys.path.insert(0, str(ROOT))
from tests.finetune.processes import (
    ALIKE,
    KILLED,
    NET,
    WORKER,
    job_for,
    killed_and_resumed,
    losses_apart,
    surroundings,
    trained,
)

ROUNDS = 5  # epochs that count, after the one that fills the cache
COUNTS = (10_000, 100_000)
KILLS = 60


@dataclass(frozen=True)
class Case:
    """What is trained: ``pictures`` of ``data``, at ``size`` px, ``batch`` at a time, ``steps`` of the bare loop."""

    data: Dataset
    source: ModelSource
    device: str
    size: int
    batch: int
    pictures: int
    steps: int

    @property
    def recipe(self) -> Recipe:
        """All of the encoder learns by ArcFace alone; no validation worth the name."""
        return load_recipe(
            "default",
            epochs=ROUNDS + 1,
            head_epochs=0,
            min_steps=0,
            freeze=0.0,
            batch=self.batch,
            objectives={"retain": 0.0},
            schedule={"sizes": str(self.size)},
            serve={"guard": False, "layer": "features"},
            compute={"cache": True},
            val_queries=1,
            val_views=1,
        )


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    result, quick = Result(options.quick), options.quick
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rungs = (options.work or work).absolute() / "rungs"
        for name, case in cases(work, options.data / "grocery-store", options.weights, quick).items():
            found = kept(rungs / f"rates-{name}.json", partial(rates, work / name, case))
            said_rates(name, found, result)
        few, many = (200, 2_000) if quick else COUNTS
        peaks = [kept(rungs / f"peak-{count}.json", partial(peak, work, count)) for count in (few, many)]
        small = store(work / "few", 6, 6, 64).root
        for name in list(ALIKE)[: 1 if quick else None]:
            apart = partial(losses_apart, small, work / "apart" / name, *ALIKE[name])
            found = kept(rungs / f"apart-{name}.json", apart)
            result.figures[f"losses apart: {name}"] = found
            result.bar(f"two processes, {name}: losses of 20 steps apart", max(found[:20]), 1e-4, "most")
        differ = killed(work, small, rungs, 2 if quick else KILLS)
    result.figures |= {"peak MB by pictures": dict(zip((few, many), peaks, strict=True)), "kill trials": differ}
    print(f"{few:,} pictures: {peaks[0]:.0f} MB at most; {many:,}: {peaks[1] - peaks[0]:+.0f} MB")
    print(f"killed twice and resumed: {len(differ)} times; other weights than without: {sum(differ)} times")
    result.bar("MB more for ten times the pictures", peaks[1] - peaks[0], 200, "most")
    result.bar("kill trials", len(differ), KILLS, "least")
    result.bar("kill trials that end in other weights", sum(differ), 0, "most")
    result.write(options.json)


def said_rates(name: str, found: dict[str, float], result: Result) -> None:
    """Print what ``rates`` found and hold it against the bars."""
    print(
        f"{name}: bare loop {found['bare']:.1f} images/s, trainer {found['trainer']:.1f}: {found['fraction']:.1%}; it"
        f" waits for pictures {found['waited']:.1%} of the time (first epoch {found['waited_first']:.1%})",
        flush=True,
    )
    result.figures[name] = found
    result.bar(f"{name}: the trainer's rate, of the bare loop's", found["fraction"], 0.85, "least")
    result.bar(f"{name}: share of the time spent waiting for pictures", found["waited"], 0.05, "most")
    result.bar(f"{name}: pictures opened after the first epoch", found["opened"], 0, "most")


def killed(work: Path, data: Path, rungs: Path, trials: int) -> list[bool]:
    """Return for each trial whether a killed and resumed run ended in other weights than one that nobody touched."""
    whole = [
        kept(rungs / f"whole-{n}.json", lambda n=n: trained(job_for(data, work / f"whole-{n}", KILLED, NET), n))
        for n in (1, 2)
    ]

    def differs(trial: int) -> bool:
        untouched = whole[trial % 2]
        steps, out = len(untouched["losses"]), work / "killed" / str(trial)
        found = killed_and_resumed(data, out, trial, 1 + trial % 2, steps)
        return bool(found["digest"] != untouched["digest"])

    return [kept(rungs / f"killed-{trial}.json", partial(differs, trial)) for trial in range(trials)]


def cases(work: Path, photos: Path, weights: Path, quick: bool) -> dict[str, Case]:
    """Return what is measured on this machine, by name."""
    if quick:
        tiny = ModelSource("timm:test_efficientnet", random_init=True, size=160)
        return {"test_efficientnet": Case(store(work / "store", 8, 12), tiny, "cpu", 160, 32, 96, 4)}
    found = {}
    if photos.is_dir() and weights.exists():
        net = ModelSource("timm:mobilenetv2_100", weights)
        found["MobileNetV2"] = Case(open_dataset(photos, "grocery-store"), net, "cpu", 160, 64, 1280, 20)
    else:
        print("no Grocery Store photos: MobileNetV2 is not measured")
    if torch.cuda.is_available():
        synthetic = store(work / "store", 64, 80)
        for name in ("ViT-B-32", "ViT-B-16"):
            source = ModelSource(f"open_clip:{name}", random_init=True)
            found[name] = Case(synthetic, source, "cuda", 224, 256, 5120, 40)
    else:
        print("no NVIDIA GPU: the transformers are not measured")
    return found


def store(root: Path, skus: int, views: int, size: int = 96) -> Dataset:
    """Return a synthetic store."""
    return open_dataset(write_store(root, skus, views, 1, 0, size))


class Turns(Silent):
    """A Reporter that runs the bare loop after each epoch."""

    def __init__(self, bare: Callable[[], float]) -> None:
        self.bare = bare
        self.records: list[dict[str, Any]] = []
        self.rates: list[float] = []
        self.opened = 0  # picture files
        self.ends: list[int] = []  # how many of them were opened when each epoch was over
        sys.addaudithook(self._listen)

    def _listen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith((".jpg", ".png")):
            self.opened += 1

    def epoch(self, record: dict[str, Any]) -> None:
        """Keep the epoch's rate and measure the bare loop's."""
        self.records.append(record)
        self.ends.append(self.opened)
        self.rates.append(self.bare())


def rates(work: Path, case: Case) -> dict[str, float]:
    """Train with a cache, in turns with the bare loop; the first epoch, which fills the cache, does not count."""
    rows = [row for row in case.data if row.split == "train"][: case.pictures]
    turns = Turns(bare_loop(case, len({row.sku for row in rows})))
    finetune(Job(case.data.with_rows(rows), case.source, case.recipe, work, case.device), reporter=turns)
    trainer = statistics.median(record["images_per_s"] for record in turns.records[1:])
    bare = statistics.median(turns.rates[1:])
    return {
        "trainer": trainer,
        "bare": bare,
        "fraction": trainer / bare,
        "waited": statistics.median(record["waited"] for record in turns.records[1:]),
        "waited_first": turns.records[0]["waited"],
        "opened_first": turns.ends[0],
        "opened": turns.ends[-1] - turns.ends[0],
    }


def bare_loop(case: Case, skus: int) -> Callable[[], float]:
    """Return a function that runs forward and backward on batches in memory, and returns images/s."""
    tower, device = build(case.source), torch.device(case.device)
    state = TrainState(Setting(case.recipe, np.ones(skus, np.int64), ("",) * skus, tower, device))
    state.set_stage(False)
    layout = memory_format(tower.image)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(case.batch, 3, case.size, case.size, generator=generator) * 255).to(device, memory_format=layout)
        for _ in range(4)
    ]
    labels = torch.arange(case.batch, device=device) % skus
    nobody = torch.zeros(case.batch, 68, device=device)

    def run() -> float:
        started = time.perf_counter()
        for step in range(case.steps):
            pictures = batches[step % len(batches)]
            with state.autocast():
                features = state.features(pictures)
                embeddings = state.head(features)
                loss, _ = state.objectives(Seen(features, embeddings, labels, pictures, 1.0, nobody))
            loss.backward()
            state.collect_gradients()
            for parameter in state.parameters():
                parameter.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()
        return case.steps * case.batch / (time.perf_counter() - started)

    run()
    return run


def peak(work: Path, count: int) -> float:
    """Return the MB resident at most of a fine-tune on ``count`` crops: links to a hundred."""
    small = work / "small"
    if not small.exists():
        write_store(small, 10, 10, 0, 0, 64)
    pictures = sorted(path for path in (small / "train").rglob("*") if path.is_file())
    root = work / f"many-{count}"
    for number in range(count):
        picture = pictures[number % len(pictures)]
        folder = root / "train" / picture.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}{picture.suffix}").symlink_to(picture)
    short = {"epochs": 1, "head_epochs": 0, "batch": 256, "embedding": 16, "val_queries": 10, "val_views": 1}
    job = job_for(root, work / f"out-{count}", short, NET)
    measured = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    # Not getrusage: that hands the parent's peak down to what it starts.
    measured += "; print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", measured, str(WORKER), str(job)],
        capture_output=True,
        text=True,
        check=True,
        env=surroundings(),
    )
    return float(done.stdout.split()[-1]) / 1e3


if __name__ == "__main__":
    main()
