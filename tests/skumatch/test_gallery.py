"""The gallery on disk: checked against a plain dict, guarded byte by byte, and never half changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch import artefact, images
from skumatch.calibration import COHESION_VIEWS, cohesion_of
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery, NewView, add_views, create, open_gallery, remove_views
from skumatch.segment import describe
from skumatch.spec import Vectors

FACTORY = Callable[[int], Encoder]


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, 32))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def views(rng: np.random.Generator, skus: Sequence[str]) -> list[NewView]:
    """Return a made-up view for each of ``skus``; source and thumbnail are unique to it."""
    vectors = unit(rng, len(skus))
    marks = rng.integers(0, 1 << 60, len(skus)).tolist()
    return [
        NewView(sku, f"shelf/{mark}.jpg", f"{mark:064x}", b"\xff\xd8" + str(mark).encode(), vector)
        for sku, mark, vector in zip(skus, marks, vectors, strict=True)
    ]


def batches(items: Sequence[NewView], size: int = 3) -> Iterator[Sequence[NewView]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def flip(path: Path, position: int) -> bytes:
    before = path.read_bytes()
    path.write_bytes(before[:position] + bytes([before[position] ^ 2]) + before[position + 1 :])
    return before


def same(gallery: Gallery, oracle: dict[int, NewView], rng: np.random.Generator) -> None:
    """Compare everything that can be asked of ``gallery`` with ``oracle``."""
    assert len(gallery) == len(oracle)
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
    first = create(tmp_path / "gallery", encoder.spec, batches(views(rng, list("abcdabcd"))), {"a": "Apple juice"})
    return add_views(first, batches(views(rng, list("ae"))), {"e": "Elderflower"})


@pytest.mark.parametrize("seed", range(2))
def test_random_changes_against_a_dict(seed: int, tmp_path: Path, encoder: Encoder) -> None:
    chance, rng = random.Random(seed), np.random.default_rng(seed)
    names = [f"sku-{i}" for i in range(8)]
    start = views(rng, chance.choices(names, k=6))
    gallery = create(tmp_path / "g", encoder.spec, batches(start), {})
    oracle, following = dict(enumerate(start)), 6
    for step in range(20):
        if chance.random() < 0.6 or len(oracle) < 3:
            new = views(rng, chance.choices(names, k=chance.randint(1, 5)))
            gallery = add_views(gallery, batches(new), {})
            oracle.update(enumerate(new, start=following))
            following += len(new)  # ids are never used again
        else:
            gone = chance.sample(sorted(oracle), chance.randint(1, min(4, len(oracle) - 1)))
            gallery = remove_views(gallery, gone)
            oracle = {i: view for i, view in oracle.items() if i not in gone}
        if chance.random() < 0.3:
            gallery = open_gallery(tmp_path / "g", full=chance.random() < 0.5)
        assert gallery.version == f"v{step + 2:06d}"
        same(gallery, oracle, rng)


def test_versions_stay_and_titles_are_kept(gallery: Gallery) -> None:
    assert gallery.titles == {"a": "Apple juice", "e": "Elderflower"}
    assert artefact.versions(gallery.store) == ["v000001", "v000002"]
    assert (gallery.document["parent"], gallery.document["reason"]) == ("v000001", "add 2 views")
    artefact.set_current(gallery.store, "v000001")
    old = open_gallery(gallery.store, full=True)
    assert (len(old), len(gallery), old.titles) == (8, 10, {"a": "Apple juice"})
    assert not list(gallery.store.rglob(".*"))


def test_building_again_leaves_the_older_version_on_disk(gallery: Gallery, encoder: Encoder) -> None:
    again = create(gallery.store, encoder.spec, batches(views(np.random.default_rng(5), ["z"])), {})
    assert (again.version, again.skus, again.document["parent"]) == ("v000003", ["z"], "v000002")
    artefact.set_current(gallery.store, "v000002")
    assert len(open_gallery(gallery.store)) == 10


def test_any_flipped_byte_names_its_file(gallery: Gallery) -> None:
    files = [path for path in gallery.store.rglob("*") if path.is_file() and "v000001" not in path.parts]
    assert sorted(path.name for path in files) == sorted(
        ["CURRENT", "gallery.json", "titles.json", *["rows.parquet", "segment.json", "thumbs.bin", "vectors.f32"] * 2]
    )
    for path in files:
        size = path.stat().st_size
        for position in sorted({0, 3, size // 4, size // 2, size - 1}):
            before = flip(path, position)
            with pytest.raises(ArtefactError, match=path.name):
                open_gallery(gallery.store)
            path.write_bytes(before)
    assert len(open_gallery(gallery.store)) == 10


def test_a_missing_segment_file_is_named(gallery: Gallery) -> None:
    path = next(gallery.store.rglob("thumbs.bin"))
    path.unlink()
    with pytest.raises(ArtefactError, match=r"thumbs\.bin is missing"):
        open_gallery(gallery.store)


def test_another_encoder_is_refused_and_named(gallery: Gallery, make_encoder: FACTORY) -> None:
    gallery.require(make_encoder(0).spec)
    with pytest.raises(SpecMismatch, match=r"another model \(fake, 000000000000; .* gallery build"):
        gallery.require(make_encoder(1).spec)


def test_unknown_skus_and_views(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match=r"no SKU 'aa'.*nearest names are: a"):
        gallery.ids_of("aa")
    for call in (gallery.view, gallery.thumb):
        with pytest.raises(GalleryError, match="no view 10"):
            call(10)
    with pytest.raises(GalleryError, match="no view 10"):
        remove_views(gallery, [0, 10])
    smaller = remove_views(gallery, [4, 4, 0])
    assert len(smaller) == 8 and smaller.document["reason"] == "remove 2 views"
    with pytest.raises(GalleryError, match="no view 4"):
        smaller.view(4)
    with pytest.raises(GalleryError, match="empty the gallery"):
        remove_views(smaller, [view.id for view in smaller.views()])
    assert open_gallery(gallery.store).version == "v000003"


def test_nothing_to_build_from_leaves_nothing(tmp_path: Path, encoder: Encoder, gallery: Gallery) -> None:
    for store in (tmp_path / "new", gallery.store):
        with pytest.raises(GalleryError, match="no view could be read"):
            create(store, encoder.spec, iter([[], []]), {})
    with pytest.raises(GalleryError, match="there is no gallery"):
        open_gallery(tmp_path / "new")
    assert open_gallery(gallery.store).version == "v000002" and not list(gallery.store.rglob(".*"))


def test_an_error_between_batches_leaves_the_old_version(gallery: Gallery) -> None:
    def failing() -> Iterator[Sequence[NewView]]:
        yield views(np.random.default_rng(9), ["q"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_views(gallery, failing(), {})
    assert open_gallery(gallery.store).version == "v000002"
    assert len(list((gallery.store / "segments").iterdir())) == 2


def test_a_full_disk_leaves_the_old_version_current(tiny_disk: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    store = tiny_disk / "gallery"
    gallery = create(store, encoder.spec, batches(views(rng, list("abc"))), {})
    big = [NewView("d", f"{i}.jpg", f"{i:064x}", bytes(50_000), vector) for i, vector in enumerate(unit(rng, 60))]
    with pytest.raises(ArtefactError, match=r"(?i)no space left"):
        add_views(gallery, batches(big), {})
    after = open_gallery(store, full=True)
    assert (after.version, len(after), after.skus) == ("v000001", 3, ["a", "b", "c"])
    assert not list(store.rglob(".*"))


def test_cohesion_is_that_of_the_views_that_are_there(tmp_path: Path, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    names = [*"abbccc", *("d" * (COHESION_VIEWS + 9))]
    first, more = views(rng, [names[i] for i in rng.permutation(len(names))]), views(rng, list("bd"))
    gallery = create(tmp_path / "g", encoder.spec, batches(first), {})

    def expected(items: Sequence[NewView], sku: str) -> tuple[float, int]:
        own = np.stack([view.vector for view in items if view.sku == sku])
        return cohesion_of(own), len(own)

    for opened, items in ((gallery, first), (add_views(gallery, batches(more), {}), [*first, *more])):
        for code, sku in enumerate(opened.skus):
            alike, count = opened.cohesion(code)
            assert (alike, count) == pytest.approx(expected(items, sku), abs=1e-6, nan_ok=True)
            assert opened.cohesion(code) == pytest.approx((alike, count), nan_ok=True)  # asked again
    gone = [next(i for i, view in enumerate(first) if view.sku == sku) for sku in "bcd"]
    left = [view for i, view in enumerate([*first, *more]) if i not in gone]
    smaller = remove_views(open_gallery(tmp_path / "g"), gone)
    for code, sku in enumerate(smaller.skus):
        assert smaller.cohesion(code) == pytest.approx(expected(left, sku), abs=1e-6, nan_ok=True)


def test_vectors_come_in_the_order_of_the_ids(gallery: Gallery) -> None:
    ids = np.array([9, 0, 4, 9])
    found = gallery.vectors_of(ids)
    assert found.dtype == np.float32 and found.shape == (4, 32)
    scores, nearest = gallery.index.search(found, 1)
    assert nearest[:, 0].tolist() == ids.tolist() and scores[:, 0] == pytest.approx(1, abs=1e-6)
    assert gallery.vectors_of(ids[:0]).shape == (0, 32)
    with pytest.raises(GalleryError, match="no view 10"):
        gallery.vectors_of(np.array([3, 10]))


def test_thumbnails_are_small_jpegs(tmp_path: Path) -> None:
    picture = PILImage.new("RGB", (900, 300), "red")
    picture.save(tmp_path / "wide.png")
    data = (tmp_path / "wide.png").read_bytes()
    for source in (tmp_path / "wide.png", data):
        digest, thumb = describe(source)
        assert digest == artefact.file_digest(tmp_path / "wide.png")
        opened = PILImage.open(BytesIO(thumb))
        assert (opened.format, opened.size) == ("JPEG", (256, 85))
    assert images.read_image(thumb).shape == (85, 256, 3)


def test_a_gallery_of_another_format(gallery: Gallery) -> None:
    document = {**gallery.document, "format": 99}
    (gallery.folder / "gallery.json").unlink()
    artefact.seal(gallery.folder, "gallery.json", {k: v for k, v in document.items() if k != "files"})
    with pytest.raises(GalleryError, match="written by another version"):
        open_gallery(gallery.store)
    assert json.loads((gallery.folder / "titles.json").read_text())["a"] == "Apple juice"
