"""``skumatch gallery``: what changes views and facts, and what shows them."""

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
ELSEWHERE = ("--gallery", "elsewhere")


def counts(skumatch: Skumatch) -> dict[str, int]:
    return {line["sku"]: line["views"] for line in json.loads(skumatch("gallery", "list", "--json").out)}


def info(skumatch: Skumatch) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(skumatch("gallery", "info", "--json").out)
    return found


def test_info_and_list_tell_what_is_in_it(skumatch: Skumatch, either: Path) -> None:
    facts = info(skumatch)
    assert (facts["skus"], facts["views"], facts["model"]) == (6, 24, "timm:test_efficientnet")
    assert counts(skumatch) == {f"sku-{n}": 4 for n in range(6)}
    views = json.loads(skumatch("gallery", "list", "--sku", "sku-2", "--json").out)
    assert len(views) == 4
    assert all("sku-2" in view["source"] and len(view["sha256"]) == 64 for view in views)
    assert skumatch("gallery", "list").out.splitlines()[:2] == ["sku\tviews\ttitle", "sku-0\t4\t"]
    assert "test_efficientnet" in skumatch("gallery", "info").out


def test_views_are_added_matched_and_removed(skumatch: Skumatch, either: Path) -> None:
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
    assert "1 picture was in the gallery already" in again.err
    assert skumatch("gallery", "remove", "brand-new").code == 0
    assert counts(skumatch) == {f"sku-{n}": 4 for n in range(6)}
    assert Path("new.png").exists()


def test_single_views_are_removed_by_id(skumatch: Skumatch, either: Path) -> None:
    view = json.loads(skumatch("gallery", "list", "--sku", "sku-2", "--json").out)[1]["view"]
    assert skumatch("gallery", "remove", "--view", str(view)).code == 0
    assert counts(skumatch)["sku-2"] == 3


def test_an_unreadable_view_is_reported(skumatch: Skumatch, either: Path) -> None:
    (either / "shop/train/sku-0/0.png").write_bytes(b"broken")
    ran = skumatch("gallery", "build", *CPU)
    assert ran.code == 0
    assert "1 view could not be read" in ran.err
    assert counts(skumatch)["sku-0"] == 3


def test_where_builds_a_smaller_gallery_elsewhere(skumatch: Skumatch, either: Path) -> None:
    ran = skumatch("gallery", "build", "--where", "sku=sku-1", "--gallery", "small", *CPU)
    assert ran.code == 0, ran.err
    assert "4 views of 1 SKU\n" in ran.out
    assert len(counts(skumatch)) == 6


def facts_of(skumatch: Skumatch) -> dict[str, dict[str, str]]:
    lines = json.loads(skumatch("gallery", "list", "--json").out)
    return {
        line["sku"]: {name: line[name] for name in line if name not in ("sku", "views") and line[name]}
        for line in lines
    }


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_facts_are_changed_shown_and_taken_back(skumatch: Skumatch, either: Path) -> None:
    told = skumatch("gallery", "update", "sku-1", "--title", "Tea\tgreen", "--set", "brand=nord", "--set", "gtin=007")
    assert told.code == 0 and told.out.endswith("v000002: 24 views of 6 SKUs\n")
    assert skumatch("gallery", "update", "sku-2", "--set", "brand=nord").code == 0
    assert facts_of(skumatch)["sku-1"] == {"title": "Tea\tgreen", "brand": "nord", "gtin": "007"}
    listed = skumatch("gallery", "list", "--where", "brand=nord").out.splitlines()
    assert listed == ["sku\tviews\ttitle\tbrand\tgtin", "sku-1\t4\tTea green\tnord\t007", "sku-2\t4\t\tnord\t"]
    assert skumatch("gallery", "update", "sku-1", "--set", "brand=", "--title", "").code == 0
    assert facts_of(skumatch)["sku-1"] == {"gtin": "007"}
    assert facts_of(skumatch)["sku-2"] == {"brand": "nord"} and set(info(skumatch)["columns"]) >= {"brand", "gtin"}


def test_pictures_take_the_place_of_a_skus_views(skumatch: Skumatch, either: Path) -> None:
    ran = skumatch("gallery", "update", "sku-3", "shop/test/sku-3", "--set", "brand=nord", *CPU)
    assert ran.code == 0, ran.err
    assert counts(skumatch)["sku-3"] == 2 and facts_of(skumatch)["sku-3"] == {"brand": "nord"}
    views = json.loads(skumatch("gallery", "list", "--sku", "sku-3", "--json").out)
    assert [Path(view["source"]).name for view in views] == ["4.png", "5.png"]
    assert [view["view"] for view in views] == [24, 25]


def test_a_table_is_imported(skumatch: Skumatch, either: Path) -> None:
    rows = [f"shop/test/sku-{n}/4.png,sku-{n},nord" for n in range(2)]
    named = table(either / "t.csv", "path,sku,brand", *rows, "none.png,new,nord", "shop/test/sku-2/5.png,fresh,arla")
    ran = skumatch("gallery", "import", named, *CPU)
    assert ran.code == 0, ran.err
    assert ran.out.endswith("v000002: 27 views of 7 SKUs\n") and "none.png" in ran.err
    assert "1 picture could not be read" in ran.err
    assert counts(skumatch)["sku-0"] == 5 and facts_of(skumatch)["fresh"] == {"brand": "arla"}
    again = skumatch("gallery", "import", named, *CPU)
    assert "3 pictures were in the gallery already" in again.err and "27 views" in again.out
    replaced = skumatch("gallery", "import", named, "--replace", *CPU)
    assert replaced.out.endswith(": 19 views of 7 SKUs\n")
    bad = skumatch("gallery", "import", table(either / "bad.csv", "path,sku", "a.png,x", "b.png,"), *CPU)
    assert bad.code == 2 and "bad.csv, line 3, has an empty sku - name the SKU, or remove" in bad.errors[0]


def test_a_table_of_facts_alone_needs_no_model(skumatch: Skumatch, either: Path) -> None:
    shutil.rmtree(either / "models")
    named = table(either / "f.tsv", "sku\tbrand", "sku-0\tnord", "elsewhere\tnord")
    ran = skumatch("gallery", "import", named)
    assert ran.code == 0 and ran.out.endswith(" v000002: 24 views of 6 SKUs\n")
    assert ran.err == "without a view here: 1 SKU of the table, whose facts are kept for views to come\n"
    assert facts_of(skumatch)["sku-0"] == {"brand": "nord"}
    nowhere = skumatch("gallery", "import", named, "--gallery", "nowhere")
    assert nowhere.code == 2 and "there is no gallery in nowhere - import pictures first" in nowhere.errors[0]


def test_an_interrupted_import_goes_on(skumatch: Skumatch, either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skumatch.runtime.torch import TorchEncoder

    encode, rows = TorchEncoder.encode, [f"shop/test/sku-{n}/{view}.png,new-{n}" for n in range(6) for view in (4, 5)]
    named = table(either / "t.csv", "path,sku", *rows)
    config = either / "skumatch.toml"
    config.write_text(config.read_text().replace("batch = 32", "batch = 5"))
    seen: list[int] = []

    def stopped(self: Any, pixels: Any) -> Any:
        seen.append(len(pixels))
        if sum(seen) > 8:
            raise KeyboardInterrupt
        return encode(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEncoder, "encode", stopped)
        ran = skumatch("gallery", "import", named, "--runtime", "torch", *CPU)
    assert ran.code == 130 and "what was embedded is kept: the same command goes on from there" in ran.err
    assert info(skumatch)["version"] == "v000001"
    ran = skumatch("gallery", "import", named, "--runtime", "torch", *CPU)
    assert ran.code == 0 and "went on after 5 pictures of an interrupted run" in ran.err
    assert "36 views of 12 SKUs" in ran.out


def test_what_was_exported_is_imported_elsewhere(skumatch: Skumatch, either: Path) -> None:
    skumatch("gallery", "update", "sku-1", "--set", "brand=nord")
    ran = skumatch("gallery", "export", "--out", "exported")
    assert (ran.code, ran.out) == (
        0,
        "wrote vectors.f32, views.json, views.parquet, skus.parquet into exported: 24 views of 6 SKUs\n",
    )
    ran = skumatch("gallery", "import", "exported", "--gallery", "elsewhere")
    assert (ran.code, ran.out) == (0, "elsewhere v000001: 24 views of 6 SKUs\n"), ran.err
    lines = json.loads(skumatch("gallery", "list", "--gallery", "elsewhere", "--where", "brand=nord", "--json").out)
    assert lines == [{"sku": "sku-1", "views": 4, "title": "", "brand": "nord"}]
    crop = ("match", "shop/test/sku-1/4.png", "--json", *CPU)
    lines, there = ([json.loads(line) for line in skumatch(*crop, *more).out.splitlines()] for more in ((), ELSEWHERE))
    assert [{**line, "score": 0} for line in there] == [{**line, "score": 0} for line in lines]
    assert [line["score"] for line in there] == pytest.approx([line["score"] for line in lines], abs=1e-6)
    wrong = skumatch("gallery", "import", "shop")
    assert wrong.code == 2 and "shop was not written by `skumatch gallery export`" in wrong.errors[0]


def test_what_was_embedded_is_imported(skumatch: Skumatch, either: Path) -> None:
    (either / "shop/test/sku-3/4.png").write_bytes(b"no picture")
    ran = skumatch("embed", "shop/test", "--out", "vectors", "--sku-from", "folder", "--thumbs", *CPU)
    assert ran.code == 0, ran.err
    ran = skumatch("gallery", "import", "vectors")
    assert ran.code == 0, ran.err
    assert "left out: 1 unreadable picture, 0 pictures without a SKU" in ran.err
    added = counts(skumatch)
    assert (
        added["sku-0"] - added["sku-3"] == 1
        and sum(added.values()) == 24 + len(list(Path("shop/test").rglob("*.png"))) - 1
    )
    again = skumatch("gallery", "import", "vectors")
    assert again.code == 0 and counts(skumatch) == added
    crop = "shop/test/sku-1/4.png"
    best = json.loads(skumatch("match", crop, "--json", "--topk", "1", "--html", "p.html", *CPU).out)
    assert (best["sku"], best["score"]) == ("sku-1", pytest.approx(1, abs=1e-3)) and best["view"].endswith(crop)
    (either / "vectors/done.json").unlink()
    unfinished = skumatch("gallery", "import", "vectors")
    assert (
        unfinished.code == 2 and "vectors is not finished - run the same `skumatch embed` again" in unfinished.errors[0]
    )


def test_skus_are_removed_by_list_and_by_fact(skumatch: Skumatch, either: Path) -> None:
    for sku in ("sku-0", "sku-1"):
        skumatch("gallery", "update", sku, "--set", "brand=nord")
    assert skumatch("gallery", "remove", "--from", table(either / "gone.txt", "sku-5", "", "sku-4")).code == 0
    assert skumatch("gallery", "remove", "--from", table(either / "gone.csv", "title,SKU", "x,sku-3")).code == 0
    ran = skumatch("gallery", "remove", "--where", "brand=nord")
    assert (ran.code, counts(skumatch)) == (0, {"sku-2": 4})
    last = skumatch("gallery", "remove", "sku-2")
    assert last.code == 2 and "this would empty the gallery" in last.errors[0]


def test_a_gallery_of_another_model_takes_no_views(skumatch: Skumatch, either: Path) -> None:
    shutil.rmtree(either / "models")
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
        (["update", "sku-0"], "nothing to update"),
        (["update", "sku-99", "--title", "x"], "nearest names are: sku-"),
        (["update", "sku-0", "--set", "brand"], "--set 'brand' is not KEY=VALUE"),
        (["update", "sku-0", "--set", "sku=x"], "cannot be called 'sku'"),
        (["update", "sku-0", "--title", "a", "--set", "title=b"], "names 'title' twice"),
        (["add", "a", "shop/test/sku-0/4.png", "--set", "_forget=1"], "cannot be called '_forget'"),
        (["import", "nowhere.csv"], "cannot read nowhere.csv"),
        (["import", "skumatch.toml"], "skumatch.toml"),
        (["remove", "sku-0", "--view", "1"], "both SKUs and views are named"),
        (["remove", "--from", "nowhere.txt"], "cannot read nowhere.txt"),
        (["remove", "--where", "brand=x"], "no column 'brand'"),
        (["list", "--where", "brand=x"], "no column 'brand'"),
        (["export", "--out", "skumatch.toml"], "cannot write"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, either: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("gallery", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
    assert info(skumatch)["views"] == 24
