"""The cache of training pictures: filled once, read by later epochs and runs, made anew when pictures change."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skumatch.dataset import Row
from skumatch.errors import ConfigError
from skumatch.finetune.cache import COMPLETE, STARTED, PictureCache, open_cache
from skumatch.finetune.data import canvas_side, split_rows
from skumatch.finetune.parts import Augment
from skumatch.finetune.recipe import recipe_from
from skumatch.finetune.run import Job, finetune
from skumatch.finetune.trainer import Silent
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource

TINY = ModelSource("timm:test_efficientnet", random_init=True, size=32)
RECIPE: dict[str, Any] = {"epochs": 2, "head_epochs": 1, "batch": 6, "embedding": 16, "augment": {"bleed": 0.5}}


@pytest.fixture
def rows(patterns: Path) -> tuple[Row, ...]:
    return open_dataset(patterns).split("train").rows


def square(value: int) -> np.ndarray:
    return np.full((20, 20, 3), value, np.uint8)


def filled(store: Path, rows: tuple[Row, ...]) -> PictureCache:
    cache = open_cache(store, rows, 20, True)
    for place in range(len(rows)):
        assert cache.get(place) is None
        cache.put(place, square(place), 1.5)
    cache.settle()
    return cache


def test_what_was_put_is_there_for_the_next_run(rows: tuple[Row, ...], tmp_path: Path) -> None:
    cache = filled(tmp_path, rows)
    assert cache.complete and (cache.folder / COMPLETE).exists()
    again = open_cache(tmp_path, rows, 20, True)
    found = again.get(3)
    assert again.complete and found is not None
    assert np.array_equal(found[0], square(3)) and found[1] == 1.5


def test_a_part_is_not_complete(rows: tuple[Row, ...], tmp_path: Path) -> None:
    cache = open_cache(tmp_path, rows, 20, True)
    cache.put(1, square(9), 0.5)
    cache.settle()
    assert not cache.complete
    again = open_cache(tmp_path, rows, 20, True)
    assert again.get(0) is None and again.get(1) is not None


def test_another_start_of_the_machine_drops_a_part_and_keeps_the_whole(rows: tuple[Row, ...], tmp_path: Path) -> None:
    for complete in (False, True):
        cache = filled(tmp_path / str(complete), rows)
        if not complete:
            (cache.folder / COMPLETE).unlink()
        facts = json.loads((cache.folder / STARTED).read_text())
        (cache.folder / STARTED).write_text(json.dumps({**facts, "boot": "before"}))
        assert (open_cache(tmp_path / str(complete), rows, 20, True).get(0) is not None) == complete


def test_changed_pictures_and_sizes_have_a_cache_of_their_own(
    rows: tuple[Row, ...], store: Path, tmp_path: Path
) -> None:
    first = filled(tmp_path, rows)
    assert open_cache(tmp_path, rows, 24, True).get(0) is None
    assert not first.folder.exists()
    moved = tuple(open_dataset(store).split("train").rows)
    one = filled(tmp_path, moved)
    moved[0].path.write_bytes(moved[1].path.read_bytes() + b"\n")
    other = open_cache(tmp_path, moved, 20, True)
    assert other.folder != one.folder and other.get(0) is None


def test_a_full_disk_is_said_before_anything_is_written(
    rows: tuple[Row, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ConfigError, match=r"a cache of \d+ pictures of 20 px takes 0.0 GB; 0.0 GB are free"):
        open_cache(tmp_path, rows, 20, True)
    assert not list(tmp_path.iterdir())


OPENED: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


class Epochs(Silent):
    """A Reporter that notes which files had been opened when each epoch ended."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    def epoch(self, record: dict[str, Any]) -> None:
        self.ends.append(len(OPENED or ()))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


def test_the_second_epoch_opens_no_picture(patterns: Path, tmp_path: Path, opened: list[str]) -> None:
    recipe = recipe_from({**RECIPE, "batch": 4, "compute": {"cache": True}})  # no epoch shows all of them
    data = open_dataset(patterns).split("train")
    assert split_rows(data, recipe).queries
    heard = Epochs()
    finetune(Job(data, TINY, recipe, tmp_path / "out", "cpu"), reporter=heard)
    shown = {str(row.path) for row in data}
    first, *later = [set(opened[a:b]) & shown for a, b in zip([0, *heard.ends], heard.ends, strict=False)]
    assert first == shown and later == [set(), set()]
    (made,) = (tmp_path / "out" / "cache" / "node0" / "train").iterdir()
    assert made.name.endswith(f"-{canvas_side(32, Augment())}") and (made / COMPLETE).exists()
    (made,) = (tmp_path / "out" / "cache" / "node0" / "validation").iterdir()
    assert made.name.endswith("-32")


@pytest.mark.slow
def test_the_same_model_comes_of_a_cache_that_is_full_and_of_one_that_fills(patterns: Path, tmp_path: Path) -> None:
    recipe = recipe_from({**RECIPE, "compute": {"cache": True}})
    job = Job(open_dataset(patterns), TINY, recipe, tmp_path / "out", "cpu")
    fills, full = (finetune(job).folder / "weights.safetensors" for _ in range(2))
    assert fills != full and fills.read_bytes() == full.read_bytes()
