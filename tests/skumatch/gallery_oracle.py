"""What a gallery must hold, as plain dictionaries, and how each change alters that: the oracle of its tests."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from skumatch import images
from skumatch.gallery import Gallery
from skumatch.gallery_seam import AnyGallery
from skumatch.segment import NewView
from skumatch.spec import Pixels, Spec, Vectors

DIM, SIDE = 16, 16
K = 4  # SKUs asked for
Facts = Mapping[str, Mapping[str, str]]


def quick_disk() -> Path | None:
    """Return a folder in memory, None where there is none: many small galleries are much faster there."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


class HashEncoder:
    """Turns pixels into a vector drawn by their checksum: the same whatever the batch, another for each ``seed``."""

    def __init__(self, seed: int = 0) -> None:
        half = (0.5, 0.5, 0.5)
        digest = f"{seed:064x}"
        self.spec = Spec(
            SIDE, half, half, "squash", 1.0, "bicubic", name=f"hash-{seed}", dim=DIM, layer="features", digest=digest
        )

    def encode(self, pixels: Pixels) -> Vectors:
        seed = int(self.spec.digest, 16)
        drawn = [np.random.default_rng([zlib.crc32(one.tobytes()), seed]).normal(size=DIM) for one in pixels]
        return np.stack([row / np.linalg.norm(row) for row in drawn]).astype(np.float32)


def picture(mark: int) -> bytes:
    """Return a small PNG of colours drawn by ``mark``."""
    colours = np.random.default_rng(mark).integers(0, 256, (4, 4, 3), np.uint8).repeat(SIDE // 4, 0)
    stream = BytesIO()
    PILImage.fromarray(colours.repeat(SIDE // 4, 1)).save(stream, "PNG")
    return stream.getvalue()


def embedded(data: bytes, seed: int) -> Vectors:
    """Return what the encoder of ``seed`` makes of the bytes of a picture of its size, float32 (D,)."""
    vector: Vectors = HashEncoder(seed).encode(images.image_of(data).transpose(2, 0, 1)[None])[0]
    return vector


def view_of(sku: str, mark: int, seed: int = 0) -> NewView:
    """Return a made-up view; everything in it but the SKU is drawn by ``mark``, the vector by the thumbnail too."""
    data = picture(mark)
    thumb = images.thumbnail(data, SIDE)
    return NewView(sku, f"shelf/{mark}.png", hashlib.sha256(data).hexdigest(), thumb, embedded(thumb, seed))


def views_of(skus: Sequence[str], mark: int, seed: int = 0) -> list[NewView]:
    """Return a view per SKU, numbered on from ``mark``."""
    return [view_of(sku, mark + place, seed) for place, sku in enumerate(skus)]


@dataclass(frozen=True)
class World:
    """What a version must hold: ``views`` by id, ``facts`` by SKU and column (none empty), vectors of the encoder of
    ``seed``. ``used``: ids below were given away, though their views may be gone."""

    views: Mapping[int, NewView]
    facts: Facts
    used: int
    seed: int = 0

    def added(self, views: Sequence[NewView], facts: Facts | None = None) -> World:
        """Return the world with ``views`` numbered on from ``used``, and with ``facts``."""
        numbered = dict(enumerate(views, self.used))
        more = replace(self, views={**self.views, **numbered}, used=self.used + len(views))
        return more.told(facts or {})

    def told(self, facts: Facts) -> World:
        """Return the world that knows ``facts``; "" takes one back."""
        known = {sku: dict(said) for sku, said in self.facts.items()}
        for sku, said in facts.items():
            cells = {**known.get(sku, {}), **said}
            known[sku] = {name: value for name, value in cells.items() if value}
        return replace(self, facts={sku: said for sku, said in known.items() if said})

    def without(self, ids: Collection[int]) -> World:
        """Return the world without the views ``ids``."""
        return replace(self, views={i: view for i, view in self.views.items() if i not in ids})

    def without_skus(self, skus: Collection[str], facts: bool = True) -> World:
        """Return the world without the SKUs; their ``facts`` go too, or stay."""
        kept = {sku: said for sku, said in self.facts.items() if not (facts and sku in skus)}
        return replace(self.without(self.ids_of(skus)), facts=kept)

    def rebuilt(self, seed: int) -> World:
        """Return the world with the vectors of another encoder; the pictures are gone, so they are the thumbnails'."""
        views = {i: replace(view, vector=embedded(view.thumb, seed)) for i, view in self.views.items()}
        return replace(self, views=views, seed=seed)

    def ids_of(self, skus: Collection[str]) -> list[int]:
        """Return the ids of the views of ``skus``, ascending."""
        return sorted(i for i, view in self.views.items() if view.sku in skus)

    def skus(self) -> list[str]:
        """Return the SKUs that have a view, sorted."""
        return sorted({view.sku for view in self.views.values()})


def difference(gallery: Gallery, world: World, mark: int = 0) -> str:
    """Return the first thing in which ``gallery`` differs from ``world``, "" where nothing does.

    ``mark`` draws the queries.
    """
    ids = sorted(world.views)
    expected = [world.views[i] for i in ids]
    if gallery.spec != HashEncoder(world.seed).spec:
        return f"the model is {gallery.spec.name}, not hash-{world.seed}"
    if gallery.ids.tolist() != ids:
        return f"ids are {gallery.ids.tolist()}, not {ids}"
    rows = [(row.id, row.sku, row.source, row.sha256) for row in gallery.views()]
    if rows != [(i, view.sku, view.source, view.sha256) for i, view in zip(ids, expected, strict=True)]:
        return f"the views are {rows}"
    if [gallery.thumb(i) for i in ids] != [view.thumb for view in expected]:
        return "a thumbnail differs"
    if not np.array_equal(gallery.vectors_of(gallery.ids), np.stack([view.vector for view in expected])):
        return "a vector differs"
    return _facts_differ(gallery, world) or _search_differs(gallery, world, mark)


def fingerprint(gallery: AnyGallery) -> str:
    """Return a digest of all that can be asked of ``gallery``, and of its answers to a few queries."""
    found = gallery.search(np.stack([embedded(picture(8_000_000 + mark), 0) for mark in range(3)]), K)
    rows = [(row.id, row.sku, row.source, row.sha256, gallery.thumb(row.id)) for row in gallery.views()]
    facts = {sku: sorted(gallery.facts.of(sku).items()) for sku in sorted(gallery.skus)}
    names = [[gallery.skus[int(code)] for code in line] for line in found.skus]
    text = repr((gallery.spec.digest, rows, facts, names, found.views.tolist()))
    return hashlib.sha256(text.encode() + gallery.vectors_of(gallery.ids).tobytes()).hexdigest()


def _facts_differ(gallery: Gallery, world: World) -> str:
    counts = {sku: len(world.ids_of([sku])) for sku in world.skus()}
    if gallery.counts() != counts:
        return f"SKUs and views are {gallery.counts()}, not {counts}"
    known = {sku: gallery.facts.of(sku) for sku in {*gallery.facts.table.column("sku"), *counts}}
    known = {sku: said for sku, said in known.items() if said}
    return "" if known == world.facts else f"the facts are {known}, not {world.facts}"


def _search_differs(gallery: Gallery, world: World, mark: int) -> str:
    """Compare answers with a product of matrices: the best view of each SKU, the best SKUs first."""
    queries = np.stack([embedded(picture(7_000_000 + mark), world.seed), next(iter(world.views.values())).vector])
    ids = np.array(sorted(world.views))
    scores = queries @ np.stack([world.views[i].vector for i in ids.tolist()]).T
    names = np.array([world.views[i].sku for i in ids.tolist()])
    found = gallery.search(queries, K)
    best = {sku: scores[:, names == sku].max(axis=1) for sku in world.skus()}
    for line in range(len(queries)):
        there = found.skus[line] >= 0
        skus = [gallery.skus[int(code)] for code in found.skus[line][there]]
        expected = sorted((scores_of[line] for scores_of in best.values()), reverse=True)[:K]
        places = np.searchsorted(ids, found.views[line][there])
        if len(set(skus)) != len(expected) or names[places].tolist() != skus:
            return f"search finds {skus} by views {found.views[line].tolist()}"
        for said in (found.scores[line][there], scores[line][places], [best[sku][line] for sku in skus]):
            if not np.allclose(said, expected, atol=1e-5):
                return f"search scores {said}, not {expected}"
    return ""
