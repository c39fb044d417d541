"""The table of docs/scale.md is what its own figures give, and its computed column is its formulas."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gallery_scale import (
    BEGIN,
    END,
    VIEWS,
    Assumed,
    columns,
    document,
    embedded,
    exponent,
    query_cost,
    replaced,
    section,
)

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def rung(rows: int, kind: str, index_cost: float) -> dict[str, Any]:
    """Return a made-up rung: per view 2,048 bytes of vectors, 100 of rows, 500 of index in memory and 400 on disk."""
    parts = {"vectors": 2048, "rows": 100, "thumbnails": 2000, "facts": 10, "index": 400}
    return {
        "rows": rows,
        "dim": 512,
        "kind": kind,
        "disk bytes": {part: size * rows for part, size in parts.items()},
        "build": {
            "skus": rows // 2,
            "seconds": {"rows": 1.0, "publishing": 2.0, "index": 3.0},
            "core seconds": {"rows": 1.0, "publishing": 2.0, "index": 33.0},
            "peak bytes": 6_000_000_000,
            "peak anonymous bytes": 5_000_000_000,
        },
        "search": {
            "queries/s": {"index": 4000.0, "gallery": 2000.0},
            "core seconds/query": {"index": index_cost, "gallery": index_cost + 0.0002},
            "one by one/s": 500.0,
            "anonymous bytes": {"opened": 100 * rows, "index": 500 * rows, "facts": 50 * rows},
            "libraries bytes": 1_000_000,
            "mapped bytes": 2048 * rows,
            "recall@1": 0.995,
            "seconds": {"open": 1.0, "first answer": 2.0, "first name": 0.5},
            "verified in s": 9.0,
        },
    }


@pytest.fixture
def rungs() -> dict[str, dict[str, Any]]:
    return {
        "10k": rung(10_000, "exact", 0.0001),
        "1M": rung(1_000_000, "ivf-rabitq", 0.0003),
        "4M": rung(4_000_000, "ivf-rabitq", 0.0006),  # twice the cost for four times the views: p is a half
    }


@pytest.fixture
def made_of(rungs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    machine = {"cores": 2, "processor": "x86_64", "python": "3.11", "quick": False}
    return document(rungs, Assumed(machine_gb=200, machine_cores=10, filled=0.5), machine)


def told(text: str, label: str) -> list[str]:
    """Return the cells of a line of the first table."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_shows_what_its_own_figures_give() -> None:
    page = PAGE.read_text()
    assert replaced(page, embedded(page)) == page
    table = page.partition(BEGIN)[2]
    assert told(table, "views")[-1] == f"{VIEWS:,}"
    assert told(table, "figures are") == ["measured"] * 3 + ["computed"]


def test_another_figure_gives_another_page() -> None:
    page = PAGE.read_text()
    changed = embedded(page)
    changed["rungs"]["3.5M"]["search"]["core seconds/query"]["index"] *= 2
    assert replaced(page, changed) != page


def test_what_is_written_can_be_read_again(made_of: dict[str, Any]) -> None:
    page = f"before\n{BEGIN}\nstale\n{END}\nafter\n"
    written = replaced(page, made_of)
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "stale" not in written
    assert embedded(written) == made_of and replaced(written, made_of) == written


def test_the_power_is_that_of_two_rungs(rungs: dict[str, dict[str, Any]]) -> None:
    assert exponent(rungs["1M"], rungs["4M"]) == pytest.approx(0.5)


def test_a_query_asks_each_segment_and_names_its_answers_once(rungs: dict[str, dict[str, Any]]) -> None:
    below, top = rungs["1M"], rungs["4M"]
    assert query_cost(below, top, 4_000_000) == pytest.approx(250 * 0.0006 + 0.0002)
    assert query_cost(below, top, 1_000_000) == pytest.approx(1000 * 0.0003 + 0.0002)
    assert query_cost(below, top, 16_000_000) == pytest.approx(63 * 0.0012 + 0.0002)  # 62.5 segments are 63


def test_the_computed_column_follows_from_the_largest_rung(made_of: dict[str, Any]) -> None:
    last = columns(made_of)[-1]
    cost = 250 * 0.0006 + 0.0002
    assert last.rung is None and last.views == VIEWS
    assert last.index == pytest.approx(500e9) and last.memory == pytest.approx(600e9)  # index and rows
    assert last.machines == 6  # 600 GB by 100 of each machine
    assert last.core_seconds == pytest.approx(cost) and last.rate == pytest.approx(60 / cost)
    assert sum(last.disk.values()) == pytest.approx(4558e9)
    assert last.core_hours == pytest.approx(36 / 3600 * 250)


def test_machines_and_segments_are_what_was_supposed(rungs: dict[str, dict[str, Any]], made_of: dict[str, Any]) -> None:
    assumed = Assumed(machine_gb=1000, machine_cores=7, filled=1.0, segment_views=1_000_000)
    last = columns(document(rungs, assumed, made_of["machine"]))[-1]
    assert last.machines == 1 and last.core_seconds == pytest.approx(0.3002)
    assert last.rate == pytest.approx(7 / 0.3002)
    assert columns(document(rungs, replace(assumed, machine_gb=599), made_of["machine"]))[-1].machines == 2


def test_measured_columns_say_what_was_measured(made_of: dict[str, Any]) -> None:
    text = section(made_of)
    assert told(text, "memory, GB: index") == ["0.005", "0.5", "2", "500"]
    assert told(text, "memory, GB: all that is opened") == ["0.0075", "0.651", "2.6", "600"]
    assert told(text, "peak while building, GB: resident") == ["6", "6", "6", "-"]
    assert told(text, "built in, s") == ["6", "6", "6", "-"]
    assert told(text, "one query alone, ms") == ["2", "2", "2", "-"]
    assert told(text, "recall@1") == ["0.995", "0.995", "0.995", "0.995 in each segment"]


def test_no_price_is_made_up(rungs: dict[str, dict[str, Any]], made_of: dict[str, Any]) -> None:
    free = section(made_of)
    assert "price" not in free and "Prices: none were given." in free and "embedded" not in free
    assumed = Assumed(images_per_second=1000, core_hour=0.36, gb_hour=0.01, gb_month=0.5)
    paid = section(document(rungs, assumed, made_of["machine"]))
    assert told(paid, "price of a million queries")[1] == "0.05"  # 500 core-seconds
    assert told(paid, "price of building")[1] == "0.0036"
    assert told(paid, "price of memory, a month")[-1] == f"{600 * 730 * 0.01:,.0f}"
    assert told(paid, "price of disk, a month")[-1] == f"{4558 * 0.5:,.0f}"
    assert told(paid, "embedded at 1,000 images/s in, hours")[-1] == f"{1e9 / 1000 / 3600:,.0f}"


def test_a_quick_run_says_that_it_means_nothing(made_of: dict[str, Any]) -> None:
    quick = copy.deepcopy(made_of)
    quick["machine"]["quick"] = True
    assert "mean nothing" in section(quick) and "mean nothing" not in section(made_of)


def test_figures_are_kept_to_four_digits(rungs: dict[str, dict[str, Any]], made_of: dict[str, Any]) -> None:
    rungs["1M"]["search"]["recall@1"] = 0.9876543
    kept = document(rungs, Assumed(), made_of["machine"])
    assert kept["rungs"]["1M"]["search"]["recall@1"] == 0.9877
    assert kept["rungs"]["1M"]["rows"] == 1_000_000 and math.isclose(rungs["1M"]["search"]["recall@1"], 0.9876543)
