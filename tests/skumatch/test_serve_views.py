"""``/v1/views``: listing, showing, adding, replacing and removing reference views, all or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from skumatch.embed import Pipeline, no_progress
from skumatch.encoder import Encoder
from skumatch.enrol import Supply
from skumatch.folder_backend import FolderBackend
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import add_views as add_made_up
from skumatch.milvus import client as milvus
from skumatch.milvus.address import parse
from skumatch.milvus.backend import MilvusBackend
from skumatch.readers import open_dataset
from skumatch.serve.service import Service
from skumatch.serve.settings import Settings
from tests.skumatch.made_up import views as made_up
from tests.skumatch.serving import FakeModels, client, make_gallery, make_service

Draw = Callable[[int, int], PILImage.Image]
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def crop(patterns: Path) -> bytes:
    return (patterns / "test" / "sku-0" / "4.png").read_bytes()


def forms(draw: Draw, number: int, kind: str = "PNG") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Return file parts of that many new pictures of SKU 7."""
    files = []
    for view in range(number):
        buffer = BytesIO()
        draw(7, view).save(buffer, kind)
        files.append(("images", (f"{view}.{kind.lower()}", buffer.getvalue(), f"image/{kind.lower()}")))
    return files


def uploads(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "state" / "uploads").rglob("*") if path.is_file())


def listed(api: TestClient, sku: str) -> list[int]:
    return [view["view"] for view in api.get("/v1/views", params={"sku": sku}).json()["views"]]


def test_the_views_of_a_sku(api: TestClient, patterns: Path) -> None:
    answer = api.get("/v1/views?sku=sku-1&limit=3")
    said = answer.json()
    assert answer.headers["etag"] == '"v000001"' and said["gallery"] == {"version": "v000001"}
    rest = api.get("/v1/views", params={"sku": "sku-1", "limit": 3, "after": said["next"]}).json()
    views = said["views"] + rest["views"]
    assert rest["next"] is None and [view["view"] for view in views] == [4, 5, 6, 7]
    for number, view in enumerate(views):
        source = patterns / "train" / "sku-1" / f"{number}.png"
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        url = f"/v1/views/{4 + number}/image"
        assert view == {"view": 4 + number, "sku": "sku-1", "file": source.name, "sha256": digest, "url": url}
        assert api.get(f"/v1/views/{4 + number}").json() == {**view, "gallery": {"version": "v000001"}}
    assert str(patterns) not in answer.text
    assert api.get("/v1/views?sku=sku-9").status_code == 404 and api.get("/v1/views").status_code == 422


def test_the_picture_of_a_view(api: TestClient, tmp_path: Path) -> None:
    answer = api.get("/v1/views/5/image")
    assert answer.content == open_gallery(tmp_path / "gallery").thumb(5)
    assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, max-age=86400, immutable"
    mark = answer.headers["etag"]
    assert api.get("/v1/views/6/image").headers["etag"] != mark
    for seen in (mark, f'"x", W/{mark}'):
        again = api.get("/v1/views/5/image", headers={"If-None-Match": seen})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == mark
    assert api.get("/v1/views/5/image", headers={"If-None-Match": '"x"'}).status_code == 200


def test_views_that_are_not_there(api: TestClient) -> None:
    for view in (24, 2**63 - 1):
        assert api.get(f"/v1/views/{view}").status_code == api.get(f"/v1/views/{view}/image").status_code == 404
        answer = api.delete(f"/v1/views/{view}")
        assert answer.status_code == 404 and f"no view {view}" in answer.json()["error"]


def test_view_ids_are_checked(api: TestClient) -> None:
    for view in ("-1", str(2**63), "x", "1e3", "%00", "..%2f1", "%2Fetc%2Fpasswd", "1'--", "9" * 5000):
        for ask in (api.get, api.delete):
            for url in (f"/v1/views/{view}", f"/v1/views/{view}/image"):
                assert ask(url).status_code in (404, 405, 422), url


def test_a_view_without_a_picture(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    folder = make_gallery(patterns, encoder, tmp_path / "gallery")
    bare = [replace(view, thumb=b"") for view in made_up(np.random.default_rng(0), ["bare"])]
    add_made_up(open_gallery(folder), bare)
    with client(make_service(folder, encoder, tmp_path)) as api:
        answer = api.get("/v1/views/24/image")
        assert answer.status_code == 404 and "has no picture" in answer.json()["error"]
        assert api.get("/v1/views/24").status_code == 200


def test_pictures_make_a_sku(api: TestClient, draw_view: Draw, tmp_path: Path) -> None:
    files = [forms(draw_view, 1, "JPEG")[0], forms(draw_view, 2, "WEBP")[1]]
    answer = api.post("/v1/views", params={"sku": "sku-7", "title": "New"}, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"sku": "sku-7", "views": [24, 25], "known": 0, "gallery": {"version": "v000002"}}
    assert answer.headers["etag"] == '"v000002"'
    said = api.get("/v1/skus/sku-7").json()
    assert (said["title"], said["views"], said["gallery"]) == ("New", 2, {"version": "v000002"})
    match = api.post("/v1/match", content=files[1][1][1], headers=PNG).json()["results"][0]["matches"][0]
    assert (match["sku"], match["title"], match["view"]) == ("sku-7", "New", 25) and match["score"] > 0.99
    assert api.get(match["view_url"]).status_code == 200
    sent = {file[1][1] for file in files}
    assert {path.read_bytes() for path in uploads(tmp_path)} == sent
    gallery = open_gallery(tmp_path / "gallery")
    assert {Path(gallery.view(view).source).read_bytes() for view in (24, 25)} == sent


def test_one_picture_as_it_is(api: TestClient, crop: bytes) -> None:
    said = api.post("/v1/views?sku=sku-0", content=crop, headers=PNG).json()
    assert said["views"] == [24] and listed(api, "sku-0") == [0, 1, 2, 3, 24]
    assert api.get("/v1/skus/sku-0").json()["title"] == "Title 0"  # no title was given: it stays


def test_what_a_sku_has_already_is_not_added(api: TestClient, patterns: Path, crop: bytes) -> None:
    known = (patterns / "train" / "sku-0" / "1.png").read_bytes()
    said = api.post("/v1/views?sku=sku-0", content=known, headers=PNG).json()
    assert said == {"sku": "sku-0", "views": [], "known": 1, "gallery": {"version": "v000001"}}
    files = [("images", ("a.png", data, "image/png")) for data in (crop, known, crop)]
    said = api.post("/v1/views?sku=sku-0", files=files).json()
    assert (said["views"], said["known"]) == ([24], 2)
    assert api.post("/v1/views?sku=sku-1", content=known, headers=PNG).json()["views"] == [25]  # another SKU's picture


def test_all_or_nothing(api: TestClient, draw_view: Draw, tmp_path: Path) -> None:
    files = forms(draw_view, 3)
    files[1] = ("images", ("../../broken.png", files[1][1][1][:-30], "image/png"))
    for method in ("POST", "PUT"):
        answer = api.request(method, "/v1/views?sku=sku-0", files=files)
        said = answer.json()["error"]
        assert answer.status_code == 422 and "broken.png" in said and "0.png" not in said
    assert listed(api, "sku-0") == [0, 1, 2, 3] and uploads(tmp_path) == []
    assert api.get("/v1/gallery").json()["gallery"]["version"] == "v000001"


BODIES = [
    (b"", "image/png", 400), (b"GIF89a", "image/png", 422), (b"<svg/>", "image/svg+xml", 415), (b"x", "", 415),
    (b'{"urls": ["http://169.254.169.254/"]}', "application/json", 415), (b"x", "multipart/form-data", 400),
]  # fmt: skip


def test_bodies_that_are_refused(api: TestClient, tmp_path: Path) -> None:
    for content, kind, status in BODIES:
        answer = api.post("/v1/views?sku=sku-0", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status and answer.json()["error"], answer.text
    assert uploads(tmp_path) == [] and not (tmp_path / "state" / "audit.jsonl").exists()


def test_limits(patterns: Path, encoder: Encoder, draw_view: Draw, tmp_path: Path) -> None:
    folder = make_gallery(patterns, encoder, tmp_path / "gallery")
    with client(make_service(folder, encoder, tmp_path, max_images=2, max_pixels=64 * 64)) as api:
        assert api.post("/v1/views?sku=a", files=forms(draw_view, 2)).status_code == 200
        assert api.post("/v1/views?sku=b", files=forms(draw_view, 3)).status_code in (400, 413)
        buffer = BytesIO()
        PILImage.new("RGB", (65, 64)).save(buffer, "PNG")
        answer = api.post("/v1/views?sku=c", content=buffer.getvalue(), headers=PNG)
        assert answer.status_code == 422 and "more than 4096 pixels" in answer.json()["error"]
    assert len(uploads(tmp_path)) == 2


def test_pictures_take_the_place_of_all(api: TestClient, draw_view: Draw, tmp_path: Path) -> None:
    files = forms(draw_view, 2)
    said = api.put("/v1/views?sku=sku-0&title=Other", files=[*files, files[0]]).json()
    assert (said["views"], said["known"]) == ([24, 25], 1) and listed(api, "sku-0") == [24, 25]
    assert api.get("/v1/skus/sku-0").json()["title"] == "Other"
    assert api.get("/v1/views/0").status_code == 404
    answer = api.put("/v1/views?sku=sku-9", files=files)
    assert answer.status_code == 404 and "no SKU is called 'sku-9'" in answer.json()["error"]
    assert "sku-9" not in open_gallery(tmp_path / "gallery").skus


def test_a_view_is_removed_and_its_sku_with_the_last(api: TestClient) -> None:
    for view in range(4):
        answer = api.delete(f"/v1/views/{view}")
        assert answer.json() == {"gallery": {"version": f"v00000{view + 2}"}}
    assert api.delete("/v1/views/0").status_code == 404
    assert api.get("/v1/skus/sku-0").status_code == 404


def test_the_last_view_stays(api: TestClient) -> None:
    for sku in range(1, 6):
        assert api.delete(f"/v1/skus/sku-{sku}").status_code == 200
    for view in range(3):
        assert api.delete(f"/v1/views/{view}").status_code == 200
    assert api.delete("/v1/views/3").status_code == 409 and listed(api, "sku-0") == [3]


def test_changes_of_another_version_leave_nothing_behind(api: TestClient, crop: bytes, tmp_path: Path) -> None:
    for method, path in (("POST", "/v1/views?sku=a"), ("PUT", "/v1/views?sku=sku-0"), ("DELETE", "/v1/views/1")):
        headers = {**PNG, "If-Match": '"v000007"'}
        assert api.request(method, path, content=crop, headers=headers).status_code == 412
    assert uploads(tmp_path) == [] and listed(api, "sku-0") == [0, 1, 2, 3]


def test_a_gallery_can_be_rebuilt_from_what_was_uploaded(
    api: TestClient, draw_view: Draw, make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    assert api.post("/v1/views?sku=sku-7", files=forms(draw_view, 2)).status_code == 200
    rebuilt = FolderBackend(tmp_path / "gallery").rebuild(make_encoder(1), Pipeline(), no_progress, False)
    assert rebuilt.gallery.counts()["sku-7"] == 2 and len(rebuilt.gallery) == 26


def test_in_milvus(patterns: Path, encoder: Encoder, draw_view: Draw, tmp_path: Path) -> None:
    address = replace(parse(f"milvus+file:{tmp_path}/m.db"), name="routes")
    home = MilvusBackend(address)
    home.build(Supply.of(open_dataset(patterns).split("train").rows), encoder, Pipeline(), no_progress)
    service = Service(Settings(), FakeModels(encoder), home, tmp_path / "state")
    service.load()
    try:
        with client(service) as api:
            steps(api, draw_view)
    finally:
        milvus.close(address)


def steps(api: TestClient, draw: Draw) -> None:
    """Do one of each."""
    said: dict[str, Any] = api.post("/v1/views?sku=sku-7&title=Seven", files=forms(draw, 2)).json()
    assert (said["views"], said["known"]) == ([24, 25], 0)
    assert [one["views"] for one in api.get("/v1/skus?query=seven").json()["skus"]] == [2]
    assert api.patch("/v1/skus/sku-7", json={"facts": {"brand": "x"}}).status_code == 200
    assert api.get("/v1/skus/sku-7").json()["facts"] == {"brand": "x"}
    assert api.delete("/v1/views/24").status_code == 200 and listed(api, "sku-7") == [25]
    assert api.get("/v1/views/25/image").headers["content-type"] == "image/jpeg"
    assert api.put("/v1/views?sku=sku-7", files=forms(draw, 1)).json()["views"] == [26]
    assert api.delete("/v1/skus/sku-0").status_code == 200
    for path in ("/v1/skus/sku-0", "/v1/views/24", "/v1/views/0/image", "/v1/views?sku=sku-0"):
        assert api.get(path).status_code == 404, path
    versions = api.get("/v1/gallery/log").json()["versions"]
    assert len(versions) == 6 and versions[0]["current"]
    told = api.get(f"/v1/gallery/diff?a={versions[-1]['version']}&b={versions[0]['version']}").json()
    assert (told["skus_added"]["first"], told["skus_removed"]["first"]) == (["sku-7"], ["sku-0"])
    assert api.post("/v1/gallery/rollback", json={"to": "v000099"}).status_code == 404
    assert api.post("/v1/gallery/rollback", json={"to": versions[-1]["version"]}).status_code == 200
    assert api.get("/v1/skus/sku-0").status_code == 200 and api.get("/v1/skus/sku-7").status_code == 404
    assert api.get("/v1/gallery").json()["views"] == 24
