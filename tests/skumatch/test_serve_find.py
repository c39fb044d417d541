"""Finding SKUs by words of their names and facts, against the plain way of doing it, and paging through changes."""

from __future__ import annotations

import base64
import gc
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.embed import Pipeline, no_progress
from skumatch.encoder import Encoder
from skumatch.enrol import Supply
from skumatch.errors import ConfigError
from skumatch.gallery import Gallery
from skumatch.gallery_changes import add_views, create_from, remove_skus
from skumatch.milvus import client
from skumatch.milvus.address import parse
from skumatch.milvus.backend import MilvusBackend
from skumatch.readers import open_dataset
from skumatch.serve import find
from skumatch.serve.find import Names, fold, known_names, names_of
from skumatch.spec import Spec
from tests.skumatch.made_up import views

HALF = (0.5, 0.5, 0.5)
SPEC = Spec(64, HALF, HALF, "squash", 1.0, "bicubic", name="fake", dim=32, layer="features", digest="0" * 64)
FACTS = {
    "milk": {"title": "Mj\u00f6lk 3 %", "brand": "Arla"},
    "Milk 2": {"title": "Cr\u00e8me Br\u00fbl\u00e9e", "brand": "M\u00dcLLER"},
    "oat milk": {"brand": "Oatly", "note": "tastes of milk"},
    "\u725b\u4e73": {"title": "\u5168\u8102 1L", "brand": "STRA\u00dfE"},
    "milkshake": {"title": "\ufb01ne"},
    "tea": {},
}
Make = Callable[[Mapping[str, Mapping[str, str]]], Gallery]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what makes a gallery of SKUs with facts; each has one view more than the one before."""

    def made(facts: Mapping[str, Mapping[str, str]]) -> Gallery:
        names = [sku for number, sku in enumerate(facts, 1) for _ in range(min(number, 3))]
        return create_from(tmp_path / "gallery", SPEC, views(np.random.default_rng(0), names), facts)

    return made


def found(names: Names, query: str) -> list[str]:
    return [one.sku for one in names.listed(query, 1000)[0]]


@pytest.mark.parametrize(
    ("query", "skus"),
    [
        ("", ["Milk 2", "milk", "milkshake", "oat milk", "tea", "\u725b\u4e73"]),
        ("milk", ["milk", "Milk 2", "milkshake", "oat milk"]),
        ("MILK 2", ["Milk 2"]),
        ("  milk   oat ", ["oat milk"]),
        ("mjolk", ["milk"]),
        ("MJO\u0308LK", ["milk"]),
        ("creme muller", ["Milk 2"]),
        ("muller brulee \u00fb", ["Milk 2"]),
        ("strasse", ["\u725b\u4e73"]),
        ("fine", ["milkshake"]),
        ("1l \u4e73", ["\u725b\u4e73"]),
        ("milk\narla", ["milk"]),
        ("milkmj", []),
        ("%", ["milk"]),
        (".*", []),
        ("_", []),
        ("\ud800", []),
        ("\u0301", ["Milk 2", "milk", "milkshake", "oat milk", "tea", "\u725b\u4e73"]),
    ],
)
def test_all_words_in_name_or_facts(make: Make, query: str, skus: list[str]) -> None:
    assert found(Names(make(FACTS)), query) == skus


def test_what_is_told_of_a_sku(make: Make) -> None:
    gallery = make(FACTS)
    listed, _ = Names(gallery).listed("", 10)
    for one in listed:
        assert one.facts == FACTS[one.sku] and one.views == gallery.counts()[one.sku]
        assert gallery.skus[one.code] == one.sku
        assert Names(gallery).get(one.sku) == one
    assert [Names(gallery).get(name) for name in ("", "mil", "milk ", "\u725b\u4e73x", "\ud800")] == [None] * 5
    codes, _ = Names(gallery).find("milk", 10)
    assert [gallery.skus[code] for code in codes] == ["milk", "Milk 2", "milkshake", "oat milk"]


def test_folding_goes_character_by_character() -> None:
    for number in (*range(0x3400), *range(0xA000, 0x20000), 0xE0100):  # between and beyond are signs for words
        once = fold(chr(number))
        assert fold(once) == once, number
        assert not any(map(unicodedata.combining, once)), number
    letters = [chr(number) for number in (*range(0x20, 0x250), *range(0x300, 0x400), *range(0xAC00, 0xAC40), 0x1E9E)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(rng.choice(letters, 12))
        assert fold(text) == "".join(map(fold, text))
        assert fold(unicodedata.normalize("NFC", text)) == fold(unicodedata.normalize("NFD", text)) == fold(text)


def plainly(facts: Mapping[str, Mapping[str, str]], query: str) -> list[str]:
    """Return what ``query`` finds, the plain way."""
    asked = " ".join(fold(query).split())
    ranked = []
    for sku, said in facts.items():
        texts = [fold(text) for text in (sku, *said.values())]
        if all(any(word in text for text in texts) for word in asked.split()):
            rank = 0 if texts[0] == asked or not asked else 1 if texts[0].startswith(asked) else 2
            ranked.append((rank, sku.encode(), sku))
    return [sku for *_, sku in sorted(ranked)]


@pytest.mark.parametrize("seed", range(4))
def test_random_names_against_the_plain_way(make: Make, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "BLOCK", 50)
    monkeypatch.setattr(find, "FEW", 3 if seed % 2 else 1000)  # both ways of folding many
    rng = np.random.default_rng(seed)
    letters = list("aAbB 1\u00e4\u00c4\u0301\u00df\u03a3\u03c2\u0130\u725b\uac00\ufb01\t\x00")

    def text() -> str:
        return "".join(rng.choice(letters, int(rng.integers(1, 6))))

    facts = {f"{text()}{number}": {column: text() for column in rng.choice(["x", "y"], 2)} for number in range(300)}
    names = Names(make(facts))
    everything = plainly(facts, "")
    assert found(names, "") == everything
    for _ in range(40):
        query = text()
        expected = plainly(facts, query)
        assert found(names, query) == expected
        pages, cursor = list[str](), ""
        limit = int(rng.integers(1, 8))
        while len(pages) < 30:
            page, cursor = names.listed(query, limit, cursor)
            assert len(page) == limit or not cursor
            pages += [one.sku for one in page]
            if not cursor:
                break
        assert pages == expected[: len(pages)] and (cursor or pages == expected)


def test_a_page_goes_on_where_it_was_in_a_later_version(make: Make) -> None:
    gallery = make({f"milk {number}": {} for number in range(9)})
    first, cursor = names_of(gallery).listed("milk", 4)
    assert [one.sku for one in first] == [f"milk {number}" for number in range(4)]
    later = remove_skus(gallery, ["milk 3", "milk 5"])
    later = add_views(later, views(np.random.default_rng(1), ["milk 1b", "milk 4b"]))
    rest, end = names_of(later).listed("milk", 10, cursor)
    assert [one.sku for one in rest] == ["milk 4", "milk 4b", "milk 6", "milk 7", "milk 8"] and not end


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "====",
        "\u00e9",
        "[]",
        "null",
        "1",
        '["", 0]',
        '["", "0", "a"]',
        '["", 3, "a"]',
        '["", true, "a"]',
        "[" * 9000,
    ],
)
def test_a_made_up_cursor_is_refused(make: Make, text: str) -> None:
    names = Names(make(FACTS))
    mark = find._mark("")
    for cursor in (text, base64.urlsafe_b64encode(text.replace('""', f'"{mark}"').encode()).decode()):
        with pytest.raises(ConfigError, match="no cursor of this query"):
            names.listed("", 2, cursor)


def test_a_cursor_of_another_query_is_refused(make: Make) -> None:
    names = Names(make(FACTS))
    _, cursor = names.listed("milk", 2)
    with pytest.raises(ConfigError, match="no cursor of this query"):
        names.listed("mil", 2, cursor)
    assert names.listed("MILK ", 2, cursor)[0]


def test_too_many_words_are_refused(make: Make) -> None:
    names = Names(make(FACTS))
    with pytest.raises(ConfigError, match="more than 16 words"):
        names.listed("a " * 17, 2)
    assert names.listed("m " * 16, 2)[0]


def test_names_are_made_once_and_go_with_their_gallery(make: Make) -> None:
    gallery = make(FACTS)
    assert known_names(gallery) is None
    assert names_of(gallery) is names_of(gallery) is known_names(gallery)
    before = len(find._known)
    del gallery
    gc.collect()
    assert len(find._known) == before - 1


@pytest.fixture
def in_milvus(tmp_path: Path, patterns: Path, encoder: Encoder) -> Iterator[MilvusBackend]:
    """Return a gallery of 6 SKUs in a Milvus file; the first has a title."""
    address = replace(parse(f"milvus+file:{tmp_path}/m.db"), name="names")
    home = MilvusBackend(address)
    rows = [
        replace(row, title="Mj\u00f6lk" if row.sku == "sku-0" else "")
        for row in open_dataset(patterns).split("train").rows
    ]
    home.build(Supply.of(rows), encoder, Pipeline(), no_progress)
    yield home
    client.close(address)


def test_in_milvus(in_milvus: MilvusBackend) -> None:
    names = names_of(in_milvus.gallery())
    assert found(names, "SKU-") == [f"sku-{number}" for number in range(6)]
    (one,), _ = names.listed("mjolk", 5)
    assert (one.sku, one.views, one.facts) == ("sku-0", 4, {"title": "Mj\u00f6lk"})
