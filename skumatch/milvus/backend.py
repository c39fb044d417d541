"""A gallery in Milvus, behind the Backend seam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from skumatch.backend import Indexed
from skumatch.errors import GalleryError
from skumatch.gallery_import import require_same
from skumatch.milvus import changes, enrol, upkeep
from skumatch.milvus.address import Address
from skumatch.milvus.client import connect
from skumatch.milvus.gallery import MilvusGallery, open_milvus
from skumatch.milvus.index import kind_of
from skumatch.milvus.versions import Place

if TYPE_CHECKING:
    from pyarrow import Table

    from skumatch.embed import Pipeline, Progress
    from skumatch.encoder import Encoder
    from skumatch.enrol import Enrolled, Supply
    from skumatch.gallery_import import Embedded
    from skumatch.gallery_rebuild import Rebuilt
    from skumatch.gallery_seam import AnyGallery
    from skumatch.gallery_versions import Difference


class MilvusBackend:
    """See ``Backend``."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._opened: MilvusGallery | None = None

    def __str__(self) -> str:
        return str(self.address)

    def exists(self) -> bool:
        """Return whether there is a gallery."""
        if self.address.folder is not None and not self.address.folder.exists():
            return False
        return bool(Place(connect(self.address)).numbers())

    def gallery(self) -> MilvusGallery:
        """Open the current version."""
        opened = self._opened
        self._opened = self._first() if opened is None else opened.refreshed()
        return self._opened

    def _first(self) -> MilvusGallery:
        if self.address.folder is not None and not self.address.folder.exists():
            raise GalleryError(f"there is no gallery in {self.address}", "make one with `skumatch gallery build`")
        return open_milvus(self.address)

    def build(
        self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress
    ) -> Enrolled[MilvusGallery]:
        """See ``enrol.build``."""
        return enrol.build(self.address, supply, encoder, pipeline, progress)

    def extend(
        self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress
    ) -> Enrolled[MilvusGallery]:
        """See ``enrol.extend``."""
        return enrol.extend(self.gallery(), supply, encoder, pipeline, progress)

    def replace(
        self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress
    ) -> Enrolled[MilvusGallery]:
        """See ``enrol.replace``."""
        return enrol.replace(self.gallery(), supply, encoder, pipeline, progress)

    def take_in(self, embedded: Embedded) -> None:
        """See ``enrol.add_views`` and ``create``."""
        if not self.exists():
            enrol.create(self.address, embedded.spec, embedded.views(), embedded.layer, "import")
            return
        gallery = self.gallery()
        require_same(gallery.spec, embedded)
        enrol.add_views(gallery, embedded.views(), embedded.layer, "import")

    def remove_views(self, ids: Iterable[int]) -> None:
        """See ``changes.remove_views``."""
        changes.remove_views(self.gallery(), ids)

    def remove_skus(self, skus: Sequence[str]) -> None:
        """See ``changes.remove_skus``."""
        changes.remove_skus(self.gallery(), skus)

    def say(self, layer: Table, reason: str) -> None:
        """See ``changes.say_facts``."""
        changes.say_facts(self.gallery(), layer, reason)

    def due(self) -> list[str]:
        """Return why another index is worth while."""
        head = self.gallery().head
        kind = kind_of(head.kind, head.views, head.spec.dim, self.address.folder is not None)
        return [f"the index is {head.index}, not {kind}"] if kind != head.index else []

    def maintain(self, full: bool, progress: Progress) -> None:
        """Build the index that is wanted, and let the server merge what it keeps in pieces."""
        if self.due():
            self.index(None, 0, progress)
        upkeep.compact(self.gallery())

    def index(self, kind: str | None, seed: int, progress: Progress) -> Indexed:
        """See ``changes.set_index``; ``seed`` is the server's affair."""
        return Indexed(changes.set_index(self.gallery(), kind).head.index)

    def compares_all(self, kind: str | None) -> bool:
        """Return whether ``kind`` means comparing every view here."""
        head = self.gallery().head
        return kind_of(kind or head.kind, head.views, head.spec.dim, self.address.folder is not None) == "exact"

    def rebuild(self, encoder: Encoder, pipeline: Pipeline, progress: Progress, drop: bool) -> Rebuilt[MilvusGallery]:
        """See ``enrol.rebuild``."""
        return enrol.rebuild(self.gallery(), encoder, pipeline, progress, drop)

    def log(self) -> list[dict[str, Any]]:
        """See ``upkeep.log``."""
        return upkeep.log(self.address)

    def diff(self, a: str, b: str) -> Difference:
        """See ``upkeep.diff``."""
        return upkeep.diff(self.address, a, b)

    def rollback(self, to: str | None) -> None:
        """See ``upkeep.rollback``."""
        upkeep.rollback(self.address, to)

    def prune(self, keep: int, unfinished: bool) -> tuple[list[str], str]:
        """See ``upkeep.prune``."""
        gone, rows = upkeep.prune(self.address, keep, unfinished)
        return gone, f"{rows:,} rows"

    def verify(self, everything: bool) -> list[AnyGallery]:
        """See ``upkeep.verify``."""
        return [upkeep.verify(self.address)]

    def info(self) -> dict[str, Any]:
        """Return what `gallery info` shows."""
        head = self.gallery().head
        return {
            "parent": head.parent,
            "made": head.time,
            "reason": head.reason,
            "collection": self.gallery().collection,
            "consistency": "strong",
            "index": head.index,
            "index_kind": head.kind,
        }
