"""``skumatch data audit``: what it writes, applying the fixes, and what it refuses. (tests/eval tests the ranking.)"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.readers import open_dataset

Skumatch = Callable[..., Any]
AUDIT = ("data", "audit")


@pytest.fixture
def mislabelled(untouched: Path) -> Path:
    """Return a workspace where one picture of sku-2 lies in the folder of sku-5."""
    (untouched / "store/train/sku-2/0.png").rename(untouched / "store/train/sku-5/9.png")
    return untouched


def fixes_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "fixes.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_lists_the_wrong_label_first(skumatch: Skumatch, mislabelled: Path) -> None:
    ran = skumatch(*AUDIT, "--device", "cpu")
    assert ran.code == 0, ran.err
    first = fixes_of(mislabelled / "audit")[0]
    assert (Path(first["path"]).name, first["sku"], first["proposed_sku"]) == ("9.png", "sku-5", "sku-2")
    document = json.loads((mislabelled / "audit" / "audit.json").read_text())
    assert (document["crops"], document["skus"], document["split"]) == (24, 6, "train")
    assert document["suspects"][0]["path"] == first["path"]
    assert document["settings"]["model"]["name"] == "timm:test_efficientnet"
    assert "9.png" in (mislabelled / "audit" / "index.html").read_text()
    assert "sku-5 -> sku-2" in ran.out


def test_json_split_most_and_out(skumatch: Skumatch, mislabelled: Path, tmp_path: Path) -> None:
    ran = skumatch(
        *AUDIT, "--device", "cpu", "--json", "--most", "1", "--out", tmp_path / "here", "--where", "split=train"
    )
    document = json.loads(ran.out)
    assert document == json.loads((tmp_path / "here" / "audit.json").read_text())
    assert len(document["suspects"]) == 1 and document["where"] == {"split": "train"}
    ran = skumatch(*AUDIT, "--device", "cpu", "--json", "--split", "test")
    assert (json.loads(ran.out)["crops"], json.loads(ran.out)["split"]) == (12, "test")


def test_an_unreadable_picture_is_reported(skumatch: Skumatch, mislabelled: Path) -> None:
    (mislabelled / "store/train/sku-1/1.png").write_bytes(b"broken")
    ran = skumatch(*AUDIT, "--device", "cpu")
    assert ran.code == 0
    assert "1 picture could not be read" in ran.err
    assert "sku-1/1.png" in json.loads((mislabelled / "audit" / "audit.json").read_text())["unreadable"][0]


def test_applying_the_first_line_corrects_the_label_and_touches_nothing(skumatch: Skumatch, mislabelled: Path) -> None:
    assert skumatch(*AUDIT, "--device", "cpu").code == 0
    file = mislabelled / "audit" / "fixes.csv"
    first = fixes_of(mislabelled / "audit")[0]
    file.write_text(f"path,sku,proposed_sku,kind\n{first['path']},sku-5,sku-2,relabel\n{first['path']},sku-5,,look\n")
    store = mislabelled / "store"
    before = {path: path.read_bytes() for path in store.rglob("*.png")}
    ran = skumatch(*AUDIT, "--apply", file, "--manifest", "new.csv")
    assert ran.code == 0, ran.err
    assert "36 pictures, changed 1 by relabel" in ran.out
    assert "1 lines of kind look" in ran.out
    assert before == {path: path.read_bytes() for path in store.rglob("*.png")}
    old, new = open_dataset(store), open_dataset(mislabelled / "new.csv")
    changed = [(a.path.name, a.sku, b.sku) for a, b in zip(old, new, strict=True) if a != b]
    assert changed == [("9.png", "sku-5", "sku-2")]
    kept = (mislabelled / "new.csv").read_bytes()
    ran = skumatch(*AUDIT, "--apply", file, "--manifest", "new.csv")
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert "exists already" in ran.errors[0]
    assert (mislabelled / "new.csv").read_bytes() == kept
    ran = skumatch(*AUDIT, "--apply", file, "--manifest", "again.csv", "--json")
    assert json.loads(ran.out)["changed"] == {"relabel": 1}


def test_fixes_of_a_label_that_has_changed_are_refused(skumatch: Skumatch, mislabelled: Path) -> None:
    picture = mislabelled / "store/train/sku-5/9.png"
    file = mislabelled / "fixes.csv"
    file.write_text(f"path,sku,proposed_sku,kind\n{picture},sku-4,sku-2,relabel\n")
    ran = skumatch(*AUDIT, "--apply", file, "--manifest", "new.csv")
    assert ran.code == 2
    assert "fixes.csv, line 2, says that" in ran.errors[0] and "its label is 'sku-5'" in ran.errors[0]
    assert not (mislabelled / "new.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "holdout"], "its splits are"),
        (["--where", "colour=red"], "no column 'colour'"),
        (["--where", "sku=sku-3"], "compares two SKUs or more"),
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--apply", "fixes.csv"], "--apply and --manifest go together"),
        (["--manifest", "new.csv"], "--apply and --manifest go together"),
        (["--apply", "fixes.csv", "--manifest", "new.tsv"], "does not end in .csv"),
        (["--apply", "fixes.csv", "--manifest", "new.csv"], "cannot read fixes.csv"),
        (["--apply", "fixes.csv", "--manifest", "new.csv", "--split", "test"], "leave out --model"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, mislabelled: Path, arguments: list[str], said: str) -> None:
    ran = skumatch(*AUDIT, *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert not (mislabelled / "audit").exists()


def test_without_a_workspace_it_says_so(skumatch: Skumatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path / "none")
    ran = skumatch(*AUDIT)
    assert ran.code == 2 and "no skumatch.toml" in ran.errors[0]
