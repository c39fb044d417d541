"""The versions of a gallery: told, compared, gone back to, cleared away and checked, broken ones among them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch import artefact
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, GalleryError
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_skus, remove_views, set_facts, write_segment
from skumatch.gallery_state import read_version
from skumatch.gallery_versions import Difference, diff, log, prune, rollback, verify
from skumatch.jobs import Job
from skumatch.segment import columns
from tests.skumatch.made_up import views

FACTORY = Callable[[int], Encoder]


@pytest.fixture
def gallery(tmp_path: Path, encoder: Encoder) -> Gallery:
    """Return a gallery of four versions: views 0-7 of a-d; 8, 9 of a, e; SKU b (1, 5) removed; facts told."""
    rng = np.random.default_rng(0)
    said = {"a": {"title": "Apple", "brand": "Acme"}, "c": {"title": "Cider"}}
    made = create_from(tmp_path / "gallery", encoder.spec, views(rng, list("abcdabcd")), said)
    made = remove_skus(add_views(made, views(rng, list("ae"))), ["b"])
    return set_facts(made, {"a": {"brand": "Apex"}, "c": {"title": ""}, "d": {"size": "1 l"}, "new": {"size": "2 l"}})


def broken(gallery: Gallery, version: str) -> Path:
    """Break the manifest of ``version`` and return it."""
    path: Path = gallery.store / version / "gallery.json"
    path.write_bytes(path.read_bytes()[:-20])
    return path


def pieces(store: Path) -> set[str]:
    """Return all pieces on disk, relative to the store."""
    return {
        f"{home}/{path.name}"
        for home in ("segments", "tables", "indexes")
        if (store / home).is_dir()
        for path in (store / home).iterdir()
    }


def test_the_log_tells_what_happened_newest_first(gallery: Gallery) -> None:
    told = log(gallery.store)
    assert [entry["version"] for entry in told] == [f"v00000{i}" for i in (4, 3, 2, 1)]
    assert [entry["parent"] for entry in told] == ["v000003", "v000002", "v000001", None]
    assert [entry["reason"] for entry in told] == ["update facts of 4 SKUs", "remove 1 SKU", "add 2 views", "build"]
    numbers = [tuple(entry[name] for name in ("views", "skus", "added", "removed")) for entry in told]
    assert numbers == [(8, 4, 0, 0), (8, 4, 0, 2), (10, 5, 2, 0), (8, 4, 8, 0)]
    assert [entry["current"] for entry in told] == [True, False, False, False]
    assert {entry["model"] for entry in told} == {"fake"} and all(entry["time"].endswith("Z") for entry in told)
    rollback(gallery.store, "v000002")
    path = broken(gallery, "v000003")
    told = log(gallery.store)
    assert [entry["current"] for entry in told] == [False, False, True, False]
    assert told[1].keys() == {"version", "current", "error"} and f"{path} is corrupt" in told[1]["error"]
    with pytest.raises(GalleryError, match="there is no gallery"):
        log(gallery.store / "segments")


def test_a_difference_is_told_by_sku_view_and_fact(gallery: Gallery, make_encoder: FACTORY) -> None:
    def said(found: Difference) -> tuple[list[str], list[str], list[int], list[int], list[str], bool]:
        ids = found.views_added.tolist(), found.views_removed.tolist()
        return (found.skus_added, found.skus_removed, *ids, found.facts, found.model)

    store = gallery.store
    assert said(diff(store, "v000001", "v000004")) == (["e"], ["b"], [8, 9], [1, 5], ["a", "c", "d"], False)
    assert said(diff(store, "4", "v1")) == (["b"], ["e"], [1, 5], [8, 9], ["a", "c", "d"], False)
    assert said(diff(store, "v3", "v3")) == ([], [], [], [], [], False)
    set_facts(gallery, {"a": {"title": "Apple", "brand": "Acme"}, "c": {"title": "Cider"}, "d": {"size": ""}})
    assert said(diff(store, "v1", "v5"))[4] == []  # told otherwise, and the same again
    create_from(store, make_encoder(1).spec, views(np.random.default_rng(0), ["a"]))
    assert diff(store, "v5", "v6").model
    for name in ("v000009", "9", "", "v", "vv1", "\N{SUPERSCRIPT TWO}", "../v000001", "-1"):
        with pytest.raises(GalleryError, match=rf"has no version '{name}' - its versions are: v000001, v0.*v000006$"):
            diff(store, "v1", name)
    broken(gallery, "v000002")
    with pytest.raises(ArtefactError, match=r"v000002/gallery\.json is corrupt"):
        diff(store, "v1", "v2")


def test_going_back_moves_the_pointer_alone(gallery: Gallery) -> None:
    store = gallery.store
    assert rollback(store) == "v000003" and open_gallery(store).version == "v000003"
    for name in ("1", "v1", "v000001", "0001"):
        rollback(store, "v000004")
        assert rollback(store, name) == "v000001"
        assert (store / "CURRENT").read_bytes() == b"v000001\n"
    assert artefact.versions(store) == [f"v00000{i}" for i in (1, 2, 3, 4)]
    with pytest.raises(GalleryError, match=r"v000001 has no version before it - name one of `skumatch gallery log`"):
        rollback(store)
    after = add_views(open_gallery(store), views(np.random.default_rng(1), ["z"]))
    assert (after.version, after.published.facts["parent"], after.ids.tolist()) == (
        "v000005",
        "v000001",
        [*range(8), 10],
    )
    assert rollback(store) == "v000001"


def test_going_back_to_what_is_broken_or_not_there(gallery: Gallery) -> None:
    store = gallery.store
    with pytest.raises(GalleryError, match="has no version 'v000009'"):
        rollback(store, "v000009")
    segment = store / "segments" / read_version(store / "v000001").state.segments[0].name / "vectors.f32"
    data = bytearray(segment.read_bytes())
    facts = segment.stat()
    data[40] ^= 1
    segment.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"vectors\.f32 is corrupt"):
        rollback(store, "v000001")
    assert facts.st_size == segment.stat().st_size and artefact.current(store) == gallery.published.folder
    prune(store, 1)
    with pytest.raises(GalleryError, match=r"no version 'v000003' - its versions are: v000004$"):
        rollback(store)  # the parent was pruned


@pytest.mark.parametrize("call", [rollback, prune, log, verify])
def test_where_there_is_no_gallery_none_is_made(call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"there is no gallery in .* - make one"):
        call(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_pruning_leaves_the_newest_the_current_and_what_they_need(gallery: Gallery, encoder: Encoder) -> None:
    store, rng = gallery.store, np.random.default_rng(1)
    create_from(store, encoder.spec, views(rng, ["q"]), {"q": {"title": "Q"}})
    again = create_from(store, encoder.spec, views(rng, ["r"]))
    rollback(store, "v000004")
    before = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    gone, freed = prune(store, 1)
    after = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert gone == ["v000001", "v000002", "v000003", "v000005"] and freed == before - after > 0
    kept = [read_version(store / name).state for name in artefact.versions(store)]
    assert [len(state.segments) for state in kept] == [2, 1]
    assert pieces(store) == {piece for state in kept for piece in state.pieces()}
    assert [opened.version for opened in verify(store, everything=True)] == ["v000004", again.version]
    assert not list(store.rglob(".*")) and prune(store, 1) == ([], 0)
    assert open_gallery(store).facts.of("d") == {"size": "1 l"}


def test_pruning_keeps_three_by_default(gallery: Gallery) -> None:
    assert prune(gallery.store)[0] == ["v000001"] and len(artefact.versions(gallery.store)) == 3
    for keep in (0, -1):
        with pytest.raises(GalleryError, match=f"cannot keep {keep} versions - keep at least 1"):
            prune(gallery.store, keep)


def test_pruning_leaves_what_unfinished_jobs_have_done(gallery: Gallery) -> None:
    store = gallery.store
    given = columns(views(np.random.default_rng(1), ["q"]), 32)
    mine, orphan = (
        write_segment(store, 32, [batch]) for batch in (given, columns(views(np.random.default_rng(2), ["r"]), 32))
    )
    Job(store / "pending", {"what": "test"}, [mine], done=1).save()
    prune(store, 1)
    assert f"segments/{mine[0]}" in pieces(store) and f"segments/{orphan[0]}" not in pieces(store)
    prune(store, 1, unfinished=True)
    assert f"segments/{mine[0]}" not in pieces(store)
    assert len(verify(store)[0]) == 8


def test_a_broken_version_stops_a_prune_only_where_it_is_kept(gallery: Gallery) -> None:
    store = gallery.store
    broken(gallery, "v000003")
    before = pieces(store)
    with pytest.raises(ArtefactError, match=r"v000003/gallery\.json is corrupt"):
        prune(store, 2)
    assert pieces(store) == before and len(artefact.versions(store)) == 4
    assert prune(store, 1)[0] == ["v000001", "v000002", "v000003"]
    assert len(verify(store, everything=True)) == 1


def test_verifying_reads_every_byte(gallery: Gallery) -> None:
    store = gallery.store
    assert [opened.version for opened in verify(store)] == ["v000004"]
    assert [len(opened) for opened in verify(store, everything=True)] == [8, 10, 8, 8]
    old = read_version(store / "v000001").state.tables[0]
    assert old not in read_version(store / "v000004").state.tables
    path = store / "tables" / old / "skus.parquet"
    path.write_bytes(path.read_bytes().replace(b"Acme", b"Akme"))
    assert [opened.version for opened in verify(store)] == ["v000004"]
    with pytest.raises(ArtefactError, match=r"skus\.parquet is corrupt \(its digest differs\) - restore it"):
        verify(store, everything=True)


def test_readers_come_and_go_while_versions_are_made_and_pruned(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    store = tmp_path / "g"
    gallery = create_from(store, encoder.spec, views(rng, ["a"] * 3))
    more = views(rng, ["b"] * 12)
    done = threading.Event()
    seen: list[int] = []
    failed: list[BaseException] = []

    def read() -> None:
        try:
            opened = open_gallery(store)
            while not done.is_set() or len(opened) < 15:
                fresh = open_gallery(store) if len(seen) % 2 else opened.refreshed()
                assert [row.sku for row in fresh.views()] == ["a"] * 3 + ["b"] * (len(fresh) - 3)
                assert len({fresh.thumb(row.id) for row in fresh.views()}) == len(fresh) >= len(opened)
                opened = fresh
                seen.append(len(opened))
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for view in more:
        gallery = add_views(gallery, [view])
        prune(store, 1)
    done.set()
    reader.join()
    assert not failed and seen[-1] == 15


def test_what_a_killed_prune_left_is_cleared_away(gallery: Gallery) -> None:
    store = gallery.store
    shutil.copytree(store / "v000001", store / ".v000000.0.0.tmp")
    (store / "segments" / ".x.0.0.tmp").mkdir()
    (store / "pending").mkdir()
    note = store / "pending" / ".job.json.1.tmp"
    note.write_bytes(b"half")
    for path in (store / ".v000000.0.0.tmp", store / "segments" / ".x.0.0.tmp", note):
        os.utime(path, (0, 0))
    assert prune(store, 4)[0] == []
    assert not list(store.rglob(".*")) and len(artefact.versions(store)) == 4
    assert remove_views(gallery, [0]).version == "v000005"
