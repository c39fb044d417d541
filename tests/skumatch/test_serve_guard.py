"""The guard in the test process: who gets in, for what, and which pages may ask."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.websockets import WebSocketDisconnect

from skumatch.errors import ArtefactError, ConfigError
from skumatch.serve.guard import check_exposure
from skumatch.serve.keys import SCOPES
from skumatch.serve.settings import Settings
from tests.skumatch.guarded import PICTURE, client_of, guarded


def test_without_keys_this_machine_may_do_all(tmp_path: Path) -> None:
    guard, _, records = guarded(tmp_path)
    client = client_of(guard)
    answer = client.post("/v1/match", content=PICTURE)
    assert answer.status_code == 200 and answer.json()["who"] == "local" and answer.json()["bytes"] == 100
    assert answer.json()["id"] == answer.headers["x-request-id"] == records[0]["request"]
    assert client.post("/v1/views").status_code == client.get("/v1/skus").status_code == 200


def test_with_keys_everything_asks_for_one(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path)
    token = keys.add("till", ["match"])
    client = client_of(guard)
    for path in ("/v1/skus", "/nowhere", "/fail/bug", "/healthz/", "//healthz", "/healthz/../v1/skus", "//", "/page"):
        answer = client.get(f"{client.base_url}{path}")
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert answer.json() == {
            "error": "the request has no valid API key",
            "todo": "send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            "request": answer.headers["x-request-id"],
        }
    for headers in ({"Authorization": f"Bearer {token}"}, {"authorization": f"bearer  {token}"}, {"X-API-Key": token}):
        assert client.post("/v1/match", headers=headers).json()["who"] == "till"
    for headers in ({"Authorization": f"Basic {token}"}, {"Authorization": token}, {"Cookie": f"key={token}"}):
        assert client.post("/v1/match", headers=headers).status_code == 401
    assert client.post(f"/v1/match?key={token}").status_code == 401
    assert client.post("/v1/match", headers={"X-API-Key": token, "Authorization": "Bearer x"}).status_code == 400
    assert client.get("/healthz").text == client.get("/readyz").text == "yes"


def test_a_key_does_only_what_it_was_given_for(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path)
    client = client_of(guard)
    routes = {"match": ("POST", "/v1/match"), "read": ("GET", "/v1/skus"), "write": ("POST", "/v1/views")}
    for held in SCOPES:
        headers = {"X-API-Key": keys.add(f"only {held}", [held])}
        for scope, (method, path) in routes.items():
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == (200 if scope == held else 403), (held, scope)
            assert scope == held or answer.json()["error"] == f"the key only {held} has not the scope {scope}"


def test_a_key_taken_back_or_a_damaged_file_ends_access_at_once(tmp_path: Path) -> None:
    guard, keys, records = guarded(tmp_path)
    headers = {"X-API-Key": keys.add("till", SCOPES)}
    client = client_of(guard)
    assert client.get("/v1/skus", headers=headers).status_code == 200
    whole = keys.path.read_bytes()
    keys.path.write_bytes(whole[:40])
    for given in (headers, {}):
        answer = client.get("/v1/skus", headers=given)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert str(tmp_path) not in answer.text and "is corrupt, so nobody gets in" in records[-1]["error"]
    keys.path.write_bytes(whole)
    assert client.get("/v1/skus", headers=headers).status_code == 200
    keys.remove("till")
    assert client.get("/v1/skus", headers=headers).status_code == client.get("/v1/skus").status_code == 401
    keys.path.unlink()
    assert client.get("/v1/skus").status_code == 401


def test_other_machines_need_keys(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"listen on 0\.0\.0\.0 without API keys - make one with `skumatch keys add"):
        check_exposure(Settings(host="0.0.0.0"), keys)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_exposure(Settings(host=host), keys)
    assert client_of(guard).get("/v1/skus").status_code == 401  # the file is away, whoever removed it
    headers = {"X-API-Key": keys.add("till", SCOPES)}
    check_exposure(Settings(host="0.0.0.0"), keys)
    assert client_of(guard).get("/v1/skus", headers=headers).status_code == 200
    keys.path.write_text("{")
    with pytest.raises(ArtefactError):
        check_exposure(Settings(), keys)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("match.shop.example", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example:8080", 421),
        ("127.0.0.2", 421),
        ("match.shop.example.", 421),
        ("", 400),
        ("127.0.0.1@evil.example", 400),
        ("127.0.0.1:8080:80", 400),
        ("127.0.0.1/evil", 400),
        ("127.0.0.1 evil", 400),
        ("[::1", 400),
        ("127.0.0.1:80a", 400),
    ],
)
def test_only_its_own_names_are_answered(tmp_path: Path, host: str, status: int) -> None:
    """A page whose name an attacker points at 127.0.0.1 asks with that name."""
    client = client_of(guarded(tmp_path, hosts=" match.shop.example, other.example ")[0])
    assert client.get("/v1/skus", headers={"Host": host}).status_code == status
    assert client.get("/healthz", headers={"Host": host}).status_code == 200  # load balancers ask by address


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "https://127.0.0.1:443"}, 200),
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
        ({"Host": "localhost", "Origin": "https://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:8081"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://127.0.0.1@evil.example"}, 403),
        ({"Origin": "file://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    client = client_of(guarded(tmp_path)[0])
    assert client.post("/v1/views", headers=headers).status_code == status
    assert client.options("/v1/views", headers=headers).status_code == (405 if status == 200 else 403)
    assert client.get("/v1/skus", headers=headers).status_code == 200
    assert "access-control-allow-origin" not in client.get("/v1/skus", headers=headers).headers


def test_web_sockets_are_refused(tmp_path: Path) -> None:
    guard, _, _ = guarded(tmp_path)
    with pytest.raises(WebSocketDisconnect) as caught, client_of(guard).websocket_connect("/v1/match"):
        pass
    assert caught.value.code == 1008


def test_the_promises_name_tests_that_are_there() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (root / "SECURITY.md").read_text()))
    assert len(named) >= 5
    assert not [path for path in named if not (root / path).is_file()]
