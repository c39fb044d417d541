"""``skumatch gallery``: build, add, remove, list, info, verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Skumatch = Callable[..., Any]
CPU = ("--device", "cpu")


def counts(skumatch: Skumatch) -> dict[str, int]:
    return {line["sku"]: line["views"] for line in json.loads(skumatch("gallery", "list", "--json").out)}


def info(skumatch: Skumatch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(skumatch("gallery", "info", "--json").out)
    return found


def test_info_and_list_tell_what_is_in_it(skumatch: Skumatch, workspace: Path) -> None:
    facts = info(skumatch)
    assert (facts["skus"], facts["views"], facts["model"]) == (6, 24, "timm:test_efficientnet")
    assert counts(skumatch) == {f"sku-{n}": 4 for n in range(6)}
    views = json.loads(skumatch("gallery", "list", "--sku", "sku-2", "--json").out)
    assert len(views) == 4
    assert all("sku-2" in view["source"] and len(view["sha256"]) == 64 for view in views)
    assert skumatch("gallery", "list").out.splitlines()[0].split("\t")[:2] == ["sku-0", "4"]
    assert "test_efficientnet" in skumatch("gallery", "info").out


def test_views_are_added_matched_and_removed(skumatch: Skumatch, workspace: Path) -> None:
    Image.radial_gradient("L").convert("RGB").save("new.png")
    before = info(skumatch)["version"]
    added = skumatch("gallery", "add", "brand-new", "new.png", "--title", "Brand new", *CPU)
    assert added.code == 0, added.err
    assert "25 views of 7 SKUs" in added.out
    assert info(skumatch)["version"] != before
    best = json.loads(skumatch("match", "new.png", "--json", "--topk", "1", *CPU).out)
    assert (best["sku"], best["score"]) == ("brand-new", pytest.approx(1, abs=1e-4))
    again = skumatch("gallery", "add", "brand-new", "new.png", *CPU)
    assert again.code == 0
    assert "1 pictures were in the gallery already" in again.err
    assert skumatch("gallery", "remove", "brand-new").code == 0
    assert counts(skumatch) == {f"sku-{n}": 4 for n in range(6)}
    assert Path("new.png").exists()


def test_single_views_are_removed_by_id(skumatch: Skumatch, workspace: Path) -> None:
    view = json.loads(skumatch("gallery", "list", "--sku", "sku-2", "--json").out)[1]["view"]
    assert skumatch("gallery", "remove", "--view", str(view)).code == 0
    assert counts(skumatch)["sku-2"] == 3


def test_an_unreadable_view_is_reported(skumatch: Skumatch, workspace: Path) -> None:
    (workspace / "shop/train/sku-0/0.png").write_bytes(b"broken")
    ran = skumatch("gallery", "build", *CPU)
    assert ran.code == 0
    assert "1 views could not be read" in ran.err
    assert counts(skumatch)["sku-0"] == 3


def test_where_builds_a_smaller_gallery_elsewhere(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch("gallery", "build", "--where", "sku=sku-1", "--gallery", "small", *CPU)
    assert ran.code == 0, ran.err
    assert "4 views of 1 SKUs" in ran.out
    assert len(counts(skumatch)) == 6


def test_verify_reads_every_byte(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch("gallery", "verify")
    assert ran.code == 0
    assert "every byte as written" in ran.out
    largest = max((p for p in (workspace / "gallery").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    broken = skumatch("gallery", "verify")
    assert broken.code == 2
    assert len(broken.err.splitlines()) == len(broken.errors) == 1
    assert largest.name in broken.errors[0]


def test_a_gallery_of_another_model_takes_no_views(skumatch: Skumatch, workspace: Path) -> None:
    shutil.rmtree(workspace / "models")
    ran = skumatch("gallery", "add", "sku-0", "shop/test/sku-0/4.png", *CPU)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert info(skumatch)["views"] == 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remove"], "nothing to remove"),
        (["remove", "sku-99"], "sku-99"),
        (["remove", "--view", "999"], "999"),
        (["list", "--sku", "sku-99"], "sku-99"),
        (["add", "a", "nowhere.png"], "nowhere.png does not exist"),
        (["info", "--gallery", "nowhere"], "nowhere"),
        (["build", "--where", "sku=none"], "no picture"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("gallery", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert info(skumatch)["views"] == 24
