"""The service as a process: changed under load, ended, killed, fed with broken pictures; and what judges answers."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.backend import backend
from skumatch.dataset import Row
from skumatch.embed import Pipeline, no_progress
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.readers import open_dataset

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
process: Any = importlib.import_module("service_process")
soak: Any = importlib.import_module("service_soak")
mutants: Any = importlib.import_module("service_mutants")
SECONDS = 120.0


@pytest.fixture
def shop(patterns: Path, encoder: Encoder, tmp_path: Path) -> Any:
    """Return a gallery of the 6 SKUs of ``patterns`` and two crops of each."""
    rows = open_dataset(patterns).split("train").rows
    build_gallery(tmp_path / "gallery", Supply.of(rows), encoder, Pipeline())
    return soak.Shop(tmp_path / "gallery", encoder, sorted((patterns / "test").rglob("*.png")), tmp_path)


@pytest.fixture
def start(shop: Any, tmp_path: Path) -> Callable[[], Any]:
    """Return what starts a service over that gallery, on any port."""
    script = ROOT / "tests" / "skumatch" / "serve_process.py"
    words = [sys.executable, str(script), str(shop.gallery), str(tmp_path / "state"), "0"]
    count = iter(range(1000))
    return lambda: process.Server(words, ROOT, tmp_path / f"log-{next(count)}")


def answer_of(shop: Any, version: str, crop: int) -> list[Any]:
    """Return the answer of ``version`` as the load generator notes it, by asking for a wrong one."""
    (words,) = soak.inconsistent(shop, {version: {str(crop): [["none", -1, 0.0]]}})
    said = words.partition(", not ")[2]
    sku, view, score = said.strip("[]").split(", ")
    return [sku.strip("'"), int(view), round(float(score), 4)]


def test_answers_are_held_against_their_own_version(shop: Any) -> None:
    path = shutil.copy(shop.crops[3], shop.work / "own.png")
    supply = Supply.of([Row(Path(path), "crop-3", "gallery")])
    backend(shop.gallery).replace(supply, shop.encoder, Pipeline(), no_progress)
    old, new = answer_of(shop, "v000001", 3), answer_of(shop, "v000002", 3)
    assert old[0] == "sku-1" and new == ["crop-3", 24, 1.0]
    right = {"v000001": {"3": [old]}, "v000002": {"3": [new], "0": [answer_of(shop, "v000002", 0)]}}
    assert soak.inconsistent(shop, right) == []
    assert len(soak.inconsistent(shop, {"v000001": {"3": [old, new]}})) == 1
    assert len(soak.inconsistent(shop, {"v000002": {"3": [["crop-3", old[1], 1.0]]}})) == 1
    assert len(soak.inconsistent(shop, {"v000002": {"3": [["crop-3", 24, 0.99]]}})) == 1


@pytest.mark.slow
def test_it_answers_from_one_version_at_a_time_while_they_change(start: Callable[[], Any], shop: Any) -> None:
    with start() as server:
        found = soak.soak(server, shop, SECONDS, pause=1.0)
        assert server.stop() == 0
    assert found["inconsistent"] == [] and found["changes failed"] == []
    assert found["failed"] == 0, found["failures"]
    assert found["statuses"].keys() == {"200"} and found["versions"] > SECONDS / 4
    assert {how.split(",")[0] for how in found["changes"]} == {"service", "reload", "SIGHUP"}
    assert found["tracebacks"] == 0
    assert found["MB after"] <= 1.1 * found["MB early"]


@pytest.mark.slow
def test_what_was_accepted_is_answered_before_it_ends(start: Callable[[], Any], shop: Any) -> None:
    for _ in range(3):
        with start() as server:
            found = soak.ended(server, shop.crops, 2.0)
        assert found["lost"] == 0, found["statuses"]
        assert found["answered"] > 10 and found["exit code"] == 0 and found["tracebacks"] == 0


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(start: Callable[[], Any], shop: Any) -> None:
    found = soak.killed(start, shop.crops, 3)
    assert found["lost"] == [] and found["acknowledged"] > 10


@pytest.mark.slow
def test_ten_thousand_broken_pictures(start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # glibc gives big blocks back at once: what stays is ours
    with start() as server:
        found = mutants.figures(server, 10_000, 2_000)
    assert found["wrong"] == [] and found["5xx or lost"] == 0 and found["alive"]
    assert (found["pictures"], found["fine"], found["tracebacks"]) == (10_000, 1_000, 0)
    assert found["MB after"] <= 1.1 * found["MB before"]
