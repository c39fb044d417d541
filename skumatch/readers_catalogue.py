"""The catalogue pictures of a data set: one studio picture per SKU, as a product database or web shop has it.

They stand beside the shop's photos and belong to no split of a data set's own protocol, so that no reader lists them
unasked. It knows nothing about which experiment uses them.
"""

from __future__ import annotations

from pathlib import Path

from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError
from skumatch.readers_common import shown
from skumatch.readers_lists import CATALOGUE, grocery_base
from skumatch.readers_tables import read_table

ICONIC = "iconic image path (str)"


def catalogue_rows(dataset: Dataset) -> tuple[Row, ...]:
    """Return the catalogue pictures of the SKUs in ``dataset``, as rows of split "catalogue", by SKU.

    Grocery Store: the iconic picture that classes.csv names for each class, with the title, group and department of
    the class. Any other format: the rows whose split is "catalogue". Raises DataError when there are none, or when
    classes.csv names none for a SKU.
    """
    if dataset.format == "grocery-store":
        return _iconic(dataset)
    return dataset.split(CATALOGUE).rows


def _iconic(dataset: Dataset) -> tuple[Row, ...]:
    base = grocery_base(dataset.root)
    if base is None:
        raise DataError(f"{shown(dataset.root)} has no classes.csv any more", "unpack the data set again")
    pictures = _iconic_paths(base)
    like = {row.sku: row for row in reversed(dataset.rows)}  # the first row of each SKU
    missing = sorted(set(like) - set(pictures))
    if missing:
        raise DataError(f"{shown(base / 'classes.csv')} names no iconic picture for {missing[0]}", "complete it")
    return tuple(
        Row(base / pictures[sku], sku, CATALOGUE, row.title, row.group, row.extra) for sku, row in sorted(like.items())
    )


def _iconic_paths(base: Path) -> dict[str, str]:
    """Return path by class name; classes.csv writes them with a leading slash that means the data set's folder."""
    table = read_table(base / "classes.csv")
    sku, path = table.column("class name (str)", "class name"), table.column(ICONIC, "iconic image path")
    cells = ((line[sku].strip(), line[path].strip().lstrip("/")) for _, line in table.records)
    return {name: picture for name, picture in cells if picture}
