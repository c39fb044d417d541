"""CSV, TSV and Parquet manifests: columns, splits, encodings and the line named in every error."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from skumatch.dataset import Dataset
from skumatch.errors import DataError
from skumatch.readers import detect_format, open_dataset

BASIC = "path,sku,split\na/1.jpg,tea,train\na/2.jpg,tea,query\n"


def manifest(folder: Path, text: str, name: str = "shop.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding, "surrogateescape"))
    return path


def listing(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(row.path.relative_to(dataset.root).as_posix(), row.sku, row.split) for row in dataset]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_and_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    dataset = open_dataset(manifest(tmp_path, BASIC, encoding=encoding))
    assert (dataset.format, dataset.root) == ("csv", tmp_path)
    assert listing(dataset) == [("a/1.jpg", "tea", "train"), ("a/2.jpg", "tea", "test")]


@pytest.mark.parametrize(("name", "separator"), [("s.tsv", "\t"), ("s.csv", "\t"), ("s.csv", ";"), ("s.CSV", ",")])
def test_separators(tmp_path: Path, name: str, separator: str) -> None:
    path = manifest(tmp_path, BASIC.replace(",", separator), name)
    assert detect_format(path) == "csv"
    assert len(open_dataset(path)) == 2


def test_all_columns(tmp_path: Path) -> None:
    text = 'Image, Label ,SPLIT,title,group,Brand,\nx.jpg, 红茶 ,Gallery,"Tea, red",tea,Acme,9\n\n,,,,,,\n'
    (row,) = open_dataset(manifest(tmp_path, text))
    assert (row.path, row.sku, row.split, row.title, row.group) == (
        tmp_path / "x.jpg",
        "红茶",
        "gallery",
        "Tea, red",
        "tea",
    )
    assert dict(row.extra) == {"Brand": "Acme"}


def test_absolute_paths_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "1.jpg"
    (row,) = open_dataset(manifest(tmp_path, f"path,sku\n{elsewhere},tea\n"))
    assert row.path == elsewhere


def test_a_relative_manifest_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(tmp_path, BASIC)
    monkeypatch.chdir(tmp_path)
    assert open_dataset(Path("shop.csv")).rows[0].path == Path.cwd() / "a/1.jpg"


def test_without_a_split_column_each_sku_is_split_by_the_seed(tmp_path: Path) -> None:
    lines = [f"{sku}/{i}.jpg,{sku}" for sku in ("oat", "tea") for i in range(10)]
    first = open_dataset(manifest(tmp_path, "\n".join(["path,sku", *lines, "one.jpg,single"])))
    assert first.splits == {"train": 17, "test": 4}
    assert first.rows[-1].split == "train"
    moved = open_dataset(manifest(tmp_path, "\n".join(["path,sku", *reversed(lines)])))
    assert {(row.path, row.split) for row in moved} == {(row.path, row.split) for row in first.rows[:-1]}
    assert [row.split for row in open_dataset(tmp_path / "shop.csv", seed=1)] != [row.split for row in moved]


def test_bytes_that_are_not_utf8_survive_in_paths(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xbf\xc9.jpg")
    (row,) = open_dataset(manifest(tmp_path, f"path,sku\n{name},{name}\n"))
    assert os.fsencode(row.path.name) == b"\xbf\xc9.jpg"
    assert row.sku == "\\xbf\\xc9.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paht,sku\n1.jpg,tea\n", "line 1, has no column 'path' or 'image' - .*nearest: paht"),
        ("path,stock\n1.jpg,tea\n", "has no column 'sku' or 'label'"),
        ("path,sku\n1.jpg,tea\n2.jpg,  \n", "line 3, has an empty sku"),
        ("path,sku\n,tea\n", "line 2, has no usable path"),
        ("path,sku\na\0b.jpg,tea\n", "line 2, has no usable path"),
        ("path,sku,split\n1.jpg,tea,tets\n", "line 2, has an unknown split 'tets' - .*did you mean test"),
        ("path,sku,split\n1.jpg,tea,\n", "line 2, has an unknown split ''"),
        ("path,sku\n1.jpg,tea,red\n", "line 2, has 3 cells where the header has 2"),
        ("path,sku,title\n1.jpg,tea\n", "line 2, has 2 cells where the header has 3"),
        ("path,sku,sku\n1.jpg,tea,tea\n", "names the column 'sku' twice"),
        ("path,sku\n", "names columns but no pictures"),
        ("", "is empty"),
        ('path,sku\n"' + "x" * 200_000, "is not a CSV file"),
    ],
)
def test_a_bad_manifest_is_one_line_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"shop\.csv.*{words}") as caught:
        open_dataset(manifest(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_utf16_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save it as CSV UTF-8"):
        open_dataset(manifest(tmp_path, BASIC, encoding="utf-16"))


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    arrow: Any = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(arrow.table(columns), path, row_group_size=2)
    return path


def test_parquet(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "path": ["1.jpg", "2.jpg", "3.jpg"],
        "sku": [7, 7, 8],
        "brand": ["Acme", None, "Bolt"],
        "bytes": [b"a", b"b", b"c"],
    }
    dataset = open_dataset(write_parquet(tmp_path / "shop.parquet", columns))
    assert [(row.path.name, row.sku, dict(row.extra)) for row in dataset] == [
        ("1.jpg", "7", {"brand": "Acme"}),
        ("2.jpg", "7", {"brand": ""}),
        ("3.jpg", "8", {"brand": "Bolt"}),
    ]


def test_bad_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2, has an empty sku"):
        open_dataset(write_parquet(tmp_path / "shop.parquet", {"path": ["1.jpg", "2.jpg"], "sku": ["tea", None]}))
    with pytest.raises(DataError, match=r"has no column 'path' or 'image' - .*columns are: pth, sku"):
        open_dataset(write_parquet(tmp_path / "shop.parquet", {"pth": ["1.jpg"], "sku": ["tea"]}))
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        open_dataset(manifest(tmp_path, BASIC, "broken.parquet"))
