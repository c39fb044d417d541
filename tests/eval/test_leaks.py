"""Queries that are a gallery view, byte for byte."""

from __future__ import annotations

from pathlib import Path

from skumatch.dataset import Row
from skumatch.eval.leaks import identical


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
