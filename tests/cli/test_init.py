"""``skumatch init``: what it writes and what it refuses."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.workspace import Workspace

Skumatch = Callable[..., Any]


def test_it_writes_a_workspace_that_every_command_can_read(
    skumatch: Skumatch, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    ran = skumatch("init", "--data", "store", "--model", "timm:test_efficientnet", "--random-init", "--size", "32")
    assert ran.code == 0
    assert "wrote" in ran.out
    assert "36 pictures of 6 SKUs" in ran.err
    table = tomllib.loads((store.parent / "skumatch.toml").read_text())
    assert table["data"]["path"] == "store"
    assert table["model"] == {"name": "timm:test_efficientnet", "random_init": True, "size": 32}
    assert len(Workspace.find(store / "train").open_dataset()) == 36


def test_another_folder_keeps_the_path_to_the_data(skumatch: Skumatch, store: Path, tmp_path: Path) -> None:
    assert skumatch("init", tmp_path / "new" / "space", "--data", store).code == 0
    workspace = Workspace.read(tmp_path / "new" / "space")
    assert Path(workspace.data.path) == store
    assert len(workspace.open_dataset()) == 36


def test_an_existing_workspace_is_not_overwritten(skumatch: Skumatch, untouched: Path) -> None:
    before = (untouched / "skumatch.toml").read_bytes()
    ran = skumatch("init", "--data", "store")
    assert ran.code == 2
    assert "exists already" in ran.errors[0]
    assert (untouched / "skumatch.toml").read_bytes() == before


def make_empty(root: Path) -> None:
    root.mkdir()


def make_texts(root: Path) -> None:
    for sku in ("a", "b"):
        (root / "train" / sku).mkdir(parents=True)
        (root / "train" / sku / "notes.txt").write_text("not a picture")


def make_singles(root: Path) -> None:
    from PIL import Image

    for sku in ("a", "b"):
        (root / "train" / sku).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "train" / sku / "1.png")


def make_nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize("make", [make_nothing, make_empty, make_texts, make_singles])
def test_data_that_cannot_be_used_is_refused(
    skumatch: Skumatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data")
    ran = skumatch("init", "--data", "data")
    assert ran.code == 2
    assert len(ran.errors) == len(ran.err.splitlines()) == 1
    assert "data" in ran.errors[0]
    assert " - " in ran.errors[0]
    assert not (tmp_path / "skumatch.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "timm:mobilnetv3_large"], "mobilenetv3_large"),
        (["--model", "open_clip:ViT-B-23/openai"], "ViT-B-32"),
        (["--model", "open_clip:ViT-B-32/opnai"], "openai"),
        (["--model", "opn_clip:ViT-B-32"], "open_clip"),
        (["--model", "resnet"], "open_clip:MODEL"),
        (["--weights", "absent.pt"], "absent.pt does not exist"),
        (["--format", "rp3k"], "rp2k"),
        (["--resize", "stretch"], "choose crop, squash or pad"),
        (["--size", "3"], "choose 8 to 4096"),
        (["--crop-pct", "3"], "choose 0.1 to 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_right_one(
    skumatch: Skumatch, store: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(store.parent)
    ran = skumatch("init", "--data", "store", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert not (store.parent / "skumatch.toml").exists()


def test_a_manifest_may_name_the_pictures(
    skumatch: Skumatch, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["path,sku,split"]
    for path in sorted(store.glob("*/*/*.png")):
        lines.append(f"{os.path.relpath(path, tmp_path)},{path.parent.name},{path.parts[-3]}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    ran = skumatch("init", "--data", "shop.csv")
    assert ran.code == 0, ran.err
    assert "36 pictures of 6 SKUs (csv" in ran.err
