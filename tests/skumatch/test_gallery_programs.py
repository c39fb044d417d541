"""Random programs of changes, searches and reopenings against a dictionary, and what a flipped byte is met with."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch import artefact, lock
from skumatch.errors import ArtefactError, GalleryError
from skumatch.gallery import Gallery, open_gallery
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
from skumatch.gallery_versions import prune, rollback, verify
from skumatch.segment import NewView
from tests.skumatch.gallery_oracle import HashEncoder, World, difference, quick_disk, view_of, views_of

NAMES = [f"sku-{number}" for number in range(9)]
STEPS = 6
FAST, ALL, EACH = 60, 500, 20  # programs: of the quick run, of all, per test
REFUSED = "would empty the gallery"
WEIGHTS = {"add": 5, "remove": 4, "remove_skus": 2, "replace": 3, "tell": 2, "create": 1}
WEIGHTS |= {"compact": 2, "index": 1, "roll_back": 2, "prune": 1, "reopen": 2}


class Program:
    """A gallery in ``store`` and what it must hold, changed step by step as ``seed`` says.

    ``gone``: views that are not there any more.
    """

    def __init__(self, store: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.mark = 1_000 * (seed + 1)
        self.store = store
        self.world = World({}, {}, 0)
        self.gone: dict[int, NewView] = {}
        self.create()
        self.worlds = {self.gallery.version: self.world}

    def step(self) -> str:
        """Do one thing, and return which."""
        name = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        before = self.world
        try:
            getattr(self, name)()
            self.gone = {i: view for i, view in {**self.gone, **before.views}.items() if i not in self.world.views}
        except GalleryError as error:
            assert REFUSED in str(error), error
            self.world = before
        self.worlds[self.gallery.version] = self.world
        return name

    def opened(self) -> Gallery:
        """Return the gallery as it was left, or opened anew by somebody else."""
        return self.gallery if self.chance.random() < 0.7 else open_gallery(self.store)

    def views(self, most: int) -> list[NewView]:
        """Return new views, at times of a picture that another view shows already."""
        count = self.chance.randint(1, most)
        self.mark += count
        return [
            view_of(sku, self.mark - self.chance.choice([i, i, i, i + 40])) for i, sku in enumerate(self.some(count))
        ]

    def some(self, count: int) -> list[str]:
        """Return names of SKUs, there or not, some of them twice."""
        return self.chance.choices(NAMES, k=count)

    def facts(self) -> dict[str, dict[str, str]]:
        """Return facts of some SKUs; an empty one takes back."""
        values = ["", "red", "blue", "Stra\u00dfe"]
        named = ("title", "group", "size")
        return {
            sku: {name: self.chance.choice(values) for name in self.chance.sample(named, self.chance.randint(1, 3))}
            for sku in self.some(self.chance.randint(0, 3))
        }

    def create(self) -> None:
        views, facts = self.views(20), self.facts()
        self.world = World({}, {}, self.world.used).added(views, facts)
        self.gallery = create_from(self.store, HashEncoder().spec, views, facts)

    def add(self) -> None:
        views, facts = self.views(8), self.facts()
        self.world = self.world.added(views, facts)
        self.gallery = add_views(self.opened(), views, facts)

    def remove(self) -> None:
        ids = self.chance.sample(sorted(self.world.views), self.chance.randint(1, min(9, len(self.world.views))))
        self.world = self.world.without(ids)
        self.gallery = remove_views(self.opened(), ids)

    def remove_skus(self) -> None:
        skus = self.chance.sample(self.world.skus(), self.chance.randint(1, min(2, len(self.world.skus()))))
        self.world = self.world.without_skus(skus)
        self.gallery = remove_skus(self.opened(), skus)

    def replace(self) -> None:
        skus, views, facts = self.some(2), self.views(4), self.facts()
        self.world = self.world.without_skus(skus, facts=False).added(views, facts)
        self.gallery = replace_views(self.opened(), skus, views, facts)

    def tell(self) -> None:
        facts = {**self.facts(), "sku-0": {"title": str(self.mark)}}
        self.world = self.world.told(facts)
        self.gallery = set_facts(self.opened(), facts)

    def compact(self) -> None:
        self.gallery = compact(self.opened(), full=self.chance.random() < 0.7)

    def index(self) -> None:
        if len(self.world.views) > 1:  # one view alone has no other to be compared with
            self.gallery = build_index(self.opened(), self.chance.choice(["hnsw", "ivf-rabitq", "exact"])).gallery

    def roll_back(self) -> None:
        name = rollback(self.store, self.chance.choice(artefact.versions(self.store)))
        self.world = replace(self.worlds[name], used=self.world.used)
        self.gallery = self.gallery.refreshed()

    def prune(self) -> None:
        prune(self.store, keep=self.chance.randint(1, 4))

    def reopen(self) -> None:
        self.gallery = open_gallery(self.store, full=self.chance.random() < 0.5)

    def wrong(self) -> str:
        """Return what is wrong: something differs, or a view that was removed is found by its own vector."""
        some = dict(self.chance.sample(sorted(self.gone.items()), min(5, len(self.gone))))
        if some:
            found = self.gallery.search(np.stack([view.vector for view in some.values()]), 50).views
            if set(found.ravel().tolist()) & set(self.gone):
                return f"views that were removed are found: {found.tolist()}"
        for view_id in some:
            with pytest.raises(GalleryError, match=f"no view {view_id}"):
                self.gallery.view(view_id)
        return difference(self.gallery, self.world, self.mark)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder, in memory where that is possible: much is written."""
    with tempfile.TemporaryDirectory(dir=quick_disk()) as folder:
        yield Path(folder)


def run(folder: Path, seeds: range) -> None:
    """Run a program per seed, looking after every step."""
    for seed in seeds:
        program = Program(folder / str(seed), seed)
        done: list[str] = []
        for _ in range(STEPS):
            done.append(program.step())
            assert not (wrong := program.wrong()), f"seed {seed}, {done}: {wrong}"
        verify(folder / str(seed), everything=True)


@pytest.mark.parametrize("first", range(0, FAST, EACH))
def test_random_programs(first: int, folder: Path) -> None:
    run(folder, range(first, first + EACH))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FAST, ALL, EACH))
def test_more_random_programs(first: int, folder: Path) -> None:
    run(folder, range(first, first + EACH))


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store whose current version has every kind of file: segments with ids and without, two layers of
    facts, removed views, an index."""
    store = tmp_path_factory.mktemp("varied") / "gallery"
    facts = {sku: {"title": sku.upper()} for sku in NAMES}
    gallery = create_from(store, HashEncoder().spec, views_of(NAMES * 5, 0), facts)
    gallery = compact(remove_views(gallery, range(0, 30, 2)), full=True)
    gallery = build_index(add_views(gallery, views_of(NAMES, 100), {"sku-1": {"title": "One"}}), "hnsw").gallery
    remove_views(gallery, [1])
    prune(store, keep=1)
    return store


def kinds(store: Path) -> list[Path]:
    """Return the files of the store but the lock's."""
    return sorted(path for path in store.rglob("*") if path.is_file() and path.name not in (lock.FILE, lock.SHARED))


def test_every_kind_of_file_is_there(varied: Path) -> None:
    found = [path.name for path in kinds(varied)]
    per_segment = ["segment.json", "vectors.f32", "codes.i32", "skus.arrow", "rows.arrow", "thumbs.bin"]
    others = ["CURRENT", "gallery.json", "removed.i64", "index.json", "index.faiss"]
    tables = ["table.json", "skus.parquet"] * 2
    assert sorted(found) == sorted([*per_segment * 2, "ids.i64", *others, "ids.i64", *tables])


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_byte_names_its_file(part: int, varied: Path) -> None:
    """Also where size and time of change are as before, and whichever way the gallery is opened."""
    current = open_gallery(varied)
    ways: list[Callable[[], object]] = [lambda: open_gallery(varied), lambda: verify(varied)]
    for path in kinds(varied)[part::4]:
        whole, times = path.read_bytes(), path.stat()
        for number, position in enumerate(sorted({0, 7, len(whole) // 2, len(whole) - 1} & set(range(len(whole))))):
            flipped = bytes([whole[position] ^ (1 << position % 8)])
            path.write_bytes(whole[:position] + flipped + whole[position + 1 :])
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            with pytest.raises(ArtefactError) as refused:
                ways[number % 2]()
            assert str(path) in str(refused.value), refused.value
            path.write_bytes(whole)
    assert open_gallery(varied, full=True).ids.tolist() == current.ids.tolist()


def test_a_missing_file_is_named(varied: Path) -> None:
    for path in kinds(varied):
        aside = path.rename(path.with_name("aside"))
        with pytest.raises((ArtefactError, GalleryError)) as refused:
            open_gallery(varied)
        assert path.name == "CURRENT" or str(path) in str(refused.value), refused.value
        aside.rename(path)
    assert len(open_gallery(varied, full=True)) == 38
