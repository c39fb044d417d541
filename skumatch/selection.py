"""A gallery seen through a filter on its SKU table: only SKUs of one brand, one store's range, one group.

Search techniques take it in the gallery's place. It knows nothing about where filters come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skumatch.errors import GalleryError
from skumatch.index import Index
from skumatch.spec import Ids, Vectors
from skumatch.view_directory import member

if TYPE_CHECKING:
    from skumatch.gallery import Gallery
    from skumatch.gallery_seam import AnyGallery


class Restricted:
    """An Index that answers from the ids ``allowed`` (ascending) of another; it cannot be changed."""

    def __init__(self, base: Index, allowed: Ids) -> None:
        self.base = base
        self.allowed = allowed

    def __len__(self) -> int:
        """Return the number of allowed vectors."""
        return len(self.allowed)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Raise GalleryError."""
        raise GalleryError("a filtered gallery takes no views", "add them to the gallery itself")

    def remove(self, ids: Ids) -> None:
        """Raise GalleryError."""
        raise GalleryError("a filtered gallery loses no views", "remove them from the gallery itself")

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return scores (N, k), best first, and ids (N, k) among those allowed here and by ``allowed``."""
        both = self.allowed if allowed is None else self.allowed[member(self.allowed, np.sort(allowed))]
        return self.base.search(queries, k, both)


class Part:
    """Some views of a gallery; what a technique's Store needs beside ``ids`` (ascending) and an index."""

    gallery: AnyGallery
    ids: Ids

    def codes(self, ids: Ids) -> Ids:
        """Map view ids to the gallery's SKU codes."""
        return self.gallery.codes(ids)

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id."""
        return self.gallery.vectors_of(ids)

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return the gallery's prototypes of the SKUs that are selected."""
        vectors, codes = self.gallery.prototypes()
        kept = np.isin(codes, self.gallery.codes(self.ids))
        return vectors[kept], codes[kept]


@dataclass(frozen=True)
class Selection(Part):
    """The views ``ids`` (ascending) of ``gallery``; a technique's Store. Made by ``select``."""

    gallery: Gallery
    ids: Ids
    index: Index


def select(gallery: Gallery, filters: Mapping[str, str]) -> Selection:
    """Return the views of the SKUs whose facts equal all of ``filters`` (column -> text); all of them without filters.

    Raises GalleryError for a column that the SKU table lacks, or where no SKU with a view is like that.
    """
    if not filters:
        return Selection(gallery, gallery.ids, gallery.index)
    ids = gallery.ids_of_skus(gallery.facts.codes(filters))
    return Selection(gallery, ids, Restricted(gallery.index, ids))
