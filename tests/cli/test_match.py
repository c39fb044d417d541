"""``skumatch match``: every way to name crops, every format of the answer."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.results import COLUMNS

Skumatch = Callable[..., Any]
MATCH = ("match", "--device", "cpu")


def answers(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_is_matched_to_csv_on_stdout(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*MATCH, "shop/test", "--topk", "3")
    assert ran.code == 0, ran.err
    lines = answers(ran.out)
    assert tuple(lines[0]) == COLUMNS
    assert [line["rank"] for line in lines] == ["1", "2", "3"] * 12
    crops = list(dict.fromkeys(line["crop"] for line in lines))
    assert crops == [str(path.relative_to(workspace)) for path in sorted(workspace.glob("shop/test/*/*.png"))]
    assert all("train" in line["view"] and -1 <= float(line["score"]) <= 1 for line in lines)
    assert "matched 12 crops: 12 review" in ran.err  # the model is not calibrated, and it says so
    assert "every answer is for review: run `skumatch calibrate`" in ran.err
    assert {(line["decision"], line["probability"]) for line in lines} == {("review", "")}


def test_all_formats_hold_the_same_answers(skumatch: Skumatch, workspace: Path) -> None:
    import pyarrow.parquet

    for name in ("a.csv", "new/a.jsonl", "a.parquet"):
        ran = skumatch(*MATCH, "shop/test", "--topk", "2", "--out", name)
        assert (ran.code, ran.out) == (0, ""), ran.err
        assert f"wrote {name}" in ran.err
    table = pyarrow.parquet.read_table("a.parquet").to_pylist()
    lines = [json.loads(line) for line in Path("new/a.jsonl").read_text().splitlines()]
    cells = answers(Path("a.csv").read_text())
    assert len(table) == len(lines) == len(cells) == 24
    for row, line, cell in zip(table, lines, cells, strict=True):
        assert [row[c] for c in ("crop", "sku", "rank", "view", "decision")] == [
            line[c] for c in ("crop", "sku", "rank", "view", "decision")
        ]
        assert (cell["crop"], cell["sku"], int(cell["rank"])) == (line["crop"], line["sku"], line["rank"])
        assert row["score"] == pytest.approx(line["score"], abs=1e-6) == pytest.approx(float(cell["score"]), abs=1e-6)


def test_a_page_shows_every_crop(skumatch: Skumatch, workspace: Path) -> None:
    ran = skumatch(*MATCH, "shop/test", "--html", "page.html", "--json")
    assert ran.code == 0, ran.err
    page = Path("page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert page.count("data:image/jpeg") > 12
    first = json.loads(ran.out.splitlines()[0])
    assert set(first) == set(COLUMNS)
    assert first["sku"] in page


def test_an_unreadable_crop_is_a_row_with_an_error(skumatch: Skumatch, workspace: Path) -> None:
    (workspace / "shop/test/sku-0/4.png").write_bytes(b"broken")
    ran = skumatch(*MATCH, "shop/test", "--topk", "1", "--html", "page.html")
    assert ran.code == 0
    lines = answers(ran.out)
    assert len(lines) == 12
    bad = [line for line in lines if line["error"]]
    assert [(line["crop"], line["decision"], line["sku"]) for line in bad] == [("shop/test/sku-0/4.png", "error", "")]
    assert "1 error" in ran.err


def test_stdin_names_crops_and_globs_expand(
    skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("shop/test/sku-1/4.png\n\nshop/test/sku-0/5.png\r\n"))
    listed = answers(skumatch(*MATCH, "-", "--topk", "1").out)
    assert [line["crop"] for line in listed] == ["shop/test/sku-1/4.png", "shop/test/sku-0/5.png"]
    matched = answers(skumatch(*MATCH, "shop/test/*/4.png", "--topk", "1").out)
    assert [line["crop"] for line in matched] == [f"shop/test/sku-{n}/4.png" for n in range(6)]


def test_a_missing_gallery_is_built_from_the_workspace(skumatch: Skumatch, workspace: Path) -> None:
    shutil.rmtree(workspace / "gallery")
    ran = skumatch(*MATCH, "shop/test/sku-0/4.png")
    assert ran.code == 0
    assert "building the gallery" in ran.err
    assert (workspace / "gallery" / "CURRENT").exists()
    assert "building" not in skumatch(*MATCH, "shop/test/sku-0/4.png").err


def test_model_and_gallery_work_without_a_workspace(
    skumatch: Skumatch, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crop = workspace / "shop/test/sku-0/4.png"
    inside = answers(skumatch(*MATCH, crop).out)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    ran = skumatch(*MATCH, crop, "--model", workspace / "models", "--gallery", workspace / "gallery")
    assert ran.code == 0, ran.err
    assert answers(ran.out) == inside
    assert "--gallery" in skumatch(*MATCH, crop, "--model", workspace / "models").errors[0]


def test_a_gallery_of_another_model_is_refused(skumatch: Skumatch, workspace: Path) -> None:
    shutil.rmtree(workspace / "models")  # back to the untouched encoder
    ran = skumatch(*MATCH, "shop/test")
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert "gallery" in ran.errors[0]
    assert ran.out == ""


def test_where_answers_from_some_skus_alone(skumatch: Skumatch, workspace: Path) -> None:
    for sku, brand in (("sku-1", "nord"), ("sku-4", "nord"), ("sku-5", "arla")):
        assert skumatch("gallery", "update", sku, "--set", f"brand={brand}", "--set", "size=1 l").code == 0
    whole = answers(skumatch(*MATCH, "shop/test", "--topk", "6").out)
    kept = [line for line in whole if line["sku"] in ("sku-1", "sku-4")]
    found = answers(skumatch(*MATCH, "shop/test", "--where", "brand=nord").out)
    assert [(line["crop"], line["sku"]) for line in found] == [(line["crop"], line["sku"]) for line in kept]
    assert [float(line["score"]) for line in found] == pytest.approx([float(line["score"]) for line in kept], abs=1e-5)
    assert [line["rank"] for line in found] == ["1", "2"] * 12
    both = answers(skumatch(*MATCH, "shop/test", "--where", "size=1 l", "--where", "brand=arla").out)
    assert {line["sku"] for line in both} == {"sku-5"} and len(both) == 12
    assert {line["sku"] for line in answers(skumatch(*MATCH, "shop/test", "--where", "sku=sku-0").out)} == {"sku-0"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("brand=nort", "no SKU has brand=nort - nearest values are brand: nord"),
        ("colour=red", "no column 'colour' - its columns are: sku, "),
        ("brand", "--where 'brand' is not KEY=VALUE"),
        ("sku=sku-77", "no SKU with a view has sku=sku-77"),
    ],
)
def test_a_filter_that_fits_nothing_is_one_line(skumatch: Skumatch, workspace: Path, where: str, said: str) -> None:
    assert skumatch("gallery", "update", "sku-1", "--set", "brand=nord").code == 0
    ran = skumatch(*MATCH, "shop/test", "--where", where)
    assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1) and said in ran.errors[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (["models"], "no .jpg, .jpeg, .png or .webp in models"),
        (["shop/*/none-*.png"], "no picture matches"),
        (["shop/test", "--out", "matches.xlsx"], ".csv, .jsonl, .parquet"),
        (["shop/test", "--gallery", "nowhere"], "nowhere"),
        (["shop/test", "--model", "nowhere"], "nowhere does not exist"),
        (["shop/test", "--html", "shop"], "shop"),
        (["shop/test", "--out", "skumatch.toml/a.csv"], "skumatch.toml"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, workspace: Path, arguments: list[str], said: str) -> None:
    ran = skumatch(*MATCH, *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert said in ran.errors[0]
