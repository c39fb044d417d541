"""One noun for labelled crops: where each picture lies, which SKU it shows and which split it belongs to.

Reading the formats that data sets come in is ``skumatch.readers``; this module opens no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skumatch.errors import ConfigError, DataError, nearest

GALLERY_SPLITS = ("gallery", "train")  # the first that a data set has is its gallery
BUILT_IN_KEYS = ("sku", "split", "group", "title")


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled picture. ``extra`` holds further columns (department, brand, ...) that ``--where`` can filter on."""

    path: Path
    sku: str
    split: str
    title: str = ""
    group: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def value(self, key: str) -> str:
        """Return the value of a built-in or extra column as text ("" where this row lacks it)."""
        return str(getattr(self, key)) if key in BUILT_IN_KEYS else self.extra.get(key, "")


@dataclass(frozen=True)
class Dataset:
    """An ordered list of rows under ``root``, as read in ``format``."""

    root: Path
    format: str
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def splits(self) -> dict[str, int]:
        """Rows per split, in order of first appearance."""
        return dict(Counter(row.split for row in self.rows))

    @property
    def skus(self) -> list[str]:
        """Distinct SKUs, sorted."""
        return sorted({row.sku for row in self.rows})

    @property
    def gallery_split(self) -> str:
        """The split whose pictures are reference views: ``gallery`` where there is one, else ``train``.

        Raises DataError when the data set has neither.
        """
        found = self.splits
        for name in GALLERY_SPLITS:
            if name in found:
                return name
        raise DataError(f"{self.root} has no split 'train' or 'gallery'", "add one, or a split column to the manifest")

    def split(self, name: str) -> Dataset:
        """Return the rows of one split. Raises DataError when there are none."""
        rows = tuple(row for row in self.rows if row.split == name)
        if not rows:
            have = ", ".join(self.splits) or "none"
            raise DataError(f"{self.root} has no pictures in split '{name}'", f"its splits are: {have}")
        return self.with_rows(rows)

    def where(self, filters: Mapping[str, str]) -> Dataset:
        """Return the rows whose columns equal all of ``filters``. Raises DataError for an unknown key or no rows."""
        if not filters:
            return self
        keys = [*BUILT_IN_KEYS, *sorted({key for row in self.rows for key in row.extra})]
        for key in filters:
            if key not in keys:
                raise DataError(
                    f"{self.root} has no column '{key}' to filter on", f"its columns are: {', '.join(keys)}"
                )
        rows = tuple(row for row in self.rows if all(row.value(key) == value for key, value in filters.items()))
        if not rows:
            asked = ", ".join(f"{key}={value}" for key, value in filters.items())
            near = [
                f"{key}: {nearest(value, sorted({row.value(key) for row in self.rows})) or 'no similar value'}"
                for key, value in filters.items()
            ]
            raise DataError(f"no picture in {self.root} has {asked}", f"nearest values are {'; '.join(near)}")
        return self.with_rows(rows)

    def with_rows(self, rows: Sequence[Row]) -> Dataset:
        """Return a data set of the same root and format over ``rows``."""
        return Dataset(self.root, self.format, tuple(rows))


def parse_filters(pairs: Sequence[str], option: str = "--where") -> dict[str, str]:
    """Turn ``["key=value", ...]`` into a dict. Raises ConfigError for a pair without ``=`` or a key given twice."""
    filters: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} '{pair}' is not KEY=VALUE", f"write for example {option} department=packages")
        if key in filters:
            raise ConfigError(f"{option} names '{key}' twice", "give each key once")
        filters[key] = value
    return filters
