"""``skumatch demo``: the whole story, offline."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed: SKUMATCH_DEMO names a run that the gate has made already."""
    if made := os.environ.get("SKUMATCH_DEMO"):
        return Path(made), (Path(made).parent / "demo.log").read_text()
    out = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "skumatch.cli.app", "demo", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_the_demo_tells_its_story(demo: tuple[Path, str]) -> None:
    out, printed = demo
    before, after = (json.loads((out / name / "eval.json").read_text()) for name in ("before", "after"))
    assert before["topk"]["1"] < 0.4
    assert after["topk"]["1"] >= 0.9
    assert after["queries"] == 600
    with (out / "matches.csv").open(newline="") as stream:
        best = [line for line in csv.DictReader(stream) if line["rank"] == "1"]
    assert len(best) == len(list((out / "crops").iterdir())) == 60
    assert (out / "index.html").read_text().lower().startswith("<!doctype html>")
    assert "after fine-tuning" in printed
    assert "skumatch init --data PATH" in printed


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_it_writes_over_nothing(skumatch: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    out = tmp_path / "taken"
    if kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("keep me")
    else:
        out.write_text("keep me")
    ran = skumatch("demo", "--out", out)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == len(ran.errors) == 1
    assert "is not empty" in ran.errors[0]
    assert [path.name for path in tmp_path.iterdir() if path.name != "skumatch-cache"] == ["taken"]
