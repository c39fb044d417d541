"""The client against a small real server that does as it is told: answers, refuses, hangs up, is late."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skumatch
from skumatch import Client, ServiceError, client_wire
from skumatch.client_answers import Enrolled, GalleryVersion, ModelFacts, PictureAnswer, Ranked, Sku
from skumatch.errors import ConfigError, GalleryError, ImageError

HEAVY = ("torch", "numpy", "PIL", "pyarrow", "faiss", "huggingface_hub", "fastapi", "httpx2")
MODEL = {"name": "fake", "digest": "d" * 64, "precision": "fp32"}
BEST = {"rank": 1, "sku": "a", "title": "A", "score": 0.5, "view": 7, "view_url": "/v1/views/7/image"}
FINE = {"decision": "accept", "probability": 0.9, "matches": [BEST], "error": None, "review": None}
BROKEN: dict[str, Any] = {
    "decision": "error",
    "probability": None,
    "matches": [],
    "error": "not a picture",
    "review": None,
}


@dataclass(frozen=True)
class Told:
    """What the server does with one request: answer, or close the connection, or wait until the client gives up."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "answer"


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def files(self) -> list[tuple[str, str, bytes]]:
        """Return name, type and content of the files in the form."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        parts: Any = message_from_bytes(head + self.body).get_payload()
        return [(part.get_filename(), part.get_content_type(), part.get_payload(decode=True)) for part in parts]


class Server(ThreadingHTTPServer):
    """Does what ``script`` says, request by request, and ``last`` from then on; remembers what it saw."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script: list[Told] = []
        self.last = Told(404, {"error": "no such thing", "todo": "look", "request": "r1"})
        self.seen: list[Seen] = []
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next(self, seen: Seen) -> Told:
        with self.lock:
            self.seen.append(seen)
            return self.script.pop(0) if self.script else self.last


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        told = self.server.next(Seen(self.command, self.path, headers, body))
        if told.how != "answer":
            self.close_connection = True
            if told.how == "late":
                self.server.over.wait(20)
            return
        content = told.body if isinstance(told.body, bytes) else json.dumps(told.body).encode()
        self.send_response(told.status)
        for name, value in {"Content-Length": str(len(content)), **told.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # names that http.server looks for

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "skm_a_b", timeout=10) as client:
        yield client


def answers(*results: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    listed = [{"name": name, **one} for name, one in results]
    return {"results": listed, "model": MODEL, "gallery": {"version": "v000003"}, "request": "r2", "newer": 1}


def changed(version: str = "v000004") -> Told:
    return Told(200, {"gallery": {"version": version}, "sku": "a", "views": [1, 2], "known": 3})


def test_importing_the_client_is_light() -> None:
    code = "import sys, skumatch.client; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert skumatch.Client is Client and skumatch.ServiceError is ServiceError


def test_pictures_of_every_kind_go_in_one_form(server: Server, client: Client, tmp_path: Path) -> None:
    path = tmp_path / 'gr\u00fcn "1"\n.jpg'
    path.write_bytes(b"one")
    server.script = [Told(200, answers(("a", FINE), ("b", BROKEN), ("c", FINE), ("d", FINE)))]
    with (tmp_path / "open.png").open("w+b") as stream:
        stream.write(b"four")
        stream.seek(0)
        found = client.match([str(path), b"two", BytesIO(b"three"), stream], 3, {"brand": "a=b", "group": "x&y"}, 2.5)
    (seen,) = server.seen
    assert (seen.method, seen.path) == (
        "POST", "/v1/match?k=3&where=brand%3Da%3Db&where=group%3Dx%26y&deadline=2.5"
    )  # fmt: skip
    assert seen.headers["authorization"] == "Bearer skm_a_b"
    names, kinds, contents = zip(*seen.files(), strict=True)
    assert contents == (b"one", b"two", b"three", b"four")
    assert names[1:] == ("picture-1", "picture-2", "open.png") and names[0].endswith(".jpg") and "\n" not in names[0]
    assert kinds == ("image/jpeg", "application/octet-stream", "application/octet-stream", "image/png")
    best = Ranked(1, "a", "A", 0.5, 7, "/v1/views/7/image")
    assert found.results[0] == PictureAnswer("a", "accept", 0.9, (best,), None, None)
    assert found.results[1] == PictureAnswer("b", "error", None, (), "not a picture", None)
    assert found.model == ModelFacts("fake", "d" * 64, "fp32")
    assert found.gallery == GalleryVersion("v000003") and found.request == "r2"


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "open"])
def test_one_picture_needs_no_list(server: Server, client: Client, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    server.last = Told(200, answers(("a", FINE)))
    one: Any = {"path": path, "text": str(path), "bytes": b"one", "open": BytesIO(b"one")}[kind]
    assert client.match(one).results[0].decision == "accept"
    assert [content for _, _, content in server.seen[0].files()] == [b"one"]


def test_pictures_that_cannot_be_read_here_are_never_sent(server: Server, client: Client, tmp_path: Path) -> None:
    wrong: list[tuple[Any, str]] = [
        ([], "no pictures"),
        (tmp_path / "absent.jpg", "absent.jpg cannot be read .No such file"),
        (tmp_path, "Is a directory"),
        ("a\0b", "null"),
        ([np.zeros((4, 4, 3), np.uint8)], "given as ndarray"),
    ]
    for given, words in wrong:
        with pytest.raises(ImageError, match=words):
            client.match(given)
    with (tmp_path / "t").open("w+") as text, pytest.raises(ImageError, match="open in binary"):
        client.add_views("a", text)
    assert server.seen == []


def test_embeddings_are_rows_of_float32(server: Server, client: Client) -> None:
    rows = [{"name": str(i), "vector": [i, 0.1, -2.5e-8], "error": None} for i in range(3)]
    server.script = [Told(200, {"results": rows}), Told(200, {"results": rows[:2]})]
    server.last = Told(200, {"results": [{"name": "b.jpg", "vector": None, "error": "broken"}, rows[0]]})
    vectors = client.embed([b"a", b"b", b"c"])
    assert vectors.dtype == np.float32 and vectors.shape == (3, 3)
    assert np.array_equal(vectors, np.array([one["vector"] for one in rows], np.float32))
    with pytest.raises(ServiceError, match="3 pictures were sent and 2 answered"):
        client.embed([b"a", b"b", b"c"])
    with pytest.raises(ImageError, match=r"b\.jpg: broken"):
        client.embed([b"a", b"b"])


def test_skus_come_page_by_page(server: Server, client: Client) -> None:
    pages = [["a", "b"], ["c"], []]
    for number, names in enumerate(pages):
        listed = [{"sku": name, "title": name.upper(), "views": 2, "facts": {"brand": "x"}} for name in names]
        server.script.append(Told(200, {"skus": listed, "next": None if number == 2 else f"to {number}"}))
    found = client.skus("a & b", limit=2)
    assert next(found) == Sku("a", "A", 2, {"brand": "x"}) and len(server.seen) == 1
    assert [one.sku for one in found] == ["b", "c"]
    assert [seen.path for seen in server.seen] == [
        "/v1/skus?query=a+%26+b&limit=2",
        "/v1/skus?query=a+%26+b&limit=2&after=to+0",
        "/v1/skus?query=a+%26+b&limit=2&after=to+1",
    ]


CHANGES: list[tuple[Callable[[Client], Any], str, str]] = [
    (lambda c: c.set_facts("a/../b?", {"brand": ""}, "v000003"), "PATCH", "/v1/skus/a%2F..%2Fb%3F"),
    (lambda c: c.remove_sku("\u00e5 #1", "v000003"), "DELETE", "/v1/skus/%C3%A5%20%231"),
    (lambda c: c.add_views("a&b", b"x", "A & B", "v000003"), "POST", "/v1/views?sku=a%26b&title=A+%26+B"),
    (lambda c: c.replace_views("a", b"x", if_version="v000003"), "PUT", "/v1/views?sku=a"),
    (lambda c: c.remove_view(7, "v000003"), "DELETE", "/v1/views/7"),
    (lambda c: c.rollback("v000001", "v000003"), "POST", "/v1/gallery/rollback"),
]


@pytest.mark.parametrize(("do", "method", "path"), CHANGES)
def test_changes_name_the_version_and_answer_the_new_one(
    server: Server, client: Client, do: Callable[[Client], Any], method: str, path: str
) -> None:
    server.script = [changed()]
    new = GalleryVersion("v000004")
    assert do(client) == (Enrolled("a", (1, 2), 3, new) if "/v1/views?" in path else new)
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.headers["if-match"]) == (method, path, '"v000003"')
    if path.startswith("/v1/views?"):
        assert [content for _, _, content in seen.files()] == [b"x"]
    elif method in ("PATCH", "POST"):
        assert json.loads(seen.body) == ({"facts": {"brand": ""}} if method == "PATCH" else {"to": "v000001"})


@pytest.mark.parametrize("what", [Told(503, b"", {"Retry-After": "0"}), Told(how="close")], ids=["503", "closed"])
@pytest.mark.parametrize(("do", "method", "path"), CHANGES)
def test_a_change_is_never_sent_twice(
    server: Server, client: Client, what: Told, do: Callable[[Client], Any], method: str, path: str
) -> None:
    server.script = [what, changed()]
    with pytest.raises(ServiceError, match=r"answered 503|without an answer .* before trying again"):
        do(client)
    assert len(server.seen) == 1


READS: list[Callable[[Client], Any]] = [
    lambda client: client.match(b"a"),
    lambda client: client.embed(b"a"),
    lambda client: list(client.skus()),
    lambda client: client.sku("a"),
    lambda client: list(client.views("a")),
    lambda client: client.gallery(),
    lambda client: client.log(),
    lambda client: client.view_picture(1),
    lambda client: client.reload(),
]
ALL = {
    **answers(("a", FINE)),
    "sku": "a",
    "title": "",
    "facts": {},
    "dim": 3,
    "digest": "d",
    "columns": ["brand"],
    "changed": True,
    "current": {"version": "v000003", "parent": None, "made": "", "reason": "", "index": "exact"},
    "skus": [],
    "views": [],
    "versions": [],
    "next": None,
}


@pytest.mark.parametrize("do", READS)
def test_what_changes_nothing_is_tried_again(
    server: Server, client: Client, do: Callable[[Client], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_wire, "PAUSE", 0.001)
    body = json.loads(json.dumps(ALL))
    body["results"][0]["vector"] = [1.0]
    server.script = [Told(503, b"busy", {"Retry-After": "0.01"}), Told(how="close"), Told(200, body)]
    do(client)
    assert len(server.seen) == 3 and len({seen.path for seen in server.seen}) == 1
    assert len({seen.headers.get("content-length") for seen in server.seen}) == 1
    server.script = [Told(how="close")] * 3
    with pytest.raises(ServiceError, match="closed the connection") as caught:
        do(client)
    assert caught.value.status == 0 and len(server.seen) == 6


def test_too_many_requests_are_waited_for_by_changes_too(server: Server, client: Client) -> None:
    server.script = [Told(429, b"", {"Retry-After": "0.01"})] * 2 + [changed()]
    assert client.remove_view(1).version == "v000004"
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "later", [{}, {"Retry-After": "soon"}, {"Retry-After": "-1"}, {"Retry-After": "nan"}, {"Retry-After": "3600"}]
)
def test_a_wait_that_is_not_told_or_too_long_is_not_begun(
    server: Server, client: Client, later: dict[str, str]
) -> None:
    body = {"error": "the queue is full", "todo": "come again", "request": "r9"}
    server.script = [Told(503, body, later), Told(200, {})]
    with pytest.raises(ServiceError, match="the queue is full - come again") as caught:
        client.gallery()
    assert (caught.value.status, caught.value.request, len(server.seen)) == (503, "r9", 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413, 415, 422, 500, 504])
def test_refusals_keep_the_services_words(server: Server, client: Client, status: int) -> None:
    server.last = Told(status, {"error": "k is 0", "todo": "ask for more", "request": "r1"}, {"Retry-After": "0"})
    with pytest.raises(ServiceError) as caught:
        client.match(b"a")
    error = caught.value
    assert (error.status, error.what, error.todo, error.request) == (status, "k is 0", "ask for more", "r1")
    assert len(server.seen) == 1


def test_what_stands_in_front_is_told_apart(server: Server, client: Client) -> None:
    cases = [
        (Told(502, b"<html>", {"X-Request-Id": "g1"}), "answered 502 Bad Gateway - see the log"),
        (Told(400, b"[1]"), "answered 400"),
        (Told(400, b"[" * 100_000), "answered 400"),
        (Told(307, b"", {"Location": "https://other.example/"}), "redirects to https://other.example/"),
        (Told(200, b"<html>"), "not understood"),
        (Told(200, [1]), "not understood"),
        (Told(200, {"skus": [{"sku": "a"}], "next": None}), "not understood"),
    ]
    for told, words in cases:
        server.script = [told]
        with pytest.raises(ServiceError, match=words):
            list(client.skus())
    assert len(server.seen) == len(cases)  # a redirect is not followed: the key stays here


def test_a_service_that_is_silent_is_given_up(server: Server) -> None:
    server.last = Told(how="late")
    with Client(server.url, timeout=0.2) as client, pytest.raises(ServiceError, match=r"did not answer in 0\.2 s"):
        client.gallery()
    assert len(server.seen) == 1


def test_a_refused_connection_is_tried_again_even_for_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=1) as client:
        with pytest.raises(ServiceError, match="cannot be reached") as caught:
            client.remove_view(1)
        assert caught.value.status == 0 and not client.ready()
    begun = threading.Event()

    def ask() -> GalleryVersion:
        with Client(f"http://127.0.0.1:{port}", timeout=20, retries=12) as client:
            begun.set()
            return client.remove_view(1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        begun.wait(10)
        with serving(port) as server:
            server.last = changed()
            assert waiting.result(20) == GalleryVersion("v000004") and len(server.seen) == 1


def test_ready_is_what_the_service_says(server: Server, client: Client) -> None:
    server.script = [Told(200, {}), *[Told(503, {})] * 3]
    assert client.ready() and not client.ready()
    assert {seen.path for seen in server.seen} == {"/readyz"}


def test_many_threads_share_one_client(server: Server, client: Client) -> None:
    server.last = Told(200, answers(("a", FINE)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: client.match(str(number).encode()), range(64)))
    assert len(found) == 64 and {one.request for one in found} == {"r2"}
    assert sorted(int(seen.files()[0][2]) for seen in server.seen) == list(range(64))


def test_a_service_below_a_path_of_its_gateway(server: Server) -> None:
    server.last = Told(200, {"versions": []})
    for slash in ("", "/"):
        with Client(f"{server.url}/shop/skumatch{slash}") as client:
            assert client.log() == ()
    assert {seen.path for seen in server.seen} == {"/shop/skumatch/v1/gallery/log?limit=100"}
    assert "authorization" not in server.seen[0].headers


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://a",
        "http://",
        "http://a:x",
        "http://a:0",
        "http://u:p@a",
        "http://a/?k=1",
        "http://[a",
    ],
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Client(url)


def test_settings_that_cannot_be_used_are_refused() -> None:
    for key in ("", "a b", "a\r\nX: y", "\u00e5"):
        with pytest.raises(ConfigError) as caught:
            Client("http://a", key)
        assert not key or key not in str(caught.value)
    for timeout, retries in ((0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, -1)):
        with pytest.raises(ConfigError, match="timeout"):
            Client("http://a", None, timeout, retries)
    assert "secret" not in repr(Client("http://a", "secret"))


def test_names_that_no_sku_has_are_not_sent(server: Server, client: Client) -> None:
    for name in ("", ".", "..", "\udcff"):
        with pytest.raises(GalleryError, match="not the name of a SKU"):
            client.remove_sku(name)
    with pytest.raises(ServiceError, match="cannot be written"):
        client.match(b"a", where={"brand": "\udcff"})
    assert server.seen == []


def test_a_closed_client_says_so(server: Server) -> None:
    client = Client(server.url)
    client.close()
    client.close()
    with pytest.raises(ServiceError, match="closed"):
        client.gallery()
