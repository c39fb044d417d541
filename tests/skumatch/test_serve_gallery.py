"""``/v1/gallery``: what it holds, its versions, how they differ, going back, and what the document says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import remove_skus
from skumatch.gallery_rebuild import rebuild
from tests.skumatch.serving import client, make_gallery, make_service


def version(api: TestClient) -> str:
    return str(api.get("/v1/gallery").json()["gallery"]["version"])


def test_what_it_holds(api: TestClient, tmp_path: Path) -> None:
    answer = api.get("/v1/gallery")
    said = answer.json()
    assert answer.headers["etag"] == '"v000001"' and said["gallery"] == {"version": "v000001"}
    assert (said["model"], said["digest"], said["dim"]) == ("fake", "0" * 64, 32)
    assert (said["skus"], said["views"], said["columns"]) == (6, 24, ["title", "brand"])
    now = said["current"]
    assert (now["version"], now["parent"], now["reason"], now["index"]) == ("v000001", None, "build", "exact")
    assert str(tmp_path) not in answer.text


def test_another_programs_version_is_told_before_it_answers(api: TestClient, tmp_path: Path) -> None:
    remove_skus(open_gallery(tmp_path / "gallery"), ["sku-0"])
    said = api.get("/v1/gallery").json()
    assert (said["gallery"]["version"], said["skus"], said["current"]["version"]) == ("v000001", 6, "v000002")
    assert api.get("/v1/skus/sku-0").status_code == 200
    assert api.post("/v1/reload").json()["gallery"] == {"version": "v000002"}
    assert api.get("/v1/skus/sku-0").status_code == 404


def test_the_versions(api: TestClient) -> None:
    assert api.delete("/v1/skus/sku-0").status_code == 200
    assert api.patch("/v1/skus/sku-1", json={"facts": {"a": "b"}}).status_code == 200
    said = api.get("/v1/gallery/log").json()
    assert [line["version"] for line in said["versions"]] == ["v000003", "v000002", "v000001"]
    newest, middle, oldest = said["versions"]
    assert (newest["current"], newest["parent"], newest["views"], newest["damaged"]) == (True, "v000002", 20, False)
    assert (middle["current"], middle["removed"], middle["reason"]) == (False, 4, "remove 1 SKU")
    assert (oldest["parent"], oldest["added"], oldest["model"]) == (None, 24, "fake")
    assert api.get("/v1/gallery/log?limit=1").json()["versions"] == [newest]


def test_a_damaged_version_is_told_without_its_files(api: TestClient, tmp_path: Path) -> None:
    assert api.delete("/v1/skus/sku-0").status_code == 200
    manifest = next((tmp_path / "gallery" / "v000001").glob("*.json"))
    manifest.write_text("{")
    answer = api.get("/v1/gallery/log")
    assert answer.json()["versions"][1]["damaged"] and str(tmp_path) not in answer.text
    answer = api.post("/v1/gallery/rollback", json={"to": "v000001"})
    assert answer.status_code == 500 and version(api) == "v000002"


def test_how_versions_differ(api: TestClient) -> None:
    assert api.delete("/v1/skus/sku-0").status_code == 200
    assert api.patch("/v1/skus/sku-1", json={"facts": {"a": "b"}}).status_code == 200
    said = api.get("/v1/gallery/diff?a=v000001&b=v000003&limit=2").json()
    nothing = {"count": 0, "first": []}
    assert said == {
        "a": "v000001",
        "b": "v000003",
        "model": False,
        "skus_added": nothing,
        "skus_removed": {"count": 1, "first": ["sku-0"]},
        "views_added": nothing,
        "views_removed": {"count": 4, "first": [0, 1]},
        "facts": {"count": 1, "first": ["sku-1"]},
    }
    back = api.get("/v1/gallery/diff?a=v000003&b=v000001").json()
    assert back["views_added"] == {"count": 4, "first": [0, 1, 2, 3]} and back["skus_removed"] == nothing


STRANGE = {"v000009": 404, "v999999999999": 404, "v1": 422, "../v000001": 422, "CURRENT": 422, "": 422}


def test_versions_that_are_none(api: TestClient) -> None:
    for a, status in {**STRANGE, "v00000\u0661": 422, "v000001\n": 422}.items():
        for params in ({"a": a, "b": "v000001"}, {"a": "v000001", "b": a}):
            assert api.get("/v1/gallery/diff", params=params).status_code == status
        answer = api.post("/v1/gallery/rollback", json={"to": a})
        assert answer.status_code == status and answer.json()["error"]
    assert version(api) == "v000001"


def test_going_back(api: TestClient, tmp_path: Path) -> None:
    for sku in ("sku-0", "sku-1"):
        assert api.delete(f"/v1/skus/{sku}").status_code == 200
    answer = api.post("/v1/gallery/rollback", json={})
    assert answer.json() == {"gallery": {"version": "v000002"}} and answer.headers["etag"] == '"v000002"'
    assert api.get("/v1/skus/sku-1").status_code == 200 and api.get("/v1/skus/sku-0").status_code == 404
    assert api.post("/v1/gallery/rollback", json={"to": "v000001"}).json() == {"gallery": {"version": "v000001"}}
    assert api.get("/v1/skus/sku-0").status_code == 200
    assert api.post("/v1/gallery/rollback", json={"to": "v000003"}).status_code == 200
    assert open_gallery(tmp_path / "gallery").version == "v000003" == version(api)


def test_nothing_to_go_back_to(api: TestClient) -> None:
    answer = api.post("/v1/gallery/rollback", json={"to": None})
    assert answer.status_code == 409 and "no version to go back to" in answer.json()["error"]
    assert api.post("/v1/gallery/rollback", json={"to": None}, headers={"If-Match": '"v000002"'}).status_code == 412


def test_a_version_of_another_model_is_not_gone_back_to(
    patterns: Path, make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    folder = make_gallery(patterns, make_encoder(0), tmp_path / "gallery")
    rebuild(folder, make_encoder(1), Pipeline())
    with client(make_service(folder, make_encoder(1), tmp_path)) as api:
        for to in ("v000001", None):
            answer = api.post("/v1/gallery/rollback", json={"to": to})
            assert answer.status_code == 409 and "another model" in answer.json()["error"]
        assert version(api) == "v000002"
    assert open_gallery(folder).version == "v000002"


def test_reads_and_changes_side_by_side(api: TestClient) -> None:
    """Readers meet whole versions while others write, and every change that was acknowledged is there."""
    failed, stop = list[str](), threading.Event()

    def read() -> None:
        while not stop.is_set():
            said = api.get("/v1/skus?limit=1000").json()
            facts = [one["facts"].get("step") for one in said["skus"]]
            if len(set(facts)) > 2 or len(facts) != 6:
                failed.append(str(said))

    def write(sku: int) -> None:
        for step in range(5):
            if api.patch(f"/v1/skus/sku-{sku}", json={"facts": {f"step-{sku}": str(step)}}).status_code != 200:
                failed.append(f"{sku} {step}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(sku,)) for sku in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert failed == [] and version(api) == "v000016"
    for sku in range(3):
        assert api.get(f"/v1/skus/sku-{sku}").json()["facts"][f"step-{sku}"] == "4"


def test_every_operation_is_described(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    names = list[str]()
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            operation: dict[str, Any] = said
            names.append(operation["operationId"])
            if not path.startswith(("/v1/skus", "/v1/views", "/v1/gallery", "/v1/review")):
                continue
            assert operation["summary"] and operation["description"] and operation["tags"], names[-1]
            answers = set(operation["responses"])
            assert {"200", "401", "403", "422", "429", "500", "503"} <= answers, names[-1]
            assert method == "get" or {"400", "404"} <= answers or names[-1] == "add_views"
            if method in ("post", "put", "patch") and names[-1] != "undo_verdict":
                assert {"408", "413", "415"} <= answers and operation["requestBody"]["required"]
            matched = [one["name"] for one in operation.get("parameters", [])]
            assert ("If-Match" in matched) == (method != "get" and not path.startswith("/v1/review"))
    assert len(names) == len(set(names))
