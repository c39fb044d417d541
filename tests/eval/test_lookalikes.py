"""Look-alikes: planted twins are found, groups stay small, the list survives the disk, the page shows the pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.eval.lookalikes import (
    Group,
    Pair,
    centroids,
    lookalikes,
    read_lookalikes,
    typical_views,
    write_lookalikes,
)
from skumatch.eval.lookalikes_page import write_lookalikes_page
from skumatch.eval.views import Views, embed_rows
from skumatch.readers import open_dataset
from skumatch.spec import Vectors

TWINS = {"b2": "b1", "e2": "e1"}  # each shares 15 of 16 cells with the other


def unit(vectors: Vectors) -> Vectors:
    rows: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def as_views(vectors: Vectors, skus: list[str]) -> Views:
    return Views(tuple(Row(Path(f"{n}.png"), sku, "train") for n, sku in enumerate(skus)), unit(vectors))


def around(centres: Vectors, views: int = 4, noise: float = 0.02) -> Views:
    """Return ``views`` noisy views of each centre; SKUs are named s000, s001, ... in the order of the rows."""
    rng = np.random.default_rng(5)
    repeated = np.repeat(unit(centres), views, axis=0)
    names = [f"s{n:03d}" for n in range(len(centres)) for _ in range(views)]
    return as_views((repeated + noise * rng.normal(size=repeated.shape)).astype(np.float32), names)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Draw three views each of ten SKUs with a 4 x 4 pattern; two of them have a twin that differs in one cell."""
    folder = tmp_path_factory.mktemp("twins")
    rows = []
    for number, sku in enumerate(["a1", "b1", "b2", "c1", "d1", "e1", "e2", "f1", "g1", "h1", "i1", "j1"]):
        base = ["a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1", "i1", "j1"].index(TWINS.get(sku, sku))
        pattern = np.random.default_rng(50 + base).integers(20, 236, (4, 4, 3))
        if sku in TWINS:
            pattern[2, 1] = 255 - pattern[2, 1]
        for view in range(3):
            noise = np.random.default_rng(number * 10 + view).normal(0, 6, (64, 64, 3))
            picture = (pattern.repeat(16, 0).repeat(16, 1) + noise).clip(0, 255).astype(np.uint8)
            path = folder / f"{sku}-{view}.png"
            PILImage.fromarray(picture).save(path)
            rows.append(Row(path, sku, "train"))
    return rows


def test_planted_twins_are_found_and_nothing_else(twins: list[Row], encoder: Encoder) -> None:
    gallery, _ = embed_rows(twins, encoder, Pipeline(workers=1))
    groups = lookalikes(gallery)
    assert sorted(group.skus for group in groups) == [("b1", "b2"), ("e1", "e2")]
    assert all(group.pairs[0].similarity > 0.8 and group.score == 0 for group in groups)


def test_the_same_views_in_another_order_give_the_same_groups(twins: list[Row], encoder: Encoder) -> None:
    gallery, _ = embed_rows(twins, encoder, Pipeline(workers=1))
    order = np.random.default_rng(1).permutation(len(gallery))
    assert [g.skus for g in lookalikes(gallery.take(order))] == [g.skus for g in lookalikes(gallery)]
    assert lookalikes(gallery) == lookalikes(gallery)


def test_confusion_joins_what_does_not_look_alike_and_ranks_first() -> None:
    gallery = around(np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32))
    confused = [("s003", "s011", 6), ("s011", "s003", 2), ("s015", "s001", 3)]
    shown = {"s003": 20, "s011": 20, "s015": 20, "s001": 20}
    first, second = lookalikes(gallery, confused, shown)[:2]
    assert first.skus == ("s003", "s011")
    assert first.pairs[0].confusions == 8
    assert first.score == pytest.approx(8 / 44)
    assert second.skus == ("s001", "s015")


def test_strays_and_unknown_skus_join_nothing() -> None:
    gallery = around(np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32))
    quiet = lookalikes(gallery)
    confused = [("s003", "s011", 1), ("s004", "s012", 3), ("s005", "elsewhere", 50)]
    assert lookalikes(gallery, confused, {"s003": 1, "s004": 200, "s005": 50}) == quiet


@pytest.mark.parametrize("count", [60, 400])
def test_of_unrelated_skus_only_the_closest_are_grouped(count: int) -> None:
    gallery = around(np.random.default_rng(3).normal(size=(count, 64)).astype(np.float32), views=2)
    assert 0 < sum(len(group.skus) for group in lookalikes(gallery)) <= count / 4


def test_a_big_family_is_cut_at_its_weakest_links_and_keeps_all_members() -> None:
    rng = np.random.default_rng(2)
    brand = rng.normal(size=64)
    lines = [brand + 0.5 * rng.normal(size=64) for _ in range(3)]
    family = [line + 0.1 * rng.normal(size=64) for line in lines for _ in range(5)]
    others = rng.normal(size=(60, 64))
    gallery = around(np.concatenate([family, others]).astype(np.float32))
    groups = lookalikes(gallery, most=6)
    found = [group.skus for group in groups if group.skus[0] < "s015"]
    assert sorted(found) == [tuple(f"s{n:03d}" for n in range(start, start + 5)) for start in (0, 5, 10)]
    assert max(len(group.skus) for group in lookalikes(gallery, most=3)) <= 3


def test_one_sku_has_no_look_alike() -> None:
    assert lookalikes(as_views(np.ones((2, 4), np.float32), ["a", "a"])) == []


def test_centroids_and_typical_views() -> None:
    vectors = np.array([[1, 0.5], [0, 1], [1, 0], [1, -0.5]], np.float32)
    gallery = as_views(vectors, ["a", "b", "a", "a"])
    assert centroids(gallery) == pytest.approx(np.array([[1, 0], [0, 1]]), abs=1e-6)
    assert typical_views(gallery, ["b", "a", "none"]) == {"b": 1, "a": 2}


GROUPS = [
    Group(("a", 'b, "x"'), (Pair("a", 'b, "x"', 0.91234, 3),), 0.1),
    Group(("c", "d", "\u00e9"), (Pair("c", "d", 0.8, 1), Pair("d", "\u00e9", 0.7, 0)), 0.0),
]


def test_the_list_comes_back_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "lookalikes.csv"
    write_lookalikes(path, GROUPS)
    assert read_lookalikes(path) == [group.skus for group in GROUPS]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["group,sku,other,similarity,confusions", '1,a,"b, ""x""",0.9123,3']


def test_a_list_made_by_hand_needs_three_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("note;other;group;sku\n;y;milk;x\nseen twice;z;milk;y\n")
    assert read_lookalikes(path) == [("x", "y", "z")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("group,sku\n1,a\n", "line 1, has no column 'other'"),
        ("group,sku,other\n1,a,b\n1,a,\n", "line 3, has an empty cell"),
        ("group,sku,other\n1,a,a\n", "line 2, pairs SKU 'a' with itself"),
        ("group,sku,other\n1,a,b\n2,c,a\n", "line 3, has SKU 'a' in group 2, but it stands in group 1"),
        ("group,sku,other\n1,a,b,c\n", "line 2, has 4 cells"),
    ],
)
def test_a_bad_list_is_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_lookalikes(path)
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no list of look-alikes"):
        read_lookalikes(tmp_path / "none.csv")


def test_the_page_shows_groups_pairs_and_telling_regions(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    gallery, _ = embed_rows(open_dataset(patterns).split("train").rows, encoder, Pipeline(workers=1))
    pairs = (Pair("sku-0", "sku-1", 0.9, 4), Pair("sku-1", "sku-2", 0.8, 0))
    groups = [Group(("sku-0", "sku-1", "sku-2"), pairs, 0.2)]
    jpeg = tmp_path / "overlay.jpg"
    PILImage.new("RGB", (32, 32), "red").save(jpeg)
    overlays = {("sku-0", "sku-1"): jpeg.read_bytes(), ("sku-1", "sku-0"): jpeg.read_bytes()}
    page = tmp_path / "lookalikes.html"
    write_lookalikes_page(page, groups, gallery, overlays, {"model": "fake & co"})
    text = page.read_text(encoding="utf-8")
    assert "fake &amp; co" in text
    assert text.count("<img") == 3 + 2
    assert "sku-0, not sku-1" in text
    assert "sku-1, not sku-2" not in text
    assert "0.900" in text


def test_a_page_without_groups_says_so(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    gallery, _ = embed_rows(open_dataset(patterns).split("train").rows, encoder, Pipeline(workers=1))
    write_lookalikes_page(tmp_path / "page.html", [], gallery, {}, {})
    assert "No two SKUs were confused" in (tmp_path / "page.html").read_text(encoding="utf-8")
