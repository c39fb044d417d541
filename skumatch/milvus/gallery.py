"""A gallery in Milvus, opened at one version: what ``Gallery`` is for a folder.

Search, filters and consistency are the server's; what its answers tell of views and SKUs is remembered, so that naming
them costs no further call. Codes of SKUs are given out in the order in which they are met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skumatch.calibration import COHESION_VIEWS, cohesion_of
from skumatch.errors import GalleryError, nearest
from skumatch.gallery_seam import require_model
from skumatch.milvus.address import Address
from skumatch.milvus.client import connect
from skumatch.milvus.index import MilvusIndex
from skumatch.milvus.rows import BLOCK, NAMED, REMEMBERED, SEVERAL, TOLD, alive, both, like, one_of, unpacked
from skumatch.milvus.selection import MilvusSelection
from skumatch.milvus.skus import MetSkus, MilvusFacts
from skumatch.milvus.versions import Head, Place
from skumatch.nearest import Nearest, nearest_skus
from skumatch.segment import ViewRow
from skumatch.sku_table import NEAR, SKU, TITLE
from skumatch.spec import Ids, Spec, Vectors
from skumatch.technique_store import mean_per_sku


@dataclass(frozen=True)
class Known:
    """What search or a query told of a view."""

    row: ViewRow
    code: int


class MilvusGallery:
    """One version of a gallery in Milvus. Made by ``open_milvus``; does not change when others publish."""

    def __init__(self, place: Place, head: Head) -> None:
        self.place = place
        self.head = head
        self.store: Address = place.address
        self.spec: Spec = head.spec
        self.collection = place.views(head.generation)
        self.alive = alive(head.at)
        self.skus = MetSkus(self)
        self.facts = MilvusFacts(self)
        self._known: dict[int, Known] = {}
        self._cohesion: dict[int, tuple[float, int]] = {}

    def __len__(self) -> int:
        """Return the number of reference views."""
        return self.head.views

    @property
    def version(self) -> str:
        """The version's name."""
        return self.head.name

    @property
    def made(self) -> str:
        """When the version was published, ISO 8601 with its offset from UTC."""
        return self.head.time

    @property
    def identity(self) -> str:
        """What differs where anything that the gallery answers may differ."""
        return f"{self.store.uri} {self.store.name} {self.head.to_text()}"

    def require(self, spec: Spec) -> None:
        """Raise SpecMismatch unless the gallery's vectors were made by the encoder with ``spec``."""
        require_model(self, spec)

    def rows(self, condition: str, fields: Sequence[str], batch: int = BLOCK) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of this version's views that meet ``condition`` (all where it is empty), by ascending id."""
        return self.place.connection.stream(self.collection, both(self.alive, condition), fields, batch)

    def some(self, field: str, values: Sequence[str | int], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of this version's views whose ``field`` is one of ``values``."""
        for start in range(0, len(values), NAMED):
            for rows in self.rows(one_of(field, values[start : start + NAMED]), fields):
                yield from rows

    def with_views(self, names: Sequence[str]) -> set[str]:
        """Return those of the SKUs ``names`` that have a view."""
        return {row["sku"] for row in self.some(SKU, names, ["sku"])}

    def search(self, queries: Vectors, k: int, where: Mapping[str, str] | None = None) -> Nearest:
        """Return the k nearest distinct SKUs of float32 (N, D) unit rows; codes index ``skus``.

        ``where``: only SKUs whose facts (column -> text) are these. Raises GalleryError for a column that no SKU has,
        or where no SKU is like that; ServerError.
        """
        return nearest_skus(self.selected(where or {}).index, self.codes, queries, k)

    def selected(self, filters: Mapping[str, str]) -> MilvusSelection:
        """Return the views of the SKUs whose facts equal all of ``filters``; the server filters."""
        if filters:
            self.facts.require(filters)
        return MilvusSelection(self, like(filters))

    @cached_property
    def index(self) -> MilvusIndex:
        """The server's index over all views."""
        return MilvusIndex(self, "")

    def learn(self, row: Mapping[str, Any]) -> Known:
        """Remember what a row (fields ``TOLD``) tells of a view, and return it."""
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        view = ViewRow(int(row["view"]), row["sku"], row["source"], row["sha256"])
        known = Known(view, self.skus.met(row["sku"]))
        self._known[view.id] = known
        self.facts.learn(row["sku"], row["facts"])
        return known

    def _of(self, ids: Sequence[int]) -> list[Known]:
        """Return what is known of views. Raises GalleryError when one is not there."""
        found = {view: known for view in ids if (known := self._known.get(view)) is not None}
        for row in self.some("view", [view for view in dict.fromkeys(ids) if view not in found], TOLD):
            found[int(row["view"])] = self.learn(row)
        for view in ids:
            if view not in found:
                raise GalleryError(f"gallery {self.store} has no view {view}", "list them with --sku")
        return [found[view] for view in ids]

    @cached_property
    def directory(self) -> tuple[Ids, Ids]:
        """All view ids, ascending, and the codes of their SKUs; reads the whole gallery."""
        ids, codes = [], []
        for rows in self.rows("", ["view", "sku"], SEVERAL):
            ids.append(np.array([int(row["view"]) for row in rows], np.int64))
            codes.append(np.array([self.skus.met(row["sku"]) for row in rows], np.int64))
        whole = np.concatenate([np.empty(0, np.int64), *ids])
        order = np.argsort(whole, kind="stable")
        return whole[order], np.concatenate([np.empty(0, np.int64), *codes])[order]

    @property
    def ids(self) -> Ids:
        """All view ids, ascending; reads the whole gallery."""
        return self.directory[0]

    def codes(self, ids: Ids) -> Ids:
        """Map view ids (any shape, all there) to SKU codes."""
        if "directory" in vars(self):  # read in full already
            return self.directory[1][np.searchsorted(self.directory[0], ids)]
        distinct, place = np.unique(ids, return_inverse=True)
        codes = np.array([known.code for known in self._of(distinct.tolist())], np.int64)
        return codes[place].reshape(ids.shape)

    def view(self, view_id: int) -> ViewRow:
        """Return a view by id. Raises GalleryError when it is not there."""
        return self._of([view_id])[0].row

    def views_of(self, ids: Ids) -> list[ViewRow]:
        """Return views by id, in that order. Raises GalleryError when one is not there."""
        return [known.row for known in self._of(ids.tolist())]

    def views(self) -> Iterator[ViewRow]:
        """Yield all views in id order."""
        for rows in self.rows("", TOLD):
            for row in rows:
                yield ViewRow(int(row["view"]), row["sku"], row["source"], row["sha256"])

    def thumb(self, view_id: int) -> bytes:
        """Return a view's JPEG thumbnail. Raises GalleryError when it is not there."""
        self.view(view_id)
        return unpacked(next(self.some("view", [view_id], ["thumb"]))["thumb"])

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id. Raises GalleryError when one is not there."""
        found = np.empty((len(ids), self.spec.dim), np.float32)
        there = np.zeros(len(ids), bool)
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        for row in self.some("view", np.unique(ids).tolist(), ["view", "vector"]):
            some = order[np.searchsorted(ordered, row["view"]) : np.searchsorted(ordered, row["view"], "right")]
            found[some], there[some] = np.asarray(row["vector"], np.float32), True
        if not there.all():
            self._of(ids[~there][:1].tolist())
        return found

    def code_of(self, sku: str) -> int:
        """Return the code of a SKU. Raises GalleryError when it has no view here."""
        code = self.skus.code(sku)
        if code < 0:
            raise GalleryError(
                f"gallery {self.store} has no SKU '{sku}'", f"nearest names are: {self._similar(sku) or 'none similar'}"
            )
        return code

    def _similar(self, sku: str) -> str:
        """Return names like ``sku``, as far as they are known without reading much."""
        return nearest(sku, list(self.skus)) if len(self.skus) <= NEAR else ""

    def ids_of(self, sku: str) -> list[int]:
        """Return the ids of a SKU's views, ascending. Raises GalleryError for an unknown SKU."""
        self.code_of(sku)
        return sorted(int(row["view"]) for row in self.some(SKU, [sku], ["view"]))

    def counts(self) -> dict[str, int]:
        """Return the number of views per SKU; reads the whole gallery."""
        numbers = np.bincount(self.directory[1]).tolist()
        return {name: count for name, count in zip(self.skus, numbers, strict=False) if count}

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return each SKU's mean vector, float32 (S, D) unit rows, and the SKU codes (S,), ascending; reads the whole
        gallery."""
        return self._prototypes

    @cached_property
    def _prototypes(self) -> tuple[Vectors, Ids]:
        return mean_per_sku(self._blocks(), len(list(self.skus)))

    def _blocks(self) -> Iterator[tuple[Ids, Vectors]]:
        """Yield the codes and vectors of all views."""
        for rows in self.rows("", ["view", "sku", "vector"]):
            codes = [self.skus.met(row["sku"]) for row in rows]
            yield np.array(codes, np.int64), np.array([row["vector"] for row in rows], np.float32)

    def title(self, code: int) -> str:
        """Return the title of the SKU with ``code``, "" if none."""
        return self.facts.cell(code, TITLE)

    def cohesion(self, code: int) -> tuple[float, int]:
        """Return how alike the views of the SKU with ``code`` are (mean cosine to the nearest sister; NaN for a single
        view) and how many it has."""
        if code not in self._cohesion:
            rows: list[Any] = []
            count = 0
            for found in self.rows(one_of(SKU, [self.skus[code]]), ["view", "vector"]):
                count += len(found)
                rows += found[: COHESION_VIEWS - len(rows)]
            self._cohesion[code] = cohesion_of(np.array([row["vector"] for row in rows], np.float32)), count
        return self._cohesion[code]

    def refreshed(self) -> MilvusGallery:
        """Return the current version; self where it is the current one. Raises ServerError."""
        head = self.place.later(self.head.number)
        return self if head is None else MilvusGallery(self.place, head)


def open_milvus(address: Address) -> MilvusGallery:
    """Open the current version. Raises GalleryError when there is none, ServerError."""
    place = Place(connect(address))
    head = place.head()
    if head is None:
        raise GalleryError(f"there is no gallery in {address}", "make one with `skumatch gallery build`")
    return MilvusGallery(place, head)
