"""Compaction: the same gallery in fewer bytes and segments, whatever others do to it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from skumatch import gallery_compact
from skumatch.embed import Pipeline
from skumatch.gallery import Gallery, open_gallery, open_version
from skumatch.gallery_changes import add_views, create_from, remove_skus, remove_views, replace_views, set_facts
from skumatch.gallery_compact import compact, due
from skumatch.gallery_rebuild import rebuild
from skumatch.gallery_versions import prune, rollback
from tests.skumatch.gallery_oracle import HashEncoder, World, difference, view_of, views_of

NAMES = [f"sku-{number}" for number in range(7)]
GONE = [*range(0, 30, 3), 101, 118]


@dataclass(frozen=True)
class Held:
    """A gallery and what it must hold; ``earlier``: what its first versions held."""

    gallery: Gallery
    world: World
    earlier: tuple[World, ...] = ()


def named(count: int) -> list[str]:
    return [NAMES[number % len(NAMES)] for number in range(count)]


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """Return a gallery of four segments that no addition merged, with removed views and layers of facts."""
    facts = {sku: {"title": f"Title of {sku}", "brand": "Nord"} for sku in NAMES}
    first = views_of(named(100), 0)
    gallery = create_from(tmp_path / "g", HashEncoder().spec, first, facts)
    worlds = [World({}, {}, 0).added(first, facts)]
    for count in (15, 5, 2):
        more = views_of(named(count), len(gallery))
        gallery = add_views(gallery, more)
        worlds.append(worlds[-1].added(more))
    said = {"sku-1": {"title": "Other", "brand": ""}}
    gallery = remove_views(set_facts(gallery, said), GONE)
    return Held(gallery, worlds[-1].told(said).without(GONE), tuple(worlds))


def sizes(gallery: Gallery) -> list[int]:
    return [len(ids) for _, ids in gallery.pieces.segments]


def aside(work: Callable[[], object]) -> None:
    """Run ``work`` on another thread, as another program would, and wait for it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def bytes_of(store: Path, name: str = "*") -> int:
    return sum(path.stat().st_size for path in store.rglob(name) if path.is_file())


def test_nothing_but_the_segments_changes(held: Held) -> None:
    assert sizes(held.gallery) == [100, 15, 5, 2]
    told: list[int] = []
    compacted = compact(held.gallery, progress=told.append)
    assert (sizes(compacted), sum(told)) == ([122 - len(GONE)], 122 - len(GONE))
    assert len(compacted.published.state.tables) == 1 and not len(compacted.published.state.removed)
    for gallery in (compacted, open_gallery(held.gallery.store, full=True)):
        assert difference(gallery, held.world) == ""
    facts = compacted.published.facts
    assert facts["reason"] == "compact 4 segments to 1"
    assert (facts["counts"]["added"], facts["counts"]["removed"], facts["parent"]) == (0, 0, held.gallery.version)
    assert compact(compacted) is compacted and compact(compacted, full=True) is compacted
    assert difference(open_version(held.gallery.published.folder), held.world) == ""  # the version before it
    more = [view_of("new", 7_000)]
    assert difference(add_views(compacted, more), held.world.added(more)) == ""  # numbered on


def test_removed_views_leave_the_disk(held: Held) -> None:
    store, thumbs = held.gallery.store, [held.earlier[-1].views[view_id].thumb for view_id in GONE]
    before = bytes_of(store)
    prune(store, keep=1)
    left = b"".join(path.read_bytes() for path in store.rglob("thumbs.bin"))
    assert all(thumb in left for thumb in thumbs)  # so the next two lines can fail
    compact(held.gallery)
    prune(store, keep=1)
    left = b"".join(path.read_bytes() for path in store.rglob("thumbs.bin"))
    assert not any(thumb in left for thumb in thumbs)
    assert bytes_of(store, "vectors.f32") == 4 * 16 * len(held.world.views) and bytes_of(store) < before


@pytest.mark.parametrize(("removed", "rewritten"), [(9, False), (10, True)])
def test_a_segment_is_written_anew_from_a_quarter_on(tmp_path: Path, removed: int, rewritten: bool) -> None:
    gallery = create_from(tmp_path / "g", HashEncoder().spec, views_of(named(40), 0))
    gallery = remove_views(gallery, range(removed))
    assert (compact(gallery) is not gallery) == rewritten
    assert sizes(compact(gallery, full=True)) == [40 - removed]


def test_segments_without_a_live_view_are_dropped(tmp_path: Path) -> None:
    views, more = views_of(named(40), 0), views_of(["z"] * 15, 100)
    gallery = remove_skus(add_views(create_from(tmp_path / "g", HashEncoder().spec, views), more), ["z"])
    world = World({}, {}, 0).added(views).added(more).without(range(40, 55))
    compacted = compact(gallery)
    assert sizes(compacted) == [40] and difference(compacted, world) == ""
    several = [view_of("y", 300)]
    assert min(add_views(compacted, several).ids_of("y")) == 55  # ids of what is gone are not given again


def test_a_merged_segment_has_a_largest_size(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_compact, "SMALL", 50)
    monkeypatch.setattr(gallery_compact, "LARGE", 18)
    compacted = compact(held.gallery)  # of the first too few are removed, and the last fits no more
    assert sizes(compacted) == [100, 18, 2] and difference(compacted, held.world) == ""


def rolled_back(held: Held) -> World:
    rollback(held.gallery.store, "v4")
    return replace(held.earlier[-1], used=held.world.used)


def added(held: Held, count: int) -> World:
    views = views_of(named(count), 3_000)
    add_views(held.gallery, views, {"sku-2": {"title": "Meanwhile"}})
    return held.world.added(views, {"sku-2": {"title": "Meanwhile"}})


def merged_and_removed(held: Held) -> World:
    world = added(held, 1)  # merges three of the segments with its own
    remove_views(open_gallery(held.gallery.store), [5, 117, 122])
    return world.without([5, 117, 122])


def replaced(held: Held) -> World:
    views = views_of(["sku-3"], 4_000)
    replace_views(held.gallery, ["sku-3", "sku-4"], views, {"sku-3": {"size": "1 l"}})
    return held.world.without_skus(["sku-3", "sku-4"], facts=False).added(views, {"sku-3": {"size": "1 l"}})


def built_anew(held: Held) -> World:
    views = views_of(named(9), 5_000)
    create_from(held.gallery.store, HashEncoder().spec, views)
    return World({}, {}, held.world.used).added(views)


def compacted_too(held: Held) -> World:
    compact(held.gallery, full=True)
    return held.world


def rebuilt(held: Held) -> World:
    rebuild(held.gallery.store, HashEncoder(1), Pipeline(workers=1))
    return held.world.rebuilt(1)


MEANWHILE: dict[str, Callable[[Held], World]] = {
    "add 1": lambda held: added(held, 1),
    "add 9": lambda held: added(held, 9),
    "add 200": lambda held: added(held, 200),
    "add and remove": merged_and_removed,
    "replace": replaced,
    "rollback": rolled_back,
    "build": built_anew,
    "compact": compacted_too,
    "rebuild": rebuilt,
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_others_do_meanwhile_stays(held: Held, what: str) -> None:
    expected: list[World] = []

    def while_it_reads(_: int) -> None:
        if not expected:
            aside(lambda: expected.append(MEANWHILE[what](held)))

    compacted = compact(held.gallery, full=True, progress=while_it_reads)
    assert difference(compacted, expected[0]) == ""
    assert difference(open_gallery(held.gallery.store, full=True), expected[0]) == ""
    assert len(sizes(compacted)) <= 4


@pytest.mark.parametrize(("what", "left"), [("add 1", [110, 1]), ("add 9", [110, 9]), ("add and remove", [110])])
def test_a_small_addition_does_not_undo_it(held: Held, what: str, left: list[int]) -> None:
    done: list[World] = []

    def while_it_reads(_: int) -> None:
        if not done:
            aside(lambda: done.append(MEANWHILE[what](held)))

    compacted = compact(held.gallery, progress=while_it_reads)
    assert sizes(compacted) == left
    assert sizes(compact(compacted, full=True)) == [len(done[0].views)]


def test_due_says_what_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = create_from(tmp_path / "g", HashEncoder().spec, views_of(named(40), 0))
    assert due(gallery) == []
    assert due(remove_views(gallery, range(10))) == []  # just a quarter
    worn = remove_views(gallery, range(11))
    assert due(worn) == ["11 removed views on disk"] and due(compact(worn)) == []
    monkeypatch.setattr("skumatch.gallery_changes.SMALL", 0)  # no addition merges
    for number in range(16):
        assert not any("small" in reason for reason in due(gallery))
        gallery = add_views(gallery, [view_of("a", 500 + number)])
    assert due(gallery) == ["17 small segments"]
    assert due(compact(gallery)) == []


def test_only_layers_of_facts_to_merge(tmp_path: Path) -> None:
    views = views_of(named(7), 0)
    facts = {sku: {"title": sku, "size": "1 l"} for sku in NAMES}
    gallery = create_from(tmp_path / "g", HashEncoder().spec, views, facts)
    gallery = set_facts(gallery, {"sku-1": {"size": ""}})
    assert len(gallery.published.state.tables) == 2
    compacted = compact(gallery)
    assert len(compacted.published.state.tables) == 1 and sizes(compacted) == [7]
    assert compacted.published.facts["reason"] == "compact the table of facts"
    assert difference(compacted, World({}, {}, 0).added(views, facts).told({"sku-1": {"size": ""}})) == ""
    assert np.array_equal(compacted.ids, gallery.ids)
