"""The report in a real browser: no request leaves, no sideways scrolling on a phone, every picture decodes."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from skumatch.eval.corrupt import examples
from skumatch.eval.report_page import Failure, Pictures, write_report
from skumatch.images import read_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH"),
]
HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"]
FLAGS += ["--virtual-time-budget=8000", "--disable-background-networking", "--disable-component-update"]
POLICY = 'http-equiv="Content-Security-Policy"'
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const e = document.documentElement, scrolls = (x) => x.closest(".scroll") && !x.matches(".scroll");
  const wide = [...document.querySelectorAll("body *")].filter(
    (x) => !scrolls(x) && x.getBoundingClientRect().right > innerWidth + 1).map((x) => x.tagName + "." + x.className);
  const images = [...document.images], text = [...document.querySelectorAll(".chart > svg text")].map(
    (x) => parseFloat(getComputedStyle(x).fontSize) * x.ownerSVGElement.getScreenCTM().a);
  const big = document.querySelector(".honest").getBoundingClientRect().bottom;
  parent.postMessage(JSON.stringify({ width: innerWidth, scroll: e.scrollWidth, wide, images: images.length,
    bad: images.filter((x) => !x.complete || !x.naturalWidth).length, smallest: Math.min(...text),
    answer: big, requests: performance.getEntriesByType("resource").filter((x) => !x.name.startsWith("data:")).length,
    }), "*"); })</script>"""


@pytest.fixture
def report(tmp_path: Path, patterns: Path) -> Path:
    """Return a report with every section, long and foreign names and pictures."""
    path = tmp_path / "report.html"
    document = json.loads((HERE / "report_document.json").read_text(encoding="utf-8"))
    long = next(iter(document["per_sku"]))
    query, view = patterns / "test" / "sku-0" / "4.png", patterns / "train" / "sku-1" / "0.png"
    failures = [Failure(query, sku, long, 0.91, view, query, 0.88) for sku in document["per_sku"]]
    failures += [Failure(query, "X" * 200, long, 0.91, patterns / "gone.png", None, None)]
    confusions = [(sku, long, 3, query, view) for sku in document["per_sku"]]
    worst = [(sku, 4, 0.0, [query] * 5) for sku in document["per_sku"]]
    corrupted = examples(read_image(query), ["blur", "darkness"])
    write_report(path, document, Pictures(failures, confusions, worst, [(query, view, "near copy")], corrupted))
    return path


def browsed(tmp_path: Path, address: str) -> str:
    """Return the DOM after loading ``address``."""
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def probed(tmp_path: Path, report: Path, width: int) -> dict[str, Any]:
    """Return what a probe finds in a copy of the report, in a frame: a headless window is wider than a phone."""
    page = report.read_text(encoding="utf-8").replace(POLICY, 'name="off"').replace("</head>", PROBE + "</head>")
    (tmp_path / "probed.html").write_text(page, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<script>addEventListener("message", (m) => { document.title = m.data; })</script>'
        f'<iframe src="probed.html" style="width:{width}px;height:800px;border:0"></iframe>'
    )
    found = re.search("<title>(.*?)</title>", browsed(tmp_path, frame.as_uri()), re.DOTALL)
    assert found is not None
    answer: dict[str, Any] = json.loads(found[1])
    return answer


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_is_readable(tmp_path: Path, report: Path, width: int) -> None:
    found = probed(tmp_path, report, width)
    assert found["width"] == width and found["scroll"] <= width and found["wide"] == []
    assert found["images"] > 50 and found["bad"] == 0 and found["requests"] == 0
    assert found["smallest"] >= 11
    assert found["answer"] <= 640, "the answer and its reservation fit on a phone's first screen"


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves the report and remembers every address that was asked for."""

    asked: ClassVar[list[str]] = []
    page: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve on a free local port."""
    Recorder.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_no_request_leaves_even_when_a_picture_asks(
    tmp_path: Path, report: Path, server: http.server.ThreadingHTTPServer
) -> None:
    tempting = '<img src="/leak.png"><script src="/leak.js"></script><link rel="stylesheet" href="/leak.css"></main>'
    Recorder.page = report.read_bytes().replace(b"</main>", tempting.encode())
    address = f"http://127.0.0.1:{server.server_address[1]}"
    assert "What to do next" in browsed(tmp_path, f"{address}/report.html")
    assert Recorder.asked == ["/report.html"], "the page's own policy holds back even what was put into it"
    Recorder.page = Recorder.page.replace(POLICY.encode(), b'name="off"')
    browsed(tmp_path, f"{address}/open.html")
    assert "/leak.png" in Recorder.asked, "without the policy the requests would be seen"
