"""``skumatch sweep``: what it writes, what it leaves alone and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch import artefact
from skumatch.cli import sweep as command
from skumatch.eval.options import Option
from skumatch.eval.sweep import Sweep
from skumatch.model import open_bundle
from skumatch.search import Search, search_of
from skumatch.techniques import Technique

Skumatch = Callable[..., Any]


def test_where_nothing_gains_the_model_stays_as_it_is(skumatch: Skumatch, workspace: Path) -> None:
    before = artefact.versions(workspace / "models")
    ran = skumatch("sweep", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "nothing changed: nearest, views none stays" in ran.err
    for name in ("nearest", "vote", "prototype", "expand", "augment", "reciprocal"):
        assert name in ran.out
    assert artefact.versions(workspace / "models") == before


def test_json_is_the_sweep(skumatch: Skumatch, workspace: Path) -> None:
    document = json.loads(skumatch("sweep", "--device", "cpu", "--json").out)
    assert document["technique"] == {"name": "nearest"}
    assert document["queries"] == 6  # one picture per SKU was kept aside from training
    assert len(document["rounds"][0]) == 6


def test_a_winner_goes_into_a_new_version_and_the_calibration_goes(
    skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skumatch.model import with_files

    with_files(open_bundle(workspace / "models"), {"calibration.json": b"{}"})
    chosen = Sweep(Option(Technique("vote", 3), "flip"), {1: 0.5, 3: 0.6, 5: 0.7}, 1.0, 0.1, (), 6, 0, 0)
    monkeypatch.setattr(command, "tried", lambda *_: chosen)
    ran = skumatch("sweep", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "switched to vote (neighbours 3, temperature 0.05), views flip" in ran.err
    assert "the calibration was fitted to the former search and is dropped" in ran.err
    bundle = open_bundle(workspace / "models")
    assert bundle.file("calibration.json") is None
    assert search_of(workspace / "models") == Search(Technique("vote", 3), "flip", chosen.to_json())
    assert skumatch("match", "shop/test", "--device", "cpu").code == 0
    assert skumatch("eval", "--device", "cpu", "--protocol", "closed").code == 0
    searched = json.loads((workspace / "eval" / "eval.json").read_text())["search"]
    assert searched["technique"]["name"] == "vote" and searched["views"] == "flip"
    assert "nothing changed" in skumatch("sweep", "--device", "cpu").err


def test_without_validation_crops_it_is_one_line(skumatch: Skumatch, untouched: Path) -> None:
    ran = skumatch("sweep", "--device", "cpu")
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert "there are no validation crops" in ran.errors[0]
