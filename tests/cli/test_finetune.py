"""``skumatch finetune``: the model it leaves, what it refuses, Ctrl-C and --resume."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from skumatch.encoder import open_encoder
from skumatch.finetune.run import runs
from skumatch.model import open_bundle

Skumatch = Callable[..., Any]
QUICK = ("finetune", "--epochs", "1", "--device", "cpu")


def test_it_publishes_a_model_and_says_what_comes_next(skumatch: Skumatch, untouched: Path) -> None:
    ran = skumatch(*QUICK, "--seed", "3")
    assert ran.code == 0, ran.err
    assert "skumatch eval" in ran.out
    assert "epoch 2/2" in ran.err
    bundle = open_bundle(untouched / "models")
    assert bundle.document["recipe"]["seed"] == 3
    assert bundle.document["where"] == {}
    assert f"serving the {bundle.spec.layer}" in ran.err
    assert open_encoder(untouched / "models", "cpu").spec == bundle.spec


def test_it_works_from_a_folder_inside_and_into_another_store(
    skumatch: Skumatch, untouched: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(untouched / "store" / "train")
    assert skumatch(*QUICK, "--out", tmp_path / "elsewhere", "--where", "sku=sku-0").code == 2
    assert skumatch(*QUICK, "--out", tmp_path / "elsewhere").code == 0
    assert open_bundle(tmp_path / "elsewhere").document["interrupted"] is False
    assert not (untouched / "models").exists()


def test_a_recipe_file_is_used(skumatch: Skumatch, untouched: Path) -> None:
    (untouched / "mine.toml").write_text(
        'name = "mine"\nepochs = 0\nhead_epochs = 1\nbatch = 9\n[serve]\nlayer = "head"\n'
    )
    ran = skumatch("finetune", "--recipe", "mine.toml", "--device", "cpu")
    assert ran.code == 0, ran.err
    bundle = open_bundle(untouched / "models")
    assert bundle.spec.layer == "head"
    assert bundle.document["recipe"]["batch"] == 9


def test_an_unreadable_picture_is_reported_and_training_goes_on(skumatch: Skumatch, untouched: Path) -> None:
    for view in (0, 1):  # one of them may be held out for validation
        (untouched / "store" / "train" / "sku-1" / f"{view}.png").write_bytes(b"broken")
    ran = skumatch(*QUICK)
    assert ran.code == 0, ran.err
    assert "unreadable: " in ran.err
    assert "could not be read and were left out" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "no-such"], "choose default"),
        (["--epochs", "-1"], "epochs is -1"),
        (["--size", "5000"], "sizes is '5000'"),
        (["--where", "colour=red"], "no column 'colour'"),
        (["--where", "sku=sku-99"], "nearest values are sku: sku-"),
        (["--where", "sku"], "not KEY=VALUE"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--resume"], "no interrupted fine-tune"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, untouched: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("finetune", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert not (untouched / "models").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", [["finetune"], ["eval"], ["match", "store/test"], ["gallery", "build"]])
def test_a_gpu_that_is_not_there_is_an_error(skumatch: Skumatch, untouched: Path, command: list[str]) -> None:
    ran = skumatch(*command, "--device", "cuda")
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert "cuda" in ran.errors[0]


def test_data_that_is_gone_is_an_error(skumatch: Skumatch, untouched: Path) -> None:
    shutil.rmtree(untouched / "store")
    ran = skumatch(*QUICK)
    assert (ran.code, len(ran.err.splitlines()), len(ran.errors)) == (2, 1, 1)
    assert str(untouched / "store") in ran.errors[0]


@pytest.mark.slow
def test_ctrl_c_leaves_a_model_and_resume_finishes_it(skumatch: Skumatch, untouched: Path) -> None:
    command = [sys.executable, "-u", "-m", "skumatch.cli.app", "finetune", "--epochs", "30", "--device", "cpu"]
    with subprocess.Popen(command, cwd=untouched, stderr=subprocess.PIPE, text=True) as process:
        metrics = untouched / "models" / "runs" / "r000001" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopping after this step" in said
    assert "Traceback" not in said
    stopped = open_bundle(untouched / "models")
    assert stopped.document["interrupted"] is True
    assert 1 <= stopped.document["epochs_done"] < 31
    assert skumatch("eval", "--device", "cpu").code == 0
    disagree = skumatch("finetune", "--resume", "--seed", "5")
    assert disagree.code == 2
    assert "the interrupted run has seed 0, not 5" in disagree.errors[0]
    resumed = skumatch("finetune", "--resume", "--cache", "--device", "cpu")
    assert resumed.code == 0, resumed.err
    finished = open_bundle(untouched / "models")
    assert finished.document["interrupted"] is False
    assert finished.document["recipe"]["epochs"] == 30
    lines = (runs(untouched / "models")[0] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 32))


@pytest.mark.slow
def test_torchrun_trains_one_model_and_one_process_talks(untouched: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(sys.executable).parent / "skumatch"), *QUICK, "--accumulate", "2", "--cache"]
    ran = subprocess.run(command, cwd=untouched, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("wrote ") == 1
    assert [folder.name for folder in runs(untouched / "models")] == ["r000001"]
    compute = open_bundle(untouched / "models").document["recipe"]["compute"]
    assert compute["accumulate"] == 2 and compute["cache"]
