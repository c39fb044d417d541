"""Segments: what goes in comes out, across blocks, under any name; what is unfit or swapped is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch import artefact, images, segment
from skumatch.errors import ArtefactError, GalleryError, ImageError
from skumatch.gallery_changes import write_segment
from skumatch.segment import BLOCK, NewView, Segment, SegmentWriter, Views, columns, describe

DIM = 8
ODD = ["", " ", "a\0b", "\N{SNOWMAN}", "e\u0301", "\u00e9", "x" * 100_000, "line\nbreak", "../up", "'"]


def made(rng: np.random.Generator, skus: list[str]) -> Views:
    """Return a view of each of ``skus``; the third of four has no known file, thumbnails differ in length."""
    rows = rng.normal(size=(len(skus), DIM))
    digests = ["" if i % 4 == 2 else rng.bytes(32).hex() for i in range(len(skus))]
    thumbs = [bytes([i % 251]) * (i % 5) for i in range(len(skus))]
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Views(skus, [f"shelf/{i}" for i in range(len(skus))], digests, thumbs, vectors)


def cut(views: Views, start: int, stop: int) -> Views:
    ids = None if views.ids is None else views.ids[start:stop]
    skus, sources, sha256, thumbs = views.skus, views.sources, views.sha256, views.thumbs
    rest = (thumbs[start:stop], views.vectors[start:stop], ids)
    return Views(skus[start:stop], sources[start:stop], sha256[start:stop], *rest)


def stored(store: Path, views: Views, sizes: list[int] | None = None) -> Segment:
    """Write ``views`` in batches of the ``sizes`` and open what was written."""
    ends = np.cumsum(sizes or [len(views)]).tolist()
    batches = [cut(views, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    name, rows = write_segment(store, DIM, batches, views.ids is not None)
    assert rows == len(views)
    return Segment(store / "segments" / name)


def test_what_goes_in_comes_out_across_blocks(tmp_path: Path) -> None:
    count = 2 * BLOCK + 3
    views = made(np.random.default_rng(0), [f"sku-{i % 97}" for i in range(count)])
    opened = stored(tmp_path, views, [1, BLOCK - 2, 5, 0, count - BLOCK - 4])
    assert (opened.rows, opened.dim, opened.own_ids) == (count, DIM, None)
    assert opened.names.to_pylist() == [f"sku-{i}" for i in range(97)]
    assert np.array_equal(opened.vectors, views.vectors)
    for place in (0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, count - 1):
        row = (opened.sku(place), opened.source(place), opened.sha256(place), opened.thumb(place))
        assert row == (views.skus[place], views.sources[place], views.sha256[place], views.thumbs[place])
    words = [int.from_bytes(bytes.fromhex(digest)[:8], "little") for digest in views.sha256]
    assert opened.sha_words().tolist() == words and words[2] == 0


def test_the_vectors_are_mapped_and_read_only(tmp_path: Path) -> None:
    opened = stored(tmp_path, made(np.random.default_rng(0), ["a", "b"]))
    assert isinstance(opened.vectors, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        opened.vectors[0] = 0


def test_reading_some_rows_gives_what_was_written(tmp_path: Path) -> None:
    count = 3 * BLOCK // 2 + 10
    views = made(np.random.default_rng(1), [f"sku-{i % 5}" for i in range(count)])
    opened = stored(tmp_path, views)
    places = np.flatnonzero(np.arange(count) % 3 != 1)
    ids = places + 1000
    parts = list(opened.read(places, ids))
    assert sum(map(len, parts)) == len(places) and max(map(len, parts)) <= BLOCK
    assert list(opened.read(places[:0], ids[:0])) == []
    name, _ = write_segment(tmp_path / "copy", DIM, parts, with_ids=True)
    copy = Segment(tmp_path / "copy" / "segments" / name)
    assert copy.own_ids is not None and copy.own_ids.tolist() == ids.tolist()
    assert np.array_equal(copy.vectors, views.vectors[places])
    for line in (0, 1, 77, len(places) - 1):
        place = int(places[line])
        assert (copy.sku(line), copy.sha256(line), copy.thumb(line)) == (
            views.skus[place],
            views.sha256[place],
            views.thumbs[place],
        )


def test_odd_names_come_back(tmp_path: Path) -> None:
    opened = stored(tmp_path, made(np.random.default_rng(2), ODD))
    assert [opened.sku(place) for place in range(len(ODD))] == ODD  # composed and decomposed letters stay two SKUs
    again = replace(made(np.random.default_rng(2), ["a"] * len(ODD)), sources=ODD)
    opened = stored(tmp_path, again)
    assert [opened.source(place) for place in range(len(ODD))] == ODD


def test_a_segment_is_named_after_all_that_is_in_it(tmp_path: Path) -> None:
    views = made(np.random.default_rng(3), ["a", "b", "c"])
    names = {stored(tmp_path, views).folder.name, stored(tmp_path, views, [1, 2]).folder.name}
    assert len(names) == 1
    other = views.vectors.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(2))
    for changed in (
        replace(views, vectors=other),
        replace(views, skus=["a", "b", "d"]),
        replace(views, sources=["", *views.sources[1:]]),
        replace(views, thumbs=[b"t", *views.thumbs[1:]]),
        replace(views, sha256=["", *views.sha256[1:]]),
        replace(views, ids=np.arange(3)),
    ):
        names.add(stored(tmp_path, changed).folder.name)
    assert len(names) == 7


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(DIM),
        np.full(DIM, np.nan),
        np.r_[np.inf, np.zeros(DIM - 1)],
        np.r_[1.02, np.zeros(DIM - 1)],
        np.r_[1.0, np.zeros(DIM)],
        np.r_[1.0, np.zeros(DIM - 2)],
        np.eye(1, DIM),
    ],
)
def test_an_unfit_vector_is_refused(vector: np.ndarray) -> None:
    view = NewView("a", "here.jpg", "", b"", vector.astype(np.float32))
    with pytest.raises(GalleryError, match=r"vector of here\.jpg is not one of unit length and 8 numbers - scale it"):
        columns([view], DIM)


def test_what_cannot_be_stored_is_refused() -> None:
    good = NewView("a", "here.jpg", "AB" * 32, b"", np.eye(1, DIM, dtype=np.float32)[0])
    assert columns([good], DIM).vectors.dtype == np.float32 and len(columns([], DIM)) == 0
    for bad in (replace(good, sku="caf\udce9"), replace(good, source="caf\udce9.jpg"), replace(good, sku="\ud800")):
        with pytest.raises(GalleryError, match=r"holds bytes that are not UTF-8"):
            columns([good, bad], DIM)
    for digest in ("ab", "xy" * 32, "ab" * 33, "ab" * 31 + "a\n"):
        with pytest.raises(GalleryError, match=r"SHA-256 of here\.jpg is not 64 hex digits"):
            columns([replace(good, sha256=digest)], DIM)


def test_a_batch_of_another_shape_is_refused(tmp_path: Path) -> None:
    views = made(np.random.default_rng(0), ["a", "b"])
    (tmp_path / "new").mkdir()
    with SegmentWriter(tmp_path / "new", DIM) as writer:
        for bad in (
            replace(views, vectors=views.vectors[:, 1:]),
            replace(views, vectors=views.vectors[:1]),
            replace(views, ids=np.arange(2)),
        ):
            with pytest.raises(GalleryError, match="report this as a bug"):
                writer.add(bad)
        assert writer.count == 0


def test_an_error_between_batches_leaves_nothing(tmp_path: Path) -> None:
    views = made(np.random.default_rng(0), ["a", "b"])

    def failing() -> Iterator[Views]:
        yield views
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segment(tmp_path, DIM, failing())
    for nothing in ([], [cut(views, 0, 0)]):
        with pytest.raises(GalleryError, match="no view could be read - give at least one readable picture"):
            write_segment(tmp_path, DIM, nothing)
    assert list((tmp_path / "segments").iterdir()) == []


def test_another_segment_in_its_place_is_refused(tmp_path: Path) -> None:
    one, two = (stored(tmp_path, made(np.random.default_rng(seed), ["a", "b"])) for seed in (0, 1))
    shutil.rmtree(one.folder)
    shutil.copytree(two.folder, one.folder)
    with pytest.raises(ArtefactError, match=f"{one.folder.name} holds another segment - restore it"):
        Segment(one.folder)


def test_a_segment_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path, made(np.random.default_rng(0), ["a"])).folder
    facts = artefact.read_manifest(folder, segment.MANIFEST)
    (folder / segment.MANIFEST).unlink()
    del facts["files"]
    artefact.seal(folder, segment.MANIFEST, {**facts, "format": 99})
    with pytest.raises(GalleryError, match="written by another version - build the gallery again"):
        Segment(folder.rename(folder.with_name(segment.segment_name(folder))))


def test_rows_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """A manifest may be whole and its digests right, and the files still not those of one segment."""
    views = made(np.random.default_rng(0), ["a", "b", "c"])
    short = stored(tmp_path, cut(views, 0, 2)).folder
    for name in (segment.VECTORS, segment.CODES, segment.ROWS):
        folder = Path(shutil.copytree(stored(tmp_path, views).folder, tmp_path / name / "x"))
        shutil.copy(short / name, folder / name)
        (folder / segment.MANIFEST).unlink()
        artefact.seal(folder, segment.MANIFEST, {"kind": "segment", "format": segment.FORMAT, "rows": 3, "dim": DIM})
        renamed = folder.rename(folder.with_name(segment.segment_name(folder)))
        with pytest.raises(ArtefactError, match=rf"{name} holds another number of rows than segment\.json says"):
            Segment(renamed).source(0)


def test_an_open_segment_outlives_its_folder(tmp_path: Path) -> None:
    views = made(np.random.default_rng(0), ["a", "b"])
    opened = stored(tmp_path, views)
    shutil.rmtree(opened.folder)
    assert [opened.sku(1), opened.source(1), opened.sha256(1)] == [views.skus[1], views.sources[1], views.sha256[1]]
    assert opened.thumb(1) == views.thumbs[1] and np.array_equal(opened.vectors, views.vectors)


def test_thumbnails_are_small_jpegs(tmp_path: Path) -> None:
    PILImage.new("RGB", (900, 300), "red").save(tmp_path / "wide.png")
    for source in (tmp_path / "wide.png", (tmp_path / "wide.png").read_bytes()):
        digest, thumb = describe(source)
        assert digest == artefact.file_digest(tmp_path / "wide.png")
        opened = PILImage.open(BytesIO(thumb))
        assert (opened.format, opened.size) == ("JPEG", (256, 85))
    assert images.read_image(thumb).shape == (85, 256, 3)
    for bad in (tmp_path / "none.png", b"no picture"):
        with pytest.raises(ImageError):
            describe(bad)
