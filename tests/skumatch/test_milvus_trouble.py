"""A Milvus server that refuses, hangs, answers late, or says no: one clear error each, and nothing half written.

A real Milvus Lite server stands behind a proxy that misbehaves (see milvus_server.py).
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from skumatch.backend import backend
from skumatch.embed import Pipeline, no_progress
from skumatch.enrol import Supply
from skumatch.errors import ConfigError, GalleryError, LockedError, ServerError, SkumatchError, SpecMismatch
from skumatch.match import Matcher
from skumatch.milvus import versions
from skumatch.milvus.address import TIMEOUT, TOKEN, Address, parse
from skumatch.milvus.changes import remove_skus, say_facts, set_index
from skumatch.milvus.client import connect
from skumatch.milvus.enrol import add_views, create
from skumatch.milvus.gallery import MilvusGallery, open_milvus
from skumatch.milvus.rows import DUMMY
from skumatch.milvus.upkeep import verify
from skumatch.milvus.versions import LEASE, Lease, Place
from skumatch.segment import NewView, columns
from skumatch.sku_table import layer_of
from tests.skumatch.gallery_oracle import DIM, HashEncoder, views_of
from tests.skumatch.milvus_server import LATE, Gate, How, Proxy, milvus_server

pytestmark = pytest.mark.slow

SHORT, LONG = "0.3", "20"  # time limits, seconds
KINDS: list[How] = ["refuse", "hang", "reset", "late", "garbage"]
SECRET = "root:quite-secret"
World = dict[int, NewView]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with milvus_server(tmp_path_factory.mktemp("milvus") / "d.db") as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, LONG)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes calls hasty, or patient again."""
    return lambda is_so, limit=SHORT: monkeypatch.setenv(TIMEOUT, limit if is_so else LONG)


@pytest.fixture
def shop(server: int) -> Shop:
    return Shop(parse(f"milvus://127.0.0.1:{server}/shop_{secrets.token_hex(4)}"))


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing but errors tells of trouble: gRPC and pymilvus print nothing."""
    yield
    assert capfd.readouterr() == ("", "")


@dataclass
class Shop:
    """A gallery of 48 SKUs, ``good`` being the way to it without trouble, and what it must hold."""

    good: Address
    views: World = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    number: int = 1
    next_id: int = 0

    def __post_init__(self) -> None:
        made = views_of([f"s{number % 48}" for number in range(96)], 0)
        self.take(made)
        self.facts = {f"s{number}": {"brand": f"b{number % 3}", "title": f"T{number}"} for number in range(1, 48)}
        self.facts["later"] = {"brand": "b1"}
        create(self.good, HashEncoder().spec, iter([columns(made, DIM)]), layer_of(self.facts), "import")

    def take(self, views: list[NewView]) -> None:
        """Let views be added."""
        self.views |= dict(enumerate(views, self.next_id))
        self.next_id += len(views)

    def through(self, port: int) -> Address:
        """Return the way to the gallery through another port."""
        return parse(f"milvus://127.0.0.1:{port}/{self.good.name}")

    def holds(self) -> None:
        """Look at the gallery as a reader does that comes along: all must be as it should."""
        seen = verify(self.good)
        assert seen.version == f"v{self.number:06d}"
        assert seen.ids.tolist() == sorted(self.views) and len(seen) == len(self.views)
        for row in seen.views():
            view = self.views[row.id]
            assert (row.sku, row.source, row.sha256) == (view.sku, view.source, view.sha256)
        vectors = np.stack([self.views[view].vector for view in sorted(self.views)])
        assert np.array_equal(seen.vectors_of(seen.ids), vectors)
        names = {view.sku for view in self.views.values()}
        assert set(seen.skus) == names and len(seen.skus) == len(names)
        assert seen.facts.of_all(sorted({*names, *self.facts, "s0", "s47"})) == self.facts
        found = seen.search(vectors[::7], 1)
        assert [seen.skus[int(code)] for code in found.skus[:, 0]] == [
            self.views[i].sku for i in sorted(self.views)[::7]
        ]
        like = {name for name in names if self.facts.get(name, {}).get("brand") == "b2"}
        assert {seen.skus[int(code)] for code in seen.facts.codes({"brand": "b2"})} == like

    def abandoned(self) -> None:
        """Let the process that wrote be no more: its lease would else be held, as this process lives on."""
        Place(connect(self.good)).forget(LEASE)


def add(gallery: MilvusGallery, turn: int) -> object:
    new = views_of(["s1", f"n{turn}", "s2"], 100 + 10 * turn)
    facts = {f"n{turn}": {"brand": "b2"}, "s1": {"brand": f"a{turn}"}}
    return add_views(gallery, iter([columns(new, DIM)]), layer_of(facts), "import")


def added(shop: Shop, turn: int) -> None:
    shop.take(views_of(["s1", f"n{turn}", "s2"], 100 + 10 * turn))
    shop.facts |= {f"n{turn}": {"brand": "b2"}, "s1": {"brand": f"a{turn}", "title": "T1"}}


def remove(gallery: MilvusGallery, turn: int) -> object:
    return remove_skus(gallery, [f"s{47 - turn}"])


def removed(shop: Shop, turn: int) -> None:
    shop.views = {number: view for number, view in shop.views.items() if view.sku != f"s{47 - turn}"}
    del shop.facts[f"s{47 - turn}"]


def tell(gallery: MilvusGallery, turn: int) -> object:
    return say_facts(gallery, layer_of({"s1": {"brand": f"x{turn}"}, "s2": {"title": f"U{turn}"}}), "facts")


def told(shop: Shop, turn: int) -> None:
    shop.facts |= {"s1": {"brand": f"x{turn}", "title": "T1"}, "s2": {"brand": "b2", "title": f"U{turn}"}}


def build(gallery: MilvusGallery, turn: int) -> object:
    views = iter([columns(views_of(["s1", "s2", f"n{turn}"], 1000 * turn), DIM)])
    return create(gallery.store, gallery.spec, views, layer_of({"s2": {"brand": "b2", "title": f"Y{turn}"}}), "import")


def built(shop: Shop, turn: int) -> None:
    shop.views, shop.facts = {}, {"s2": {"brand": "b2", "title": f"Y{turn}"}}
    shop.take(views_of(["s1", "s2", f"n{turn}"], 1000 * turn))


def index(gallery: MilvusGallery, turn: int) -> object:
    return set_index(gallery, "hnsw" if gallery.head.index == "exact" else "exact")


def indexed(shop: Shop, turn: int) -> None:
    """The views stay as they are."""


Do = Callable[[MilvusGallery, int], object]
Then = Callable[[Shop, int], None]
JOBS: dict[str, tuple[Do, Then]] = {
    "add": (add, added),
    "remove": (remove, removed),
    "facts": (tell, told),
    "build": (build, built),
    "index": (index, indexed),
}


def clear(address: Address, action: Callable[[], object], kind: type[SkumatchError] = ServerError) -> str:
    """Return what is said of the trouble that ``action`` must meet, after it was found clear."""
    begun = time.monotonic()
    with pytest.raises(kind) as met:
        action()
    assert time.monotonic() - begun < 50 * float(os.environ[TIMEOUT])  # it would be much more, or for ever
    text = str(met.value)
    assert "\n" not in text and str(address) in text and met.value.todo
    assert SECRET not in "".join(traceback.format_exception(met.value))
    return text


@pytest.mark.parametrize("how", KINDS)
def test_a_reader_meets_trouble_and_goes_on_after_it(
    how: How, shop: Shop, proxy: Proxy, hasty: Callable[..., None]
) -> None:
    address, query = shop.through(proxy.port), shop.views[3].vector[None]
    proxy.be(how, LATE)
    hasty(True)
    clear(address, lambda: open_milvus(address))
    hasty(False)
    proxy.calm()
    gallery = open_milvus(address)
    assert gallery.search(query, 1).views[0, 0] == 3
    hasty(True)
    proxy.be(how, LATE)
    said = [clear(address, lambda: gallery.search(query, 1)), clear(address, gallery.refreshed)]
    assert said[0] == said[1]
    hasty(False)
    proxy.calm()
    assert gallery.search(query, 1).views[0, 0] == 3
    assert [row.id for row in gallery.views()] == sorted(shop.views)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("how", KINDS)
def test_trouble_in_the_middle_of_a_change(
    how: How, job: str, shop: Shop, proxy: Proxy, hasty: Callable[..., None]
) -> None:
    address = shop.through(proxy.port)
    gallery = open_milvus(address)
    hasty(True)
    proxy.at(14, how)
    clear(address, lambda: JOBS[job][0](gallery, 0))
    assert proxy.struck
    hasty(False)
    proxy.calm()
    shop.holds()
    shop.abandoned()
    finished(shop, job, 0, gallery)


def test_a_request_that_is_cut_in_two(shop: Shop, proxy: Proxy, hasty: Callable[..., None]) -> None:
    gallery = open_milvus(shop.through(proxy.port))
    for size in (700, 3000, 6000):
        hasty(True)
        proxy.after_bytes(size)
        clear(gallery.store, lambda: add(gallery, 0))
        assert proxy.struck
        hasty(False)
        proxy.calm()
        shop.holds()
        shop.abandoned()
    finished(shop, "add", 0, gallery)


def finished(shop: Shop, job: str, turn: int, gallery: MilvusGallery) -> None:
    """Do it, without trouble."""
    do, then = JOBS[job]
    do(gallery, turn)
    then(shop, turn)
    shop.number += 1
    shop.holds()


@pytest.mark.parametrize("job", JOBS)
def test_whichever_request_is_cut(
    job: str, shop: Shop, proxy: Proxy, hasty: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "PAUSE", 0.01)
    assert cut(shop, proxy, job, hasty, range(1, 1000, 3)) >= 4


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("job", JOBS)
def test_each_request_is_cut(
    job: str,
    answered: bool,
    shop: Shop,
    proxy: Proxy,
    hasty: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "PAUSE", 0.01)
    assert cut(shop, proxy, job, hasty, range(1, 1000, 1 + answered), answered) >= 10


def cut(shop: Shop, proxy: Proxy, job: str, hasty: Callable[..., None], requests: range, answered: bool = False) -> int:
    """Let the server be gone from each of ``requests`` on until a change gets by; return how many were met."""
    address = shop.through(proxy.port)
    do, then = JOBS[job]
    for met, request in enumerate(requests):
        gallery = open_milvus(address)
        hasty(True, "0.15")
        proxy.at(request, "refuse", answered)
        error = attempt(address, partial(do, gallery, met))
        hasty(False)
        proxy.calm()
        number = open_milvus(shop.good).head.number
        assert number == shop.number + 1 or error  # what succeeded is there
        if number > shop.number:  # it may be that a request after publishing was cut
            then(shop, met)
            shop.number += 1
        shop.holds()
        if not proxy.struck and not error:
            return met
        shop.abandoned()
        if met % 4 == 3 and error:
            finished(shop, job, met, open_milvus(shop.good))
    return len(requests)


def attempt(address: Address, action: Callable[[], object]) -> str:
    """Return what is said where ``action`` meets trouble, "" where it does not."""
    try:
        action()
    except ServerError as error:
        assert "\n" not in str(error) and str(address) in str(error)
        return str(error)
    return ""


def test_a_server_that_is_away_for_a_moment_is_not_noticed(shop: Shop, proxy: Proxy) -> None:
    gallery = open_milvus(shop.through(proxy.port))
    for request, how in ((1, "refuse"), (20, "reset")):
        proxy.at(request, how, back=0.3)  # type: ignore[arg-type]
        finished(shop, "add", request, gallery)
        assert proxy.struck
        proxy.at(1, how, answered=True, back=0.3)  # type: ignore[arg-type]
        assert gallery.search(shop.views[3].vector[None], 1).views[0, 0] == 3
        assert proxy.struck


def test_what_is_published_is_not_told_as_an_error(shop: Shop, proxy: Proxy, hasty: Callable[..., None]) -> None:
    gallery = open_milvus(shop.through(proxy.port))
    for turn in range(2):
        proxy.at(1000, "refuse")
        add(gallery, turn)
    most = proxy.requests
    for turn, after in enumerate((most - 2, most - 1, most), start=2):  # the job's note, the lease, its deletion
        hasty(True)
        connect(gallery.store)
        proxy.at(after, "refuse")
        add(gallery, turn)
        assert proxy.struck
        proxy.calm()
        hasty(False)
        assert open_milvus(shop.good).head.number == turn + 2


def test_the_process_whose_change_failed_can_write_again(
    shop: Shop, proxy: Proxy, hasty: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "WAIT", 0.5)
    gallery = open_milvus(shop.through(proxy.port))
    hasty(True)
    proxy.at(14, "refuse")
    clear(gallery.store, lambda: add(gallery, 0))
    hasty(False)
    proxy.calm()
    finished(shop, "add", 0, gallery)


def test_a_server_that_was_started_again(tmp_path: Path) -> None:
    with milvus_server(tmp_path / "d.db") as port:
        shop = Shop(parse(f"milvus://127.0.0.1:{port}/shop"))
        gallery = open_milvus(shop.good)
    with milvus_server(tmp_path / "d.db", port):
        assert gallery.search(shop.views[3].vector[None], 1).views[0, 0] == 3
        finished(shop, "add", 0, gallery)


WRITER = """
import sys
from skumatch.errors import LockedError
from skumatch.milvus.address import parse
from skumatch.milvus.gallery import open_milvus
from tests.skumatch.test_milvus_trouble import add
for turn in map(int, sys.argv[2:]):
    try:
        add(open_milvus(parse(sys.argv[1])), turn)
        print(turn, flush=True)
    except LockedError:
        pass
"""


def writer(address: Address, *turns: int) -> subprocess.Popen[str]:
    """Begin to add in another process; it prints the turns that were done."""
    command = [sys.executable, "-c", WRITER, str(address), *map(str, turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_a_writer_that_was_killed(shop: Shop, proxy: Proxy) -> None:
    proxy.at(30, "hang")
    with writer(shop.through(proxy.port), 0) as process:
        while not proxy.struck and process.poll() is None:
            time.sleep(0.02)
        with pytest.raises(LockedError, match=f"process {process.pid} on "):
            Lease(Place(connect(shop.good)), "test", 0.0).__enter__()
        shop.holds()
        process.kill()
    shop.holds()
    with Lease(Place(connect(shop.good)), "test", 0.0):
        pass
    finished(shop, "add", 0, open_milvus(shop.good))


def test_the_lease_of_another_machine(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "WAIT", 0.3)
    place = Place(connect(shop.good))
    held = {"mark": "m", "pid": 7, "host": "elsewhere", "what": "import", "until": time.time() + 50}
    place.note(LEASE, held)
    text = clear(shop.good, lambda: add(open_milvus(shop.good), 0), LockedError)
    assert "is being written by process 7 on elsewhere (import)" in text
    shop.holds()
    place.note(LEASE, {**held, "until": time.time() - 1})
    finished(shop, "add", 0, open_milvus(shop.good))


def test_two_processes_write_at_once(shop: Shop) -> None:
    with writer(shop.good, 0, 2) as one, writer(shop.good, 1, 3) as other:
        done = [int(line) for process in (one, other) for line in process.communicate()[0].split()]
    assert (one.returncode, other.returncode) == (0, 0) and done
    seen = verify(shop.good)
    assert seen.head.number == 1 + len(done)
    assert {name for name in seen.skus if name.startswith("n")} == {f"n{turn}" for turn in done}
    for turn in done:
        marks = {view.sha256 for view in views_of(["s1", f"n{turn}", "s2"], 100 + 10 * turn)}
        assert marks <= {row.sha256 for row in seen.views()}
    assert len(seen) == 96 + 3 * len(done) and seen.ids.tolist() == list(range(len(seen)))


def basic(token: str) -> str:
    """Return how a token is sent."""
    return base64.b64encode(token.encode()).decode()


@pytest.fixture
def gate(server: int) -> Iterator[Gate]:
    with Gate(server) as gate:
        yield gate


def test_a_wrong_token(shop: Shop, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def guarded(method: str, metadata: dict[str, str]) -> tuple[str, str] | None:
        asked.append(method)
        right = metadata.get("authorization") == basic(SECRET)
        return None if right else ("UNAUTHENTICATED", "auth check failure, please check username and password")

    gate.refusal = guarded
    address = shop.through(gate.port)
    for token in ("", "root:wrong"):
        monkeypatch.setenv(TOKEN, token)
        text = clear(address, lambda: open_milvus(address))
        assert "refuses the token - set MILVUS_TOKEN" in text and "wrong" not in text
        assert clear(address, lambda: create(address, HashEncoder().spec, iter(()), None, "import")) == text
    assert set(asked) == {"Connect"}
    monkeypatch.setenv(TOKEN, SECRET)
    gallery = open_milvus(address)
    finished(shop, "add", 0, gallery)
    assert SECRET not in repr(gallery.place) + gallery.identity
    gate.refusal = lambda method, metadata: ("UNAUTHENTICATED", "auth check failure, please check")
    assert clear(address, lambda: gallery.search(shop.views[3].vector[None], 1)) == text


@pytest.mark.parametrize("written", [f"{SECRET}@host:19530/shop", f"{SECRET}@host", "a/b:quite-secret@host/shop"])
def test_a_token_in_an_address_is_not_repeated(written: str) -> None:
    with pytest.raises(ConfigError, match=r"'milvus://\.\.\.@host.* the token goes into MILVUS_TOKEN") as met:
        parse(f"milvus://{written}")
    assert "secret" not in str(met.value)


BUSY = "request is rejected by grpc RateLimiter middleware, please retry later: rate limit exceeded[rate=0.1]"
REFUSALS = {
    "PERMISSION_DENIED": ("PrivilegeUpsert: permission deny to bob in the `default` database", "does not allow this"),
    "RESOURCE_EXHAUSTED": ("message larger than max (67110000 vs. 67108864)", "takes no more (message larger"),
    "UNIMPLEMENTED": ("unknown method Upsert", "is no Milvus server"),
    "INTERNAL": ("out of\nluck", "answered: "),
    "DEADLINE_EXCEEDED": ("Deadline Exceeded", "did not answer within 0.3 s"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_server_that_says_no(code: str, shop: Shop, gate: Gate, hasty: Callable[..., None]) -> None:
    address = shop.through(gate.port)
    gallery = open_milvus(address)
    details, meant = REFUSALS[code]
    hasty(True)
    gate.refusal = lambda method, metadata: (code, details) if method == "Upsert" else None
    assert meant in clear(address, lambda: add(gallery, 0))
    hasty(False)
    shop.holds()
    gate.refusal = lambda method, metadata: None
    finished(shop, "add", 0, gallery)


def test_a_client_is_opened_though_the_first_answer_is_lost(shop: Shop, gate: Gate, hasty: Callable[..., None]) -> None:
    asked = list[str]()

    def lost(method: str, metadata: object) -> tuple[str, str] | None:
        asked.append(method)
        if method != "Connect" or asked.count(method) > 1:
            return None
        time.sleep(17)  # longer than there is time
        return "UNAVAILABLE", "late"

    gate.refusal = lost
    hasty(True, "16")
    open_milvus(shop.through(gate.port))
    assert asked.count("Connect") >= 2


def test_a_server_that_has_too_much_to_do(shop: Shop, gate: Gate, hasty: Callable[..., None]) -> None:
    from pymilvus.grpc_gen import common_pb2, milvus_pb2

    gallery = open_milvus(shop.through(gate.port))
    busy = milvus_pb2.QueryResults(status=common_pb2.Status(error_code=49, code=8, reason=BUSY)).SerializeToString()
    gate.refusal = lambda method, metadata: busy if method == "Query" else None
    hasty(True)
    assert "takes no more (" in clear(gallery.store, gallery.refreshed)
    hasty(False)
    gate.refusal = lambda method, metadata: None
    assert gallery.refreshed() is gallery


def test_a_gallery_of_another_model(shop: Shop) -> None:
    other = HashEncoder(1)
    with pytest.raises(SpecMismatch, match="was built with another model") as met:
        Matcher(other, open_milvus(shop.good))
    assert str(shop.good) in str(met.value) and met.value.todo
    for change in (backend(shop.good).extend, backend(shop.good).replace):
        with pytest.raises(SpecMismatch):
            change(Supply.of([]), other, Pipeline(), no_progress)
    shop.holds()


def test_something_else_under_the_name(shop: Shop) -> None:
    from pymilvus import DataType, MilvusClient

    foreign = replace(shop.good, text=f"{shop.good}_x", name=f"{shop.good.name}_x")
    client = MilvusClient(foreign.uri)
    schema = MilvusClient.create_schema()
    schema.add_field("number", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=4)
    client.create_collection(f"{foreign.name}__versions", schema=schema)
    client.insert(f"{foreign.name}__versions", [{"number": 1, "embedding": [0.0] * 4}])
    text = clear(foreign, lambda: open_milvus(foreign))
    assert "holds something else under this name - choose another name" in text
    assert clear(foreign, lambda: create(foreign, HashEncoder().spec, iter(()), None, "import")) == text
    assert client.query(f"{foreign.name}__versions", "number > 0") and len(client.list_collections()) >= 4


@pytest.mark.parametrize("said", ["not JSON", "{}", "[1]", '{"format": 1, "spec": 3}', '{"format": 99}'])
def test_a_version_that_cannot_be_read(said: str, shop: Shop) -> None:
    connection = connect(shop.good)
    connection.upsert(f"{shop.good.name}__versions", [{"pk": 2, "said": said, "vector": DUMMY}])
    text = clear(shop.good, lambda: open_milvus(shop.good), GalleryError)
    assert clear(shop.good, lambda: add_views_anew(shop.good), GalleryError) == text
    connection.delete(f"{shop.good.name}__versions", "pk == 2")
    shop.holds()


def add_views_anew(address: Address) -> object:
    """Begin a change without an opened gallery."""
    return create(address, HashEncoder().spec, iter(()), None, "import")


@pytest.mark.parametrize("said", ["not JSON", "{}", "[1]"])
def test_a_lease_that_cannot_be_read(said: str, shop: Shop) -> None:
    rows = [{"pk": LEASE, "said": said, "vector": DUMMY}]
    connect(shop.good).upsert(f"{shop.good.name}__versions", rows)
    with contextlib.suppress(SkumatchError):
        add(open_milvus(shop.good), 0)


@pytest.mark.parametrize(("how", "scheme"), [("refuse", "milvus"), ("hang", "milvus"), ("pass", "milvus+tls")])
def test_the_command_line_says_it_in_one_line(how: How, scheme: str, proxy: Proxy) -> None:
    proxy.be(how)
    address = f"{scheme}://127.0.0.1:{proxy.port}/shop"
    command = [sys.executable, "-m", "skumatch.cli.app", "gallery", "info", "--gallery", address]
    environment = {**os.environ, TIMEOUT: SHORT, TOKEN: SECRET}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    said = "did not answer within" if how == "hang" else "cannot be reached"
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.count("\n") == 1 and ran.stderr.startswith(f"error: {address} {said}")
    assert SECRET not in ran.stderr
