"""``skumatch data check`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from skumatch.cli.data import app
from skumatch.errors import ConfigError, DataError, SkumatchError


def shop(root: Path) -> Path:
    for s, sku in enumerate(("oat [1 l]", "红茶")):
        for i, split in enumerate(("train", "train", "test")):
            path = root / split / sku / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (s * 99, i * 50, 7)).save(path)
    return root


def test_a_sound_data_set_exits_with_0(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(shop(tmp_path))])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["train", "4", "2"] in lines
    assert ["test", "2", "2"] in lines
    assert "views per SKU: 2 least, 2 median, 2 most" in result.stdout
    assert result.stdout.endswith("ok\n")


def test_problems_exit_with_1_and_name_the_file_on_one_line(tmp_path: Path) -> None:
    bad = shop(tmp_path) / "train" / "oat [1 l]" / ("long name " * 12 + ".jpg")
    bad.write_text("not a picture")
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 1
    assert f"  {bad}: " in result.stdout
    assert "problem: 1 picture cannot be read" in result.stdout
    assert result.stdout.endswith("1 problem(s) found\n")


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for i in range(8):
        (shop(tmp_path) / "train" / "红茶" / f"bad{i}.jpg").touch()
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert "Cannot be read (8)" in result.stdout
    assert "... and 3 more (--json lists all)" in result.stdout


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(shop(tmp_path)), "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (report["ok"], report["format"], report["pictures"]) == (True, "rp2k", {"train": 4, "test": 2})


def test_format_and_seed_reach_the_reader(tmp_path: Path) -> None:
    for i in range(10):
        path = tmp_path / "tea" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--format", "folder", "--seed", "3", "--json"])
    assert json.loads(result.stdout)["pictures"] == {"train": 8, "test": 2}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["check", "nowhere"], DataError), (["check", "--seed", "1"], ConfigError), (["check"], SkumatchError)],
)
def test_errors_are_left_to_the_main_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[SkumatchError]
) -> None:
    monkeypatch.chdir(tmp_path)  # no workspace here
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, error)
