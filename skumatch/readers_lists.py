"""Readers for data sets with label files: any CSV/TSV/Parquet manifest, Grocery Store and Products-10K.

They read the lists and build the paths; whether the files exist is for the data check to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from skumatch.dataset import Row
from skumatch.errors import DataError, nearest
from skumatch.readers_common import NO_EXTRA, SPLITS, SkuNames, read_lines, safe_text, seeded_splits, shown
from skumatch.readers_tables import Table, read_table

CATALOGUE = "catalogue"  # studio pictures beside the shop's photos: part of no protocol unless asked for
SPLIT_NAMES = {**{name: name for name in SPLITS}, "query": "test", CATALOGUE: CATALOGUE}
GROCERY_LISTS = ("train", "val", "test")
PRODUCTS_TEST_LISTS = ("test_kaggletest.csv", "test.csv")


def read_manifest(path: Path, seed: int) -> list[Row]:
    """Return the rows of a manifest in file order; see docs/data-formats.md for its columns.

    Without a split column each SKU is split 80/20 by ``seed``. Raises DataError naming file and line for a missing
    column, an empty path or SKU, or an unknown split.
    """
    table = read_table(path)
    layout = _Layout.of(table)
    sku_of, texts = SkuNames(path), _Texts()
    rows: list[Row] = []
    keys: list[tuple[str, str]] = []  # (SKU, path as written): what the seeded split hashes
    for number, cells in table.records:
        name = _path_cell(table, number, cells[layout.path])
        sku = sku_of(_sku_cell(table, number, cells[layout.sku]))
        split = "" if layout.split is None else _split_cell(table, number, cells[layout.split])
        title, group = (texts(cells[at]) if at is not None else "" for at in (layout.title, layout.group))
        extra = {column: texts(cells[at]) for column, at in layout.extra.items()} or NO_EXTRA
        rows.append(Row(path.parent / name, sku, split, title, group, extra))
        if layout.split is None:
            keys.append((sku, name))
    if not rows:
        raise DataError(f"{shown(path)} names columns but no pictures", "add one line per picture")
    if layout.split is not None:
        return rows
    return [_with_split(row, split) for row, split in zip(rows, seeded_splits(keys, seed), strict=True)]


def is_grocery(root: Path) -> bool:
    """Return whether ``root`` or ``root/dataset`` has the Grocery Store lists."""
    return grocery_base(root) is not None


def read_grocery(root: Path) -> list[Row]:
    """Return the rows of the Grocery Store data set, in the order of its own train, val and test lists.

    SKU: fine class; group: coarse class; extra ``department``: fruit, vegetables or packages. Raises DataError for
    missing lists or a line that names no known class.
    """
    base = grocery_base(root)
    if base is None:
        raise DataError(
            f"{shown(root)} has no train.txt beside classes.csv, nor has its dataset/",
            "point at the folder of the Grocery Store data set that holds them",
        )
    classes = _grocery_classes(base / "classes.csv")
    rows: list[Row] = []
    for split in GROCERY_LISTS:
        if (base / f"{split}.txt").is_file():
            rows.extend(_grocery_rows(base, split, classes))
    if not rows:
        raise DataError(f"the lists in {shown(base)} name no pictures", "unpack the data set again")
    return rows


def grocery_base(root: Path) -> Path | None:
    """Return the folder with the Grocery Store lists: ``root`` or ``root/dataset``, None where neither has them."""
    for base in (root, root / "dataset"):
        if (base / "train.txt").is_file() and (base / "classes.csv").is_file():
            return base
    return None


def is_products(root: Path) -> bool:
    """Return whether ``root`` has a train.csv with columns name and class beside a train/ folder."""
    if not ((root / "train.csv").is_file() and (root / "train").is_dir()):
        return False
    try:
        table = read_table(root / "train.csv")
    except DataError:
        return False
    return table.find("name") is not None and table.find("class") is not None


def read_products(root: Path) -> list[Row]:
    """Return the rows of Products-10K in the order of train.csv and then test_kaggletest.csv (or test.csv).

    SKU: class; group: group; extra ``usage`` where the test list has it. Raises DataError for a missing list or column.
    """
    if not (root / "train.csv").is_file():
        raise DataError(f"{shown(root)} has no train.csv", "point at the folder with train.csv and train/")
    sku_of = SkuNames(root)
    rows = list(_products_rows(root, "train.csv", "train", sku_of))
    test = next((name for name in PRODUCTS_TEST_LISTS if (root / name).is_file()), None)
    if test is not None:
        rows.extend(_products_rows(root, test, "test", sku_of))
    if not rows:
        raise DataError(f"the lists in {shown(root)} name no pictures", "unpack the data set again")
    return rows


@dataclass(frozen=True)
class _Layout:
    """Where a manifest's columns stand."""

    path: int
    sku: int
    split: int | None
    title: int | None
    group: int | None
    extra: Mapping[str, int]

    @staticmethod
    def of(table: Table) -> _Layout:
        path, sku = table.column("path", "image"), table.column("sku", "label")
        split, title, group = (table.find(name) for name in ("split", "title", "group"))
        used = (path, sku, split, title, group)
        extra = {column: at for at, column in enumerate(table.columns) if column and at not in used}
        return _Layout(path, sku, split, title, group, extra)


class _Texts:
    """Cleans cells and keeps one object per distinct text: a million rows repeat a few brands."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def __call__(self, cell: str) -> str:
        text = safe_text(cell.strip())
        return self._seen.setdefault(text, text)


def _path_cell(table: Table, number: int, cell: str) -> str:
    if not cell.strip() or "\0" in cell:
        raise DataError(f"{table.where(number)} has no usable path", "give the picture's path, or remove the line")
    return cell


def _sku_cell(table: Table, number: int, cell: str) -> str:
    sku = cell.strip()
    if not sku:
        raise DataError(f"{table.where(number)} has an empty sku", "name the SKU, or remove the line")
    return sku


def _split_cell(table: Table, number: int, cell: str) -> str:
    name = safe_text(cell.strip().lower())
    if name not in SPLIT_NAMES:
        near = nearest(name, list(SPLIT_NAMES), n=1)
        hint = f"; did you mean {near}?" if near else ""
        raise DataError(
            f"{table.where(number)} has an unknown split '{name}'",
            f"use {', '.join(SPLIT_NAMES)} (query is test){hint}",
        )
    return SPLIT_NAMES[name]


def _with_split(row: Row, split: str) -> Row:
    return Row(row.path, row.sku, split, row.title, row.group, row.extra)


def _grocery_classes(path: Path) -> dict[str, tuple[str, str]]:
    """Return class id -> (fine, coarse) name."""
    table = read_table(path)
    fine, number, coarse = (
        table.column(f"{name} ({kind})", name)
        for name, kind in (("class name", "str"), ("class id", "int"), ("coarse class name", "str"))
    )
    return {cells[number].strip(): (cells[fine].strip(), cells[coarse].strip()) for _, cells in table.records}


def _grocery_rows(base: Path, split: str, classes: Mapping[str, tuple[str, str]]) -> Iterator[Row]:
    path = base / f"{split}.txt"
    sku_of, texts = SkuNames(path), _Texts()
    departments: dict[str, Mapping[str, str]] = {}
    for number, line in read_lines(path):
        name, fine = _grocery_line(path, number, line)
        if fine not in classes:
            raise DataError(f"{shown(path)}, line {number}, names class {fine}, not in classes.csv", "correct the line")
        sku, coarse = classes[fine]
        parts = name.split("/")
        department = texts(parts[1].lower()) if len(parts) > 2 else ""
        extra = departments.setdefault(department, {"department": department})
        title = texts(sku.replace("-", " ").replace("_", " "))
        yield Row(base / name, sku_of(sku), split, title, texts(coarse), extra)


def _grocery_line(path: Path, number: int, line: str) -> tuple[str, str]:
    cells = line.rsplit(",", 2)
    if len(cells) != 3 or not cells[0].strip():
        raise DataError(
            f"{shown(path)}, line {number}, is not 'path, class, coarse class'", "unpack the data set again"
        )
    return cells[0].strip(), cells[1].strip()


def _products_rows(root: Path, list_name: str, split: str, sku_of: SkuNames) -> Iterator[Row]:
    table = read_table(root / list_name)
    name, sku = table.column("name"), table.column("class")
    group, usage = table.find("group"), table.find("usage")
    texts = _Texts()
    usages: dict[str, Mapping[str, str]] = {}
    for number, cells in table.records:
        extra = NO_EXTRA
        if usage is not None:
            text = texts(cells[usage])
            extra = usages.setdefault(text, {"usage": text})
        yield Row(
            root / split / _path_cell(table, number, cells[name]),
            sku_of(_sku_cell(table, number, cells[sku])),
            split,
            group="" if group is None else texts(cells[group]),
            extra=extra,
        )
