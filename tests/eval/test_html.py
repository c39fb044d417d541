"""The pieces of a page: nothing breaks out of them, and the file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as PILImage

from skumatch.errors import ArtefactError
from skumatch.eval.html import Markup, anchor, folded, picture, section, strip, table, text, write_page

NASTY = "<script>alert(1)</script> \"q\" 'a' & \u519c\u592b\u5c71\u6cc9"


class Seen(HTMLParser):
    """Collects tags, attributes and text, and refuses tags that do not nest."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


def png(side: int = 300) -> bytes:
    buffer = BytesIO()
    PILImage.new("RGB", (side, side // 2), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("value", "said"),
    [(1234567, "1,234,567"), (0.12345, "0.123"), (float("nan"), "-"), (None, "-"), (True, "yes"), ("a<b", "a&lt;b")],
)
def test_values_as_text(value: object, said: str) -> None:
    assert text(value) == said


def test_markup_passes_and_everything_else_is_escaped() -> None:
    assert text(Markup("<b>x</b>")) == "<b>x</b>"
    seen = Seen(section(NASTY, table([NASTY], [[NASTY], [Markup("<b>x</b>")]]), NASTY) + folded(NASTY, "<p>x</p>"))
    assert "script" not in seen.tags and seen.tags.count("b") == 1
    assert seen.texts.count(NASTY) == 5
    assert text("\udcff\x1b") == "\\udcff\\x1b"


def test_columns_of_figures_are_right_aligned_and_bar_codes_are_not() -> None:
    rows: list[list[object]] = [
        ["4006381333931", 12, "84.4 % (80.1 to 88.0 %)", "12 eggs"],
        ["4006381333948", 1500, "-", "6 eggs"],
    ]
    page = table(["SKU", "queries", "top-1", "title"], rows)
    assert page.count('<th scope="col" class="figure">') == 2
    assert '<td class="figure">1,500</td>' in page and "<td>4006381333931</td>" in page and "<td>12 eggs</td>" in page


def test_a_table_without_headings_has_no_heading_line() -> None:
    assert "thead" not in table(["", ""], [["a", 1]]) and "thead" in table(["", "x"], [["a", 1]])


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2"):
        table(["a", "b"], [["x"]])


def test_pictures_are_small_jpegs_inside_the_page(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(png())
    for source in (path, png()):
        seen = Seen(strip([picture(source, NASTY, side=64)]))
        sources = [value for name, value in seen.attributes if name == "src"]
        assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,/9j/") and len(sources[0]) < 3000
        assert ("alt", NASTY) in seen.attributes and NASTY in seen.texts


def test_the_alternative_text_of_a_marked_up_caption_has_no_tags() -> None:
    seen = Seen(picture(png(), Markup("<i>query</i><br>A &amp; B")))
    assert ("alt", "query A & B") in seen.attributes


def test_a_picture_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "x<y.jpg"
    broken.write_bytes(png()[:100])
    for path in (broken, tmp_path / "missing.jpg"):
        seen = Seen(picture(path, "crop"))
        assert "img" not in seen.tags and any(path.name in said for said in seen.texts) and "crop" in seen.texts


def test_anchors_are_plain() -> None:
    assert anchor("Worst SKUs & more") == "worst-skus-more" and anchor("\u519c") == "section"


def test_the_page_stands_alone_and_forbids_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, NASTY, {"model": NASTY}, iter([section("One", "<p>1</p>"), section("Two", "<p>2</p>")]), ".x {}")
    seen = Seen(path.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>"))
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in seen.attributes
    assert not {"script", "iframe", "object"} & set(seen.tags)
    assert all(value.startswith("data:") for name, value in seen.attributes if name in ("src", "href"))
    assert seen.texts.count(NASTY) == 3 and seen.tags.count("section") == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_a_failure_leaves_the_older_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("older")

    def broken() -> Iterator[str]:
        yield "<p>new</p>"
        assert path.read_text() == "older"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(path, "t", {}, broken())
    assert path.read_text() == "older" and [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_place_that_cannot_be_written_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is a folder"):
        write_page(tmp_path, "t", {}, [])
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", "t", {}, [])


def test_a_full_disk_is_an_artefact_error(tiny_disk: Path) -> None:
    with pytest.raises(ArtefactError, match="no space"):
        write_page(tiny_disk / "page.html", "t", {}, ["x" * 100_000 for _ in range(30)])
    assert list(tiny_disk.iterdir()) == []
