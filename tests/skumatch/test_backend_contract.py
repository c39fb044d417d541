"""The same changes to a gallery in a folder and in Milvus: after each, both must hold, find and tell the same."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.backend import Backend, backend
from skumatch.dataset import Row
from skumatch.embed import Pipeline, no_progress
from skumatch.enrol import Supply
from skumatch.errors import GalleryError, SkumatchError, SpecMismatch
from skumatch.folder_backend import FolderBackend
from skumatch.gallery_export import export_gallery
from skumatch.gallery_import import Embedded, read_exported
from skumatch.gallery_seam import AnyGallery
from skumatch.match import Matcher
from skumatch.milvus import client
from skumatch.milvus.address import Address, parse
from skumatch.milvus.backend import MilvusBackend
from skumatch.segment import NewView, columns
from skumatch.sku_table import layer_of
from skumatch.spec import Vectors
from tests.skumatch.gallery_oracle import DIM, HashEncoder, embedded, picture, views_of

NAMES = [f"sku-{number}" for number in range(7)]
STEPS = 7
Do = Callable[[Backend], Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    address = parse(f"milvus+file:{tmp_path_factory.mktemp('milvus')}/i.db")
    yield address
    client.close(address)


@pytest.fixture
def pair(file: Address, tmp_path: Path) -> Pair:
    return Pair(FolderBackend(tmp_path / "gallery"), replace(file, name=f"g{abs(hash(tmp_path))}"))


class Pair:
    """A gallery in two places."""

    def __init__(self, folder: Backend, milvus: Address) -> None:
        self.milvus = milvus
        self.both: tuple[Backend, Backend] = (folder, MilvusBackend(milvus))
        self.versions: list[tuple[str, str]] = []

    def do(self, job: Do) -> str:
        """Do it to both and compare; return the error of both, "" where there is none."""
        said = []
        for one in self.both:
            try:
                job(one)
                said.append("")
            except SkumatchError as error:
                text = re.sub(r"v0\d+", "VERSION", str(error).replace(str(one), "GALLERY"))
                said.append(text.split(" - ")[0])
        assert said[0] == said[1]
        self.compare()
        self.versions.append((self.both[0].gallery().version, self.both[1].gallery().version))
        return said[0]

    def compare(self) -> None:
        """Compare all that can be asked."""
        if not self.both[0].exists():
            assert not self.both[1].exists()
            return
        one, other = (home.gallery() for home in self.both)
        assert one.ids.tolist() == other.ids.tolist() and len(one) == len(other)
        assert len(one.skus) == len(other.skus) and sorted(one.skus) == sorted(other.skus)
        assert one.counts() == other.counts()
        assert [one.facts.of(name) for name in NAMES] == [other.facts.of(name) for name in NAMES]
        assert list(one.views()) == list(other.views())
        assert [one.thumb(i) for i in one.ids.tolist()] == [other.thumb(i) for i in other.ids.tolist()]
        assert np.array_equal(one.vectors_of(one.ids), other.vectors_of(other.ids))
        self.ask(one, other)

    def ask(self, one: AnyGallery, other: AnyGallery) -> None:
        """Compare answers: equal but where two views are equally near, but for rounding."""
        found, also = (gallery.search(queries(), 4) for gallery in (one, other))
        assert np.allclose(found.scores, also.scores, atol=1e-6)
        for line, column in np.argwhere(found.views != also.views).tolist():
            both = np.array([found.views[line, column], also.views[line, column]])
            near = one.vectors_of(both) @ queries()[line]
            assert abs(near[0] - near[1]) < 1e-6, both

    def told(self) -> list[dict[str, Any]]:
        """Return what both logs tell of the last change."""
        keys = ("views", "skus", "added", "removed", "reason", "model")
        return [{key: home.log()[0][key] for key in keys} for home in self.both]


def taking(views: list[NewView], facts: dict[str, dict[str, str]] | None = None, seed: int = 0) -> Do:
    """Return the job of taking in views."""
    layer = layer_of(facts) if facts else None
    return lambda home: home.take_in(Embedded(HashEncoder(seed).spec, lambda: iter([columns(views, DIM)]), layer))


def rows_of(folder: Path, chance: random.Random, count: int) -> list[Row]:
    """Return rows of pictures in ``folder``, some of them unreadable or there twice."""
    rows = []
    for number in range(count):
        mark = chance.randrange(25)
        path = folder / f"{mark}.png"
        path.write_bytes(picture(mark) if mark else b"no picture")
        facts = {"brand": chance.choice(["", "red", "blue"])} if number % 2 else {}
        rows.append(Row(path, chance.choice(NAMES), "gallery", extra=facts, title=chance.choice(["", f"t{mark}"])))
    return rows


def enrolling(what: str, rows: list[Row], seed: int = 0) -> Do:
    """Return the job of enrolling pictures."""

    def job(home: Backend) -> None:
        done = getattr(home, what)(Supply.of(rows), HashEncoder(seed), Pipeline(batch=3, workers=1), no_progress)
        assert done.unreadable == len(done.failures)
        job.outcome.append((done.known, done.unreadable, done.resumed, sorted(done.failures)))  # type: ignore[attr-defined]
        assert job.outcome[0] == job.outcome[-1]  # type: ignore[attr-defined]

    job.outcome = []  # type: ignore[attr-defined]
    return job


class Program:
    """Random changes to a pair."""

    def __init__(self, pair: Pair, seed: int, folder: Path) -> None:
        self.pair = pair
        self.chance = random.Random(seed)
        self.mark = 1000 * (seed + 1)
        self.folder = folder
        self.model = 0
        pair.do(taking(self.views(12), self.facts()))

    def step(self) -> None:
        names = ("take", "enrol", "swap", "remove", "remove_skus", "say", "say", "back", "prune", "index", "rebuild")
        name = self.chance.choice(names)
        getattr(self, name)()
        if name not in ("back", "prune", "index"):
            one, other = self.pair.told()
            assert one == other, name

    def views(self, most: int) -> list[NewView]:
        count = self.chance.randint(1, most)
        self.mark += count
        names = self.chance.choices(NAMES, k=count)
        return views_of(names, self.mark - self.chance.choice([0, 0, 5]), self.model)

    def facts(self) -> dict[str, dict[str, str]]:
        values = ["", "red", 'we"ird \\ \n', "Stra\u00dfe"]
        named = ("title", "brand", 'odd "name"')
        return {
            sku: {name: self.chance.choice(values) for name in self.chance.sample(named, self.chance.randint(1, 3))}
            for sku in self.chance.choices(NAMES, k=self.chance.randint(0, 3))
        }

    def take(self) -> None:
        self.pair.do(taking(self.views(6), self.facts(), self.model))

    def enrol(self) -> None:
        self.pair.do(enrolling("extend", rows_of(self.folder, self.chance, 6), self.model))

    def swap(self) -> None:
        self.pair.do(enrolling("replace", rows_of(self.folder, self.chance, 3), self.model))

    def remove(self) -> None:
        ids = self.pair.both[0].gallery().ids.tolist()
        some = self.chance.sample(ids, self.chance.randint(1, min(5, len(ids))))
        self.pair.do(lambda home: home.remove_views(some))

    def remove_skus(self) -> None:
        names = sorted(self.pair.both[0].gallery().skus)
        some = self.chance.sample(names, self.chance.randint(1, min(2, len(names))))
        self.pair.do(lambda home: home.remove_skus(some))

    def say(self) -> None:
        facts = {**self.facts(), "sku-1": {"title": str(self.chance.random())}}
        self.pair.do(lambda home: home.say(layer_of(facts), "say"))

    def back(self) -> None:
        older = self.chance.choice(self.pair.versions)
        self.pair.do(lambda home: home.rollback(older[self.pair.both.index(home)]))
        self.model = int(self.pair.both[0].gallery().spec.digest, 16)

    def prune(self) -> None:
        self.pair.do(lambda home: home.prune(50, False))

    def index(self) -> None:
        self.pair.do(lambda home: home.index("exact", 0, no_progress))

    def rebuild(self) -> None:
        self.model += 1
        self.pair.do(lambda home: home.rebuild(HashEncoder(self.model), Pipeline(), no_progress, False))


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_random_changes_leave_both_the_same(pair: Pair, tmp_path: Path, seed: int) -> None:
    (tmp_path / "pictures").mkdir()
    program = Program(pair, seed, tmp_path / "pictures")
    for _ in range(STEPS):
        program.step()
    for home in pair.both:
        home.verify(False)


def start(pair: Pair) -> None:
    facts = {"a": {"brand": "red", "title": "A"}, "b": {"brand": "blue"}, "d": {"brand": "red"}}
    pair.do(taking(views_of(["a", "a", "b", "c", "d", "b"], 10), facts))


def queries() -> Vectors:
    return np.stack([embedded(picture(5_000_000 + mark), 0) for mark in range(6)])


def names(gallery: AnyGallery, **where: str) -> list[list[str]]:
    found = gallery.search(queries(), 3, where or None)
    return [[gallery.skus[int(code)] for code in line if code >= 0] for line in found.skus]


def test_filters_find_the_same(pair: Pair) -> None:
    start(pair)
    one, other = (home.gallery() for home in pair.both)
    for where in ({"brand": "red"}, {"brand": ""}, {"sku": "b"}, {"brand": "red", "title": "A"}, {"title": ""}):
        assert names(one, **where) == names(other, **where), where
        assert {one.skus[c] for c in one.facts.codes(where)} == {other.skus[c] for c in other.facts.codes(where)}
        assert one.selected(where).ids.tolist() == other.selected(where).ids.tolist()
    for where in ({"colour": "red"}, {"brand": "green"}, {"sku": "zz"}):
        for gallery in (one, other):
            with pytest.raises(GalleryError, match=r"no column 'colour'|brand=green|sku=zz"):
                gallery.search(queries(), 3, where)


def test_matching_gives_the_same_answers(pair: Pair) -> None:
    start(pair)
    crops: Any = [picture(mark) for mark in (11, 400, 12)] + [b"no picture"]
    for where in (None, {"brand": "red"}):
        found = [Matcher(HashEncoder(), home.gallery(), where=where).match(crops, 3) for home in pair.both]
        for one, other in zip(*found, strict=True):
            assert [replace(m, score=0) for m in one.matches] == [replace(m, score=0) for m in other.matches]
            assert np.allclose([m.score for m in one.matches], [m.score for m in other.matches], atol=1e-6)
            assert str(one.error) == str(other.error)
    fresh = backend(pair.milvus).gallery()
    assert Matcher(HashEncoder(), fresh).match(crops, 2)[0].matches and "directory" not in vars(fresh)  # read in full


def test_every_technique_finds_the_same(pair: Pair) -> None:
    from skumatch import techniques
    from skumatch.index.exact import ExactIndex
    from skumatch.techniques import USES, Technique

    start(pair)
    for name in USES:
        technique = Technique(name, neighbours=3, candidates=4)
        told = []
        for home in pair.both:
            chosen = home.gallery().selected({})
            store = techniques.prepared(technique, chosen, chosen.ids, lambda: ExactIndex(DIM))
            found = techniques.search(technique, store, queries(), 3)
            told.append(found)
        assert np.array_equal(told[0].views, told[1].views), name
        assert np.allclose(told[0].scores, told[1].scores, atol=1e-5), name


def test_what_each_tells_of_views_and_skus(pair: Pair) -> None:
    start(pair)
    one, other = (home.gallery() for home in pair.both)
    assert one.facts.known().to_pylist() == other.facts.known().to_pylist()
    assert one.views_of(np.array([3, 1])) == other.views_of(np.array([3, 1]))
    for name in ("a", "b"):
        codes = one.code_of(name), other.code_of(name)
        assert np.allclose(one.cohesion(codes[0]), other.cohesion(codes[1])) and one.title(codes[0]) == other.title(
            codes[1]
        )
        assert one.ids_of(name) == other.ids_of(name)
    for gallery in (one, other):
        with pytest.raises(GalleryError, match="no view 77"):
            gallery.view(77)
        with pytest.raises(GalleryError, match="no SKU 'zz'"):
            gallery.ids_of("zz")
        with pytest.raises(GalleryError, match="no view 78"):
            gallery.vectors_of(np.array([1, 78]))
        with pytest.raises(SpecMismatch):
            gallery.require(HashEncoder(3).spec)
    assert one.identity != other.identity and other.identity == pair.both[1].gallery().identity


def test_an_export_of_either_goes_into_the_other(pair: Pair, tmp_path: Path, file: Address) -> None:
    start(pair)
    for number, home in enumerate(pair.both):
        export_gallery(home.gallery(), tmp_path / str(number))
    again = Pair(FolderBackend(tmp_path / "again"), replace(file, name="again"))
    again.both[0].take_in(read_exported(tmp_path / "1"))
    again.both[1].take_in(read_exported(tmp_path / "0"))
    again.compare()
    again.do(lambda home: home.take_in(read_exported(tmp_path / "0")))  # all known
    assert len(again.both[1].gallery()) == 6 and again.versions[-1] == ("v000001", "v000001")


def test_a_picture_build_and_another_model(pair: Pair, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, random.Random(3), 12)
    pair.do(enrolling("build", rows))
    pair.do(enrolling("build", rows[:5]))
    assert pair.told()[0] == pair.told()[1]
    assert "another model" in pair.do(enrolling("extend", rows, seed=1))
    pair.do(lambda home: home.rebuild(HashEncoder(2), Pipeline(), no_progress, False))
    assert pair.told()[0] == pair.told()[1]
    assert "of this model already" in pair.do(lambda home: home.rebuild(HashEncoder(2), Pipeline(), no_progress, False))
    assert "no view could be read" in pair.do(enrolling("extend", [Row(tmp_path / "none.png", "a", "gallery")], seed=2))


def test_versions_tell_the_same(pair: Pair) -> None:
    start(pair)
    pair.do(lambda home: home.remove_skus(["c"]))
    pair.do(taking(views_of(["e"], 40), {"a": {"title": "other"}}))
    one, other = (home.diff("1", "3") for home in pair.both)
    assert (one.skus_added, one.skus_removed, one.facts) == (other.skus_added, other.skus_removed, other.facts)
    assert one.views_added.tolist() == other.views_added.tolist() == [6]
    assert one.views_removed.tolist() == other.views_removed.tolist() == [3]
    pair.do(lambda home: home.rollback(None))
    pair.do(lambda home: home.rollback("1"))
    assert "no version before it" in pair.do(lambda home: home.rollback(None))
    assert "no version '9'" in pair.do(lambda home: home.diff("1", "9"))
    pair.do(taking(views_of(["f"], 50)))
    assert pair.both[1].gallery().ids_of("f") == [7]  # an id is never used again
    gone = [home.prune(1, True)[0] for home in pair.both]
    assert all(gone)
    pair.compare()
    assert "would empty the gallery" in pair.do(lambda home: home.remove_skus(sorted(home.gallery().skus)))


def test_a_gallery_that_is_not_there(pair: Pair) -> None:
    for home in pair.both:
        assert not home.exists()
        with pytest.raises(GalleryError, match="there is no gallery in"):
            home.gallery()
        with pytest.raises(GalleryError, match="there is no gallery in"):
            home.log()
