"""The match page: what is on it, that nothing on it can break out, how it is published, and how wide it is."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from skumatch.errors import ArtefactError
from skumatch.page import PageRow, PageView, PageWriter

JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////"
    "////////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AR//Z"
)
NASTY = "<script>alert(1)</script> \"q\" 'a' & \u519c\u592b\u5c71\u6cc9"
LONG = "X" * 300
EXTERNAL = ("http://", "https://", "//cdn", "@import", "url(")


class Outline(HTMLParser):
    """Collects what a browser would see: tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def row(crop: str = "crops/a.jpg", decision: str = "accept", sku: str = "Oat-Milk", score: float = 0.9124) -> PageRow:
    return PageRow(crop, JPEG, decision, [PageView(sku, score, JPEG, "gallery/oat/1.jpg")])


def write(path: Path, *rows: PageRow, limit: int = 500, title: str = "Matches") -> Outline:
    with PageWriter(path, title, {"model": "ViT-B-32"}, limit) as page:
        for one in rows:
            page.add(one)
    return Outline(path.read_text(encoding="utf-8"))


def test_page_shows_crop_decision_views_and_facts(tmp_path: Path) -> None:
    failed = PageRow("crops/bad.jpg", None, "error", [], "crops/bad.jpg is not an image")
    seen = write(tmp_path / "page.html", row(), failed)
    for text in ("Matches", "ViT-B-32", "a.jpg", "accept", "Oat-Milk", "0.912", "crops/bad.jpg is not an image"):
        assert text in seen.texts
    assert ("alt", "crop a.jpg") in seen.attributes
    assert ("alt", "reference view of Oat-Milk") in seen.attributes
    assert ("style", "width:91.2%") in seen.attributes
    pictures = [value for name, value in seen.attributes if name == "src"]
    assert pictures == ["data:image/jpeg;base64," + base64.b64encode(JPEG).decode()] * 2
    assert [tag for tag in seen.tags if tag in ("h1", "h2", "h3")] == ["h1", "h2", "h3", "h2"]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    seen = write(tmp_path / "page.html", row(crop=f"crops/{NASTY}.jpg", sku=NASTY), title=NASTY)
    assert "script" not in seen.tags
    assert seen.texts.count(NASTY) == 3  # <title>, <h1> and the SKU
    assert ("title", NASTY) in seen.attributes
    assert ("alt", f"reference view of {NASTY}") in seen.attributes
    assert not [name for name, _ in seen.attributes if name.startswith("on")]


def test_title_is_not_a_template(tmp_path: Path) -> None:
    assert "{style} {title}" in write(tmp_path / "page.html", title="{style} {title}").texts


def test_surrogates_and_control_characters_are_spelled_out(tmp_path: Path) -> None:
    crop = os.fsdecode(b"crops/\xff\x1b[31m.jpg")
    seen = write(tmp_path / "page.html", row(crop=crop))
    assert "\\udcff\\x1b[31m.jpg" in seen.texts


def test_page_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    seen = write(path, row())
    assert not [mark for mark in EXTERNAL if mark in path.read_text(encoding="utf-8")]
    assert not {"script", "iframe", "object"} & set(seen.tags)
    assert [value for name, value in seen.attributes if name in ("src", "href") and not value.startswith("data:")] == []


def test_rows_beyond_the_limit_are_counted_not_shown(tmp_path: Path) -> None:
    rows = [row(decision="accept") for _ in range(1500)] + [row(crop="crops/last.jpg", decision="unknown")]
    seen = write(tmp_path / "page.html", *rows, limit=2)
    assert seen.tags.count("article") == 2
    assert "last.jpg" not in seen.texts
    assert "and 1,499 more: see the CSV" in seen.texts
    assert seen.texts[seen.texts.index("1,501") :][:2] == ["1,501", "crops"]
    assert [seen.texts[i - 1] for i, t in enumerate(seen.texts) if t in ("accept", "unknown")][:2] == ["1,500", "1"]


def test_counts_stand_above_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path, row(), row(decision="review"))
    text = path.read_text(encoding="utf-8")
    assert 0 < text.index("<b>2</b> crops") < text.index("<dl>") < text.index("<article")


def test_no_rows_is_said(tmp_path: Path) -> None:
    assert "no crops" in write(tmp_path / "page.html").texts


def test_a_score_outside_0_to_1_keeps_its_number_and_a_bar_inside_its_box(tmp_path: Path) -> None:
    seen = write(tmp_path / "page.html", row(score=-0.25), row(score=1.0000002), row(score=float("nan")))
    assert {"-0.250", "1.000", "nan"} <= set(seen.texts)
    assert [v for n, v in seen.attributes if n == "style"] == ["width:0.0%", "width:100.0%", "width:0.0%"]


def test_an_exception_leaves_the_older_page_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("older", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), PageWriter(path, "Matches", {}) as page:
        page.add(row())
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "older"
    assert names_in(tmp_path) == ["page.html"]


def test_nothing_is_published_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("older", encoding="utf-8")
    with PageWriter(path, "Matches", {}) as page:
        page.add(row())
        assert path.read_text(encoding="utf-8") == "older"
    assert "Oat-Milk" in path.read_text(encoding="utf-8")
    assert names_in(tmp_path) == ["page.html"]


def test_a_place_that_cannot_be_written_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot write"), PageWriter(tmp_path / "none" / "page.html", "Matches", {}):
        pass
    with pytest.raises(ArtefactError, match="is a folder"), PageWriter(tmp_path, "Matches", {}):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_is_an_artefact_error_and_leaves_the_older_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("older", encoding="utf-8")
    page = PageWriter(path, "Matches", {})
    with pytest.raises(ArtefactError, match="space"), page:
        assert page._file is not None
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, page._file.fileno())
        os.close(full)
        for _ in range(200):
            page.add(row())
    assert path.read_text(encoding="utf-8") == "older"
    assert names_in(tmp_path) == ["page.html"]


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maybe"):
        row(decision="maybe")
    with pytest.raises(ValueError, match="with block"):
        PageWriter(tmp_path / "page.html", "Matches", {}).add(row())


PROBE = """<script>addEventListener("load", () => {
  const e = document.documentElement, wide = [...document.querySelectorAll("body *")].filter(
    (x) => x.getBoundingClientRect().right > innerWidth + 1).length;
  parent.postMessage(`width=${innerWidth} scroll=${e.scrollWidth} outside=${wide}`, "*"); })</script>"""


FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--virtual-time-budget=5000",
    "--disable-background-networking",
    "--disable-component-update",
)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
def test_no_horizontal_overflow_in_a_browser(tmp_path: Path, width: int) -> None:
    page, frame = tmp_path / "page.html", tmp_path / "frame.html"
    views = [PageView(sku, 0.5, JPEG, LONG) for sku in ("Oat-Milk", NASTY, LONG, "\u519c" * 300, "a-b " * 60)]
    rows = [PageRow(f"crops/{LONG}.jpg", JPEG, "review", views), PageRow(LONG, None, "error", [], LONG)]
    write(page, *rows, title=LONG)
    text = page.read_text(encoding="utf-8").replace('http-equiv="Content-Security-Policy"', 'name="off"')
    page.write_text(text.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    # Headless windows have a least width above a phone's, hence the frame.
    frame.write_text(
        '<script>addEventListener("message", (m) => { document.title = m.data; })</script>'
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>',
        encoding="utf-8",
    )
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = dict(pair.split("=") for pair in answer.stdout.partition("<title>")[2].partition("</title>")[0].split())
    assert found["width"] == str(width)
    assert int(found["scroll"]) <= width
    assert found["outside"] == "0"
