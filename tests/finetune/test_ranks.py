"""Several processes train what one would: the same losses, objective by objective."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from skumatch.errors import ConfigError
from skumatch.finetune.ranks import Ranks, joined
from tests.finetune.processes import ALIKE, NET, SHORT, WORKER, command, job_for, losses_apart, surroundings


def test_surroundings_that_make_no_sense_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    said = "the environment variables of torchrun are no numbers - start it with torchrun"
    with pytest.raises(ConfigError, match=said), joined("cpu"):
        pass


@pytest.mark.parametrize("asked", ["cpu", "cuda", "cuda:1"])
def test_one_process_has_the_device_that_was_asked_for_and_several_a_gpu_each(asked: str) -> None:
    assert Ranks().device(asked) == asked
    assert Ranks(5, 8, 2, 4, 1).device(asked) == ("cpu" if asked == "cpu" else "cuda:2")


@pytest.mark.slow
def test_processes_that_see_different_pictures_end_in_one_line(patterns: Path, tmp_path: Path) -> None:
    job = job_for(patterns, tmp_path / "out", SHORT, NET, other=str(shutil.copytree(patterns, tmp_path / "other")))
    (tmp_path / "other" / "train" / "sku-0" / "0.png").unlink()
    done = subprocess.run(command(2, WORKER, job), capture_output=True, text=True, env=surroundings(), check=False)
    assert done.returncode != 0
    assert "the processes see different pictures, recipes or encoders - start all of them with the same" in done.stderr
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_have_the_losses_of_one(name: str, patterns: Path, tmp_path: Path) -> None:
    apart = losses_apart(patterns, tmp_path, *ALIKE[name])
    assert len(apart) >= 20
    assert max(apart[:20]) < 1e-4


LEAVES = """
import os, sys
from skumatch.finetune.ranks import Ranks, joined
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
