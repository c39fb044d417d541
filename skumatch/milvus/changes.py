"""Changes to a gallery in Milvus: each publishes a version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from skumatch.errors import GalleryError
from skumatch.milvus.gallery import MilvusGallery
from skumatch.milvus.index import index_of, kind_of
from skumatch.milvus.rows import NAMED, NEVER
from skumatch.milvus.writing import Writing
from skumatch.sku_table import SKU, layer_of
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table


def remove_views(gallery: MilvusGallery, ids: Iterable[int]) -> MilvusGallery:
    """Publish a version without the views ``ids``. Raises GalleryError for one that is not there, and when nothing
    would be left."""
    asked = sorted(set(ids))
    for view in [view for view in asked[:1] + asked[-1:] if not 0 <= view < NEVER]:
        raise GalleryError(f"gallery {gallery.store} has no view {view}", "list them with --sku")
    if not asked:
        return gallery
    for start in range(0, len(asked), NAMED):
        there = {int(row["view"]) for row in gallery.some("view", asked[start : start + NAMED], ["view"])}
        for view in asked[start : start + NAMED]:
            if view not in there:
                gallery.view(view)
    with Writing(gallery.store, "remove") as change:
        change.remove("view", asked)
        return change.publish(f"remove {counted(len(asked), 'view')}")


def remove_skus(gallery: MilvusGallery, skus: Iterable[str]) -> MilvusGallery:
    """Publish a version without the SKUs: their views and all that is known of them. Raises as ``remove_views``."""
    names = list(dict.fromkeys(skus))
    there = gallery.with_views(names)
    for name in names:
        if name not in there:
            gallery.code_of(name)
    with Writing(gallery.store, "remove") as change:
        change.remove(SKU, names)
        change.say(layer_of({}, names))
        return change.publish(f"remove {counted(len(names), 'SKU')}")


def say_facts(gallery: MilvusGallery, layer: Table, reason: str) -> MilvusGallery:
    """Publish a version that knows what ``layer`` says; "" takes a fact back. The views stay as they are."""
    with Writing(gallery.store, reason) as change:
        change.say(layer)
        return change.publish(reason)


def set_index(gallery: MilvusGallery, kind: str | None) -> MilvusGallery:
    """Let the server build another kind of index (the one that was set where ``kind`` is None) and publish that.

    The gallery cannot be searched while the server builds. Raises GalleryError for an unknown kind, ServerError.
    """
    wanted = kind or gallery.head.kind
    chosen = kind_of(wanted, len(gallery), gallery.spec.dim, gallery.store.folder is not None)
    if chosen == "ivf-rabitq" and gallery.store.folder is not None:
        raise GalleryError(
            f"{gallery.store} has no ivf-rabitq of its own", "choose --kind hnsw, or run a Milvus server"
        )
    if (chosen, wanted) == (gallery.head.index, gallery.head.kind) == ("exact", wanted):
        return gallery
    with Writing(gallery.store, "index") as change:
        change.place.connection.reindex(change.views, "vector", index_of(chosen, len(gallery)))
        reason = f"no index ({wanted})" if chosen == "exact" else f"index ({wanted})"
        return change.publish(reason, kind=wanted, index=chosen)
