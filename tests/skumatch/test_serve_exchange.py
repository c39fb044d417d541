"""Every answer behind the guard: its headers, errors as JSON, and what the access log says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from skumatch.serve.guard import Guard
from skumatch.serve.keys import SCOPES
from tests.skumatch.guarded import PICTURE, client_of, guarded


def everything(guard: Guard, token: str) -> list[Any]:
    """Return answers of every kind."""
    client, key = client_of(guard), {"X-API-Key": token}
    gets = ["/v1/skus", "/nowhere", "/fail/bug", "/fail/problem", "/fail/gallery", "/healthz", "/own-headers"]
    found = [client.get(path, headers=key) for path in gets]
    found += [client.get("/v1/skus"), client.get("/v1/skus", headers={"Host": "evil"}), client.head("/v1/skus")]
    found += [client.post("/v1/match", headers=key, content=b"x" * 2000), client.put("/v1/skus", headers=key)]
    return found


def test_every_answer_has_the_security_headers(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path, max_body=1000)
    token = keys.add("till", SCOPES)
    for answer in everything(guard, token):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        own = answer.request.url.path == "/own-headers"
        assert answer.headers["cache-control"] == ("max-age=60" if own else "no-store")
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "strict-transport-security" not in answer.headers and "server" not in answer.headers
        assert len(answer.headers.multi_items()) == len(answer.headers)  # none twice
    assert client_of(guard).get("/own-headers", headers={"X-API-Key": token}).headers["x-frame"] == "kept"


def test_tls_is_remembered(tmp_path: Path) -> None:
    guard, keys, _ = guarded(tmp_path, tls_cert="cert.pem", tls_key="key.pem")
    token = keys.add("till", SCOPES)
    assert all("max-age=" in answer.headers["strict-transport-security"] for answer in everything(guard, token))


@pytest.mark.parametrize("given", ["abc", "A-1._z", "x" * 64])
def test_a_clients_request_id_is_taken_over(tmp_path: Path, given: str) -> None:
    client = client_of(guarded(tmp_path)[0])
    answer = client.get("/nowhere", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\x1b", "a<b>", "%0d%0aset-cookie:x", "\u00e9", '"}'])
def test_another_request_id_is_replaced(tmp_path: Path, given: str) -> None:
    client = client_of(guarded(tmp_path)[0])
    answer = client.get("/fail/problem", headers={b"X-Request-Id": given.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json()["request"] == answer.headers["x-request-id"]


def test_what_is_raised_is_answered_as_json(tmp_path: Path) -> None:
    guard, _, records = guarded(tmp_path)
    client = client_of(guard)
    said = client.get("/fail/problem")
    assert said.status_code == 409 and said.headers["retry-after"] == "3"
    assert (said.json()["error"], said.json()["todo"]) == ("it changed", "ask again")
    said = client.get("/fail/gallery")
    assert said.status_code == 422 and said.json()["error"] == "no SKU x"
    said = client.get("/fail/bug")
    assert said.status_code == 500 and said.headers["content-type"] == "application/json"
    assert said.json()["error"] == "an internal error" and "private" not in said.text and "Traceback" not in said.text
    problem, gallery, bug = records
    assert (problem["error"], gallery["error"]) == ("it changed", "no SKU x")
    assert "Traceback" in bug["error"] and "private words" in bug["error"] and bug["status"] == 500


def test_an_answer_that_broke_off_is_cut(tmp_path: Path) -> None:
    guard, _, records = guarded(tmp_path)
    with pytest.raises(RuntimeError, match="private words"):
        client_of(guard).get("/late")
    assert records[0]["status"] == 200 and records[0]["bytes"] == 4 and "private words" in records[0]["error"]


def test_the_access_log_has_the_facts_and_no_secrets(tmp_path: Path) -> None:
    guard, keys, records = guarded(tmp_path)
    token = keys.add("till", SCOPES)
    client = client_of(guard, "10.0.0.9")
    client.post(f"/v1/match?key={token}", headers={"X-API-Key": token}, content=PICTURE)
    client.get("/a%0d%0a%1b%5b2J", headers={"Authorization": "Bearer " + token[:-1]})
    client.get("/fail/bug", headers={"Authorization": f"Bearer {token}"})
    asked, refused, broken = records
    asked.pop("route")
    assert asked.pop("ms") >= 0 and len(asked.pop("request")) == 32 and asked.pop("bytes") > 20
    assert asked == {"method": "POST", "path": "/v1/match", "status": 200, "who": "till", "client": "10.0.0.9"}
    assert refused["who"] is None and refused["status"] == 401 and refused["path"] == "/a\r\n\x1b[2J"
    assert broken["status"] == 500
    assert token.split("_")[2][:20] not in json.dumps(records)
