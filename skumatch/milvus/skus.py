"""The SKUs of a gallery in Milvus: their names by code, as they are met, and what is known of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.errors import GalleryError
from skumatch.milvus.rows import BLOCK, NAMED, REMEMBERED, SEVERAL, both, like, one_of
from skumatch.sku_table import SKU
from skumatch.spec import Ids

if TYPE_CHECKING:
    from pyarrow import Table

    from skumatch.milvus.gallery import MilvusGallery


class MetSkus:
    """Names of SKUs by code, as they are met; iterating meets all."""

    def __init__(self, gallery: MilvusGallery) -> None:
        self._gallery = gallery
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of SKUs with a view, met or not."""
        return self._gallery.head.skus

    def __getitem__(self, code: int) -> str:
        return self._names[code]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all SKUs with a view, by code."""
        self._gallery.directory  # noqa: B018  # meets all
        return iter(self._names)

    def met(self, name: str) -> int:
        """Return the code of a SKU that has a view."""
        with self._lock:
            code = self._codes.setdefault(name, len(self._names))
            if code == len(self._names):
                self._names.append(name)
            return code

    def code(self, name: str) -> int:
        """Return the code of ``name``, -1 where it has no view."""
        return int(self.codes([name])[0])

    def codes(self, names: Iterable[Any]) -> Ids:
        """Return the code of each of ``names`` (text or Arrow strings), int64 (N,), -1 where it has no view."""
        asked = [name if isinstance(name, str) else name.as_py() for name in names]
        there = self._gallery.with_views([name for name in dict.fromkeys(asked) if name not in self._codes])
        for name in there:
            self.met(name)
        return np.array([self._codes.get(name, -1) for name in asked], np.int64)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.code(name) >= 0


class MilvusFacts:
    """The facts of a gallery's SKUs."""

    def __init__(self, gallery: MilvusGallery) -> None:
        self._gallery = gallery
        self._collection = gallery.place.skus(gallery.head.generation)
        self._known: dict[str, Mapping[str, str]] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the facts that some SKU has."""
        return list(self._gallery.head.columns)

    def learn(self, sku: str, facts: Mapping[str, str]) -> None:
        """Remember what a row of a view told."""
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[sku] = facts

    def of(self, sku: str) -> dict[str, str]:
        """Return all that is known of ``sku`` by column."""
        known = self._known.get(sku)
        if known is None:
            known = self.of_all([sku]).get(sku, {})
            self.learn(sku, known)
        return dict(known)

    def of_all(self, skus: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return what is known of ``skus``, with a view or not; those of which nothing is known are left out."""
        found: dict[str, dict[str, str]] = {}
        for start in range(0, len(skus), NAMED):
            condition = both(self._gallery.alive, one_of(SKU, skus[start : start + NAMED]))
            for rows in self._gallery.place.connection.stream(self._collection, condition, ["sku", "facts"], BLOCK):
                found.update({row["sku"]: row["facts"] for row in rows})
        return found

    def cell(self, code: int, column: str) -> str:
        """Return a fact of the SKU with ``code``, "" where it is not known."""
        return self.of(self._gallery.skus[code]).get(column, "")

    def require(self, filters: Mapping[str, str]) -> None:
        """Raise GalleryError for a column that no SKU has, or where no SKU with a view is like ``filters``."""
        columns = [SKU, *self.columns]
        for name in filters:
            if name not in columns:
                raise GalleryError(f"the SKU table has no column '{name}'", f"its columns are: {', '.join(columns)}")
        condition = both(self._gallery.alive, like(filters))
        if not self._gallery.place.connection.count(self._gallery.collection, condition):
            asked = ", ".join(f"{name}={value}" for name, value in filters.items())
            raise GalleryError(f"no SKU with a view has {asked}", "see `skumatch gallery list` for those that have")

    def codes(self, filters: Mapping[str, str]) -> Ids:
        """Return the codes of the SKUs whose columns equal ``filters``, ascending; "" is what nothing is known of.

        Raises GalleryError for an unknown column, or where no SKU is like that.
        """
        self.require(filters)
        names = {row["sku"] for rows in self._gallery.rows(like(filters), ["sku"], SEVERAL) for row in rows}
        return np.sort(np.array([self._gallery.skus.met(name) for name in sorted(names)], np.int64))

    def known(self) -> Table:
        """Return all that is known of the SKUs with views: Arrow table of text, column "sku" first, by name."""
        import pyarrow as pa

        names = sorted(self._gallery.skus)
        facts = self.of_all(names)
        cells = {column: [facts.get(name, {}).get(column) for name in names] for column in self.columns}
        texts = {name: pa.array(values, pa.string()) for name, values in {SKU: names, **cells}.items()}
        return pa.table(texts)
