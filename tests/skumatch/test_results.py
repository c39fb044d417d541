"""Result files: three formats, complete or absent."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from skumatch.errors import ArtefactError, ConfigError, ImageError
from skumatch.match import CropMatches, Match
from skumatch.results import COLUMNS, Record, ResultFile, records

GOOD = CropMatches(
    Path("shelf/crop, 1.jpg"),
    (
        Match('tea "green"', "", 0.9123456789, 1, 7, "train/tea/1.jpg", "accept", 0.98765432109),
        Match("红茶", "", -0.25, 2, 3, "train/red/0.jpg", "accept"),
    ),
)
BAD = CropMatches(Path("shelf/2.jpg"), (), ImageError("shelf/2.jpg is not a picture", "replace it"))


def written(path: Path, *crops: CropMatches) -> Path:
    with ResultFile(path) as out:
        for crop in crops:
            out.write(records(crop))
    return path


def test_records_hold_an_answer_each_or_one_error() -> None:
    rows = records(GOOD)
    assert [tuple(row) for row in rows] == [COLUMNS] * 2
    assert [(row["rank"], row["sku"], row["decision"]) for row in rows] == [
        (1, 'tea "green"', "accept"),
        (2, "红茶", "accept"),
    ]
    (error,) = records(BAD)
    assert (error["rank"], error["score"], error["decision"]) == (None, None, "error")
    assert error["error"] == "shelf/2.jpg is not a picture"


def test_crops_that_are_no_files_have_a_name() -> None:
    assert records(CropMatches(b"bytes", ()))[0]["crop"] == "<image>"


def test_csv(tmp_path: Path) -> None:
    with written(tmp_path / "a.csv", GOOD, BAD).open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["crop"] for line in lines] == ["shelf/crop, 1.jpg"] * 2 + ["shelf/2.jpg"]
    assert [line["score"] for line in lines] == ["0.912346", "-0.250000", ""]
    assert [line["sku"] for line in lines] == ['tea "green"', "红茶", ""]
    assert [line["rank"] for line in lines] == ["1", "2", ""]
    assert [line["probability"] for line in lines] == ["0.987654", "", ""]


def test_a_name_that_a_spreadsheet_would_run_is_text_in_csv_alone(tmp_path: Path) -> None:
    name, crop = "=cmd|' /C calc'!A0", Path("-1.jpg")
    odd = CropMatches(crop, (Match(name, "", -0.5, 1, 7, "@views/1.jpg", "accept"),))
    bad = CropMatches(crop, (), ImageError("-1.jpg: empty, not an image", "replace it"))
    csv_text = written(tmp_path / "a.csv", odd, bad).read_text()
    assert csv_text.splitlines()[1:] == [
        f"'-1.jpg,1,'{name},-0.500000,'@views/1.jpg,accept,,",
        "'-1.jpg,,,,,error,,\"'-1.jpg: empty, not an image\"",
    ]
    assert json.loads(written(tmp_path / "a.jsonl", odd).read_text())["sku"] == name
    import pyarrow.parquet as pq

    assert pq.read_table(written(tmp_path / "a.parquet", odd)).to_pylist()[0]["sku"] == name


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path / "a.jsonl", GOOD, BAD).read_text().splitlines()]
    assert lines == [*records(GOOD), *records(BAD)]
    assert [line["probability"] for line in lines] == [0.98765432109, None, None]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(written(tmp_path / "a.parquet", GOOD, BAD))
    assert table.schema.field("rank").type == pa.int32()
    assert table.schema.field("score").type == pa.float32()
    rows = table.to_pylist()
    assert [row["sku"] for row in rows] == ['tea "green"', "红茶", ""]
    assert rows[0]["score"] == pytest.approx(0.9123456789, abs=1e-7)
    assert rows[2]["score"] is None
    assert table.schema.field("probability").type == pa.float32()
    assert [row["probability"] for row in rows] == [pytest.approx(0.98765432109, abs=1e-7), None, None]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_no_answers_make_a_valid_file(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}")
    if suffix == "parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(path).num_rows == 0
    else:
        assert path.read_text() == (",".join(COLUMNS) + "\n" if suffix == "csv" else "")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_failed_run_leaves_the_older_file(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", GOOD)
    before = path.read_bytes()
    with pytest.raises(ImageError), ResultFile(path) as out:
        out.write(records(BAD))
        raise ImageError("stop", "now")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "skumatch-cache"] == [path.name]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_path_that_is_not_utf8_is_written(tmp_path: Path, suffix: str) -> None:
    odd = CropMatches(Path(os.fsdecode(b"caf\xe9.jpg")), GOOD.matches)
    path = written(tmp_path / f"a.{suffix}", odd)
    if suffix == "csv":
        assert b"caf\xe9.jpg" in path.read_bytes()
    elif suffix == "jsonl":
        assert os.fsencode(json.loads(path.read_text().splitlines()[0])["crop"]) == b"caf\xe9.jpg"
    else:
        import pyarrow.parquet as pq

        assert "caf" in pq.read_table(path).to_pylist()[0]["crop"]


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.CSV.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl, \.parquet"):
        ResultFile(tmp_path / name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_full_disk_is_one_error_and_leaves_nothing(tiny_disk: Path, suffix: str) -> None:
    rows: list[Record] = [{**records(GOOD)[0], "crop": os.urandom(40).hex()} for _ in range(20_000)]
    with pytest.raises(ArtefactError, match="no space left"), ResultFile(tiny_disk / f"a.{suffix}") as out:
        for start in range(0, len(rows), 1000):
            out.write(rows[start : start + 1000])
    assert list(tiny_disk.iterdir()) == []
