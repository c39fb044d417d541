"""The gallery: reference views per SKU, searchable. One published version of it, opened for reading.

``gallery_state`` says what lies on disk, ``gallery_changes`` how versions come about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.calibration import COHESION_VIEWS, cohesion_of
from skumatch.errors import ArtefactError, GalleryError, nearest
from skumatch.gallery_seam import require_model
from skumatch.gallery_state import Pieces, Version, read_version
from skumatch.index import Index
from skumatch.index.approximate import ApproximateIndex
from skumatch.index.exact import ExactIndex
from skumatch.index.matmul import exact_index, free_bytes
from skumatch.index.parts import Parts
from skumatch.nearest import Nearest, nearest_skus
from skumatch.segment import Segment, ViewRow
from skumatch.sku_table import NEAR, SKU, TITLE
from skumatch.spec import Ids, Spec, Vectors
from skumatch.technique_store import mean_per_sku
from skumatch.view_directory import SkuNames, member

if TYPE_CHECKING:
    from pyarrow import Table

    from skumatch.selection import Selection

BLOCK = 4096  # views read at a time for prototypes
WORTH = 1 << 24  # numbers (32,768 views of 512) from which on loading torch pays, where it multiplies faster
SHARE = 0.5  # of a GPU's free memory that vectors may take; the encoder works there too


class Gallery:
    """One version of a gallery, opened for search. Made by ``open_gallery``; does not change when others publish."""

    def __init__(self, version: Version, pieces: Pieces, device: str = "cpu") -> None:
        self.published = version
        self.pieces = pieces
        self.device = device
        self.store = version.store
        self.spec: Spec = version.state.spec
        self._views = pieces.directory
        self._cohesion: dict[int, tuple[float, int]] = {}

    def __len__(self) -> int:
        """Return the number of reference views."""
        return len(self._views.ids)

    @property
    def version(self) -> str:
        """The version's name."""
        return self.published.name

    @property
    def made(self) -> str:
        """When the version was published, ISO 8601 with its offset from UTC."""
        return str(self.published.facts["time"])

    @property
    def skus(self) -> SkuNames:
        """Names of the SKUs by code; each has at least one view."""
        return self._views.skus

    @property
    def ids(self) -> Ids:
        """All view ids, ascending."""
        return self._views.ids

    @property
    def identity(self) -> str:
        """Text that differs where anything differs that the gallery answers."""
        return f"{self.store.absolute()} {self.version} {self.published.digest}"

    def selected(self, filters: Mapping[str, str]) -> Selection:
        """Return the views of the SKUs whose facts equal all of ``filters``; all of them without filters.

        Raises GalleryError as ``search`` does.
        """
        from skumatch.selection import select

        return select(self, filters)

    def require(self, spec: Spec) -> None:
        """Raise SpecMismatch unless the gallery's vectors were made by the encoder with ``spec``."""
        require_model(self, spec)

    def search(self, queries: Vectors, k: int, where: Mapping[str, str] | None = None) -> Nearest:
        """Return the k nearest distinct SKUs of float32 (N, D) unit rows; codes index ``skus``.

        ``where``: only SKUs whose facts (column -> text) are these. Raises GalleryError for a column that the table
        lacks, or where no SKU is like that.
        """
        allowed = self.ids_of_skus(self.facts.codes(where)) if where else None
        return nearest_skus(self.index, self.codes, queries, k, allowed)

    @cached_property
    def index(self) -> Index:
        """The index over all views, made when first needed."""
        big = self._big()
        tail = self._tail()
        for segment, ids in self.pieces.segments:
            covered = np.zeros(len(ids), bool) if big is None else big.holds(ids)
            if covered.all():
                continue
            if 2 * np.count_nonzero(covered) > len(ids):  # few rows are not in the index: they are copied
                tail.add(ids[~covered], np.asarray(segment.vectors[~covered]))
            else:
                tail.add(ids, np.asarray(segment.vectors))
                tail.remove(ids[covered])
        tail.remove(self.published.state.removed)
        return Parts(big, tail, self.vectors_of)

    def _tail(self) -> Index:
        """Return an empty exact index, of the kind that is worth while."""
        numbers, device = len(self) * self.spec.dim, self.device
        if device != "cpu" and 2 * numbers > SHARE * free_bytes(device):
            device = "cpu"
        small = numbers < WORTH and device == "cpu"
        return ExactIndex(self.spec.dim) if small else exact_index(self.spec.dim, device)

    def _big(self) -> ApproximateIndex | None:
        """Return the version's approximate index without what was removed since it was made; None where there is none,
        or nothing is left of it."""
        whole = self.pieces.index()
        if whole is None:
            return None
        ids = whole.ids()
        less = whole.without(ids[~member(ids, self.ids)])
        return less if len(less) else None

    def codes(self, ids: Ids) -> Ids:
        """Map view ids (any shape, all there) to SKU codes, places in ``skus``."""
        found: Ids = self._views.codes[self._views.find(ids)].astype(np.int64)
        return found

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return each SKU's mean vector, float32 (S, D) unit rows, and the SKU codes (S,), ascending."""
        return self._prototypes

    @cached_property
    def _prototypes(self) -> tuple[Vectors, Ids]:
        blocks = (self.ids[start : start + BLOCK] for start in range(0, len(self.ids), BLOCK))
        return mean_per_sku(((self.codes(block), self.vectors_of(block)) for block in blocks), len(self.skus))

    def view(self, view_id: int) -> ViewRow:
        """Return a view by id. Raises GalleryError when it is not there."""
        place = self._place(view_id)
        segment, position = self._at(place)
        sku = self.skus[int(self._views.codes[place])]
        return ViewRow(view_id, sku, segment.source(position), segment.sha256(position))

    def views_of(self, ids: Ids) -> list[ViewRow]:
        """Return views by id, in that order. Raises GalleryError when one is not there."""
        return [self.view(view_id) for view_id in ids.tolist()]

    def thumb(self, view_id: int) -> bytes:
        """Return a view's JPEG thumbnail. Raises GalleryError when it is not there."""
        segment, position = self._at(self._place(view_id))
        return segment.thumb(position)

    def _place(self, view_id: int) -> int:
        place = int(self._views.find(np.array([view_id]))[0])
        if place < 0:
            raise GalleryError(f"gallery {self.store} has no view {view_id}", "list them with --sku")
        return place

    def _at(self, place: int) -> tuple[Segment, int]:
        return self.pieces.segments[self._views.segments[place]][0], int(self._views.positions[place])

    def views(self) -> Iterator[ViewRow]:
        """Yield all views in id order."""
        for view_id in self.ids.tolist():
            yield self.view(view_id)

    def code_of(self, sku: str) -> int:
        """Return the code of a SKU. Raises GalleryError, naming similar ones, when it has no view here."""
        code = self.skus.code(sku)
        if code < 0:
            near = nearest(sku, list(self.skus)) if len(self.skus) <= NEAR else ""
            raise GalleryError(
                f"gallery {self.store} has no SKU '{sku}'", f"nearest names are: {near or 'none similar'}"
            )
        return code

    def ids_of(self, sku: str) -> list[int]:
        """Return the ids of a SKU's views, ascending. Raises GalleryError for an unknown SKU."""
        return list(map(int, self._views.ids_with(self.code_of(sku))))

    def ids_of_skus(self, codes: Ids) -> Ids:
        """Return the ids of all views of the SKUs with ``codes``, ascending."""
        return self._views.ids_of_codes(codes.astype(np.int32))

    def counts(self) -> dict[str, int]:
        """Return the number of views per SKU."""
        return dict(zip(self.skus, np.diff(self._views.starts).tolist(), strict=True))

    @property
    def facts(self) -> SkuTableView:
        """What is known of the SKUs beside their views."""
        return self._facts

    def title(self, code: int) -> str:
        """Return the title of the SKU with ``code``, "" if none."""
        return self._facts.cell(code, TITLE)

    @cached_property
    def _facts(self) -> SkuTableView:
        return SkuTableView(self)

    def cohesion(self, code: int) -> tuple[float, int]:
        """Return how alike the views of the SKU with ``code`` are (mean cosine to the nearest sister; NaN for a single
        view) and how many it has."""
        if code not in self._cohesion:
            ids = self._views.ids_with(code)
            self._cohesion[code] = (cohesion_of(self.vectors_of(ids[:COHESION_VIEWS])), len(ids))
        return self._cohesion[code]

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id. Raises GalleryError when one is not there."""
        places = self._views.find(ids)
        if len(places) and places.min() < 0:
            self._place(int(ids[int(places.argmin())]))
        numbers, positions = self._views.segments[places], self._views.positions[places]
        found = np.empty((len(places), self.spec.dim), np.float32)
        for number in np.unique(numbers):
            lines = np.flatnonzero(numbers == number)
            found[lines] = self.pieces.segments[number][0].vectors[positions[lines]]
        return found

    def sha_words(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of the SHA-256 of each view's file as a number, in the order of ``ids``; 0 where it
        is not known."""
        found = np.zeros(len(self), np.uint64)
        for number, (segment, _) in enumerate(self.pieces.segments):
            lines = np.flatnonzero(self._views.segments == number)
            found[lines] = segment.sha_words()[self._views.positions[lines]]
        return found

    def refreshed(self) -> Gallery:
        """Return the current version, sharing what is open already; self where it is the current one.

        Raises ArtefactError when a byte differs.
        """
        folder = artefact.current(self.store)
        return self if folder == self.published.folder else open_gallery(self.store, reuse=self, device=self.device)


class SkuTableView:
    """The facts of a gallery's SKUs by code."""

    def __init__(self, gallery: Gallery) -> None:
        self.table = gallery.pieces.table
        self._skus = gallery.skus

    @cached_property
    def _rows(self) -> Any:
        return self.table.places(self._skus.array)

    def cell(self, code: int, column: str) -> str:
        """Return a fact of the SKU with ``code``, "" where it is not known."""
        place = int(self._rows[code])
        known = place >= 0 and column in self.table.columns
        return (self.table.table[column][place].as_py() or "") if known else ""

    @property
    def columns(self) -> list[str]:
        """Names of the facts."""
        return self.table.columns[1:]

    def of(self, sku: str) -> dict[str, str]:
        """Return all that is known of ``sku`` by column."""
        return self.table.facts(sku)

    def known(self) -> Table:
        """Return all that is known of the SKUs with views: Arrow table of text, column "sku" first, by name."""
        import pyarrow as pa

        names = pa.table({SKU: self._skus.array})
        table = self.table.table
        return (names.join(table, SKU) if len(table) else names).sort_by(SKU)

    def codes(self, filters: Mapping[str, str]) -> Ids:
        """Return the codes of the SKUs whose columns equal ``filters``, ascending; "" is what nothing is known of.

        Raises GalleryError for an unknown column, or where no SKU is like that.
        """
        others = {name: value for name, value in filters.items() if name != SKU}
        chosen: Ids = np.flatnonzero(self.table.matching(others, self._rows)).astype(np.int64)
        if SKU in filters:
            chosen = chosen[chosen == self._skus.code(filters[SKU])]
        if not len(chosen):
            asked = ", ".join(f"{name}={value}" for name, value in filters.items())
            raise GalleryError(f"no SKU with a view has {asked}", "see `skumatch gallery list` for those that have")
        return chosen


def open_gallery(store: Path | str, full: bool = False, reuse: Gallery | None = None, device: str = "cpu") -> Gallery:
    """Open the current version after checking its digests (``full``: every byte again).

    ``reuse``: an open version of the same gallery, whose pieces are shared. ``device``: where exact search runs. Raises
    GalleryError when there is no gallery, ArtefactError when a byte differs.
    """
    store = Path(store)
    while True:
        folder = artefact.current(store)
        if folder is None:
            raise GalleryError(f"there is no gallery in {store}", "make one with `skumatch gallery build`")
        try:
            return open_version(folder, full, reuse, device)
        except (ArtefactError, FileNotFoundError):
            if artefact.current(store) == folder:
                raise  # else it was pruned while it was being opened


def open_version(folder: Path, full: bool = False, reuse: Gallery | None = None, device: str = "cpu") -> Gallery:
    """Open one version by its folder, current or not. Raises as ``open_gallery``."""
    with artefact.read_errors(folder):
        version = read_version(folder, full)
        pieces = Pieces(version.store, version.state, full, reuse.pieces if reuse is not None else None)
        return Gallery(version, pieces, device)
