"""One process of a fine-tune, for tests.

``train_worker.py JOB.json`` trains; the first process writes what came of it beside the model: losses per step, the
weights' digest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from skumatch.embed import Pipeline
from skumatch.errors import SkumatchError
from skumatch.finetune import trainer
from skumatch.finetune.ranks import writes
from skumatch.finetune.recipe import recipe_from
from skumatch.finetune.run import Job, finetune, unfinished
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource

WRITTEN = "came-of-it.json"


class Listener(trainer.Silent):
    """A Reporter that keeps the losses and, in the first process, counts the steps in a file, for whoever kills it."""

    def __init__(self, steps: Path) -> None:
        self.losses: list[float] = []
        self.steps = steps

    def begin(self, steps: int, done: int) -> None:
        if writes():
            self.steps.write_text("")

    def step(self, loss: float, images: int) -> None:
        self.losses.append(loss)
        if writes():
            with self.steps.open("a") as file:
                file.write(".")


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    trainer.SAVE_EVERY = job.get("save_every", trainer.SAVE_EVERY)
    out = Path(job["out"])
    listener = Listener(Path(job["steps"]))
    recipe = recipe_from(job["recipe"])
    source = ModelSource(job["model"], random_init=True, size=job["size"])
    data = job["data"] if writes() else job.get("other", job["data"])
    work = Job(open_dataset(Path(data)), source, recipe, out, "cpu", Pipeline(workers=1))
    outcome = finetune(work, job["resume"] and started(out), listener)
    weights = (outcome.folder / "weights.safetensors").read_bytes()
    found = {
        "losses": listener.losses,
        "digest": hashlib.sha256(weights).hexdigest(),
        "interrupted": outcome.interrupted,
    }
    if writes():
        (out / WRITTEN).write_text(json.dumps(found))


def started(out: Path) -> bool:
    try:
        unfinished(out)
    except SkumatchError:
        return False
    return True


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
