"""How a gallery changes: as a dict would, ids for ever, nothing half done, and whatever others did meanwhile stays."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch import artefact
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_skus, remove_views, replace_views, set_facts
from skumatch.gallery_versions import rollback
from skumatch.segment import NewView
from tests.skumatch.made_up import unit, views

FACTORY = Callable[[int], Encoder]
ODD = ["", " ", "a\0b", "\N{SNOWMAN}", "e\u0301", "\u00e9", "x" * 100_000, "line\nbreak", "../up"]


def same(gallery: Gallery, oracle: dict[int, NewView], rng: np.random.Generator) -> None:
    """Compare everything that can be asked of ``gallery`` with ``oracle``."""
    assert gallery.ids.tolist() == sorted(oracle) and len(gallery) == len(oracle)
    assert [(v.id, v.sku, v.source, v.sha256) for v in gallery.views()] == [
        (i, oracle[i].sku, oracle[i].source, oracle[i].sha256) for i in sorted(oracle)
    ]
    counts: dict[str, int] = {}
    for view in oracle.values():
        counts[view.sku] = counts.get(view.sku, 0) + 1
    assert gallery.counts() == counts and sorted(gallery.skus) == sorted(counts)
    for sku in counts:
        assert gallery.ids_of(sku) == sorted(i for i, view in oracle.items() if view.sku == sku)
    some = sorted(oracle)[:: max(1, len(oracle) // 5)]
    assert [gallery.thumb(i) for i in some] == [oracle[i].thumb for i in some]
    assert np.array_equal(gallery.vectors_of(np.array(some)), np.stack([oracle[i].vector for i in some]))
    query = unit(rng, 1)
    scores = {i: float(view.vector @ query[0]) for i, view in oracle.items()}
    best: dict[str, int] = {}
    for i in sorted(scores, key=lambda i: -scores[i]):
        best.setdefault(oracle[i].sku, i)
    found = gallery.search(query, 3)
    answers = [(gallery.skus[c], int(v)) for c, v in zip(found.skus[0], found.views[0], strict=True) if c >= 0]
    assert answers == list(best.items())[:3]


@pytest.fixture
def gallery(tmp_path: Path, encoder: Encoder) -> Gallery:
    """Return a gallery of two versions: 8 views of 4 SKUs, then 2 more."""
    rng = np.random.default_rng(0)
    first = create_from(tmp_path / "gallery", encoder.spec, views(rng, list("abcdabcd")), {"a": {"title": "Apple"}})
    return add_views(first, views(rng, list("ae")), {"e": {"title": "Elder"}})


@pytest.mark.parametrize("seed", range(2))
def test_random_changes_against_a_dict(seed: int, tmp_path: Path, encoder: Encoder) -> None:
    chance, rng = random.Random(seed), np.random.default_rng(seed)
    names = [f"sku-{i}" for i in range(8)]
    start = views(rng, chance.choices(names, k=6))
    gallery = create_from(tmp_path / "g", encoder.spec, start)
    oracle, following = dict(enumerate(start)), 6
    for step in range(16):
        what = chance.random()
        new = views(rng, chance.choices(names, k=chance.randint(1, 5)))
        if what < 0.5 or len(oracle) < 3:
            gallery = add_views(gallery, new)
        elif what < 0.8:
            gone = chance.sample(sorted(oracle), chance.randint(1, min(4, len(oracle) - 1)))
            gallery = remove_views(gallery, gone)
            oracle, new = {i: view for i, view in oracle.items() if i not in gone}, []
        else:
            gallery = replace_views(gallery, {view.sku for view in new}, new, {})
            oracle = {i: view for i, view in oracle.items() if view.sku not in {some.sku for some in new}}
        oracle.update(enumerate(new, start=following))
        following += len(new)  # ids are never used again
        if chance.random() < 0.3:
            gallery = open_gallery(tmp_path / "g", full=chance.random() < 0.5)
        assert gallery.version == f"v{step + 2:06d}"
        same(gallery, oracle, rng)


def test_versions_stay_and_say_what_happened(gallery: Gallery) -> None:
    facts = gallery.published.facts
    assert (facts["parent"], facts["reason"]) == ("v000001", "add 2 views")
    assert facts["counts"] == {"views": 10, "skus": 5, "added": 2, "removed": 0}
    fewer = remove_skus(gallery, ["b"]).published.facts
    assert fewer["reason"] == "remove 1 SKU"
    assert fewer["counts"] == {"views": 8, "skus": 4, "added": 0, "removed": 2}
    swapped = replace_views(gallery.refreshed(), ["c", "new"], views(np.random.default_rng(1), ["c"]), {})
    assert swapped.published.facts["counts"] == {"views": 7, "skus": 4, "added": 1, "removed": 2}
    rollback(gallery.store, "v000001")
    old = open_gallery(gallery.store, full=True)
    assert (len(old), len(gallery), old.facts.of("e")) == (8, 10, {})
    assert not list(gallery.store.rglob(".*"))


def test_building_again_leaves_the_older_version_on_disk(gallery: Gallery, encoder: Encoder) -> None:
    again = create_from(gallery.store, encoder.spec, views(np.random.default_rng(5), ["z"]))
    assert (again.version, list(again.skus), again.published.facts["parent"]) == ("v000003", ["z"], "v000002")
    assert again.ids.tolist() == [10] and again.facts.of("a") == {}
    assert again.published.facts["counts"] == {"views": 1, "skus": 1, "added": 1, "removed": 10}
    rollback(gallery.store)
    assert len(open_gallery(gallery.store)) == 10


def test_an_id_is_never_used_for_another_view(gallery: Gallery, encoder: Encoder) -> None:
    rng = np.random.default_rng(1)
    assert add_views(remove_views(gallery, [8, 9]), views(rng, ["q"])).ids.tolist()[-1] == 10
    rollback(gallery.store, "v000001")
    after = add_views(open_gallery(gallery.store), views(rng, ["q", "q"]))
    assert after.ids.tolist() == [*range(8), 11, 12]
    assert after.published.facts["counts"] == {"views": 10, "skus": 5, "added": 2, "removed": 0}
    rollback(gallery.store, "v000002")
    for name in ("v000004", "v000005"):  # broken versions do not stop it, whole ones count
        path = gallery.store / name / "gallery.json"
        whole = path.read_bytes()
        path.write_bytes(b"{}")
        made = create_from(gallery.store, encoder.spec, views(rng, ["q"]))
        assert made.ids.min() >= 11
        path.write_bytes(whole)


def test_many_small_additions_leave_few_segments_and_the_ids_as_they_were(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    oracle = dict(enumerate(views(rng, ["sku-0"])))
    gallery = create_from(tmp_path / "g", encoder.spec, [oracle[0]], {"sku-0": {"title": "0"}})
    for number in range(1, 30):
        (oracle[number],) = views(rng, [f"sku-{number % 7}"])
        gallery = add_views(gallery, [oracle[number]], {f"sku-{number % 7}": {"title": str(number)}})
        if number % 10 == 9:
            gallery = remove_views(gallery, [number - 5])
            del oracle[number - 5]
    assert len(gallery.published.state.segments) <= 5 and len(gallery.published.state.tables) <= 5
    same(gallery, oracle, rng)
    assert gallery.facts.of("sku-3") == {"title": "24"}


def test_what_has_no_row_any_more_need_not_be_remembered(gallery: Gallery) -> None:
    fewer = remove_views(gallery, [0, 9])
    assert fewer.published.state.removed.tolist() == [0, 9]
    merged = add_views(fewer, views(np.random.default_rng(1), ["z"] * 30))  # takes in both segments before it
    assert len(merged.published.state.segments) == 1 and merged.published.state.removed.tolist() == []
    assert merged.ids.tolist() == [*range(1, 9), *range(10, 40)]
    assert (merged.published.folder / "removed.i64").read_bytes() == b""
    with pytest.raises(GalleryError, match="no view 9"):
        remove_views(merged, [9])


def test_the_same_views_twice_are_views_of_their_own(tmp_path: Path, encoder: Encoder) -> None:
    given = views(np.random.default_rng(0), list("ab") * 3000)  # too many to be merged
    gallery = create_from(tmp_path / "g", encoder.spec, given)
    twice = add_views(gallery, given)
    assert len(twice) == 12_000 and len(list((tmp_path / "g" / "segments").iterdir())) == 1
    fewer = remove_views(twice, range(6000))
    assert fewer.ids.tolist() == list(range(6000, 12_000)) and fewer.view(6001).source == given[1].source
    found = fewer.search(given[7].vector[None], 1)
    assert found.views[0, 0] == 6007


def test_what_others_did_meanwhile_stays(gallery: Gallery) -> None:
    rng = np.random.default_rng(1)
    add_views(gallery, views(rng, ["x"]))
    after = remove_views(gallery, [0])  # of a version that is not current any more
    assert after.ids.tolist() == [*range(1, 11)] and after.published.facts["parent"] == "v000003"
    after = remove_views(gallery, [0, 1])  # 0 is gone already
    assert after.ids.tolist() == [*range(2, 11)]
    assert set_facts(gallery, {"x": {"title": "X"}}).facts.of("x") == {"title": "X"}


def test_a_gallery_rebuilt_with_another_model_takes_nothing_of_this_one(
    gallery: Gallery, make_encoder: FACTORY
) -> None:
    create_from(gallery.store, make_encoder(1).spec, views(np.random.default_rng(0), ["q"]))
    changes: list[Callable[[], Gallery]] = [
        lambda: remove_views(gallery, [0]),
        lambda: set_facts(gallery, {"a": {"title": "x"}}),
    ]
    for change in changes:
        with pytest.raises(SpecMismatch, match="rebuilt with another model meanwhile"):
            change()
    assert open_gallery(gallery.store).version == "v000003"


def test_facts_of_a_sku_go_with_it(gallery: Gallery) -> None:
    told = set_facts(gallery, {"a": {"brand": "Acme"}, "b": {"title": ""}})
    assert told.facts.of("a") == {"title": "Apple", "brand": "Acme"} and gallery.facts.of("a") == {"title": "Apple"}
    gone = remove_skus(told, ["a", "e", "a"])
    assert list(gone.skus) == list("bcd") and gone.facts.of("a") == gone.facts.of("e") == {}
    back = add_views(gone, views(np.random.default_rng(1), ["a"]), {"a": {"size": "1 l"}})
    assert back.facts.of("a") == {"size": "1 l"}
    left = remove_views(told, told.ids_of("c"))  # views alone: the facts stay
    told = set_facts(left, {"c": {"title": "Cider"}})
    assert "c" not in told.skus and told.facts.of("c") == {"title": "Cider"}
    back = add_views(told, views(np.random.default_rng(2), ["c"]))
    assert back.title(back.code_of("c")) == "Cider"


def test_what_is_not_there_cannot_be_removed(gallery: Gallery) -> None:
    for ids in ([0, 10], [-1], [2**63], [2**70, 0]):
        with pytest.raises(GalleryError, match=r"has no view (10|-1|9223372036854775808|1180591620717411303424) - "):
            remove_views(gallery, ids)
    with pytest.raises(GalleryError, match=r"no SKU 'zz'"):
        remove_skus(gallery, ["a", "zz"])
    with pytest.raises(GalleryError, match="empty the gallery - build a new one instead"):
        remove_views(gallery, gallery.ids.tolist())
    with pytest.raises(GalleryError, match="empty the gallery"):
        remove_skus(gallery, list("abcde"))
    assert open_gallery(gallery.store).version == "v000002"


def test_nothing_to_build_from_leaves_nothing(tmp_path: Path, encoder: Encoder, gallery: Gallery) -> None:
    rng = np.random.default_rng(0)
    bad = NewView("a", "a.jpg", "", b"", np.full(32, np.nan, np.float32))
    for store in (tmp_path / "new", gallery.store):
        for unfit, words in (([], "no view could be read"), ([*views(rng, ["a"]), bad], r"vector of a\.jpg")):
            with pytest.raises(GalleryError, match=words):
                create_from(store, encoder.spec, unfit)
    changes: list[Callable[[], Gallery]] = [
        lambda: add_views(gallery, []),
        lambda: replace_views(gallery, ["a"], [], {}),
    ]
    for change in changes:
        with pytest.raises(GalleryError, match="no view could be read"):
            change()
    with pytest.raises(GalleryError, match="there is no gallery"):
        open_gallery(tmp_path / "new")
    assert open_gallery(gallery.store).version == "v000002" and not list(gallery.store.rglob(".*"))


def test_odd_names_live_and_are_found(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    given = views(rng, ODD)
    said = {sku: {"title": sku, "\N{SNOWMAN}": "x"} for sku in ODD}
    gallery = add_views(create_from(tmp_path / "g", encoder.spec, given, said), views(rng, ["plain"] * 40))
    assert list(gallery.skus) == [*ODD, "plain"]
    for number, sku in enumerate(ODD):
        assert gallery.ids_of(sku) == [number] and gallery.title(gallery.code_of(sku)) == sku
        assert gallery.facts.codes({"sku": sku}).tolist() == [number]
    fewer = remove_skus(gallery, ODD[:4])
    assert [fewer.skus[int(code)] for code in fewer.facts.codes({"\N{SNOWMAN}": "x"})] == ODD[4:]


def test_a_folder_named_in_another_encoding(tmp_path: Path, encoder: Encoder) -> None:
    store = tmp_path / os.fsdecode(b"caf\xe9") / "g"
    given = views(np.random.default_rng(0), list("ab"))
    add_views(
        create_from(store, encoder.spec, given, {"a": {"title": "Apple"}}), views(np.random.default_rng(1), ["c"])
    )
    opened = open_gallery(store, full=True)
    assert (opened.facts.of("a"), opened.thumb(1), len(opened)) == ({"title": "Apple"}, given[1].thumb, 3)


def test_a_full_disk_leaves_the_old_version_current(tiny_disk: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    store = tiny_disk / "gallery"
    gallery = create_from(store, encoder.spec, views(rng, list("abc")))
    big = [NewView("d", f"{i}.jpg", f"{i:064x}", bytes(50_000), vector) for i, vector in enumerate(unit(rng, 60))]
    with pytest.raises(ArtefactError, match=r"(?i)no space left"):
        add_views(gallery, big)
    after = open_gallery(store, full=True)
    assert (after.version, len(after), list(after.skus)) == ("v000001", 3, ["a", "b", "c"])
    assert not list(store.rglob(".*")) and artefact.versions(store) == ["v000001"]
