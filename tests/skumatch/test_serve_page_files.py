"""The files of the page: anybody may have them, and nothing else; they are plain, and ask for nothing foreign."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from skumatch.serve.keys import Keys
from skumatch.serve.page_routes import PREFIX, files
from skumatch.serve.service import Service
from tests.skumatch.serving import client

FOLDER = Path(__file__).parents[2] / "skumatch" / "serve" / "page"


def test_the_page_is_there_with_all_its_files(api: TestClient) -> None:
    start = api.get("/")
    assert start.status_code == 200 and start.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:href|src)="/page/([^"]+)"', start.text))
    for name, file in files().items():
        for imported in re.findall(r'from "\./([^"]+)"', file.data.decode()):
            named.add(imported)
        answer = api.get(PREFIX + name)
        assert answer.content == (FOLDER / name).read_bytes() and answer.headers["content-type"] == file.kind
        assert api.get(PREFIX + name, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert named | {"index.html"} == set(files()) == {path.name for path in FOLDER.iterdir()}
    assert sum(len(file.data) for file in files().values()) < 300_000


@pytest.mark.parametrize("name", ["x", "..%2fpage_routes.py", "%2e%2e/app.py", "index.html/x", "", "index.html%00"])
def test_nothing_else_is_given_out(api: TestClient, name: str) -> None:
    assert api.get(PREFIX + name).status_code == 404
    assert api.post("/").status_code == 405


def test_anybody_may_have_the_page_and_nothing_else(service: Service, tmp_path: Path) -> None:
    Keys(tmp_path / "state" / "keys.json").add("eva", ["read"])
    with client(service) as api:
        assert api.get("/").status_code == api.get("/page/main.js").status_code == 200
        assert api.get("/v1/gallery").status_code == api.get("/page").status_code == 401
        assert api.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_the_page_sets_text_and_never_markup() -> None:
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert not re.search(r"https?://(?!www\.w3\.org)", text), path
    assert "style=" not in (FOLDER / "index.html").read_text()  # the policy forbids it
