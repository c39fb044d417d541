"""The Dataset noun: splits, filters and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from skumatch.dataset import Dataset, Row, parse_filters
from skumatch.errors import ConfigError, DataError


def dataset(*rows: tuple[str, str, str]) -> Dataset:
    made = (
        Row(Path(f"{i}.jpg"), sku, split, group=f"group of {sku}", extra={"brand": brand})
        for i, (sku, split, brand) in enumerate(rows)
    )
    return Dataset(Path("shop"), "csv", tuple(made))


SHOP = dataset(("tea", "train", "Acme"), ("oat", "train", "Bolt"), ("tea", "test", "Acme"))


def test_counts_and_order() -> None:
    assert len(SHOP) == 3
    assert [row.sku for row in SHOP] == ["tea", "oat", "tea"]
    assert SHOP.splits == {"train": 2, "test": 1}
    assert SHOP.skus == ["oat", "tea"]


def test_split_keeps_root_and_rows() -> None:
    test = SHOP.split("test")
    assert test.rows == SHOP.rows[2:]
    assert (test.root, test.format) == (SHOP.root, SHOP.format)


def test_missing_split_names_the_splits_there_are() -> None:
    with pytest.raises(DataError, match=r"no pictures in split 'val' - its splits are: train, test"):
        SHOP.split("val")


def test_gallery_split_is_gallery_before_train() -> None:
    assert SHOP.gallery_split == "train"
    assert dataset(("tea", "train", ""), ("tea", "gallery", "")).gallery_split == "gallery"
    with pytest.raises(DataError, match="no split 'train' or 'gallery'"):
        _ = SHOP.split("test").gallery_split


def test_where_joins_filters_with_and() -> None:
    assert len(SHOP.where({})) == 3
    assert len(SHOP.where({"brand": "Acme"})) == 2
    assert SHOP.where({"brand": "Acme", "split": "test"}).rows == SHOP.rows[2:]
    assert SHOP.where({"group": "group of oat"}).skus == ["oat"]


def test_where_refuses_unknown_columns_and_empty_answers() -> None:
    with pytest.raises(DataError, match=r"no column 'colour' .* sku, split, group, title, brand"):
        SHOP.where({"colour": "red"})
    with pytest.raises(DataError, match=r"brand=Acne .* brand: Acme"):
        SHOP.where({"brand": "Acne"})


def test_value_of_a_column_the_row_lacks_is_empty() -> None:
    row = Row(Path("a.jpg"), "tea", "train")
    assert row.value("sku") == "tea"
    assert row.value("brand") == ""


def test_parse_filters() -> None:
    assert parse_filters([]) == {}
    assert parse_filters(["department=packages", "note=a=b", "empty="]) == {
        "department": "packages",
        "note": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize("pairs", [["department"], ["=x"], ["a=1", "a=2"]])
def test_parse_filters_refuses(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="--where"):
        parse_filters(pairs)
