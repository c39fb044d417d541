"""Reading catalogues: Shopee's columns, mapped ones, and files that are not quite right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skumatch.catalogue.postings import Columns, read_catalogue
from skumatch.errors import ConfigError, DataError

HEADER = "posting_id,image,image_phash,title,label_group\n"


def write(folder: Path, text: str | bytes, name: str = "catalogue.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_shopees_columns(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + 'train_1,a.jpg,94974f937d4c2433,"Paper Bag, Victoria",249\ntrain_2,b.jpg,,Tape,7\n')
    found = read_catalogue(path)
    assert found.ids == ["train_1", "train_2"]
    assert found.titles == ["Paper Bag, Victoria", "Tape"]
    assert found.hashes[0] == 0x94974F937D4C2433
    assert found.hashed.tolist() == [True, False]
    assert found.groups is not None and found.groups.tolist() == [0, 1]
    assert found.picture(1) == tmp_path / "b.jpg"
    assert found.warnings == ()


def test_other_columns_are_mapped_and_pictures_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    path = write(tmp_path, "sku;name;photo\n1;Milk;x/1.jpg\n2;Milk;\n")
    how = Columns.of({"posting": "SKU", "title": "name", "image": "photo"})
    found = read_catalogue(path, how, tmp_path / "photos")
    assert found.titles == ["Milk", "Milk"]
    assert found.groups is None
    assert found.picture(0) == tmp_path / "photos" / "x/1.jpg"
    assert found.picture(1) is None
    assert found.warnings == ("1 posting without a picture",)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"posting_id": [11, 12], "title": ["a", None], "image": ["1.jpg", "2.jpg"]})
    pq.write_table(table, tmp_path / "c.parquet")
    found = read_catalogue(tmp_path / "c.parquet")
    assert found.ids == ["11", "12"]
    assert found.warnings == ("1 posting without a title",)


def test_titles_alone_or_pictures_alone_are_a_catalogue(tmp_path: Path) -> None:
    assert read_catalogue(write(tmp_path, "posting_id,title\n1,a\n")).warnings == ()
    assert read_catalogue(write(tmp_path, "posting_id,image\n1,a.jpg\n")).warnings == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title,image\na,b\n", "has no column 'posting_id'"),
        ("posting_id,price\n1,2\n", "has no column 'image' or 'title'"),
        (HEADER, "has no postings"),
        ("", "is empty"),
        (HEADER + "1,a,,t,g\n1,b,,t,g\n", "line 3, has the posting id '1' of line 2"),
        (HEADER + ",a,,t,g\n", "line 2, has no usable posting id"),
        (HEADER + "a b,a,,t,g\n", "line 2, has no usable posting id"),
        (HEADER + "1,a,,t,\n", "line 2, has an empty group"),
        (HEADER + "1,a,,t\n", "line 2, has 4 cells where the header has 5"),
        (HEADER + '1,a,,"t,g\n2,b,,t,g\n', "cells where the header has 5"),
        (HEADER.encode("utf-16"), "not UTF-8 text"),
        (HEADER.encode() + b"\xe9,a,,t,g\n", "line 2, has no usable posting id"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_catalogue(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert caught.value.todo


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    rows = b"1,a.jpg,xyz,Kaffe M\xf6rk,g\n2,,0123456789abcdef,,g\n3,c.jpg,123,Te,g\n"
    found = read_catalogue(write(tmp_path, HEADER.encode() + rows))
    assert found.titles == ["Kaffe M\u00f6rk", "", "Te"]
    assert found.hashed.tolist() == [False, True, False]
    assert len(found.warnings) == 4
    assert any(line.startswith("1 posting with a title that is not UTF-8") for line in found.warnings)
    assert any(line.startswith("2 postings with a hash that is not 16 hexadecimal digits") for line in found.warnings)


def test_a_hash_is_sixteen_digits_and_nothing_else(tmp_path: Path) -> None:
    signs = ["+123456789abcdef", "0x23456789abcdef", "1_3456789abcdef0", " 123456789abcdef"]
    path = write(tmp_path, HEADER + "".join(f"{n},a,{sign},t,g\n" for n, sign in enumerate(signs)))
    assert not read_catalogue(path).hashed.any()


def test_an_unknown_column_to_map_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no column 'titel' to map - choose .*; nearest: title"):
        Columns.of({"titel": "x"})


def test_groups_are_coded_in_order(tmp_path: Path) -> None:
    rows = "".join(f"{n},a.jpg,,t,{group}\n" for n, group in enumerate("zyzx"))
    found = read_catalogue(write(tmp_path, HEADER + rows))
    assert found.groups is not None
    assert found.groups.tolist() == [0, 1, 0, 2]
    assert found.groups.dtype == np.int64
