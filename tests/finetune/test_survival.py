"""Killed at any step, resumed, and the weights are those of a run that nobody touched.

``SKUMATCH_KILLS=60 python -m pytest -m slow tests/finetune/test_survival.py`` kills more often.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.finetune.processes import KILLED, NET, job_for, killed_and_resumed, trained

KILLS = int(os.environ.get("SKUMATCH_KILLS", "6"))


@pytest.fixture(scope="module")
def untouched(patterns: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What comes of it when nobody kills, by the number of processes."""
    folder = tmp_path_factory.mktemp("untouched")
    return {n: trained(job_for(patterns, folder / str(n), KILLED, NET), n) for n in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(KILLS))
def test_killed_at_a_random_step_it_ends_in_the_same_weights(
    trial: int, patterns: Path, tmp_path: Path, untouched: dict[int, dict[str, Any]]
) -> None:
    processes = 1 + trial % 2
    whole = untouched[processes]
    found = killed_and_resumed(patterns, tmp_path / "out", trial, processes, len(whole["losses"]))
    assert found["digest"] == whole["digest"]
