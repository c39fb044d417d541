"""The page of groups: what is on it, that nothing on it can break out, how it is published, and how wide it is."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skumatch.catalogue import output
from skumatch.catalogue.cards import GroupCard, Member, Reason, group_page
from skumatch.catalogue.page import write_page
from skumatch.catalogue.postings import Catalogue, read_catalogue
from skumatch.errors import ArtefactError, DataError
from tests.conftest import draw

NASTY = "<script>alert(1)</script> \"q\" 'a' & 农夫山泉"
FACTS = {"rule": {"kind": "noisy-or", "threshold": 0.6}}
Pair = tuple[str, str, float]


class Seen(HTMLParser):
    """Collects what a browser would see, card by card."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.cards: list[list[str]] = []
        self.texts: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "article":
            self.cards.append([])

    def handle_data(self, data: str) -> None:
        if data.strip():
            (self.cards[-1] if self.cards else self.texts).append(data.strip())

    def names(self) -> list[str]:
        return [card[0] for card in self.cards]

    def lines(self, card: int) -> list[tuple[str, str]]:
        """Return the pairs of a card with what they have overall."""
        article = self.text.split("<article")[card + 1]
        return re.findall(r'<th scope="row"[^>]*>([^<]*)</th><td class="figure">([^<]*)<', article)


def write_out(
    folder: Path, groups: Mapping[str, Sequence[tuple[str, float]]], pairs: Sequence[Pair], block: int = 7
) -> Path:
    """Write what a search for duplicates leaves, every posting with a picture of its own, pairs in small row groups."""
    (folder / "pics").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    for name, members in groups.items():
        for posting, sure in members:
            draw(len(rows), 0).save(folder / f"pics/{posting}.png")
            rows.append((name, posting, f"pics/{posting}.png", f"title of {posting}", f"{sure:.6f}"))
    output.write_csv(folder / output.GROUPS, output.GROUP_COLUMNS, rows)
    output.write_facts(folder / output.FACTS, FACTS)
    write_pairs(folder / output.PAIRS, pairs, block)
    return folder


def write_pairs(path: Path, pairs: Sequence[Pair], block: int = 7) -> None:
    left, right, probability = zip(*pairs, strict=True) if pairs else ((), (), ())
    some = np.arange(len(pairs)) % 2
    table = {
        "left": pa.array(left, pa.string()),
        "right": pa.array(right, pa.string()),
        "probability": pa.array(probability, pa.float32()),
        "words": pa.array(np.where(some, 0.9, 0.0), pa.float32()),
        "hash": pa.array(np.where(some, np.nan, 1.0), pa.float32()),
        "text": pa.array(np.full(len(pairs), np.nan), pa.float32()),
        "amounts_contradict": pa.array(some.astype(np.uint8)),
        "amounts_agree": pa.array((1 - some).astype(np.uint8)),
    }
    pq.write_table(pa.table(table), path, row_group_size=block)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "c.csv").write_text("posting_id,title\na,x\nb,y\n")
    return read_catalogue(tmp_path / "c.csv")


def random_out(folder: Path, sizes: Sequence[int]) -> tuple[dict[str, list[tuple[str, float]]], list[Pair]]:
    """Write groups of random confidence with all pairs within, and as many between groups; return both."""
    rng = random.Random(3)
    groups = {f"g{n}": [(f"p{n}x{k}", round(rng.random(), 6)) for k in range(size)] for n, size in enumerate(sizes)}
    ids = [posting for members in groups.values() for posting, _ in members]
    pairs = [(one, other, round(rng.random(), 4)) for n, one in enumerate(ids) for other in ids[n + 1 :]]
    write_out(folder, groups, pairs)
    return groups, pairs


def test_groups_come_least_sure_or_largest_first(tmp_path: Path, catalogue: Catalogue) -> None:
    groups, _ = random_out(tmp_path / "out", (3, 2, 5, 2, 4, 2))
    least = {name: min(sure for _, sure in members) for name, members in groups.items()}
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue)
    assert Seen(tmp_path / "page.html").names() == sorted(groups, key=lambda name: least[name])
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue, "largest", limit=3)
    seen = Seen(tmp_path / "page.html")
    threes = sorted((name for name in groups if len(groups[name]) == 3), key=lambda name: least[name])
    assert seen.names() == ["g2", "g4", *threes]
    assert "and 3 more: see groups.csv" in seen.cards[-1] and "6, 3 shown" in seen.texts
    assert f"{least['g2']:.2f}" in seen.cards[0] and "5 postings" in seen.cards[0]
    assert "noisy-or, a match from 0.60 on" in seen.texts


def test_pairs_are_the_three_strongest_and_the_weakest(tmp_path: Path, catalogue: Catalogue) -> None:
    groups, pairs = random_out(tmp_path / "out", (6, 3, 2, 9, 2))
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue, "largest", limit=4)
    seen = Seen(tmp_path / "page.html")
    assert len(seen.names()) == 4  # the pairs of the fifth are not told
    for card, name in enumerate(seen.names()):
        members = sorted(groups[name], key=lambda member: -member[1])
        numbers = {posting: number for number, (posting, _) in enumerate(members, start=1)}
        inside = sorted((pair for pair in pairs if {pair[0], pair[1]} <= set(numbers)), key=lambda pair: -pair[2])
        told = inside if len(inside) <= 4 else [*inside[:3], inside[-1]]
        expected = [(sorted((numbers[one], numbers[other])), sure) for one, other, sure in told]
        found = [([int(number) for number in ends.split(" and ")], float(sure)) for ends, sure in seen.lines(card)]
        assert [ends for ends, _ in found] == [ends for ends, _ in expected]
        assert [sure for _, sure in found] == pytest.approx([sure for _, sure in expected], abs=0.0051)


def test_of_a_large_group_twelve_are_shown_and_those_that_pairs_are_of(tmp_path: Path, catalogue: Catalogue) -> None:
    members = [(f"p{k}", 1 - k / 100) for k in range(30)]
    pairs = [("p0", "p29", 0.9), ("p1", "p28", 0.8), ("p2", "p3", 0.7), ("p4", "p5", 0.6), ("p6", "p27", 0.1)]
    write_out(tmp_path / "out", {"g1": members}, pairs)
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue)
    seen = Seen(tmp_path / "page.html")
    titles = [text for text in seen.cards[0] if text.startswith("title of")]
    assert titles == [f"title of p{k}" for k in (0, 1, 2, 3, 4, 5, 6, 7, 8, 27, 28, 29)]
    assert "and 18 more" in seen.cards[0] and "30 postings" in seen.cards[0]
    assert [ends for ends, _ in seen.lines(0)] == ["1 and 12", "2 and 11", "3 and 4", "7 and 10"]


def test_what_speaks_for_and_against_is_said() -> None:
    for reason, said in (
        (Reason("a", "b", 0.9, {"hash": 1.0, "words": 0.1, "chars": 0.7}), {"same picture", "titles alike"}),
        (Reason("a", "b", 0.9, {"hash": 0.5, "words": 0.0}, True, False), {"no word in common", "amounts contradict"}),
        (Reason("a", "b", 0.9, {"hash": np.nan, "words": np.nan}, False, True), {"amounts agree"}),
        (Reason("a", "b", 0.9), set[str]()),
    ):
        assert {text for text, _ in reason.said()} == said
    signs = dict(Reason("a", "b", 0.9, {"hash": 1.0, "words": 0.0}, True).said())
    assert signs == {"same picture": True, "no word in common": False, "amounts contradict": False}


def test_signals_that_know_nothing_of_a_pair_have_a_dash(tmp_path: Path, catalogue: Catalogue) -> None:
    groups = {"g1": [("a", 0.9), ("b", 0.9), ("c", 0.9)]}
    write_out(tmp_path / "out", groups, [("a", "b", 0.9), ("a", "c", 0.8)])
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue)
    card = Seen(tmp_path / "page.html").cards[0]
    table = card[card.index("pair") :]
    heads = ["pair", "overall", "why", "words", "hash"]  # none of the pairs has a score by text
    first = ["1 and 2", "0.90", "same picture", "amounts agree", "no word in common", "0.00", "1.00"]
    assert table == [*heads, *first, "1 and 3", "0.80", "titles alike", "amounts contradict", "0.90", "-"]


def test_pictures_are_small_jpegs_and_those_that_cannot_be_read_are_told(tmp_path: Path, catalogue: Catalogue) -> None:
    out = write_out(tmp_path / "out", {"g1": [("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6)]}, [("a", "b", 0.9)])
    Image.radial_gradient("L").resize((900, 300)).convert("RGB").save(out / "pics/a.png")
    (out / "pics/b.png").write_bytes(b"no picture")
    (out / "pics/c.png").unlink()
    rows = (out / output.GROUPS).read_text().replace("pics/d.png", "").splitlines()
    (out / output.GROUPS).write_text("\n".join(rows))
    write_page(out, tmp_path / "deep/er/page.html", catalogue)
    seen = Seen(tmp_path / "deep/er/page.html")
    pictures = [value for name, value in seen.attributes if name == "src"]
    assert len(pictures) == 1 and seen.cards[0].count("no picture") == 3
    with Image.open(BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/jpeg;base64,")))) as picture:
        assert picture.format == "JPEG" and picture.size == (240, 80)


def test_texts_are_text_and_never_markup(tmp_path: Path, catalogue: Catalogue) -> None:
    out = write_out(tmp_path / "out", {"g1": [("a", 0.9), ("b", 0.8)]}, [("a", "b", 0.9)])
    rows = [(NASTY, "a", "", "=cmd()", "0.9"), (NASTY, NASTY, "", NASTY, "0.8")]
    output.write_csv(out / output.GROUPS, output.GROUP_COLUMNS, rows)
    pair = pq.read_table(out / output.PAIRS)
    names = pa.array([NASTY])
    pair = pair.set_column(1, "right", names).rename_columns([NASTY if n == "words" else n for n in pair.column_names])
    pq.write_table(pair, out / output.PAIRS)
    write_page(out, tmp_path / "page.html", catalogue)
    seen = Seen(tmp_path / "page.html")
    assert "script" not in seen.tags and not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.cards[0].count(NASTY) == 4 and "=cmd()" in seen.cards[0]  # group, posting, title and signal
    assert "default-src 'none'" in seen.text
    assert not [word for word in ("http://", "https://", "@import", "url(") if word in seen.text]


def test_no_groups_and_no_pairs(tmp_path: Path, catalogue: Catalogue) -> None:
    write_out(tmp_path / "out", {}, [])
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue)
    assert "no groups" in Seen(tmp_path / "page.html").texts
    write_out(tmp_path / "out", {"g1": [("a", 0.9), ("b", 0.8)]}, [])
    write_page(tmp_path / "out", tmp_path / "page.html", catalogue)
    assert "pair" not in Seen(tmp_path / "page.html").cards[0]


def test_a_failed_page_leaves_the_older_one(tmp_path: Path, catalogue: Catalogue) -> None:
    page = tmp_path / "pages/page.html"
    page.parent.mkdir()
    page.write_text("older")
    out = write_out(tmp_path / "out", {"g1": [("a", 0.9), ("b", 0.8)]}, [("a", "b", 0.9)])
    with pytest.raises(KeyboardInterrupt), group_page(page, "t", {}) as cards:
        cards.add(GroupCard("g", [Member("a", "", None, 0.5)], [], 2, 0.5))
        raise KeyboardInterrupt
    (out / output.PAIRS).write_bytes(b"PAR1")
    with pytest.raises(ArtefactError, match=r"pairs\.parquet cannot be read"):
        write_page(out, page, catalogue)
    (out / output.PAIRS).unlink()
    with pytest.raises(ArtefactError, match=r"pairs\.parquet cannot be read"):
        write_page(out, page, catalogue)
    pq.write_table(pa.table({"left": ["a"], "right": ["b"]}), out / output.PAIRS)
    with pytest.raises(ArtefactError, match=r"pairs\.parquet cannot be read"):
        write_page(out, page, catalogue)
    with pytest.raises(DataError, match="was not written by"):
        write_page(tmp_path, page, catalogue)
    assert page.read_text() == "older" and [file.name for file in page.parent.iterdir()] == ["page.html"]
    write_pairs(out / output.PAIRS, [("a", "b", 0.9)])
    with pytest.raises(ArtefactError, match="is a folder"):
        write_page(out, out, catalogue)


PROBE = """<script>addEventListener("load", () => {
  const e = document.documentElement, inBox = (x) => x.closest(".scroll") && !x.matches(".scroll");
  const wide = [...document.querySelectorAll("body *")].filter(
    (x) => !inBox(x) && x.getBoundingClientRect().right > e.clientWidth + 1).map((x) => x.tagName + "." + x.className);
  const bad = [...document.images].filter((x) => !x.complete || !x.naturalWidth).length;
  parent.postMessage(JSON.stringify({ width: innerWidth, over: e.scrollWidth - e.clientWidth, wide, bad,
    images: document.images.length }), "*"); })</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
@pytest.mark.parametrize("width", [360, 1440])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path: Path, catalogue: Catalogue, width: int) -> None:
    members = [(f"p{k}" + "x" * 80 * (k % 2), 0.9) for k in range(20)]
    out = write_out(tmp_path / "out", {"g1": members, "G" * 90: [("a", 0.5), ("b", 0.4)]}, [("a", "b", 0.9)])
    text = (out / output.GROUPS).read_text()
    (out / output.GROUPS).write_text(text.replace("title of p3", "W" * 300))
    write_page(out, tmp_path / "page.html", catalogue)
    page = (tmp_path / "page.html").read_text().replace('http-equiv="Content-Security-Policy"', "")
    (tmp_path / "probed.html").write_text(page.replace("</body>", PROBE + "</body>"))
    frame = f'<pre id="a"></pre><iframe src="probed.html" style="width:{width}px;height:800px;border:0"></iframe>'
    listen = '<script>onmessage = (e) => { document.getElementById("a").textContent = e.data; }</script>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><body>{listen}{frame}</body>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=8000"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    ran = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, timeout=120, check=True)
    answer = re.search(rb'<pre id="a">({.*?})</pre>', ran.stdout)
    assert answer is not None, ran.stderr[-2000:]
    found = json.loads(answer[1])
    assert found == {"width": width, "over": 0, "wide": [], "bad": 0, "images": 14}
