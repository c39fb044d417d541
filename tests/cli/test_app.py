"""The command as a whole: exit codes, one-line errors, a light start, a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import skumatch as package

MAIN = [sys.executable, "-m", "skumatch.cli.app"]


def test_help_names_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['skumatch', '--help']\n"
        "from skumatch.cli.app import _run\n"
        "code = _run(False)\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'cv2', 'timm', 'open_clip', 'transformers', 'pyarrow'}\n"
        "sys.exit(f'{code}: {sorted(heavy & set(sys.modules))}' if code or heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("init", "finetune", "eval", "match", "gallery", "data", "demo"):
        assert command in done.stdout


def test_version(skumatch: Callable[..., Any]) -> None:
    ran = skumatch("--version")
    assert (ran.code, ran.out) == (0, f"skumatch {package.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "--no-such-option"], "No such option: --no-such-option"),
        (["match"], "Missing argument"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["gallery", "no-such-command"], "No such command 'no-such-command'"),
        (["eval", "--topk", "0"], "--topk"),
        (["eval", "--topk", "many"], "--topk"),
    ],
)
def test_a_misuse_is_one_line_that_points_to_the_help(
    skumatch: Callable[..., Any], arguments: list[str], said: str
) -> None:
    ran = skumatch(*arguments)
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    command = " ".join(["skumatch", *(a for a in arguments[:1] if a != "no-such-command")])
    assert lines[0].endswith(f"see `{command} --help`")


@pytest.mark.parametrize("arguments", [[], ["gallery"]])
def test_without_a_command_the_help_is_shown(skumatch: Callable[..., Any], arguments: list[str]) -> None:
    ran = skumatch(*arguments)
    assert ran.code == 2
    assert "Usage: skumatch" in ran.out + ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", [["eval"], ["finetune"], ["gallery", "build"], ["gallery", "list"], ["match", "."]])
def test_without_a_workspace_each_command_says_how_to_make_one(
    skumatch: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("crop.png")
    ran = skumatch(*command)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == len(ran.errors) == 1
    assert "skumatch init --data PATH" in ran.err


def test_an_unknown_key_in_the_workspace_names_the_nearest(skumatch: Callable[..., Any], workspace: Path) -> None:
    config = workspace / "skumatch.toml"
    config.write_text(config.read_text().replace("[runtime]", "[runtime]\nworkres = 2"))
    for command in (["eval"], ["match", "shop"], ["gallery", "info"]):
        ran = skumatch(*command)
        assert ran.code == 2
        assert ran.errors == [f"error: {config} [runtime]: unknown key 'workres' - did you mean 'workers'?"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain, debug = (
        subprocess.run([*MAIN, "eval", *extra], capture_output=True, text=True, cwd=tmp_path)
        for extra in ([], ["--debug"])
    )
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    assert len(plain.stderr.splitlines()) == 1
    assert "Traceback" in debug.stderr
    assert "ConfigError" in debug.stderr


def test_a_reader_that_leaves_early_is_no_error(workspace: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*MAIN, "gallery", "list"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=workspace)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 0
