"""Names that a spreadsheet would run: text in every CSV file that is written, and the same names when it is read."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace
from pathlib import Path

import pytest

from skumatch.csv_cells import plain_cell, safe_cell
from skumatch.dataset import Row
from skumatch.eval import fixes
from skumatch.eval.fixes import Fix
from skumatch.eval.lookalikes import Group, Pair, read_lookalikes, write_lookalikes
from skumatch.readers import open_dataset
from skumatch.readers_tables import read_table

RUN = ["=1+1", "+1", "-5 % tea", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201"]
CALC = "=cmd|' /C calc'!A0"


@pytest.mark.parametrize("text", [*RUN, CALC, "=", "-"])
def test_what_could_run_stands_behind_an_apostrophe(text: str) -> None:
    assert safe_cell(text) == "'" + text
    assert plain_cell(safe_cell(text)) == text


@pytest.mark.parametrize("text", ["", "tea", "tea=1", "5-7", " =1", "'", "''", "'tea'", "a\t=1", "\u7ea2\u8336"])
def test_all_else_stays(text: str) -> None:
    assert safe_cell(text) == text == plain_cell(text)


def test_every_text_comes_back() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        text = "".join(rng.choices("'=+-@\t\r\na\uff1d", k=rng.randrange(6)))
        assert plain_cell(safe_cell(text)) == text
        assert not safe_cell(text).startswith(tuple("=+-@\t\r\n\uff1d"))


def first_letters(path: Path) -> set[str]:
    """Return what the text cells of a CSV begin with: cells that are no numbers."""
    with path.open(newline="", encoding="utf-8") as stream:
        return {cell[:1] for line in csv.reader(stream) for cell in line if not is_number(cell)}


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_fixes_and_manifests_come_back(tmp_path: Path) -> None:
    dangerous = tuple("=+-@")
    rows = [
        Row(tmp_path / "=shop" / "@1.jpg", CALC, "train", "-5 %", "+plus", {"=brand": "@acme"}),
        Row(tmp_path / "-2.jpg", "'=tea", "test", "", "", {"=brand": "''=x"}),
    ]
    fixes.write_manifest(tmp_path / "new.csv", rows)
    assert list(open_dataset(tmp_path / "new.csv").rows) == rows
    assert first_letters(tmp_path / "new.csv").isdisjoint(dangerous)
    proposed = [Fix("-2.jpg", "'=tea", CALC, "relabel", 0.5), Fix("", "@a", "+b", "merge", -0.25, "why")]
    fixes.write_fixes(tmp_path / "fixes.csv", proposed)
    assert first_letters(tmp_path / "fixes.csv").isdisjoint(dangerous)
    assert "-0.2500" in (tmp_path / "fixes.csv").read_text()
    back = [replace(fix, score=0.0, reason="", line=0) for fix in fixes.read_fixes(tmp_path / "fixes.csv")]
    assert back == [replace(fix, score=0.0, reason="") for fix in proposed]


def test_look_alikes_come_back(tmp_path: Path) -> None:
    groups = [Group(("+b", "=a"), (Pair("=a", "+b", -0.1, 2),), 0.1)]
    write_lookalikes(tmp_path / "alike.csv", groups)
    assert read_lookalikes(tmp_path / "alike.csv") == [("+b", "=a")]
    assert (tmp_path / "alike.csv").read_text().splitlines()[1] == "1,'=a,'+b,-0.1000,2"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_tables_come_without_the_apostrophe(tmp_path: Path, suffix: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",").writerows([["'=x", "sku"], ["'-1.jpg", "'tea'"]])
    path = tmp_path / f"a{suffix}"
    path.write_text(stream.getvalue())
    table = read_table(path)
    assert (table.columns, [cells for _, cells in table.records]) == (["=x", "sku"], [["-1.jpg", "'tea'"]])
