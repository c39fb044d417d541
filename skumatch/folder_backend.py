"""A gallery in a folder, behind the Backend seam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch import gallery_compact, gallery_index, gallery_rebuild, gallery_versions
from skumatch.backend import Indexed
from skumatch.enrol import build_gallery, extend_gallery, replace_in_gallery
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import Change, apply, remove_skus, remove_views
from skumatch.gallery_import import import_embedded

if TYPE_CHECKING:
    from pyarrow import Table

    from skumatch.embed import Pipeline, Progress
    from skumatch.encoder import Encoder
    from skumatch.enrol import Enrolled, Supply
    from skumatch.gallery_import import Embedded
    from skumatch.gallery_rebuild import Rebuilt
    from skumatch.gallery_seam import AnyGallery
    from skumatch.gallery_versions import Difference


class FolderBackend:
    """See ``Backend``. ``device``: where exact search runs."""

    def __init__(self, store: Path, device: str = "cpu") -> None:
        self.store = store
        self.device = device
        self._opened: Gallery | None = None

    def __str__(self) -> str:
        return str(self.store)

    def exists(self) -> bool:
        """Return whether there is a gallery."""
        return (self.store / "CURRENT").exists()

    def gallery(self) -> Gallery:
        """Open the current version, sharing what is open already."""
        opened = self._opened
        self._opened = open_gallery(self.store, device=self.device) if opened is None else opened.refreshed()
        return self._opened

    def build(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[Gallery]:
        """See ``build_gallery``."""
        return build_gallery(self.store, supply, encoder, pipeline, progress)

    def extend(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[Gallery]:
        """See ``extend_gallery``."""
        return extend_gallery(self.gallery(), supply, encoder, pipeline, progress)

    def replace(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[Gallery]:
        """See ``replace_in_gallery``."""
        return replace_in_gallery(self.gallery(), supply, encoder, pipeline, progress)

    def take_in(self, embedded: Embedded) -> None:
        """See ``import_embedded``."""
        import_embedded(embedded, self.store, self.gallery() if self.exists() else None)

    def remove_views(self, ids: Iterable[int]) -> None:
        """See ``gallery_changes.remove_views``."""
        remove_views(self.gallery(), ids)

    def remove_skus(self, skus: Sequence[str]) -> None:
        """See ``gallery_changes.remove_skus``."""
        remove_skus(self.gallery(), skus)

    def say(self, layer: Table, reason: str) -> None:
        """See ``gallery_changes.apply``."""
        apply(self.gallery(), Change(reason, layer=layer))

    def due(self) -> list[str]:
        """Return why `gallery compact` is worth while."""
        gallery = self.gallery()
        return [reason for reason in (*gallery_compact.due(gallery), gallery_index.due(gallery)) if reason]

    def maintain(self, full: bool, progress: Progress) -> None:
        """See ``gallery_index.maintain``."""
        gallery_index.maintain(self.gallery(), full, progress)

    def index(self, kind: str | None, seed: int, progress: Progress) -> Indexed:
        """See ``gallery_index.build_index``."""
        made = gallery_index.build_index(self.gallery(), kind, seed, progress)
        return Indexed(made.kind, made.figures.to_json() if made.figures else {})

    def compares_all(self, kind: str | None) -> bool:
        """Return whether ``kind`` means comparing every view here."""
        return gallery_index.wanted(self.gallery(), kind) == "exact"

    def rebuild(self, encoder: Encoder, pipeline: Pipeline, progress: Progress, drop: bool) -> Rebuilt[Gallery]:
        """See ``gallery_rebuild.rebuild``."""
        return gallery_rebuild.rebuild(self.store, encoder, pipeline, progress, drop)

    def log(self) -> list[dict[str, Any]]:
        """See ``gallery_versions.log``."""
        return gallery_versions.log(self.store)

    def diff(self, a: str, b: str) -> Difference:
        """See ``gallery_versions.diff``."""
        return gallery_versions.diff(self.store, a, b)

    def rollback(self, to: str | None) -> None:
        """See ``gallery_versions.rollback``."""
        gallery_versions.rollback(self.store, to)

    def prune(self, keep: int, unfinished: bool) -> tuple[list[str], str]:
        """See ``gallery_versions.prune``."""
        gone, freed = gallery_versions.prune(self.store, keep, unfinished)
        return gone, f"{freed / 1e6:,.1f} MB"

    def verify(self, everything: bool) -> list[AnyGallery]:
        """See ``gallery_versions.verify``."""
        return list(gallery_versions.verify(self.store, everything))

    def info(self) -> dict[str, Any]:
        """Return what `gallery info` shows."""
        held = self.gallery()
        index = held.pieces.index_facts
        return {
            "parent": held.published.facts["parent"],
            "made": held.made,
            "reason": held.published.facts["reason"],
            "segments": len(held.pieces.segments),
            "index": index["index"]["kind"] if index else "exact",
            "index_kind": held.published.state.index_kind,
            "figures": gallery_index.figures_of(held),
        }
