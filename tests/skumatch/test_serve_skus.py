"""``/v1/skus``: finding, telling, changing and removing SKUs, and names that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from skumatch.gallery import open_gallery
from skumatch.gallery_changes import set_facts
from skumatch.serve.service import Service
from tests.skumatch.serving import client


def audited(folder: Path) -> list[dict[str, Any]]:
    path = folder / "state" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_page_of_skus(api: TestClient) -> None:
    answer = api.get("/v1/skus?limit=2")
    assert answer.headers["etag"] == '"v000001"' and answer.headers["x-content-type-options"] == "nosniff"
    said = answer.json()
    assert said["skus"] == [
        {"sku": f"sku-{number}", "title": f"Title {number}", "views": 4, "facts": {"brand": f"brand-{number}"}}
        for number in range(2)
    ]
    assert said["gallery"] == {"version": "v000001"}
    found = [one["sku"] for one in said["skus"]]
    while said["next"]:
        said = api.get("/v1/skus", params={"limit": 2, "after": said["next"]}).json()
        found += [one["sku"] for one in said["skus"]]
    assert found == [f"sku-{number}" for number in range(6)]


def test_finding(api: TestClient) -> None:
    questions = {"TITLE 3": "3", "brand-1": "135", "brand-1 5": "5", "nothing": ""}
    for query, numbers in questions.items():
        said = api.get("/v1/skus", params={"query": query}).json()
        assert [one["sku"] for one in said["skus"]] == [f"sku-{number}" for number in numbers] and said["next"] is None


REFUSED: list[dict[str, Any]] = [
    {"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "x"}, {"query": "x" * 201}, {"query": "a " * 17}
]  # fmt: skip


def test_questions_that_are_refused(api: TestClient) -> None:
    for params in REFUSED:
        answer = api.get("/v1/skus", params=params)
        assert answer.status_code == 422 and answer.json()["error"], params


def test_one_sku(api: TestClient) -> None:
    answer = api.get("/v1/skus/sku-2")
    assert answer.headers["etag"] == '"v000001"'
    assert answer.json() == {
        "sku": "sku-2",
        "title": "Title 2",
        "views": 4,
        "facts": {"brand": "brand-0"},
        "gallery": {"version": "v000001"},
    }
    first = answer.json()
    assert api.get("/v1/skus").status_code == 200  # from now on names are at hand, and tell the same
    assert api.get("/v1/skus/sku-2").json() == first
    missing = api.get("/v1/skus/sku-9")
    assert missing.status_code == 404 and "no SKU is called 'sku-9'" in missing.json()["error"]


def test_facts_are_set_and_taken_back(api: TestClient, tmp_path: Path) -> None:
    answer = api.patch("/v1/skus/sku-2", json={"facts": {"title": "Milk", "brand": "", "aisle": "7"}})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"gallery": {"version": "v000002"}} and answer.headers["etag"] == '"v000002"'
    said = api.get("/v1/skus/sku-2").json()
    assert (said["title"], said["facts"]) == ("Milk", {"aisle": "7"})
    assert [one["sku"] for one in api.get("/v1/skus?query=milk").json()["skus"]] == ["sku-2"]
    assert open_gallery(tmp_path / "gallery").facts.of("sku-2") == {"title": "Milk", "aisle": "7"}
    begun, done = audited(tmp_path)
    assert (begun["state"], done["state"], done["who"], done["action"]) == ("begun", "done", "local", "sku.facts")
    assert (done["sku"], done["facts"]["aisle"], done["version"]) == ("sku-2", "7", "v000002")


BODIES = [
    (b"", 400), (b"{", 400), (b"[]", 422), (b"{}", 422), (b'{"facts": {}}', 422), (b'{"facts": {"a": 1}}', 422),
    (b'{"facts": {"sku": "x"}}', 422), (b'{"facts": {"_forget": "x"}}', 422), (b'{"facts": {"": "x"}}', 422),
    (b'{"facts": {"a\\u0000": "x"}}', 422), (b'{"facts": {"a": "\\ud800"}}', 400), (b'{"facts": {"a": null}}', 422),
    (b'{"facts": {"a": "b"}, "views": []}', 422), (b"\xff", 400), (b"[" * 100_000, 400),
    (json.dumps({"facts": {"a": "x" * 4001}}).encode(), 422),
    (json.dumps({"facts": {str(number): "x" for number in range(51)}}).encode(), 422),
]  # fmt: skip


def test_facts_that_are_refused(api: TestClient, tmp_path: Path) -> None:
    for content, status in BODIES:
        answer = api.patch("/v1/skus/sku-2", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status and answer.json()["error"] and answer.json()["todo"], answer.text
        assert len(content) > 1000 or answer.json()["error"].isascii()
    assert api.get("/v1/skus/sku-2").json()["gallery"] == {"version": "v000001"} and audited(tmp_path) == []


def test_the_largest_facts_are_taken(api: TestClient) -> None:
    facts = {f"{number:064}": "x" * 4000 for number in range(50)}
    assert api.patch("/v1/skus/sku-2", json={"facts": facts}).status_code == 200
    assert api.get("/v1/skus/sku-2").json()["facts"] == {"brand": "brand-0", **facts}


def test_only_json_is_taken(api: TestClient) -> None:
    content = b'{"facts": {"a": "b"}}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = api.patch("/v1/skus/sku-2", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 415
    kind = "application/json; charset=utf-8"
    assert api.patch("/v1/skus/sku-2", content=content, headers={"Content-Type": kind}).status_code == 200


def test_a_sku_is_removed(api: TestClient, tmp_path: Path) -> None:
    answer = api.delete("/v1/skus/sku-2")
    assert answer.json() == {"gallery": {"version": "v000002"}}
    assert api.get("/v1/skus/sku-2").status_code == 404
    assert "sku-2" not in open_gallery(tmp_path / "gallery").skus
    assert api.delete("/v1/skus/sku-2").status_code == 404
    assert [line["state"] for line in audited(tmp_path)] == ["begun", "done", "begun", "failed"]


def test_the_last_sku_stays(api: TestClient) -> None:
    for number in range(5):
        assert api.delete(f"/v1/skus/sku-{number}").status_code == 200
    answer = api.delete("/v1/skus/sku-5")
    assert answer.status_code == 409 and "empty" in answer.json()["error"]
    assert api.get("/v1/skus/sku-5").status_code == 200


def test_changes_of_another_version_are_refused(api: TestClient, tmp_path: Path) -> None:
    body = {"facts": {"a": "b"}}
    assert api.patch("/v1/skus/sku-1", json=body, headers={"If-Match": '"v000001"'}).status_code == 200
    for version, status in [('"v000001"', 412), ('"v000009"', 412), ('W/"v000002"', 422), ("v000002", 422), ("x", 422)]:
        answer = api.delete("/v1/skus/sku-1", headers={"If-Match": version})
        assert answer.status_code == status, version
    gallery = open_gallery(tmp_path / "gallery")
    set_facts(gallery, {"sku-1": {"a": "by another program"}})
    assert api.delete("/v1/skus/sku-1", headers={"If-Match": '"v000002"'}).status_code == 412
    assert api.get("/v1/skus/sku-1").json()["facts"]["a"] == "by another program"  # a refused change shows it, too
    assert api.delete("/v1/skus/sku-1", headers={"If-Match": "*"}).status_code == 200


NAMES = [
    "../../etc/passwd",
    "a/b/c",
    "...",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "mjo\u0308lk",
    "\u725b\u4e73",
    "\u202egnp.exe",
    "a?b#c&d%",
    " ",
    "x" * 256,
]


XSS = "<img src=x onerror=alert(1)>"


def test_strange_names_are_names(api: TestClient, patterns: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    data = (patterns / "test" / "sku-0" / "4.png").read_bytes()
    for name in NAMES:
        params = {"sku": name, "title": XSS}
        made = api.post("/v1/views", params=params, content=data, headers={"Content-Type": "image/png"})
        assert made.status_code == 200 and made.json()["sku"] == name, made.text
    listed = api.get("/v1/skus", params={"query": "onerror"}).json()["skus"]
    assert {one["sku"] for one in listed} == set(NAMES) and {one["title"] for one in listed} == {XSS}
    match = api.post("/v1/match", params={"k": len(NAMES)}, content=data, headers={"Content-Type": "image/png"}).json()[
        "results"
    ][0]
    assert {one["sku"] for one in match["matches"]} == set(NAMES)
    for name in NAMES:
        url = f"/v1/skus/{quote(name, safe='')}"
        assert api.patch(url, json={"facts": {"note": "=1+1"}}).status_code == 200
        answer = api.get(url)
        assert answer.json()["sku"] == name and answer.json()["facts"] == {"note": "=1+1"}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert api.delete(url).status_code == 200 and api.get(url).status_code == 404
    homes = (tmp_path / "gallery", tmp_path / "state", tmp_path / "skumatch-cache")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert new and all(any(path.is_relative_to(home) for home in homes) for path in new)


def test_names_that_are_refused(api: TestClient, patterns: Path, tmp_path: Path) -> None:
    data = (patterns / "test" / "sku-0" / "4.png").read_bytes()
    for name in ("", ".", "..", "a\nb", "a\x00", "\x7f", "a\x9fb", "x" * 257):
        url = f"/v1/skus/{quote(name, safe='').replace('.', '%2E')}"
        answers = [
            api.get("/v1/views", params={"sku": name}),
            api.post("/v1/views", params={"sku": name}, content=data, headers={"Content-Type": "image/png"}),
            api.put("/v1/views", params={"sku": name}, content=data, headers={"Content-Type": "image/png"}),
            api.get(url),
            api.patch(url, json={"facts": {"a": "b"}}),
            api.delete(url),
        ]
        in_path = 404 if "\n" in name else 422  # the router knows no paths of two lines
        assert [answer.status_code for answer in answers] == [422] * 3 + [in_path] * 3, name
    assert audited(tmp_path) == [] and not (tmp_path / "state" / "uploads").exists()


def test_a_name_in_bytes_that_are_no_utf8(api: TestClient) -> None:
    assert api.get("/v1/skus/%ff%fe").status_code == 404
    assert api.get("/v1/skus?query=%ff").json()["skus"] == []
    assert api.get("/v1/views?sku=%ed%a0%80").status_code == 404


ROUTES = [
    ("GET", "/v1/skus", "read"), ("GET", "/v1/skus/sku-0", "read"), ("PATCH", "/v1/skus/sku-0", "write"),
    ("DELETE", "/v1/skus/sku-9", "write"), ("GET", "/v1/views?sku=sku-0", "read"), ("POST", "/v1/views?sku=a", "write"),
    ("PUT", "/v1/views?sku=a", "write"), ("GET", "/v1/views/0", "read"), ("GET", "/v1/views/0/image", "read"),
    ("DELETE", "/v1/views/9999", "write"), ("GET", "/v1/gallery", "read"), ("GET", "/v1/gallery/log", "read"),
    ("GET", "/v1/gallery/diff?a=v000001&b=v000001", "read"), ("POST", "/v1/gallery/rollback", "write"),
]  # fmt: skip


def test_keys_and_their_scopes(service: Service, tmp_path: Path) -> None:
    tokens = {scope: service.keys.add(scope, [scope]) for scope in ("read", "match", "write")}
    with client(service) as api:
        for method, path, needed in ROUTES:
            assert api.request(method, path).status_code == 401, path
            for scope, token in tokens.items():
                answer = api.request(method, path, headers={"Authorization": f"Bearer {token}"})
                assert (answer.status_code == 403) == (scope != needed), (method, path, scope, answer.text)
    assert {line["who"] for line in audited(tmp_path)} == {"write"}
