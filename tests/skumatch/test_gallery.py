"""A gallery version opened for reading: it answers as a dict would, is guarded byte by byte, and outlives a prune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch import artefact, gallery_versions
from skumatch import gallery as gallery_module
from skumatch.calibration import COHESION_VIEWS, cohesion_of
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery, open_gallery, open_version
from skumatch.gallery_changes import add_views, create, create_from, remove_skus, remove_views, set_facts, write_segment
from skumatch.segment import NewView, columns
from tests.skumatch.made_up import unit, views

FACTORY = Callable[[int], Encoder]


def flip(path: Path, position: int) -> bytes:
    before = path.read_bytes()
    path.write_bytes(before[:position] + bytes([before[position] ^ 2]) + before[position + 1 :])
    return before


@pytest.fixture
def gallery(tmp_path: Path, encoder: Encoder) -> Gallery:
    """Return a gallery of two versions: 8 views of 4 SKUs, then 2 more."""
    rng = np.random.default_rng(0)
    said = {"a": {"title": "Apple juice", "brand": "Acme"}, "b": {"brand": "Acme"}}
    first = create_from(tmp_path / "gallery", encoder.spec, views(rng, list("abcdabcd")), said)
    return add_views(first, views(rng, list("ae")), {"e": {"title": "Elderflower"}, "new": {"brand": "Nobody"}})


def test_any_flipped_byte_names_its_file(gallery: Gallery) -> None:
    rng = np.random.default_rng(1)
    remove_views(add_views(add_views(gallery, views(rng, ["f"] * 30)), views(rng, ["g"] * 3)), [0])
    gallery_versions.prune(gallery.store, 1)
    files = [path for path in gallery.store.rglob("*") if path.is_file() and path.stat().st_size]
    tables = {"table.json", "skus.parquet"}
    segments = {"segment.json", "vectors.f32", "codes.i32", "skus.arrow", "rows.arrow", "thumbs.bin", "ids.i64"}
    assert {path.name for path in files} == {"CURRENT", "gallery.json", "removed.i64"} | tables | segments
    for path in files:
        size = path.stat().st_size
        for position in sorted({0, 3, size // 4, size // 2, size - 1}):
            before = flip(path, position)
            with pytest.raises(ArtefactError, match=path.name):
                open_gallery(gallery.store)
            path.write_bytes(before)
    assert len(open_gallery(gallery.store)) == 42


def test_a_missing_file_is_named(gallery: Gallery) -> None:
    for name in ("thumbs.bin", "removed.i64", "skus.parquet"):
        folder = gallery.published.folder if name == "removed.i64" else gallery.store
        paths = list(folder.rglob(name))
        for path in paths:
            path.rename(path.with_suffix(".away"))
        with pytest.raises(ArtefactError, match=rf"{name} is missing - restore it from a copy"):
            open_gallery(gallery.store)
        for path in paths:
            path.with_suffix(".away").rename(path)
    assert len(open_gallery(gallery.store, full=True)) == 10


def test_another_encoder_is_refused_and_named(gallery: Gallery, make_encoder: FACTORY) -> None:
    gallery.require(make_encoder(0).spec)
    with pytest.raises(SpecMismatch, match=r"another model \(fake, 000000000000; .* gallery rebuild"):
        gallery.require(make_encoder(1).spec)


def test_there_is_no_gallery(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for store in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(GalleryError, match=r"there is no gallery in .* - make one with `skumatch gallery build`"):
            open_gallery(store)
    assert not (tmp_path / "nowhere").exists()


def test_a_segment_of_another_kind_is_refused(gallery: Gallery) -> None:
    narrow = NewView("a", "", "", b"", np.eye(1, 16, dtype=np.float32)[0])
    numbered = replace(columns(views(np.random.default_rng(0), ["a"]), 32), ids=np.array([70]))
    for dim, batch in ((16, columns([narrow], 16)), (32, numbered)):
        segment = write_segment(gallery.store, dim, [batch], batch.ids is not None)
        with pytest.raises(ArtefactError, match=f"{segment[0]} does not belong to this gallery"):
            create(gallery.store, gallery.spec, [segment])
    assert open_gallery(gallery.store).version == "v000002"


def test_unknown_skus_and_views(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match=r"no SKU 'aa'.*nearest names are: a"):
        gallery.ids_of("aa")
    with pytest.raises(GalleryError, match="no SKU 'caf\udce9' - nearest names are: c, a"):
        gallery.code_of("caf\udce9")
    for view_id in (10, -1, 2**63, 2**70):
        for call in (gallery.view, gallery.thumb):
            with pytest.raises(GalleryError, match=f"no view {view_id} - "):
                call(view_id)
    with pytest.raises(GalleryError, match="no view 10"):
        gallery.vectors_of(np.array([3, 10]))


def test_vectors_come_in_the_order_of_the_ids(gallery: Gallery) -> None:
    ids = np.array([9, 0, 4, 9])
    found = gallery.vectors_of(ids)
    assert found.dtype == np.float32 and found.shape == (4, 32)
    scores, nearest = gallery.index.search(found, 1)
    assert nearest[:, 0].tolist() == ids.tolist() and scores[:, 0] == pytest.approx(1, abs=1e-6)
    assert gallery.vectors_of(ids[:0]).shape == (0, 32)


def test_digests_as_numbers(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    given = views(rng, list("abc"))
    given[1] = NewView("b", "b.jpg", "", b"", unit(rng, 1)[0])
    gallery = remove_views(add_views(create_from(tmp_path / "g", encoder.spec, given), views(rng, ["d"] * 20)), [5])
    words = [int.from_bytes(bytes.fromhex(view.sha256)[:8], "little") for view in gallery.views()]
    assert gallery.sha_words().tolist() == words and words[1] == 0 and gallery.view(1).sha256 == ""


def test_facts_by_code(gallery: Gallery) -> None:
    titles = [gallery.title(code) for code in range(len(gallery.skus))]
    assert dict(zip(gallery.skus, titles, strict=True)) == {"a": "Apple juice", "b": "", "c": "", "d": ""} | {
        "e": "Elderflower"
    }
    assert gallery.facts.of("a") == {"title": "Apple juice", "brand": "Acme"} and gallery.facts.of("zz") == {}
    code = gallery.code_of("c")
    assert (gallery.facts.cell(code, "brand"), gallery.facts.cell(code, "no such column")) == ("", "")
    assert gallery.facts.of("new") == {"brand": "Nobody"} and "new" not in gallery.skus


def test_filters_choose_skus_that_have_a_view(gallery: Gallery) -> None:
    def chosen(**filters: str) -> list[str]:
        return [gallery.skus[int(code)] for code in gallery.facts.codes(filters)]

    assert chosen(brand="Acme") == ["a", "b"] and chosen(brand="Acme", sku="b") == ["b"] and chosen(sku="d") == ["d"]
    assert chosen(title="Elderflower") == ["e"] and chosen() == list("abcde")
    assert chosen(brand="") == ["c", "d", "e"] and chosen(brand="", title="") == ["c", "d"]  # nothing known of c, d
    assert chosen(brand="", title="Elderflower") == ["e"] and chosen(brand="", sku="d") == ["d"]
    with pytest.raises(GalleryError, match=r"no SKU with a view has brand=Nobody - see `skumatch gallery list`"):
        chosen(brand="Nobody")
    for filters in ({"sku": "new"}, {"sku": "caf\udce9"}, {"sku": "c", "brand": "Acme"}):
        with pytest.raises(GalleryError, match="no SKU with a view has sku="):
            chosen(**filters)
    with pytest.raises(GalleryError, match=r"no SKU has brand=Acne - nearest values are brand: Acme"):
        chosen(brand="Acne")
    with pytest.raises(GalleryError, match=r"no column 'colour' - its columns are: sku, title, brand"):
        chosen(colour="red")


def test_cohesion_is_that_of_the_views_that_are_there(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    names = [*"abbccc", *("d" * (COHESION_VIEWS + 9))]
    first, more = views(rng, [names[i] for i in rng.permutation(len(names))]), views(rng, list("bd"))
    gallery = create_from(tmp_path / "g", encoder.spec, first)

    def expected(items: Sequence[NewView], sku: str) -> tuple[float, int]:
        own = np.stack([view.vector for view in items if view.sku == sku])
        return cohesion_of(own[:COHESION_VIEWS]), len(own)

    for opened, items in ((gallery, first), (add_views(gallery, more), [*first, *more])):
        for code, sku in enumerate(opened.skus):
            alike, count = opened.cohesion(code)
            assert (alike, count) == pytest.approx(expected(items, sku), abs=1e-6, nan_ok=True)
            assert opened.cohesion(code) == pytest.approx((alike, count), nan_ok=True)  # asked again
    gone = [next(i for i, view in enumerate(first) if view.sku == sku) for sku in "bcd"]
    left = [view for i, view in enumerate([*first, *more]) if i not in gone]
    smaller = remove_views(open_gallery(tmp_path / "g"), gone)
    for code, sku in enumerate(smaller.skus):
        assert smaller.cohesion(code) == pytest.approx(expected(left, sku), abs=1e-6, nan_ok=True)


def test_a_refreshed_gallery_shares_what_is_open(gallery: Gallery) -> None:
    assert gallery.refreshed() is gallery
    other = open_gallery(gallery.store)
    add_views(remove_views(other, [0]), views(np.random.default_rng(1), ["z"]))
    fresh = gallery.refreshed()
    assert (fresh.version, len(fresh), len(gallery)) == ("v000004", 10, 10)
    before, after = ([segment for segment, _ in opened.pieces.segments] for opened in (gallery, fresh))
    assert after[0] is before[0] and after[0] is not other.pieces.segments[0][0]
    assert fresh.pieces.table is gallery.pieces.table and fresh.refreshed() is fresh
    told = set_facts(fresh, {"z": {"title": "Zest"}})
    again = fresh.refreshed()
    assert [segment for segment, _ in again.pieces.segments] == after and again.version == "v000005"
    titles = [some.title(some.code_of("z")) for some in (fresh, told, again)]
    assert titles == ["", "Zest", "Zest"]
    (gallery.store / "CURRENT").unlink()
    with pytest.raises(GalleryError, match="there is no gallery"):
        again.refreshed()


def test_a_reader_keeps_answering_after_its_version_was_pruned(gallery: Gallery, encoder: Encoder) -> None:
    other = open_gallery(gallery.store)  # one that was asked nothing yet
    rows, query = list(gallery.views()), unit(np.random.default_rng(5), 3)
    thumbs, found = [gallery.thumb(row.id) for row in rows], gallery.search(query, 3)
    create_from(gallery.store, encoder.spec, views(np.random.default_rng(9), ["q"]))
    removed, _ = gallery_versions.prune(gallery.store, 1)
    assert removed == ["v000001", "v000002"] and not gallery.published.folder.exists()
    assert len(list((gallery.store / "segments").iterdir())) == 1 and list((gallery.store / "tables").iterdir()) == []
    for reader in (gallery, other):
        assert list(reader.views()) == rows and [reader.thumb(row.id) for row in rows] == thumbs
        again = reader.search(query, 3)
        assert again.views.tolist() == found.views.tolist() and again.scores.tolist() == found.scores.tolist()
        assert reader.title(reader.code_of("a")) == "Apple juice"
    assert list(other.refreshed().skus) == ["q"]


def test_opening_goes_on_with_the_next_version_when_its_own_is_pruned(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def underneath(folder: Path, *rest: object) -> Gallery:
        """Open the version, which is removed in between the first time."""
        opened.append(folder.name)
        if len(opened) == 1:
            remove_skus(gallery, ["a"])
            gallery_versions.prune(gallery.store, 1)
        return open_version(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery_module, "open_version", underneath)
    assert open_gallery(gallery.store).version == "v000003" and opened == ["v000002", "v000003"]


def test_a_gallery_of_another_format_is_refused_and_built_anew(gallery: Gallery, encoder: Encoder) -> None:
    folder = gallery.published.folder
    document = artefact.read_manifest(folder, "gallery.json")
    (folder / "gallery.json").unlink()
    artefact.seal(folder, "gallery.json", {k: v for k, v in {**document, "format": 99}.items() if k != "files"})
    calls: list[Callable[[], Gallery]] = [lambda: open_gallery(gallery.store), lambda: remove_views(gallery, [0])]
    for call in calls:
        with pytest.raises(
            GalleryError, match="v000002 was written by another version of skumatch - build the gallery"
        ):
            call()
    made = create_from(gallery.store, encoder.spec, views(np.random.default_rng(0), ["q"]))
    assert (made.version, list(made.skus), made.published.facts["parent"]) == ("v000003", ["q"], None)
    told = [entry.get("error", "no error") for entry in gallery_versions.log(gallery.store)]
    assert "another version of skumatch" in told[1] and (told[0], told[2]) == ("no error", "no error")
