"""The view of groups in a real browser: accept, split, merge and undo by keyboard, through kills, beside others."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from skumatch.catalogue.decisions import apply, read_decisions
from skumatch.encoder import Encoder
from skumatch.serve.keys import Keys
from tests.skumatch.dedupe_results import write_results
from tests.skumatch.serving import make_gallery
from tests.skumatch.test_serve_page import Running, page_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH"),
]
MANY = 40
HOSTILE = "x<img/src=x/onerror=alert(1)>" + "W" * 200
GROUPS = {
    "g1": [("a", 0.5), ("b", 0.4), ("c", 0.35), ("x", 0.3)],
    "g2": [("d", 0.7), ("e", 0.6)],
    "g3": [("f", 0.9), ("g", 0.8)],
    "g4": [("h", 0.95), (HOSTILE, 0.95)],
}
PAIRS = [("a", "b", 0.5), ("b", "c", 0.4), ("a", "x", 0.3), ("c", "f", 0.35), ("b", "d", 0.45), ("h", HOSTILE, 0.95)]


@pytest.fixture
def running(patterns: Path, encoder: Encoder, tmp_path: Path) -> Iterator[Running]:
    """Return a service, not started yet, with GROUPS for review, or others that the test writes to "dedupe" first."""
    out = write_results(tmp_path / "dedupe", GROUPS, PAIRS)
    gallery = make_gallery(patterns, encoder, tmp_path / "gallery")
    service = Running(gallery, tmp_path / "state", f"catalogue={json.dumps(str(out))}")
    yield service
    service.stop()


def shown(page: Any, group: str) -> None:
    page.locator(f".desk[data-group='{group}']:not(.busy) .tile").first.wait_for()


def test_accept_split_merge_and_undo_by_keyboard(running: Running, browser: Any, tmp_path: Path) -> None:
    running.start()
    with page_of(browser, running) as page:
        page.get_by_role("link", name="Groups 4").click()
        shown(page, "g1")
        page.locator(".tile img[src]").first.evaluate("image => image.decode()")
        assert page.locator(".tile .none").all_inner_texts() == ["no picture"]
        page.keyboard.press("s")
        page.get_by_text("Mark the postings that belong elsewhere first").first.wait_for()
        for key in ("3", "4", "4", "a"):
            page.keyboard.press(key)
        page.get_by_text("Some postings are marked").first.wait_for()
        assert page.locator(".mark").all_inner_texts() == ["", "", "apart 1", "apart 2"]
        page.keyboard.press("s")
        shown(page, "g2")
        page.locator(".beside h2").get_by_text("g1?").wait_for()
        page.keyboard.press("m")
        shown(page, "g3")
        page.keyboard.press("u")
        shown(page, "g2")
        page.locator(".tile").nth(1).click()
        page.keyboard.press("Escape")
        assert page.locator(".tile[aria-pressed=true]").count() == 0
        page.keyboard.press("k")
        shown(page, "g3")
        page.keyboard.press("a")
        shown(page, "g4")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Look at the 1 skipped").click()
        shown(page, "g2")
        with page.expect_download() as saved:
            page.get_by_text("Save decisions").click()
        saved.value.save_as(tmp_path / "decisions.jsonl")
        page.goto(f"{running.url}/#groups/decided%3A")
        page.get_by_role("button", name="Undo: g1 split into 3").click()
        page.get_by_text("Undone.").first.wait_for()
        page.get_by_text("undone", exact=True).nth(1).wait_for()
        assert page.get_by_text("undone", exact=True).count() == 2
    before = {name: [posting for posting, _ in of] for name, of in GROUPS.items()}
    found = apply(before, read_decisions(tmp_path / "decisions.jsonl"))
    assert found["g1"] == ["a", "b"] and found["g1-2"] == ["c"] and found["g1-3"] == ["x"] and found["g2"] == ["d", "e"]
    assert running.get("/v1/catalogue/stats") == {"groups": 4, "waiting": 2, "accept": 2, "split": 0, "merge": 0}


def test_none_is_lost_when_it_is_killed(running: Running, browser: Any, tmp_path: Path) -> None:
    write_results(tmp_path / "dedupe", {f"g{n:03d}": [(f"a{n}", 0.5), (f"b{n}", 0.5)] for n in range(MANY)})
    running.start()
    with page_of(browser, running) as page:
        page.goto(f"{running.url}/#groups")
        for number in range(MANY):
            shown(page, f"g{number:03d}")
            page.keyboard.press(("a", "2")[number % 2])
            if number % 2:
                page.keyboard.press("s")
            if number in (10, 25):
                running.kill()
                time.sleep(0.5)
                running.start()
        page.get_by_text("Nothing waits for review.").wait_for()
    assert running.get("/v1/catalogue/stats") == {
        "groups": MANY // 2, "waiting": 0, "accept": MANY // 2, "split": MANY // 2, "merge": 0
    }  # fmt: skip


def test_two_operators_decide_each_group_once(running: Running, browser: Any, tmp_path: Path) -> None:
    write_results(tmp_path / "dedupe", {f"g{n:03d}": [(f"a{n}", 0.5), (f"b{n}", 0.5)] for n in range(MANY)})
    running.start()
    conflicts = 0
    with page_of(browser, running) as one, page_of(browser, running) as two:
        for page in (one, two):
            page.goto(f"{running.url}/#groups")
        for number in range(3 * MANY):
            page = (one, two)[number % 2]
            page.locator(".desk:not(.busy) .tile, .empty").first.wait_for()
            if page.locator(".empty").count():
                continue
            before = page.locator(".desk").get_attribute("data-group")
            page.keyboard.press("a")
            page.wait_for_selector(f".empty, .desk:not(.busy):not([data-group='{before}'])")
            conflicts += page.locator(".toast.failed:visible").count()
        assert one.locator(".empty").count() == two.locator(".empty").count() == 1
    decided = running.get("/v1/catalogue/decisions?limit=1000")["decisions"]
    assert sorted(found["groups"][0] for found in decided) == [f"g{n:03d}" for n in range(MANY)]
    assert conflicts < MANY // 2


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_no_name_runs_and_axe_finds_nothing(
    width: int, scheme: str, running: Running, browser: Any
) -> None:
    running.start()
    versions = [{"group": "g3", "version": 0}]
    said = {"decision": "accept", "groups": versions}
    answer = httpx2.post(f"{running.url}/v1/catalogue/decisions", json=said, timeout=60)
    assert answer.raise_for_status().json()["groups"] == ["g3"]
    axe = Path(os.environ.get("SKUMATCH_AXE", ""))
    with page_of(browser, running, width, color_scheme=scheme, bypass_csp=True) as page:
        for view in ("groups", "groups/g4", "groups/decided%3A"):
            page.goto(f"{running.url}/#{view}")
            page.get_by_role("link", name="Groups 3").wait_for()
            page.wait_for_timeout(500)
            if view == "groups":
                page.keyboard.press("2")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            out = page.evaluate(
                "[...document.querySelectorAll('header *, main *')].filter("
                "e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
            )
            assert out == [], (view, out)
            tops = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getBoundingClientRect().top)")
            assert len(set(tops)) == 1, tops
            if axe.is_file():
                page.evaluate(axe.read_text())
                found = page.evaluate("axe.run()")["violations"]
                assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], view


def test_with_a_key(running: Running, browser: Any, tmp_path: Path) -> None:
    token = Keys(tmp_path / "state" / "keys.json").add("eva", ["read", "write"])
    running.start()
    with page_of(browser, running) as page:
        page.locator("#key").fill(token)
        page.keyboard.press("Enter")
        page.goto(f"{running.url}/#groups")
        shown(page, "g1")
        page.locator(".tile img[src]").first.evaluate("image => image.decode()")
        page.keyboard.press("a")
        shown(page, "g2")
    token_of = {"X-API-Key": token}
    found = httpx2.get(f"{running.url}/v1/catalogue/decisions", headers=token_of, timeout=60).json()["decisions"]
    assert [one["who"] for one in found] == ["eva"]
