"""The page in a real browser: from an unknown crop to a SKU and back, by keyboard, with a key, under hostile names."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage

from skumatch.calibration import Calibration
from skumatch.encoder import Encoder
from skumatch.serve.keys import Keys
from tests.skumatch.serving import make_gallery
from tests.skumatch.small_server import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH"),
]
SCRIPT = Path(__file__).with_name("serve_process.py")
Draw = Callable[[int, int], PILImage.Image]
FIRST_LOAD = 300_000  # bytes


class Running:
    """A service over the fake encoder that can be killed and started again at the same port."""

    def __init__(self, gallery: Path, state: Path, *settings: str) -> None:
        self.words = [sys.executable, str(SCRIPT), str(gallery), str(state), str(free_port())]
        self.settings = ["reviews=true", "deadline=60", *settings]  # a busy machine is no error
        self.log = state.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self.words[-1]}"

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.words, *self.settings], stderr=log)
        while b"listening on " not in (said := self.log.read_bytes()):
            assert self.process.poll() is None, said
            time.sleep(0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def ask(self, data: bytes, **headers: str) -> dict[str, Any]:
        kind = {"Content-Type": "image/png", **headers}
        answer = httpx2.post(f"{self.url}/v1/match?k=5", content=data, headers=kind, timeout=30)
        return dict(answer.raise_for_status().json()["results"][0])

    def get(self, path: str) -> Any:
        return httpx2.get(f"{self.url}{path}", timeout=30).raise_for_status().json()


@pytest.fixture
def running(patterns: Path, encoder: Encoder, tmp_path: Path) -> Iterator[Running]:
    service = Running(make_gallery(patterns, encoder, tmp_path / "gallery"), tmp_path / "state")
    yield service
    service.stop()


@contextmanager
def page_of(browser: Any, service: Running, width: int = 1440, **how: Any) -> Iterator[Any]:
    """Open the page; nothing may be asked of another origin, and nothing may go wrong unseen."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **how)
    page = context.new_page()
    page.set_default_timeout(20_000)
    trouble, asked = list[str](), list[str]()
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.goto(service.url)
    yield page
    context.close()
    assert trouble == []
    assert [url for url in asked if not url.startswith((service.url, "blob:"))] == []


def png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def upload(page: Any, name: str, data: bytes) -> Any:
    """Match a crop in the page and return its card."""
    page.goto(f"{page.url.partition('#')[0]}#match")
    page.set_input_files("#crops", [{"name": name, "mimeType": "image/png", "buffer": data}])
    card = page.locator(".card").filter(has_text=name).first
    card.locator(".badge").wait_for()
    return card


def test_from_unknown_to_a_sku_and_back(
    running: Running, browser: Any, draw_view: Draw, tmp_path: Path, patterns: Path
) -> None:
    rule = Calibration("0" * 64, -25.0, (20.0, 15.0, 5.0), 0.98, 0.9, 0.2)
    (tmp_path / "rule.json").write_bytes(rule.to_bytes())
    running.settings.append(f'calibration="{tmp_path / "rule.json"}"')
    running.start()
    crop, fresh = (png(draw_view(7, view)) for view in (0, 1))
    with page_of(browser, running) as page:
        card = upload(page, "first.png", crop)
        assert card.get_attribute("data-decision") == "unknown"
        card.get_by_text("Say what it is").click()
        page.locator(".desk .crop img").wait_for()
        page.keyboard.press("n")
        page.get_by_label("SKU", exact=True).fill("tea-20")
        page.get_by_label("Title (optional)").fill("Tea, 20 bags")
        page.keyboard.press("Enter")
        page.get_by_text("Nothing waits for review.").wait_for()
        for name, data in (("again.png", crop), ("fresh.png", fresh)):
            card = upload(page, name, data)
            assert card.get_attribute("data-decision") == "accept", name
            assert card.locator(".candidates b").first.inner_text() == "Tea, 20 bags"
        page.goto(f"{running.url}/#figures")
        with page.expect_download() as saved:
            page.get_by_text("Save corrections").click()
        saved.value.save_as(tmp_path / "corrections.zip")
        page.goto(f"{running.url}/#review/judged")
        page.get_by_role("button", name="Undo: first.png is new: tea-20").click()
        page.get_by_text("Undone: the crop waits again.").first.wait_for()
        assert upload(page, "last.png", fresh).get_attribute("data-decision") == "unknown"
    shutil.unpack_archive(tmp_path / "corrections.zip", tmp_path / "corrections")
    finetuned(patterns, tmp_path, tmp_path / "corrections" / "corrections.csv")


def finetuned(patterns: Path, tmp_path: Path, manifest: Path) -> None:
    """Let `skumatch finetune` train on the corrections too."""
    skumatch = [sys.executable, "-m", "skumatch.cli.app"]
    model = ["--data", str(patterns), "--model", "timm:test_efficientnet", "--random-init"]
    for words in (["init", str(tmp_path / "shop"), *model], ["finetune", "--epochs", "1", "--also", str(manifest)]):
        folder = tmp_path if words[0] == "init" else tmp_path / "shop"
        ran = subprocess.run([*skumatch, *words], cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    (document,) = [json.loads(file.read_text()) for file in (tmp_path / "shop" / "models").rglob("model.json")]
    assert document["data"]["skus"] == 7


def test_two_hundred_by_keyboard_and_none_is_lost_when_it_is_killed(
    running: Running, browser: Any, draw_view: Draw
) -> None:
    running.start()
    for number in range(200):
        running.ask(png(draw_view(number % 6, 10 + number)))
    assert running.get("/v1/review?limit=1")["waiting"] == 200
    with page_of(browser, running) as page:
        page.goto(f"{running.url}/#review")
        for number in range(200):
            page.locator(".desk:not(.busy) .choose").wait_for()
            before = page.locator(".desk").get_attribute("data-crop")
            page.keyboard.press(("1", "Enter", "2", "x")[number % 4])
            if number in (40, 120):
                running.kill()
                time.sleep(0.5)
                running.start()
            page.wait_for_function(
                "before => document.querySelector('.empty') || document.querySelector('.desk').dataset.crop !== before",
                arg=before,
            )
        page.get_by_text("Nothing waits for review.").wait_for()
    judged = running.get("/v1/review?state=judged&limit=1000")
    assert judged["waiting"] == 0 and len(judged["reviews"]) == 200
    said = [one["verdict"] for one in judged["reviews"]]
    assert {verdict: said.count(verdict) for verdict in set(said)} == {"accept": 100, "correct": 50, "reject": 50}
    views = running.get("/v1/gallery")["views"]
    assert views == 24 + sum(one["enrolled"] for one in judged["reviews"])


def test_two_operators_never_get_the_same_crop(running: Running, browser: Any, draw_view: Draw) -> None:
    running.start()
    for number in range(60):
        running.ask(png(draw_view(number % 6, 10 + number)))
    seen: list[str] = []
    with page_of(browser, running) as one, page_of(browser, running) as two:
        for page in (one, two):
            page.goto(f"{running.url}/#review")
        for number in range(60):
            page = (one, two)[number % 2]
            if page.locator(".empty").count():
                continue
            page.locator(".desk:not(.busy) .choose, .empty").first.wait_for()
            if page.locator(".empty").count():
                continue
            crop = page.locator(".desk").get_attribute("data-crop")
            seen.append(crop)
            page.keyboard.press("x")
            page.wait_for_function(
                "crop => document.querySelector('.empty') || document.querySelector('.desk').dataset.crop !== crop",
                arg=crop,
            )
    assert len(seen) == len(set(seen)) >= 40


def test_skipped_ones_and_new_ones_come_too(running: Running, browser: Any, draw_view: Draw) -> None:
    running.settings.append("review_claim=9")
    running.start()
    for number in range(25):  # more than are claimed at a time
        running.ask(png(draw_view(number % 6, 10 + number)))
    with page_of(browser, running) as page, page_of(browser, running) as other:
        page.goto(f"{running.url}/#review")
        for _ in range(25):
            page.locator(".desk .choose").wait_for()
            before = page.locator(".desk").get_attribute("data-crop")
            page.keyboard.press("k")
            page.wait_for_selector(f".desk:not([data-crop='{before}'])")
        page.get_by_role("button", name="Look at the 25 skipped").click()
        page.locator(".desk .choose").wait_for()
        first = page.locator(".desk").get_attribute("data-crop")
        other.goto(f"{running.url}/#review/{first}")
        other.get_by_text("Somebody else looks at this crop.").first.wait_for()
        page.wait_for_timeout(10_000)  # longer than a claim lasts: it is asked for again
        page.keyboard.press("x")
        page.get_by_text("No product.").first.wait_for()
        page.keyboard.press("u")
        page.get_by_text("Undone.").first.wait_for()
        page.locator(f".desk[data-crop='{first}']").wait_for()


HOSTILE = "<img src=x onerror=alert(1)>" + "W" * 200


@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_overflows_and_no_name_runs(
    width: int, running: Running, browser: Any, draw_view: Draw, tmp_path: Path
) -> None:
    running.start()
    data = png(draw_view(7, 0))
    files = {"images": (HOSTILE[:100] + ".png", data, "image/png")}
    params = {"sku": HOSTILE, "title": HOSTILE * 3}
    httpx2.post(f"{running.url}/v1/views", params=params, files=files, timeout=60).raise_for_status()
    running.ask(png(draw_view(7, 1)))
    with page_of(browser, running, width) as page:
        upload(page, "crop.png", png(draw_view(7, 2)))
        for view in (
            "match",
            "review",
            "gallery",
            f"gallery/{HOSTILE.replace('/', '%2F')}",
            "gallery/versions%3A",
            "review/judged",
            "figures",
        ):
            page.goto(f"{running.url}/#{view}")
            page.wait_for_timeout(500)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (view, wide)
            out = page.evaluate(
                "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')"
                " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
            )
            assert out == [], (view, out)


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    width: int, scheme: str, running: Running, browser: Any, draw_view: Draw, tmp_path: Path
) -> None:
    axe = Path(os.environ.get("SKUMATCH_AXE", ""))
    if not axe.is_file():
        pytest.skip("SKUMATCH_AXE names no axe.min.js (npm pack axe-core)")
    running.start()
    running.ask(png(draw_view(1, 10)))
    with page_of(browser, running, width, color_scheme=scheme, bypass_csp=True) as page:
        upload(page, "crop.png", png(draw_view(2, 11)))
        for view in ("match", "review", "review/judged", "gallery", "gallery/sku-1", "gallery/versions%3A", "figures"):
            if view != "match":
                page.goto(f"{running.url}/#{view}")
            page.wait_for_timeout(500)
            page.evaluate(axe.read_text())
            found = page.evaluate("axe.run()")["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], view


def test_the_first_load_is_small(running: Running, browser: Any) -> None:
    running.start()
    sizes: dict[str, int] = {}
    context = browser.new_context()
    page = context.new_page()
    page.on("response", lambda answer: sizes.update({answer.url: len(answer.body())}))
    page.goto(running.url)
    page.wait_for_load_state("networkidle")
    context.close()
    assert 0 < sum(sizes.values()) < FIRST_LOAD and len(sizes) > 5


def test_a_key_is_asked_for_once(running: Running, browser: Any, draw_view: Draw, tmp_path: Path) -> None:
    token = Keys(tmp_path / "state" / "keys.json").add("eva", ["read", "match", "write"])
    running.start()
    with page_of(browser, running) as page:
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("This key is not valid.").wait_for()
        page.locator("#key").fill(token)
        page.keyboard.press("Enter")
        card = upload(page, "crop.png", png(draw_view(1, 10)))
        page.locator(".candidates img[src]").first.evaluate("image => image.decode()")
        assert card.locator("b").first.inner_text() == "Title 1" and page.locator("dialog").count() == 0
