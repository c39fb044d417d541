"""The page in a real browser over a full queue: how soon it is there, how large it is, how fast verdicts go.

python bench/page.py [--quick] [--work DIR] --json OUT

Needs chromium on PATH. ``SKUMATCH_AXE`` may name the axe.min.js of axe-core, for its rules of accessibility.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from common import Result, kept
from service_space import Space, small

QUEUED, JUDGED, LOADS, LIMIT = 10_000, 200, 5, 10_000
VIEWS = ("match", "review", "review/judged", "gallery", "gallery/sku-1", "gallery/versions%3A", "figures")
WIDTHS = (360, 1440)


def main() -> None:
    """Fill a queue, open the page, judge, and write JSON."""
    options = arguments()
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)) / ("quick" if options.quick else "page")
        work.mkdir(parents=True, exist_ok=True)
        result.figures = kept(work / "page.json", lambda: measured(work, options.quick))
    say(result.figures)
    claim(result)
    result.write(options.json)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smoke version, claims no bars")
    parser.add_argument("--work", type=Path, help="keep what was measured here")
    parser.add_argument("--json", type=Path, required=True, help="file for bars and figures")
    options = parser.parse_args()
    for name in ("work", "json"):
        given = getattr(options, name)
        setattr(options, name, given and given.resolve())
    return options


def measured(work: Path, quick: bool) -> dict[str, Any]:
    """Return everything that is measured."""
    queued, judged = (300, 10) if quick else (QUEUED, JUDGED)
    space = small(work, "shop")
    (space.folder / "skumatch.toml").open("a").write(f"\n[service]\nreviews = true\nreview_limit = {LIMIT}\n")
    filled = fill(space, queued)
    limits = {} if quick else limited(work / "limits.db")
    with space.start() as server, chromium() as browser:
        url = f"http://127.0.0.1:{server.port}"
        return {
            "queued": queued,
            "kept a second": queued / filled,
            "load": first_load(browser, url),
            "queue ms": [opened(browser, url) for _ in range(LOADS)],
            "verdicts": verdicts(browser, url, judged),
            "wide": overflowing(browser, url),
            "axe": accessibility(browser, url),
            "limits": limits,
            "tracebacks": server.complaints(),
        }


def fill(space: Space, count: int) -> float:
    """Keep ``count`` crops, each another picture; return the seconds that it took."""
    from skumatch.serve.reviews import FILE, Reviews
    from skumatch.serve.settings import Settings

    reviews = Reviews(space.folder / "service" / FILE, Settings(review_limit=LIMIT))
    begun = time.perf_counter()
    for number in range(count):
        candidates = [
            {"sku": f"sku-{sku}", "title": f"SKU {sku}", "score": 0.9 - sku / 20, "view": 5 * sku} for sku in range(5)
        ]
        facts = {"name": f"crop {number}.png", "probability": 0.5, "candidates": candidates, "gallery": "v000001"}
        assert reviews.keep(crop(number), "review", {**facts, "model": "0" * 64}) is not None
    reviews.close()
    return time.perf_counter() - begun


def crop(number: int) -> bytes:
    """Return a picture of shelf size that is like no other."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(small).resize((280, 360)).save(buffer, "JPEG")
    return buffer.getvalue()


def limited(path: Path) -> dict[str, int]:
    """Keep more than there is room for, and let time pass; return what is there then."""
    from skumatch.serve.reviews import DAY, Reviews
    from skumatch.serve.settings import Settings

    now = [1_000_000.0]
    reviews = Reviews(path, Settings(review_limit=1000, review_megabytes=2, review_days=30), lambda: now[0])
    for number in range(1500):
        reviews.keep(number.to_bytes(2) * 500, "review", {})
    count = reviews.waiting()
    for number in range(30):
        reviews.keep(number.to_bytes(2) * 50_000, "review", {})
    held = sum(one.bytes for one in reviews.pending(LIMIT))
    now[0] += 31 * DAY
    left = reviews.waiting()
    reviews.close()
    return {"crops": count, "bytes": held, "after 31 days": left}


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser without a window. Ends the script where there is none."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("chromium is not on PATH")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def first_load(browser: Any, url: str) -> dict[str, Any]:
    """Return the bytes of a first visit, pictures of crops apart, and the requests that left the origin."""
    context = browser.new_context()
    page = context.new_page()
    sizes: dict[str, int] = {}
    page.on("response", lambda answer: sizes.update({answer.url: len(answer.body())}))
    page.goto(f"{url}/#review")
    page.locator(".desk .crop img").evaluate("picture => picture.decode()")
    page.wait_for_load_state("networkidle")
    context.close()
    pictures = sum(size for at, size in sizes.items() if at.endswith("/image"))
    foreign = [at for at in sizes if not at.startswith((url, "blob:"))]
    return {"bytes": sum(sizes.values()) - pictures, "bytes of pictures": pictures, "foreign": len(foreign)}


def opened(browser: Any, url: str) -> float:
    """Return the milliseconds until the queue shows its first crop to a browser that was never here."""
    context = browser.new_context()
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(f"{url}/#review")
    page.locator(".desk .crop img").evaluate("picture => picture.decode()")
    took = time.perf_counter() - begun
    context.close()
    return 1000 * took


def verdicts(browser: Any, url: str, count: int) -> dict[str, float]:
    """Judge ``count`` crops by keyboard; return the milliseconds from a key to the next crop."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/#review")
    took = []
    for number in range(count):
        page.wait_for_selector(".desk:not(.busy) .choose")
        before = page.locator(".desk").get_attribute("data-crop")
        begun = time.perf_counter()
        page.keyboard.press("x" if number % 2 else "Enter")
        page.wait_for_selector(f".desk:not([data-crop='{before}'])")
        took.append(1000 * (time.perf_counter() - begun))
    context.close()
    parts = statistics.quantiles(took, n=20)
    return {"count": count, "p50 ms": statistics.median(took), "p95 ms": parts[-1]}


def overflowing(browser: Any, url: str) -> int:
    """Return by how many pixels the widest view is wider than its window."""
    most = 0
    for width in WIDTHS:
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        for view in VIEWS:
            page.goto(f"{url}/#{view}")
            page.wait_for_timeout(300)
            most = max(most, page.evaluate("document.documentElement.scrollWidth") - width)
        context.close()
    return most


def accessibility(browser: Any, url: str) -> int | None:
    """Return how many serious violations axe-core finds in all views at both widths, None without it."""
    rules = Path(os.environ.get("SKUMATCH_AXE", ""))
    if not rules.is_file():
        return None
    found = 0
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
            )
            page = context.new_page()
            for view in VIEWS:
                page.goto(f"{url}/#{view}")
                page.wait_for_timeout(300)
                page.evaluate(rules.read_text())
                told = page.evaluate("axe.run()")["violations"]
                found += sum(one["impact"] in ("serious", "critical") for one in told)
            context.close()
    return found


def say(figures: dict[str, Any]) -> None:
    """Print what was measured."""
    load, times = figures["load"], figures["verdicts"]
    print(f"\n{figures['queued']:,} crops queued, kept at {figures['kept a second']:.0f} a second")
    print(f"first load: {load['bytes'] / 1000:.0f} kB beside {load['bytes of pictures'] / 1000:.0f} kB of crops")
    print(f"the queue shows its first crop after {statistics.median(figures['queue ms']):.0f} ms (median)")
    print(f"{times['count']} verdicts by keyboard: p50 {times['p50 ms']:.0f} ms, p95 {times['p95 ms']:.0f} ms")
    print(f"serious violations that axe-core finds: {figures['axe']}; limits: {figures['limits']}\n")


def claim(result: Result) -> None:
    """Hold the figures against what the page promises."""
    if result.quick:
        return
    figures = result.figures
    result.bar("queued crops", figures["queued"], 10_000, "least")
    result.bar("queue: ms until the first crop, the slowest of five", max(figures["queue ms"]), 1000, "most")
    result.bar("first load: bytes", figures["load"]["bytes"], 300_000, "most")
    result.bar("requests that left the origin", figures["load"]["foreign"], 0, "most")
    result.bar("verdicts by keyboard", figures["verdicts"]["count"], 200, "least")
    result.bar("pixels that a view is too wide", figures["wide"], 0, "most")
    if figures["axe"] is not None:
        result.bar("axe-core: serious violations", figures["axe"], 0, "most")
    result.bar("limits: crops kept of 1,500 where 1,000 may be", figures["limits"]["crops"], 1000, "most")
    result.bar("limits: bytes kept where 2 MB may be", figures["limits"]["bytes"], 2_000_000, "most")
    result.bar("limits: crops left after 31 days where 30 may be", figures["limits"]["after 31 days"], 0, "most")
    result.bar("tracebacks in the service's log", figures["tracebacks"], 0, "most")


if __name__ == "__main__":
    main()
