"""A gallery with a history, and every operation that writes one, with what must be there afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skumatch import images
from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.enrol import Supply, extend_gallery
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import (
    add_views,
    create_from,
    remove_skus,
    remove_views,
    replace_views,
    set_facts,
)
from skumatch.gallery_compact import compact
from skumatch.gallery_index import build_index
from skumatch.gallery_rebuild import rebuild
from skumatch.gallery_versions import prune, rollback
from skumatch.segment import NewView
from tests.skumatch.gallery_oracle import SIDE, HashEncoder, World, embedded, picture, views_of

NAMES = [f"sku-{number}" for number in range(8)]
PICTURES = 5
PIPELINE = Pipeline(batch=4, workers=1, decode="cpu")
GONE = tuple(range(0, 36, 3))  # a quarter and more of the first segment: a compaction writes it anew
NEW_FACTS = {"sku-1": {"title": "", "brand": "Nord"}, "sku-9": {"title": "Rye bread", "group": "bread"}}


@dataclass(frozen=True)
class Past:
    """A prepared store (None: there is none yet) and what each of its versions holds; ``pictures``: files beside it."""

    store: Path | None
    worlds: Mapping[str, World]
    pictures: Path

    @property
    def version(self) -> str:
        """The current version, "" where there is no gallery."""
        return max(self.worlds, default="")

    @property
    def world(self) -> World:
        """What the current version holds."""
        return self.worlds[self.version] if self.worlds else World({}, {}, 0)


@dataclass(frozen=True)
class Operation:
    """``begin`` opens a store and returns the call that changes it; ``then`` says what the store holds after that.

    ``again``: whether it may be run once more after it was done, and changes nothing then. ``first``: it makes the
    store.
    """

    begin: Callable[[Path], Callable[[], object]]
    then: Callable[[Past], World]
    again: bool = False
    first: bool = False


def prepare(root: Path) -> Past:
    """Make the pictures and a store of five versions in ``root``: three segments, removed views, layers of facts."""
    pictures = root / "pictures"
    pictures.mkdir()
    for number in range(PICTURES):
        (pictures / f"{number}.png").write_bytes(picture(5_000 + number))
    views = views_of([NAMES[number % 8] for number in range(40)], 0)
    facts = {sku: {"title": f"Title of {sku}", "group": "drinks"} for sku in NAMES}
    gallery = create_from(root / "base", HashEncoder().spec, views, facts)
    worlds = {gallery.version: World({}, {}, 0).added(views, facts)}
    more, few = views_of([f"sku-{n}" for n in (0, 1, 2, 8, 8, 8, 9, 9, 9, 9)], 100), views_of(NAMES[:3], 200)
    told = {"sku-0": {"title": "Other"}, "sku-8": {"title": "Eight"}}
    gallery = add_views(gallery, more, told)
    worlds[gallery.version] = worlds["v000001"].added(more, told)
    gallery = remove_views(gallery, GONE)
    worlds[gallery.version] = worlds["v000002"].without(GONE)
    gallery = add_views(gallery, few)
    worlds[gallery.version] = worlds["v000003"].added(few)
    gallery = set_facts(gallery, {"sku-2": {"title": "", "brand": "Nord"}})
    worlds[gallery.version] = worlds["v000004"].told({"sku-2": {"title": "", "brand": "Nord"}})
    return Past(root / "base", worlds, pictures)


def imported(pictures: Path) -> list[NewView]:
    """Return the views that an import of the pictures makes."""
    views = []
    for number in range(PICTURES):
        path = pictures / f"{number}.png"
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        views.append(NewView("sku-10", str(path), sha256, images.thumbnail(data, SIDE), embedded(data, 0)))
    return views


def _create(store: Path) -> Callable[[], object]:
    return partial(create_from, store, HashEncoder().spec, views_of(NAMES[:6], 900), NEW_FACTS)


def _created(past: Past) -> World:
    return World({}, {}, past.world.used).added(views_of(NAMES[:6], 900), NEW_FACTS)


def _import(store: Path) -> Callable[[], object]:
    """Begin an import; an interrupted one goes on when it is begun again."""
    folder = store.parent / "pictures"
    rows = [Row(folder / f"{number}.png", "sku-10", "train", "Ten") for number in range(PICTURES)]
    return partial(extend_gallery, open_gallery(store), Supply.of(rows), HashEncoder(), PIPELINE)


def _rolled_back(past: Past) -> World:
    before = past.worlds[sorted(past.worlds)[-2]]
    return replace(before, used=past.world.used)


def _changing(change: Callable[..., object], *arguments: object) -> Callable[[Path], Callable[[], object]]:
    """Return what begins ``change`` of the opened gallery."""
    return lambda store: partial(change, open_gallery(store), *arguments)


ADDED = views_of(["sku-1", "sku-9", "sku-11", "sku-11"], 300)
SWAPPED = views_of(["sku-4", "sku-4"], 400)
REMOVED = (1, 2, 41, 50)
OPERATIONS: dict[str, Operation] = {
    "first": Operation(_create, _created, first=True),
    "create": Operation(_create, _created),
    "add": Operation(_changing(add_views, ADDED, NEW_FACTS), lambda past: past.world.added(ADDED, NEW_FACTS)),
    "import": Operation(
        _import,
        lambda past: past.world.added(imported(past.pictures), {"sku-10": {"title": "Ten"}}),
        again=True,
    ),
    "remove": Operation(_changing(remove_views, REMOVED), lambda past: past.world.without(REMOVED)),
    "remove SKUs": Operation(
        _changing(remove_skus, ["sku-2", "sku-8"]), lambda past: past.world.without_skus(["sku-2", "sku-8"])
    ),
    "replace": Operation(
        _changing(replace_views, ["sku-4"], SWAPPED, NEW_FACTS),
        lambda past: past.world.without_skus(["sku-4"], facts=False).added(SWAPPED, NEW_FACTS),
    ),
    "facts": Operation(_changing(set_facts, NEW_FACTS), lambda past: past.world.told(NEW_FACTS)),
    "compact": Operation(_changing(compact, True), lambda past: past.world, again=True),
    "index": Operation(_changing(build_index, "hnsw"), lambda past: past.world),
    "rebuild": Operation(
        lambda store: partial(rebuild, store, HashEncoder(1), PIPELINE), lambda past: past.world.rebuilt(1)
    ),
    "rollback": Operation(lambda store: partial(rollback, store), _rolled_back),
    "prune": Operation(lambda store: partial(prune, store, 1), lambda past: past.world, again=True),
}
