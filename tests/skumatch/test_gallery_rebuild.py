"""A gallery for another model: the same views under the same ids, whatever happens to files and gallery meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import GalleryError, SpecMismatch
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_views, set_facts
from skumatch.gallery_compact import compact
from skumatch.gallery_rebuild import rebuild
from skumatch.gallery_versions import prune, rollback, verify
from skumatch.match import Matcher
from skumatch.segment import NewView
from skumatch.spec import Pixels, Vectors
from tests.skumatch.gallery_oracle import HashEncoder, World, difference, embedded, picture, view_of, views_of

PIPELINE = Pipeline(batch=4, workers=1)
NAMES = [f"sku-{number}" for number in range(5)]
FACTS = {sku: {"title": f"Title of {sku}", "brand": "Nord"} for sku in NAMES}


class Counting(HashEncoder):
    """Counts the pictures that it is given; at picture ``stop`` it is interrupted, or ``then`` is done on the side."""

    def __init__(self, seed: int = 1, stop: int = 0, then: Callable[[], object] | None = None) -> None:
        super().__init__(seed)
        self.seen = 0
        self.stop = stop
        self.then = then
        self.failed: list[BaseException] = []

    def encode(self, pixels: Pixels) -> Vectors:
        before, self.seen = self.seen, self.seen + len(pixels)
        if before < self.stop <= self.seen:
            if self.then is None:
                self.seen = before
                raise KeyboardInterrupt
            thread = threading.Thread(target=self._do)  # as another program would
            thread.start()
            thread.join()
        return super().encode(pixels)

    def _do(self) -> None:
        try:
            assert self.then is not None
            self.then()
        except BaseException as error:
            self.failed.append(error)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Gallery, World]:
    """Return a gallery of 20 thumbnails without files in two segments, one of them removed, and what it holds."""
    first, more = views_of([NAMES[n % 5] for n in range(17)], 0), views_of(["sku-1", "new", "new"], 50)
    gallery = add_views(create_from(tmp_path / "g", HashEncoder().spec, first, FACTS), more)
    world = World({}, {}, 0).added(first, FACTS).added(more).without([3])
    return remove_views(gallery, [3]), world


def pictures(folder: Path, count: int) -> Gallery:
    """Enrol ``count`` pictures that lie in ``folder``."""
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(number))
    rows = [Row(path, NAMES[number % 5], "gallery", f"Title {number % 5}") for number, path in enumerate(paths)]
    return build_gallery(folder.parent / "p", Supply.of(rows), HashEncoder(), PIPELINE).gallery


def pending(gallery: Gallery) -> list[Path]:
    return list((gallery.store / "pending").glob("*"))


def test_everything_but_the_vectors_stays(made: tuple[Gallery, World]) -> None:
    gallery, world = made
    told: list[int] = []
    encoder = Counting()
    done = rebuild(gallery.store, encoder, PIPELINE, told.append)
    assert (done.from_thumbs, done.failures, done.left_out, done.resumed) == (19, [], 0, 0)
    assert encoder.seen == sum(told) == 19 and done.gallery.spec == encoder.spec
    for opened in (done.gallery, open_gallery(gallery.store, full=True)):
        assert difference(opened, world.rebuilt(1)) == ""
    assert done.gallery.published.facts["reason"] == "rebuild with hash-1" and not pending(gallery)
    more = [view_of("later", 99, seed=1)]
    assert difference(add_views(done.gallery, more), world.rebuilt(1).added(more)) == ""  # numbered on
    rollback(gallery.store, gallery.version)
    assert difference(open_gallery(gallery.store), world) == ""


def test_pictures_are_read_from_their_files_where_they_are_unchanged(tmp_path: Path) -> None:
    gallery = pictures(tmp_path / "pictures", 10)
    thumbs = {number: gallery.thumb(number) for number in (2, 5, 7)}
    (tmp_path / "pictures/2.png").unlink()
    (tmp_path / "pictures/5.png").write_bytes(picture(500))
    (tmp_path / "pictures/7.png").unlink()
    (tmp_path / "pictures/7.png").mkdir()
    done = rebuild(gallery.store, HashEncoder(1), PIPELINE)
    assert (done.from_thumbs, done.left_out) == (3, 0)
    expected = [embedded(thumbs.get(number, picture(number)), 1) for number in range(10)]
    assert np.array_equal(done.gallery.vectors_of(gallery.ids), np.stack(expected))
    assert list(done.gallery.views()) == list(gallery.views()) and done.gallery.title(0) == "Title 0"


def test_views_that_cannot_be_read_are_an_error_or_left_out(made: tuple[Gallery, World], tmp_path: Path) -> None:
    before, world = made
    bare = [NewView("bare", str(tmp_path / "gone.png"), "", b"", view_of("x", 1).vector) for _ in range(2)]
    gallery = add_views(before, bare)
    for _ in range(2):  # told again each time
        with pytest.raises(GalleryError, match=r"2 views can .*view 20 of bare, .*gone\.png.*--drop"):
            rebuild(gallery.store, HashEncoder(1), PIPELINE)
        assert open_gallery(gallery.store, full=True).version == gallery.version
    encoder = Counting()
    done = rebuild(gallery.store, encoder, PIPELINE, drop=True)
    assert (done.left_out, len(done.failures), done.resumed, encoder.seen) == (2, 2, 19, 0)
    assert difference(done.gallery, replace(world.rebuilt(1), used=22)) == "" and not pending(gallery)
    alone = create_from(tmp_path / "alone", HashEncoder().spec, bare)
    with pytest.raises(GalleryError, match="would empty the gallery"):
        rebuild(alone.store, HashEncoder(1), PIPELINE, drop=True)


def test_files_given_back_are_read_by_the_next_run(tmp_path: Path) -> None:
    gallery = pictures(tmp_path / "pictures", 6)
    bare = [replace_thumb(gallery, number) for number in range(6)]
    gallery = create_from(tmp_path / "b", HashEncoder().spec, bare)
    (tmp_path / "pictures/4.png").unlink()
    with pytest.raises(GalleryError, match=r"1 view can .*view 4 of sku-4"):
        rebuild(gallery.store, HashEncoder(1), PIPELINE)
    (tmp_path / "pictures/4.png").write_bytes(picture(4))
    encoder = Counting()
    done = rebuild(gallery.store, encoder, PIPELINE)
    assert (done.resumed, encoder.seen, done.from_thumbs) == (5, 1, 0)
    expected = np.stack([embedded(picture(number), 1) for number in range(6)])
    assert np.array_equal(done.gallery.vectors_of(gallery.ids), expected)


def replace_thumb(gallery: Gallery, number: int) -> NewView:
    """Return a view as the gallery has it, without its thumbnail."""
    row = gallery.view(number)
    return NewView(row.sku, row.source, row.sha256, b"", gallery.vectors_of(np.array([number]))[0])


@pytest.mark.parametrize(("stops", "done_before"), [([3], 0), ([10], 8), ([6, 5], 8), ([19], 16)])
def test_an_interrupted_rebuild_goes_on(made: tuple[Gallery, World], stops: Sequence[int], done_before: int) -> None:
    gallery, world = made
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            rebuild(gallery.store, Counting(stop=stop), PIPELINE)
        assert difference(open_gallery(gallery.store, full=True), world) == ""
        prune(gallery.store, keep=1)  # what it has done is not cleared away
    told: list[int] = []
    encoder = Counting()
    done = rebuild(gallery.store, encoder, PIPELINE, told.append)
    assert (done.resumed, encoder.seen, sum(told)) == (done_before, 19 - done_before, 19)
    assert done.from_thumbs == 19 and not pending(gallery)
    assert difference(done.gallery, world.rebuilt(1)) == ""


def test_an_interrupted_rebuild_is_of_one_model(made: tuple[Gallery, World]) -> None:
    gallery, world = made
    with pytest.raises(KeyboardInterrupt):
        rebuild(gallery.store, Counting(stop=10), PIPELINE)
    other = Counting(seed=2)
    assert rebuild(gallery.store, other, PIPELINE).resumed == 0 and other.seen == 19
    assert difference(open_gallery(gallery.store), world.rebuilt(2)) == ""
    prune(gallery.store, unfinished=True)
    assert not pending(gallery)


def test_views_that_come_and_go_meanwhile(made: tuple[Gallery, World]) -> None:
    gallery, world = made
    more, said = views_of(["new", "newer", "sku-0"], 80), {"sku-2": {"brand": "", "size": "1 l"}}

    def meanwhile() -> None:
        add_views(gallery, more)
        remove_views(open_gallery(gallery.store), [0, 17, 21])  # done already, not yet, and only just added
        set_facts(gallery, said)
        compact(open_gallery(gallery.store), full=True)

    encoder = Counting(stop=9, then=meanwhile)
    done = rebuild(gallery.store, encoder, PIPELINE)
    expected = world.added(more).without([0, 17, 21]).told(said).rebuilt(1)
    assert not encoder.failed and difference(done.gallery, expected) == ""
    assert encoder.seen == 19 + 2  # those of the beginning, and the added ones that stayed
    assert [len(held) for held in verify(gallery.store, everything=True)][-1] == 19


def test_a_rollback_meanwhile_brings_views_back(made: tuple[Gallery, World]) -> None:
    gallery, world = made
    encoder = Counting(stop=9, then=lambda: rollback(gallery.store, "v2"))
    done = rebuild(gallery.store, encoder, PIPELINE)
    assert not encoder.failed and 3 in done.gallery.ids
    whole = World({**world.views, 3: view_of("sku-3", 3)}, world.facts, world.used)
    assert difference(done.gallery, whole.rebuilt(1)) == ""


@pytest.mark.parametrize("seed", [1, 2])
def test_of_two_rebuilds_the_first_counts(made: tuple[Gallery, World], seed: int) -> None:
    gallery, world = made
    encoder = Counting(stop=9, then=lambda: rebuild(gallery.store, HashEncoder(seed), PIPELINE))
    with pytest.raises(GalleryError, match="rebuilt by another process meanwhile - nothing was changed"):
        rebuild(gallery.store, encoder, PIPELINE)
    assert not encoder.failed
    assert difference(open_gallery(gallery.store, full=True), world.rebuilt(seed)) == ""


def test_the_same_model_and_no_gallery_are_refused(made: tuple[Gallery, World], tmp_path: Path) -> None:
    gallery, _ = made
    with pytest.raises(GalleryError, match="is of this model already - name another model"):
        rebuild(gallery.store, HashEncoder(), PIPELINE)
    with pytest.raises(GalleryError, match="there is no gallery"):
        rebuild(tmp_path / "none", HashEncoder(1), PIPELINE)
    assert not (tmp_path / "none").exists()


def test_who_has_the_old_version_open_goes_on(
    made: tuple[Gallery, World], make_encoder: Callable[[int], Encoder]
) -> None:
    gallery, world = made
    matcher = Matcher(HashEncoder(), gallery, PIPELINE)
    before = matcher.match([gallery.thumb(5)])[0]
    encoder = make_encoder(7)
    done = rebuild(gallery.store, encoder, PIPELINE)  # another size and width, too
    assert (done.gallery.spec.dim, done.gallery.ids.tolist()) == (32, sorted(world.views))
    with pytest.raises(SpecMismatch, match="built with another model"):
        matcher.refresh()
    prune(gallery.store, keep=1)
    assert matcher.match([gallery.thumb(5)])[0].matches == before.matches and before.matches[0].view == 5
    assert Matcher(encoder, open_gallery(gallery.store)).match([gallery.thumb(5)])[0].matches[0].view == 5
    with pytest.raises(SpecMismatch):
        add_views(gallery, [view_of("late", 1)])  # of the old model
