"""Several processes train what one would: the same losses, objective by objective."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.finetune.processes import ALIKE, command, losses_apart, surroundings


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_have_the_losses_of_one(name: str, patterns: Path, tmp_path: Path) -> None:
    apart = losses_apart(patterns, tmp_path, *ALIKE[name])
    assert len(apart) >= 20
    assert max(apart[:20]) < 1e-4


LEAVES = """
import os, sys
from skumatch.finetune.ranks import joined
with joined("cpu") as ranks:
    import torch
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    total = torch.tensor([float(ranks.rank + 1)])
    ranks.total([total])
left = [open(f"/proc/self/task/{one}/comm").read() for one in os.listdir("/proc/self/task")]
sys.exit(int(total.item() != 3 or any("gloo" in name for name in left)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_nothing_of_the_group_is_left(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES)
    started = command(2, tmp_path / "leaves.py")
    done = subprocess.run(started, capture_output=True, text=True, env=surroundings(), check=False)
    assert done.returncode == 0, done.stderr
