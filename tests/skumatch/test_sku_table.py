"""The table of facts: whatever layers are written and however they are merged, it says what a dict would."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from skumatch.errors import ArtefactError, ConfigError, GalleryError
from skumatch.sku_table import Facts, LayerBuilder, SkuTable, layer_of, merge, read_layer, write_layer

SKUS = ["", "a", "A", "a\0b", "\N{SNOWMAN}", "line\nbreak", "x" * 5000]
COLUMNS = ["title", "brand", "_forget_max", "forget", "title_last", "sku_last", "mit Leerzeichen", "\N{SNOWMAN}"]
Oracle = dict[str, dict[str, str]]

ALL = np.array([0, 1, 2, 3, -1], np.int32)  # rows, and a SKU of which nothing is known


def table_of(store: Path, *layers: tuple[Facts, Sequence[str]]) -> SkuTable:
    return SkuTable(store, [write_layer(store, layer_of(facts, forget)) for facts, forget in layers])


def told(oracle: Oracle, facts: Facts, forget: Sequence[str]) -> None:
    """Do to ``oracle`` what a layer does."""
    for sku in forget:
        oracle.pop(sku, None)
    for sku, said in facts.items():
        oracle.setdefault(sku, {}).update(said)


def same(table: SkuTable, oracle: Oracle) -> None:
    known = {sku: {name: value for name, value in said.items() if value} for sku, said in oracle.items()}
    known = {sku: said for sku, said in known.items() if said}
    assert {sku: table.facts(sku) for sku in SKUS} == {sku: known.get(sku, {}) for sku in SKUS}
    assert sorted(table.column("sku")) == sorted(known) and len(table) == len(known)
    for name in table.columns[1:]:
        cells = dict(zip(table.column("sku"), table.column(name), strict=True))
        assert cells == {sku: said.get(name, "") for sku, said in known.items()}


def a_layer(chance: random.Random) -> tuple[Oracle, list[str]]:
    """Draw what a layer says and whom it forgets; now and then it says "", or nothing at all of a SKU."""
    facts = {
        sku: {name: chance.choice(["", "one", "two"]) for name in chance.sample(COLUMNS, chance.randint(0, 3))}
        for sku in chance.sample(SKUS, chance.randint(0, 4))
    }
    forget = chance.sample(SKUS, chance.randint(1, 2)) if chance.random() < 0.4 or not facts else []
    return facts, forget


@pytest.mark.parametrize("seed", range(12))
def test_random_layers_say_what_a_dict_says(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    oracle: Oracle = {}
    layers = []
    for _ in range(6):
        facts, forget = a_layer(chance)
        told(oracle, facts, forget)
        layers.append(layer_of(facts, forget))
    same(SkuTable(tmp_path, [write_layer(tmp_path, layer) for layer in layers]), oracle)
    while len(layers) > 1:  # neighbours merged in any order say the same
        place = chance.randrange(len(layers) - 1)
        layers[place : place + 2] = [merge(layers[place : place + 2])]
        same(SkuTable(tmp_path, [write_layer(tmp_path, layer) for layer in layers]), oracle)


def test_nothing_known_is_a_table_without_rows(tmp_path: Path) -> None:
    for table in (SkuTable(tmp_path, []), table_of(tmp_path, ({}, ["a"]))):
        assert (table.columns, len(table), table.facts("a"), table.column("sku")) == (["sku"], 0, {}, [])
        with pytest.raises(GalleryError, match=r"has no column 'brand' - its columns are: sku$"):
            table.matching({"brand": "x"}, ALL)


def test_an_empty_cell_takes_back_and_a_missing_one_does_not(tmp_path: Path) -> None:
    said = {"a": {"title": "Apple", "brand": "Acme"}, "b": {"title": "Beer"}}
    table = table_of(tmp_path, (said, []), ({"a": {"title": ""}, "b": {}}, []))
    assert (table.facts("a"), table.facts("b")) == ({"brand": "Acme"}, {"title": "Beer"})
    assert table.column("title") == ["", "Beer"]
    later = table_of(tmp_path, (said, []), ({"a": {"title": ""}}, []), ({"a": {"title": "Apfel"}}, []))
    assert later.facts("a") == {"title": "Apfel", "brand": "Acme"}


def test_forgetting_and_telling_anew_in_one_layer(tmp_path: Path) -> None:
    said = {"a": {"title": "Apple", "brand": "Acme"}}
    anew = ({"a": {"title": "Pear", "size": "1 l"}}, ["a"])
    table = table_of(tmp_path, (said, []), anew)
    assert table.facts("a") == {"title": "Pear", "size": "1 l"}
    merged = merge([layer_of({"a": {"colour": "red"}}), layer_of(*anew)])
    names = [write_layer(tmp_path, layer_of(said)), write_layer(tmp_path, merged)]
    assert SkuTable(tmp_path, names).facts("a") == {"title": "Pear", "size": "1 l"}  # merging keeps the forgetting


def test_columns_that_come_later(tmp_path: Path) -> None:
    table = table_of(tmp_path, ({"a": {"title": "Apple"}}, []), ({"b": {"brand": "Acme"}}, []))
    assert table.columns == ["sku", "title", "brand"]
    assert (table.column("title"), table.column("brand")) == (["Apple", ""], ["", "Acme"])


def test_filters(tmp_path: Path) -> None:
    said = {
        "a": {"brand": "Acme", "store": "1"},
        "b": {"brand": "Acme", "store": "2"},
        "c": {"brand": "Apex", "store": "2"},
        "d": {"store": "2"},
    }
    table = table_of(tmp_path, (said, []))
    asked: list[tuple[dict[str, str], str]] = [
        ({"brand": "Acme"}, "ab"),
        ({"brand": "Acme", "store": "2"}, "b"),
        ({"brand": ""}, "d-"),
        ({"brand": "", "store": ""}, "-"),
        ({"brand": "", "store": "2"}, "d"),
        ({"sku": "c"}, "c"),
        ({}, "abcd-"),
    ]
    for filters, expected in asked:
        found = table.matching(filters, ALL)
        assert found.dtype == bool and "".join(np.array(list("abcd-"))[found]) == expected
        assert table.matching(filters, ALL[::-1]).tolist() == found[::-1].tolist()
    with pytest.raises(GalleryError, match=r"no column 'brnd' - its columns are: sku, brand, store"):
        table.matching({"store": "1", "brnd": "Acme"}, ALL)
    with pytest.raises(
        GalleryError, match=r"no SKU has brand=Acne, store=9 - nearest values are brand: Acme, Apex; store: no"
    ):
        table.matching({"brand": "Acne", "store": "9"}, ALL)
    for text in ("acme", "Acme ", "caf\udce9"):
        with pytest.raises(GalleryError, match="no SKU has brand="):
            table.matching({"brand": text}, ALL)
    assert table.facts("caf\udce9") == {}


@pytest.mark.parametrize("name", ["sku", "_forget", "", "caf\udce9"])
def test_a_column_that_may_not_be(name: str) -> None:
    with pytest.raises(ConfigError, match="column of the SKU table cannot be called"):
        layer_of({"a": {name: "x"}})
    builder = LayerBuilder()
    builder.note("a", {name: "x"})
    with pytest.raises(ConfigError, match="column of the SKU table cannot be called"):
        builder.layer()


@pytest.mark.parametrize("facts", [{"caf\udce9": {"title": "x"}}, {"a": {"title": "caf\udce9"}}])
def test_text_that_is_not_unicode(facts: Facts) -> None:
    with pytest.raises(ConfigError, match=r"'caf\\xe9' holds bytes that are not UTF-8"):
        layer_of(facts)


def test_of_many_rows_the_first_word_counts(tmp_path: Path) -> None:
    builder = LayerBuilder()
    assert builder.layer() is None
    rows = [("a", {"title": "", "x": ""}), ("b", {"title": "Beer"}), ("a", {"title": "Apple"}), ("c", {})]
    rows += [("a", {"title": "Pear", "size": "1 l"}), ("b", {"size": ""})]
    for sku, said in rows:
        builder.note(sku, said)
    table = SkuTable(tmp_path, [write_layer(tmp_path, builder.layer())])
    assert table.columns == ["sku", "title", "size"] and table.column("sku") == ["b", "a"]
    assert (table.facts("a"), table.facts("b")) == ({"title": "Apple", "size": "1 l"}, {"title": "Beer"})


def test_what_is_known_already_is_no_news(tmp_path: Path) -> None:
    table = table_of(tmp_path, ({"a": {"title": "Apple", "brand": "Acme"}, "b": {"title": "Beer"}}, []))
    old: list[Facts] = [
        {},
        {"a": {"title": "Apple"}},
        {"b": {"title": "Beer", "brand": ""}},
        {"c": {"x": ""}},
        {"c": {}},
    ]
    assert [table.knows(layer_of(facts)) for facts in old] == [True] * len(old)
    new: list[Facts] = [{"a": {"title": ""}}, {"a": {"title": "Pear"}}, {"c": {"title": "C"}}, {"a": {"size": "1 l"}}]
    assert [table.knows(layer_of(facts)) for facts in new] == [False] * len(new)
    assert not table.knows(layer_of({}, ["a"])) and SkuTable(tmp_path, []).knows(layer_of({"a": {"x": ""}}))


def test_layers_are_named_after_what_they_say(tmp_path: Path) -> None:
    one, two = (write_layer(tmp_path, layer_of({"a": {"title": "Apple"}})) for _ in range(2))
    other = write_layer(tmp_path, layer_of({"a": {"title": "Apply"}}))
    assert one == two != other and sorted(path.name for path in tmp_path.iterdir()) == sorted({one, other})
    shutil.rmtree(tmp_path / one)
    shutil.copytree(tmp_path / other, tmp_path / one)
    with pytest.raises(ArtefactError, match=f"{one} holds another table"):
        SkuTable(tmp_path, [one])


def test_broken_and_missing_layers_are_named(tmp_path: Path) -> None:
    name = write_layer(tmp_path, layer_of({"a": {"title": "Apple"}}))
    file = tmp_path / name / "skus.parquet"
    file.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(ArtefactError, match=r"skus\.parquet is corrupt"):
        SkuTable(tmp_path, [name])
    with pytest.raises(ArtefactError, match=r"skus\.parquet is corrupt"):
        read_layer(tmp_path, name)
    file.unlink()
    with pytest.raises(ArtefactError, match=r"skus\.parquet is missing"):
        SkuTable(tmp_path, [name])
    with pytest.raises(ArtefactError, match=r"skus\.parquet cannot be opened"):
        read_layer(tmp_path, name)


def test_an_open_table_outlives_its_folder(tmp_path: Path) -> None:
    table = table_of(tmp_path, ({"a": {"title": "Apple"}}, []), ({"a": {"brand": "Acme"}}, []))
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    assert table.facts("a") == {"title": "Apple", "brand": "Acme"}


def test_a_folder_that_reads_like_a_column_adds_none(tmp_path: Path) -> None:
    table = table_of(tmp_path / "brand=acme" / "tables", ({"a": {"title": "Apple"}}, []))
    assert table.columns == ["sku", "title"]
