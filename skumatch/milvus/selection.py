"""A gallery in Milvus through a filter that the server applies. Search techniques take it in the gallery's place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skumatch.milvus.index import MilvusIndex
from skumatch.milvus.rows import SEVERAL
from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from skumatch.milvus.gallery import MilvusGallery


@dataclass(frozen=True)
class MilvusSelection:
    """The views of a gallery that meet ``condition``; a technique's Store."""

    gallery: MilvusGallery
    condition: str

    @cached_property
    def ids(self) -> Ids:
        """Their ids, ascending; reads them all."""
        if not self.condition:
            return self.gallery.ids
        found = [int(row["view"]) for rows in self.gallery.rows(self.condition, ["view"], SEVERAL) for row in rows]
        return np.sort(np.array(found, np.int64))

    @property
    def index(self) -> MilvusIndex:
        """The server's index, filtered by the server."""
        return self._index

    @cached_property
    def _index(self) -> MilvusIndex:
        return self.gallery.index if not self.condition else MilvusIndex(self.gallery, self.condition)

    def codes(self, ids: Ids) -> Ids:
        """Map view ids to the gallery's SKU codes."""
        return self.gallery.codes(ids)

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id."""
        return self.gallery.vectors_of(ids)

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return the gallery's prototypes of the SKUs that are selected."""
        vectors, codes = self.gallery.prototypes()
        kept = np.isin(codes, self.gallery.codes(self.ids)) if self.condition else np.ones(len(codes), bool)
        return vectors[kept], codes[kept]
