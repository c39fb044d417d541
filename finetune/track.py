"""Who is told how training goes: TensorBoard, and several at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skumatch.errors import ConfigError
from skumatch.finetune.trainer import Reporter


class Several:
    """A Reporter that tells several others."""

    def __init__(self, others: Sequence[Reporter]) -> None:
        self.others = others

    def begin(self, steps: int, done: int) -> None:
        """Tell all."""
        for other in self.others:
            other.begin(steps, done)

    def step(self, loss: float, images: int) -> None:
        """Tell all."""
        for other in self.others:
            other.step(loss, images)

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell all."""
        for other in self.others:
            other.epoch(record)


class TensorBoard:
    """A Reporter that writes event files to ``folder``: the loss by step; losses, validation and rate by epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.done = 0

    def begin(self, steps: int, done: int) -> None:
        """Go on where the checkpoint was; what a killed run wrote beyond it no longer counts."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=done + 1)
        self.done = done

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()

    def step(self, loss: float, images: int) -> None:
        """Write the loss of a step."""
        self.done += 1
        self.writer.add_scalar("loss/step", loss, self.done)

    def epoch(self, record: dict[str, Any]) -> None:
        """Write what an epoch came to."""
        values = {"loss/epoch": record["loss"], "images_per_s": record["images_per_s"], "size": record["size"]}
        values |= {f"loss/{name}": value for name, value in record["parts"].items()}
        values |= {f"validation/{name}": value for name, value in record["val_top1"].items()}
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, record["epoch"])
        self.writer.flush()


def require_tensorboard() -> None:
    """Raise ConfigError when tensorboard is not installed."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed", "pip install 'skumatch[track]', or leave out --track"
        ) from error


@contextmanager
def tensorboard(folder: Path) -> Iterator[TensorBoard]:
    """Yield a Reporter that writes to ``folder``."""
    reporter = TensorBoard(folder)
    try:
        yield reporter
    finally:
        reporter.close()
