"""A gallery in Milvus through a filter that the server applies. Search techniques take it in the gallery's place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skumatch.milvus.index import MilvusIndex
from skumatch.milvus.rows import SEVERAL
from skumatch.selection import Part
from skumatch.spec import Ids

if TYPE_CHECKING:
    from skumatch.milvus.gallery import MilvusGallery


@dataclass
class MilvusSelection(Part):
    """The views of a gallery that meet ``condition``; a technique's Store."""

    gallery: MilvusGallery
    condition: str

    @cached_property
    def ids(self) -> Ids:  # type: ignore[override]  # read when first asked
        """Their ids, ascending; reads them all."""
        if not self.condition:
            return self.gallery.ids
        found = [int(row["view"]) for rows in self.gallery.rows(self.condition, ["view"], SEVERAL) for row in rows]
        return np.sort(np.array(found, np.int64))

    @cached_property
    def index(self) -> MilvusIndex:
        """The server's index, filtered by the server."""
        return self.gallery.index if not self.condition else MilvusIndex(self.gallery, self.condition)
