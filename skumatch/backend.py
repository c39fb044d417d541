"""Where a gallery lives, and all that can be done to it there: a folder of this machine, or Milvus.

The commands hold a Backend and do not ask which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skumatch.gallery import open_gallery as open_folder
from skumatch.gallery_seam import AnyGallery
from skumatch.milvus.address import Address, is_milvus, parse

if TYPE_CHECKING:
    from pyarrow import Table

    from skumatch.embed import Pipeline, Progress
    from skumatch.encoder import Encoder
    from skumatch.enrol import Enrolled, Supply
    from skumatch.gallery_import import Embedded
    from skumatch.gallery_rebuild import Rebuilt
    from skumatch.gallery_versions import Difference


@dataclass(frozen=True)
class Indexed:
    """What became of an index: its kind, what was measured of it (nothing where every view is compared)."""

    kind: str
    figures: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A gallery's home. Each change publishes a version, which ``gallery`` then opens. See the modules that do the work
    for what they raise."""

    def __str__(self) -> str:
        """Return where it is, for a person."""
        ...

    def exists(self) -> bool:
        """Return whether there is a gallery."""
        ...

    def gallery(self) -> AnyGallery:
        """Open the current version. Raises GalleryError when there is none."""
        ...

    def build(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[AnyGallery]:
        """Publish a gallery of the rows of ``supply`` alone."""
        ...

    def extend(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[AnyGallery]:
        """Add the rows of ``supply``; files that their SKU has already are skipped."""
        ...

    def replace(self, supply: Supply, encoder: Encoder, pipeline: Pipeline, progress: Progress) -> Enrolled[AnyGallery]:
        """Let the rows of ``supply`` stand for all views that their SKUs had."""
        ...

    def take_in(self, embedded: Embedded) -> None:
        """Add views that were embedded elsewhere; make a gallery of them where there is none."""
        ...

    def remove_views(self, ids: Iterable[int]) -> None:
        """Remove views by id."""
        ...

    def remove_skus(self, skus: Sequence[str]) -> None:
        """Remove SKUs: their views and all that is known of them."""
        ...

    def say(self, layer: Table, reason: str) -> None:
        """Add what a layer of facts says (see sku_table)."""
        ...

    def due(self) -> list[str]:
        """Return why upkeep is worth while; nothing where it is not."""
        ...

    def maintain(self, full: bool, progress: Progress) -> None:
        """Do what is due; ``full``: also what gains little."""
        ...

    def index(self, kind: str | None, seed: int, progress: Progress) -> Indexed:
        """Build the search index of ``kind``, or of the kind that was set before."""
        ...

    def compares_all(self, kind: str | None) -> bool:
        """Return whether ``kind`` means comparing every view here."""
        ...

    def rebuild(self, encoder: Encoder, pipeline: Pipeline, progress: Progress, drop: bool) -> Rebuilt[AnyGallery]:
        """Embed all views again with another model."""
        ...

    def log(self) -> list[dict[str, Any]]:
        """Return what is told of each version, newest first."""
        ...

    def diff(self, a: str, b: str) -> Difference:
        """Return how version ``b`` differs from ``a``."""
        ...

    def rollback(self, to: str | None) -> None:
        """Make an older version the current one."""
        ...

    def prune(self, keep: int, unfinished: bool) -> tuple[list[str], str]:
        """Remove old versions; return which, and how much that freed."""
        ...

    def verify(self, everything: bool) -> list[AnyGallery]:
        """Check every byte of the current version (``everything``: of all) and return the versions checked."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what `gallery info` shows."""
        ...


def backend(place: Path | Address | str, device: str = "cpu") -> Backend:
    """Return the home of the gallery at ``place``: a folder, or an address such as "milvus://host:19530/name".

    ``device``: where exact search in a folder runs. Raises ConfigError for an address that is none.
    """
    if isinstance(place, str) and is_milvus(place):
        place = parse(place)
    if isinstance(place, Address):
        from skumatch.milvus.backend import MilvusBackend

        return MilvusBackend(place)
    from skumatch.folder_backend import FolderBackend

    return FolderBackend(Path(place), device)


def open_gallery(place: Path | Address | str, device: str = "cpu") -> AnyGallery:
    """Open the current version of the gallery at ``place``: a folder, or an address such as "milvus://host:19530/name".

    Raises GalleryError when there is none, ArtefactError when a byte differs, ServerError.
    """
    if isinstance(place, Address) or is_milvus(place):
        return backend(place).gallery()
    return open_folder(Path(str(place)), device=device)
