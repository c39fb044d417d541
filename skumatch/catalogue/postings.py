"""A catalogue of postings: ids, pictures, titles, perceptual hashes and, where it is labelled, groups.

Columns are named as in the Shopee product-matching task, or as the caller maps them. It opens no picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ConfigError, DataError, nearest
from skumatch.readers_common import safe_text, shown
from skumatch.readers_tables import Table, read_table
from skumatch.spec import Ids
from skumatch.words import counted

HASH_DIGITS = 16  # of 64 bits
_HASH = re.compile(f"[0-9a-fA-F]{{{HASH_DIGITS}}}")


@dataclass(frozen=True)
class Columns:
    """What the columns are called; all but ``posting`` may be absent, but a catalogue needs pictures or titles."""

    posting: str = "posting_id"
    image: str = "image"
    phash: str = "image_phash"
    title: str = "title"
    group: str = "label_group"

    @staticmethod
    def of(mapping: Mapping[str, str]) -> Columns:
        """Return the columns with some renamed, such as ``{"title": "name"}``. Raises ConfigError for another key."""
        known = [field.name for field in fields(Columns)]
        for key in mapping:
            if key not in known:
                near = nearest(key, known, 1)
                raise ConfigError(f"there is no column '{key}' to map", f"choose {', '.join(known)}; nearest: {near}")
        return Columns(**mapping)


@dataclass(frozen=True)
class Catalogue:
    """N postings in the order of their file.

    ``ids``: distinct; ``pictures``: paths as written, relative to ``folder``, "" for none; ``titles`` as written;
    ``hashes`` uint64 (N,) with ``hashed`` bool (N,), where one was given; ``groups`` int64 (N,) codes from 0, None
    where the catalogue has no labels. ``warnings``: what was odd, in lines for a person.
    """

    source: Path
    folder: Path
    ids: list[str]
    pictures: list[str]
    titles: list[str]
    hashes: NDArray[np.uint64]
    hashed: NDArray[np.bool_]
    groups: Ids | None
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, place: int) -> Path | None:
        """Return where the picture of the posting at ``place`` lies; None where it has none."""
        name = self.pictures[place]
        return self.folder / name if name else None


class _Cells:
    """Collects the postings of a table line by line, and counts what is odd."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table = table
        self.id_at = table.column(columns.posting.lower())
        self.image, self.title = table.find(columns.image.lower()), table.find(columns.title.lower())
        self.hash, self.group = table.find(columns.phash.lower()), table.find(columns.group.lower())
        if self.image is None and self.title is None:
            table.column(columns.image.lower(), columns.title.lower())  # says which columns there are
        self.ids: dict[str, int] = {}
        self.pictures: list[str] = []
        self.titles: list[str] = []
        self.bits: list[int | None] = []
        self.codes: list[int] = []
        self.names: dict[str, int] = {}
        self.odd: Counter[str] = Counter()

    def take(self, number: int, cells: list[str]) -> None:
        """Add one line. Raises DataError for an id that is empty, not text or there already."""
        posting = cells[self.id_at].strip()
        if not posting or safe_text(posting) != posting or any(c.isspace() for c in posting):
            what = f"{self.table.where(number)} has no usable posting id"
            raise DataError(what, "give each posting an id without blanks, in UTF-8")
        first = self.ids.setdefault(posting, number)
        if first != number:
            where = f"{self.table.where(number)} has the posting id '{posting}' of {self.table.unit} {first}"
            raise DataError(where, "give each posting an id of its own, or remove one of them")
        self.pictures.append(self._picture(cells))
        self.titles.append(self._title(cells))
        self.bits.append(self._bits(cells))
        if self.group is not None:
            self.codes.append(self._code(number, cells[self.group].strip()))

    def _picture(self, cells: list[str]) -> str:
        name = cells[self.image].strip() if self.image is not None else ""
        if "\0" in name:
            name = ""
        self.odd["picture"] += not name
        return name

    def _title(self, cells: list[str]) -> str:
        if self.title is None:
            return ""
        text = cells[self.title].strip()
        if not text.isascii() and safe_text(text) != text:
            self.odd["encoding"] += 1
            text = text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
        self.odd["title"] += not text
        return text

    def _bits(self, cells: list[str]) -> int | None:
        text = cells[self.hash].strip() if self.hash is not None else ""
        if not text:
            return None
        if _HASH.fullmatch(text):
            return int(text, 16)
        self.odd["hash"] += 1
        return None

    def _code(self, number: int, name: str) -> int:
        if not name:
            raise DataError(f"{self.table.where(number)} has an empty group", "label every posting, or drop the column")
        return self.names.setdefault(name, len(self.names))

    def warnings(self) -> tuple[str, ...]:
        """Return what was odd, in lines for a person."""
        said = {
            "picture": "{} without a picture",
            "title": "{} without a title",
            "encoding": "{} with a title that is not UTF-8, read as Windows-1252: save the file as UTF-8",
            "hash": f"{{}} with a hash that is not {HASH_DIGITS} hexadecimal digits: taken as none",
        }
        absent = {"picture": self.image is None, "title": self.title is None}
        return tuple(
            line.format(counted(self.odd[key], "posting"))
            for key, line in said.items()
            if self.odd[key] and not absent.get(key)
        )


def read_catalogue(path: Path, columns: Columns | None = None, images: Path | None = None) -> Catalogue:
    """Read a CSV, TSV or Parquet file of postings; pictures are looked for in ``images``, else beside the file.

    A title that is not UTF-8 is read as Windows-1252, and counted; a hash that is none is counted and left out. Raises
    DataError for a file that cannot be read, naming the line: columns that lack, an id that is empty or comes twice, a
    posting without a group where others have one, a quote that is never closed, or no postings at all; and where
    ``images`` is no folder.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"{shown(images)} is no folder", "give --images the folder of the pictures")
    table = read_table(path)
    cells = _Cells(table, columns or Columns())
    for number, line in table.records:
        cells.take(number, line)
    if not cells.ids:
        raise DataError(f"{shown(path)} has no postings", "give one line for each below the names of the columns")
    hashed = np.array([bits is not None for bits in cells.bits])
    return Catalogue(
        source=path,
        folder=images if images is not None else path.parent,
        ids=list(cells.ids),
        pictures=cells.pictures,
        titles=cells.titles,
        hashes=np.array([bits or 0 for bits in cells.bits], np.uint64),
        hashed=hashed,
        groups=np.array(cells.codes, np.int64) if cells.group is not None else None,
        warnings=cells.warnings(),
    )
