"""Queries that a gallery view gives away: the same bytes, near-duplicates, neighbouring frames; and their page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.eval.leaks import Leak, find_leaks, frame_of, identical, video_of
from skumatch.eval.leaks_page import write_leaks_page
from skumatch.eval.views import Views, embed_rows
from skumatch.images import DEFAULT_MAX_PIXELS


def row(folder: Path, name: str, content: bytes, split: str) -> Row:
    path = folder / name
    path.write_bytes(content)
    return Row(path, "sku", split)


def test_copies_are_found_under_any_name(tmp_path: Path) -> None:
    gallery = [row(tmp_path, "a", b"same", "train"), row(tmp_path, "b", b"other one", "train")]
    queries = [row(tmp_path, "c", b"same", "test"), row(tmp_path, "d", b"fresh one", "test")]
    assert identical(gallery, queries) == {tmp_path / "c": tmp_path / "a"}


def test_the_same_size_is_not_the_same_picture(tmp_path: Path) -> None:
    gallery = [row(tmp_path, "a", b"1234", "train")]
    assert identical(gallery, [row(tmp_path, "b", b"1235", "test")]) == {}


def test_the_first_of_several_views_is_named(tmp_path: Path) -> None:
    gallery = [row(tmp_path, name, b"same", "train") for name in "ab"]
    queries = [row(tmp_path, name, b"same", "test") for name in "cd"]
    assert identical(gallery, queries) == {tmp_path / "c": tmp_path / "a", tmp_path / "d": tmp_path / "a"}


def test_missing_files_are_nobodys_copy(tmp_path: Path) -> None:
    absent = [Row(tmp_path / name, "sku", "test") for name in ("x", "y")]
    present = [row(tmp_path, "a", b"", "train")]
    assert identical([*present, absent[0]], [*absent]) == {}
    assert identical(absent, present) == {}


def scene(seed: int, shift: int = 0) -> PILImage.Image:
    """Draw forty shapes before a plain wall; ``shift`` moves the near ones sideways, as a walking camera does."""
    rng = np.random.default_rng(seed)
    picture = PILImage.new("RGB", (200, 160), tuple(int(v) for v in rng.integers(60, 200, 3)))
    pen = ImageDraw.Draw(picture)
    for number in range(40):
        x, y = int(rng.integers(-10, 190)) + (shift if number > 20 else 0), int(rng.integers(-10, 150))
        box = (x, y, x + int(rng.integers(12, 50)), y + int(rng.integers(12, 50)))
        pen.rectangle(box, fill=tuple(int(v) for v in rng.integers(20, 230, 3)))
    return picture


def draw(path: Path, picture: PILImage.Image, quality: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=quality)
    return path


def embedded(encoder: Encoder, rows: list[Row]) -> Views:
    return embed_rows(rows, encoder, Pipeline(workers=2))[0]


def leaks(encoder: Encoder, gallery: list[Row], queries: list[Row]) -> list[Leak]:
    return find_leaks(embedded(encoder, gallery), embedded(encoder, queries), 2, DEFAULT_MAX_PIXELS)


def facts(found: list[Leak]) -> list[tuple[str, str, str]]:
    return [(leak.query.path.stem, leak.view.path.stem, leak.kind) for leak in found]


@pytest.fixture
def gallery(tmp_path: Path) -> list[Row]:
    """Return twelve views of twelve scenes."""
    return [Row(draw(tmp_path / "views" / f"v{n}x.jpg", scene(n)), f"sku {n}", "train") for n in range(12)]


def test_each_query_gets_its_strongest_leak_in_order(encoder: Encoder, gallery: list[Row], tmp_path: Path) -> None:
    made = {
        "fresh": scene(100),
        "encoded": scene(3),
        "cut": scene(5).crop((10, 8, 190, 152)),
        "small": scene(7).resize((110, 88)),
        "dark": scene(9).point(lambda value: int(value * 0.75)),
    }
    queries = [Row(draw(tmp_path / f"{name}.jpg", made[name], 60), "sku", "test") for name in made]
    bytes_of = tmp_path / "same.jpg"
    bytes_of.write_bytes(gallery[2].path.read_bytes())
    queries.insert(1, Row(bytes_of, "sku", "test"))
    found = leaks(encoder, gallery, queries)
    assert facts(found) == [
        ("same", "v2x", "bytes"),
        ("encoded", "v3x", "near"),
        ("cut", "v5x", "near"),
        ("small", "v7x", "near"),
        ("dark", "v9x", "near"),
    ]
    assert found[0].score == 1 and all(0.96 <= leak.score <= 1 for leak in found)
    assert "pixels agree" in found[1].evidence


def test_another_shot_of_the_same_scene_is_no_near_duplicate(
    encoder: Encoder, gallery: list[Row], tmp_path: Path
) -> None:
    queries = [Row(draw(tmp_path / f"q{n}x.jpg", scene(n, 12)), f"sku {n}", "test") for n in range(12)]
    sides = embedded(encoder, gallery), embedded(encoder, queries)
    alike = np.einsum("nd,nd->n", sides[0].vectors, sides[1].vectors)
    assert (alike >= 0.8).any()  # near enough to be looked at
    assert find_leaks(*sides, 2, DEFAULT_MAX_PIXELS) == []


def test_the_video_is_the_name_without_its_number() -> None:
    videos = {
        "a/video3_0012.jpg": ("video3", 12),
        "a/video3-12.png": ("video3", 12),
        "video3/0012.jpg": ("video3", 12),
        "video3/frame_0012.jpg": ("video3", 12),
        "video3/Frame12.jpg": ("video3", 12),
        "clip_2024-05-01_7.jpg": ("clip_2024-05-01", 7),
    }
    assert {name: (video_of(Path(name)), frame_of(Path(name))) for name in videos} == videos
    assert video_of(Path("a/front.jpg")) is None
    with pytest.raises(ValueError, match=r"front.jpg has no running number"):
        frame_of(Path("a/front.jpg"))


def frame_pair(folder: Path, view: str, query: str, shift: int = 6, group: str = "") -> tuple[Row, Row]:
    """Return a gallery frame and a query frame of one scene, the camera having moved on."""
    first = Row(draw(folder / view, scene(1)), "sku", "train", group=group)
    return first, Row(draw(folder / query, scene(1, shift)), "sku", "test", group=group)


@pytest.mark.parametrize(
    ("view", "query", "group"),
    [
        ("video3_0012.jpg", "video3_0013.jpg", ""),
        ("video3_0042.jpg", "video3_0012.jpg", ""),
        ("train/sku/video3_0012.jpg", "test/sku/video3_0013.jpg", ""),
        ("train/video3/frame_0012.jpg", "test/video3/frame_0013.jpg", ""),
        ("a/video3_0012.jpg", "b/video3_0013.jpg", "video3"),
    ],
)
def test_neighbouring_frames_are_leaks(encoder: Encoder, tmp_path: Path, view: str, query: str, group: str) -> None:
    first, second = frame_pair(tmp_path, view, query, group=group)
    other = Row(draw(tmp_path / "train" / "far.jpg", scene(50)), "sku", "train")
    (leak,) = leaks(encoder, [other, first], [second])
    assert (leak.view, leak.query, leak.kind) == (first, second, "frame")
    assert 0.5 <= leak.score < 0.96 and "of video3" in leak.evidence


@pytest.mark.parametrize(
    ("view", "query", "group"),
    [
        ("video3_0012.jpg", "video3_0043.jpg", ""),
        ("video3_0012.jpg", "video4_0013.jpg", ""),
        ("a/video3_0012.jpg", "b/video3_0013.jpg", ""),
        ("a/video3_0012.jpg", "b/video3_0013.jpg", "milk"),
        ("train/sku_0012.jpg", "test/sku_0013.jpg", ""),
        ("train/sku/0012.jpg", "test/sku/0013.jpg", ""),
        ("first.jpg", "second.jpg", "video3"),
    ],
)
def test_names_that_make_no_neighbours(encoder: Encoder, tmp_path: Path, view: str, query: str, group: str) -> None:
    first, second = frame_pair(tmp_path, view, query, group=group)
    assert leaks(encoder, [first], [second]) == []


def test_frames_of_another_scene_are_no_leaks(encoder: Encoder, tmp_path: Path) -> None:
    first, second = frame_pair(tmp_path, "video3_0012.jpg", "video3_0013.jpg")
    draw(second.path, scene(2))
    assert leaks(encoder, [first], [second]) == []


def test_a_copied_frame_is_a_near_duplicate(encoder: Encoder, tmp_path: Path) -> None:
    first, second = frame_pair(tmp_path, "video3_0012.jpg", "video3_0013.jpg", shift=0)
    second.path.write_bytes(draw(tmp_path / "x.jpg", scene(1), 50).read_bytes())
    assert facts(leaks(encoder, [first], [second])) == [("video3_0013", "video3_0012", "near")]


def test_what_can_no_longer_be_read_is_nobodys_duplicate(encoder: Encoder, gallery: list[Row], tmp_path: Path) -> None:
    queries = [Row(draw(tmp_path / f"{n}.jpg", scene(n), 60), "sku", "test") for n in range(3)]
    sides = embedded(encoder, gallery), embedded(encoder, queries)
    queries[0].path.unlink()
    gallery[1].path.write_bytes(b"no picture")
    done: list[int] = []
    found = find_leaks(*sides, 0, DEFAULT_MAX_PIXELS, done.append)
    assert facts(found) == [("2", "v2x", "near")]
    assert sum(done) == 15


def test_nothing_against_nothing(encoder: Encoder, gallery: list[Row]) -> None:
    empty, full = Views((), np.empty((0, 32), np.float32)), embedded(encoder, gallery)
    for sides in ((empty, full), (full, empty), (empty, empty)):
        assert find_leaks(*sides, 1, DEFAULT_MAX_PIXELS) == []


def test_the_page_shows_query_beside_view(encoder: Encoder, gallery: list[Row], tmp_path: Path) -> None:
    query = Row(draw(tmp_path / "queries" / "q & a.jpg", scene(4), 50), "<b>sku</b>", "test")
    (leak,) = leaks(encoder, gallery, [query])
    gone = Leak(replace(query, path=tmp_path / "gone.jpg"), gallery[0], "frame", 0.7, "frames 1 and 2 of video3")
    page = tmp_path / "leaks.html"
    write_leaks_page(page, [gone, leak], {"model": "fake"})
    written = page.read_text()
    assert written.count("data:image/jpeg") == 3 and "gone.jpg" in written  # two pairs, one picture is missing
    assert leak.evidence in written and "frames 1 and 2 of video3" in written
    assert "&lt;b&gt;sku&lt;/b&gt;" in written and "<b>sku" not in written and "q &amp; a.jpg" in written
    assert written.index("Near-duplicates</h2>") < written.index("Neighbouring video frames</h2>")


def test_the_page_of_many_leaks_says_what_it_left_out(gallery: list[Row], tmp_path: Path) -> None:
    many = [Leak(gallery[0], gallery[1], "near", 0.97 + n / 10000, f"number {n}") for n in range(203)]
    page = tmp_path / "leaks.html"
    write_leaks_page(page, many, {})
    written = page.read_text()
    assert "Shown are the 200 least sure of 203" in written
    assert "number 202<" not in written and written.index("number 0<") < written.index("number 199<")
    write_leaks_page(page, [], {})
    assert "Near-duplicates</h2>" not in page.read_text()
