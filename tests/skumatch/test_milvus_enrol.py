"""Imports and rebuilds in Milvus that are interrupted: nothing is seen before the end, and they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skumatch import enrol
from skumatch.dataset import Row
from skumatch.embed import Pipeline, no_progress
from skumatch.enrol import Enrolled, Supply
from skumatch.errors import ArtefactError, GalleryError, LockedError
from skumatch.milvus import client
from skumatch.milvus.address import Address, parse
from skumatch.milvus.backend import MilvusBackend
from skumatch.milvus.gallery import MilvusGallery
from skumatch.milvus.versions import JOB, Lease, Place
from skumatch.milvus.writing import Writing
from skumatch.sku_table import layer_of
from skumatch.spec import Pixels, Vectors
from tests.skumatch.gallery_oracle import HashEncoder, fingerprint, picture

PIPELINE = Pipeline(batch=2, workers=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    address = parse(f"milvus+file:{tmp_path_factory.mktemp('milvus')}/e.db")
    yield address
    client.close(address)


@pytest.fixture
def home(file: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MilvusBackend:
    monkeypatch.setattr(enrol, "CHUNK", 4)
    return MilvusBackend(replace(file, name=f"g{abs(hash(tmp_path))}"))


@pytest.fixture
def twin(file: Address, tmp_path: Path) -> MilvusBackend:
    return MilvusBackend(replace(file, name=f"t{abs(hash(tmp_path))}"))


class Interrupted(HashEncoder):
    """Is interrupted by Ctrl-C after ``batches`` batches."""

    def __init__(self, batches: int, seed: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(seed)
        self.left = batches
        self.error = error

    def encode(self, pixels: Pixels) -> Vectors:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().encode(pixels)


def rows(folder: Path, first: int, count: int) -> list[Row]:
    made = []
    for number in range(first, first + count):
        path = folder / f"{number}.png"
        path.write_bytes(picture(number) if number % 7 else b"no picture")
        made.append(Row(path, f"sku-{number % 11}", "gallery", extra={"brand": f"b{number % 2}"}))
    return made


Work = Callable[[MilvusBackend, HashEncoder], Enrolled[MilvusGallery]]


def extending(some: list[Row]) -> Work:
    return lambda home, encoder: home.extend(Supply.of(some), encoder, PIPELINE, no_progress)


def started(home: MilvusBackend, tmp_path: Path) -> None:
    home.build(Supply.of(rows(tmp_path, 1, 6)), HashEncoder(), PIPELINE, no_progress)


@pytest.mark.parametrize("what", ["build", "extend", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("batches", [3, *(pytest.param(batches, marks=pytest.mark.slow) for batches in (1, 6))])
def test_an_interrupted_import_goes_on(
    home: MilvusBackend, twin: MilvusBackend, tmp_path: Path, what: str, error: type[BaseException], batches: int
) -> None:
    for one in (home, twin):
        started(one, tmp_path)
    before = fingerprint(home.gallery())
    supply = Supply.of(rows(tmp_path, 4, 15))  # three of them are known
    with pytest.raises(error):
        getattr(home, what)(supply, Interrupted(batches, error=error), PIPELINE, no_progress)
    assert fingerprint(home.gallery()) == before and home.gallery().version == "v000001"
    assert fingerprint(MilvusBackend(home.address).gallery()) == before
    done = getattr(home, what)(supply, HashEncoder(), PIPELINE, no_progress)
    straight = getattr(twin, what)(supply, HashEncoder(), PIPELINE, no_progress)
    # Ctrl-C costs nothing that was embedded, anything else the chunk that it was in
    assert done.resumed == (2 * batches if error is KeyboardInterrupt else 2 * batches // 4 * 4)
    assert (done.known, done.unreadable) == (straight.known, straight.unreadable)
    assert fingerprint(home.gallery()) == fingerprint(twin.gallery())
    told = [{**one.log()[0], "time": ""} for one in (home, twin)]
    assert told[0] == told[1]
    home.verify(False)
    assert Place(client.connect(home.address)).noted(JOB) is None


def test_an_import_begins_anew_after_another_change(home: MilvusBackend, twin: MilvusBackend, tmp_path: Path) -> None:
    for one in (home, twin):
        started(one, tmp_path)
    work = extending(rows(tmp_path, 20, 9))
    with pytest.raises(KeyboardInterrupt):
        work(home, Interrupted(3))
    for one in (home, twin):
        one.say(layer_of({"sku-1": {"title": "t"}}), "say")
    done = work(home, HashEncoder())
    assert done.resumed == 0
    work(twin, HashEncoder())
    assert fingerprint(home.gallery()) == fingerprint(twin.gallery())
    home.verify(False)


def test_prune_forgets_what_was_interrupted_when_told(home: MilvusBackend, tmp_path: Path) -> None:
    started(home, tmp_path)
    work = extending(rows(tmp_path, 20, 9))
    with pytest.raises(KeyboardInterrupt):
        work(home, Interrupted(3))
    home.prune(3, False)
    gallery = home.gallery()
    everything = gallery.place.connection.count(gallery.collection, "born >= 0")
    assert everything > len(gallery)
    home.prune(3, True)
    assert gallery.place.connection.count(gallery.collection, "born >= 0") == len(gallery)
    assert work(home, HashEncoder()).resumed == 0
    home.verify(False)


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_rebuild_goes_on(home: MilvusBackend, twin: MilvusBackend, tmp_path: Path, batches: int) -> None:
    for one in (home, twin):
        started(one, tmp_path)
        one.say(layer_of({"none": {"title": "without a view"}}), "say")
    before = fingerprint(home.gallery())
    with pytest.raises(KeyboardInterrupt):
        home.rebuild(Interrupted(batches, seed=1), PIPELINE, no_progress, False)
    assert fingerprint(home.gallery()) == before
    (tmp_path / "3.png").unlink()
    done = home.rebuild(HashEncoder(1), PIPELINE, no_progress, False)
    assert done.resumed == 2 * batches and done.from_thumbs == (1 if batches == 1 else 0)
    twin.rebuild(HashEncoder(1), PIPELINE, no_progress, False)
    here, there = home.gallery(), twin.gallery()
    assert here.ids.tolist() == there.ids.tolist() and here.facts.of("none") == there.facts.of("none")
    assert list(here.views()) == list(there.views()) and here.spec == HashEncoder(1).spec
    home.verify(False)
    home.prune(1, False)
    assert sorted(name for name in here.place.connection.collections() if name.startswith(f"{here.store.name}__")) == [
        f"{here.store.name}__skus_2",
        f"{here.store.name}__versions",
        f"{here.store.name}__views_2",
    ]


def test_views_that_cannot_be_read_stop_a_rebuild(home: MilvusBackend, tmp_path: Path) -> None:
    started(home, tmp_path)
    gallery = home.gallery()
    row = gallery.place.connection.query(gallery.collection, "view == 2", ["pk"])[0]
    gallery.place.connection.upsert(gallery.collection, [{"pk": row["pk"], "thumb": ""}], partial=True)
    (tmp_path / "3.png").unlink()
    with pytest.raises(ArtefactError, match=r"view 2 of milvus\+file:.* is not as it was written"):
        home.verify(False)
    with pytest.raises(GalleryError, match="1 view can be read neither from file nor from thumbnail"):
        home.rebuild(HashEncoder(1), PIPELINE, no_progress, False)
    assert home.gallery().version == "v000001"
    done = home.rebuild(HashEncoder(1), PIPELINE, no_progress, True)
    assert done.left_out == 1 and home.gallery().ids.tolist() == [0, 1, 3, 4, 5]


def test_a_lacking_row_is_found_by_verify(home: MilvusBackend, tmp_path: Path) -> None:
    started(home, tmp_path)
    gallery = home.gallery()
    gallery.place.connection.delete(gallery.collection, "view == 2")
    with pytest.raises(ArtefactError, match=r"has 5 views of 5 SKUs, and should have 6 of 6"):
        home.verify(False)


def test_one_writes_at_a_time(home: MilvusBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(home, tmp_path)
    monkeypatch.setattr("skumatch.milvus.versions.WAIT", 0.1)
    told = r"is being written by process \d+ on .* \(a long import\) - wait"
    with Writing(home.address, "a long import"), pytest.raises(LockedError, match=told):
        home.remove_views([1])
    home.remove_views([1])
    assert len(home.gallery()) == 5


def test_a_writer_that_lost_its_lease_publishes_nothing(
    home: MilvusBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(home, tmp_path)
    monkeypatch.setattr("skumatch.milvus.versions.HELD", -1.0)  # it was away for longer than it lasts
    with pytest.raises(LockedError, match="was taken over by"), Writing(home.address, "slow") as slow:
        slow.remove("view", [1])
        with Lease(slow.place, "other"):
            slow.publish("remove")
    assert len(home.gallery()) == 6 and home.gallery().version == "v000001"
    monkeypatch.undo()
    home.remove_views([2])
    assert home.gallery().ids.tolist() == [0, 1, 3, 4, 5]
