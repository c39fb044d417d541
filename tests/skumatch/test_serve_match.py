"""POST /v1/match and /v1/embed: the same answers as a Matcher, in every kind of body, within limits and deadlines."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from skumatch.calibration import Calibration
from skumatch.encoder import Encoder
from skumatch.serve.fetch import Fetcher
from skumatch.serve.service import Service
from tests.skumatch.serving import FakeModels, client, make_gallery, make_service

PNG = {"Content-Type": "image/png"}


def crops(patterns: Path) -> list[Path]:
    return sorted((patterns / "test").rglob("*.png"))


def files(paths: list[Path]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{path.parent.name}.png", path.read_bytes(), "image/png")) for path in paths]


def test_one_picture_is_answered_as_a_matcher_answers_it(api: TestClient, service: Service, patterns: Path) -> None:
    for path in crops(patterns)[:4]:
        answer = api.post("/v1/match?k=3", content=path.read_bytes(), headers=PNG)
        assert answer.status_code == 200 and answer.headers["etag"] == '"v000001"'
        said = answer.json()
        (expected,) = service.loaded.matcher.match([path], 3)
        (result,) = said["results"]
        found = [(m["rank"], m["sku"], m["title"], m["view"]) for m in result["matches"]]
        assert found == [(m.rank, m.sku, m.title, m.view) for m in expected.matches]
        assert [m["score"] for m in result["matches"]] == pytest.approx([m.score for m in expected.matches], abs=1e-6)
        assert (result["name"], result["decision"], result["probability"]) == ("", "review", None)
        assert (result["error"], result["review"]) == (None, None)
        assert said["model"] == service.loaded.model and said["gallery"] == {"version": "v000001"}
        assert said["request"] == answer.headers["x-request-id"]
        assert result["matches"][0]["view_url"] == f"/v1/views/{expected.matches[0].view}/image"


def test_many_pictures_come_back_in_order_with_their_names(api: TestClient, patterns: Path) -> None:
    sent = crops(patterns)
    said = api.post("/v1/match?k=1", files=files(sent)).json()
    assert [one["name"] for one in said["results"]] == [f"{path.parent.name}.png" for path in sent]
    assert [one["matches"][0]["sku"] for one in said["results"]] == [path.parent.name for path in sent]


def test_the_part_may_have_any_name_and_octets_are_looked_at(api: TestClient, patterns: Path) -> None:
    data = crops(patterns)[0].read_bytes()
    form = api.post("/v1/match?k=1", files={"crop": ("x", data)}).json()
    raw = api.post("/v1/match?k=1", content=data, headers={"Content-Type": "application/octet-stream"}).json()
    assert form["results"][0]["matches"] == raw["results"][0]["matches"]


def test_a_broken_picture_among_others_stops_nothing(api: TestClient, patterns: Path) -> None:
    sent = files(crops(patterns)[:2])
    sent.insert(1, ("images", ("broken.png", b"\x89PNG\r\n\x1a\nbroken", "image/png")))
    answer = api.post("/v1/match", files=sent)
    assert answer.status_code == 200
    first, broken, last = answer.json()["results"]
    assert (first["matches"][0]["sku"], last["matches"][0]["sku"]) == ("sku-0", "sku-0")
    assert (broken["decision"], broken["matches"]) == ("error", []) and "corrupt or truncated png" in broken["error"]


def test_nothing_readable_is_422_with_the_words_of_the_command_line(api: TestClient) -> None:
    for data in (b"GIF89a....", b"\xff\xd8\xff broken", b"x"):
        answer = api.post("/v1/match", content=data, headers=PNG)
        assert answer.status_code == 422 and set(answer.json()) == {"error", "todo", "request"}
        assert answer.json()["error"].startswith(f"image of {len(data)} bytes: ") and answer.json()["todo"]


def test_a_picture_of_too_many_pixels_is_not_decoded(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    small = make_service(make_gallery(patterns, encoder, tmp_path / "g"), encoder, tmp_path, max_pixels=64 * 64 - 1)
    with client(small) as api:
        answer = api.post("/v1/match", content=crops(patterns)[0].read_bytes(), headers=PNG)
    assert answer.status_code == 422 and "64 x 64 is more than 4095 pixels" in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("k=0", 422, "k is 0 - ask for 1 to 100 SKUs"),
        ("k=101", 422, "k is 101"),
        ("k=many", 422, "k: "),
        ("where=brand", 422, "brand"),
        ("where=brand=x", 422, "no SKU has brand=x"),
        ("where=colour=red", 422, "no column 'colour'"),
        ("deadline=0", 422, "deadline: "),
        ("deadline=nan", 422, "deadline: "),
        ("deadline=inf", 422, "deadline: "),
    ],
)
def test_unusable_values_are_named(api: TestClient, patterns: Path, query: str, status: int, words: str) -> None:
    answer = api.post(f"/v1/match?{query}", content=crops(patterns)[0].read_bytes(), headers=PNG)
    said = answer.json()
    assert answer.status_code == status and words in f"{said['error']} - {said['todo']}"


def test_bodies_that_are_not_what_they_say(api: TestClient, patterns: Path) -> None:
    data = crops(patterns)[0].read_bytes()
    tried: list[tuple[dict[str, Any], int, str]] = [
        ({"content": b"", "headers": PNG}, 400, "the body is empty"),
        ({"content": data}, 415, "content type ''"),
        ({"content": data, "headers": {"Content-Type": "text/html"}}, 415, "content type 'text/html'"),
        ({"json": {"urls": ["https://example.com/a.jpg"]}}, 415, "pictures by URL are switched off"),
        ({"content": data, "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be read"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400, "form"),
        ({"data": {"images": "text"}, "files": {}}, 415, "x-www-form-urlencoded"),
        ({"files": {"images": (None, b"text")}}, 400, "the form holds no file"),
        ({"files": files(crops(patterns) * 2)}, 413, "21 pictures or more in one request"),
    ]
    for sent, status, words in tried:
        answer = api.post("/v1/match", **sent)
        assert (answer.status_code, words in answer.json()["error"]) == (status, True), (sent.keys(), answer.text)
    assert api.post("/v1/match", content=data, headers=PNG).status_code == 200


def test_filters_narrow_the_answers(api: TestClient, patterns: Path) -> None:
    data = crops(patterns)[0].read_bytes()
    for _ in range(2):  # made, then known
        said = api.post("/v1/match?where=brand=brand-1&k=6", content=data, headers=PNG).json()
        assert {one["sku"] for one in said["results"][0]["matches"]} == {"sku-1", "sku-3", "sku-5"}
    both = api.post("/v1/match?where=brand=brand-1&where=sku=sku-3", content=data, headers=PNG).json()
    assert [one["sku"] for one in both["results"][0]["matches"]] == ["sku-3"]


def test_decisions_come_from_the_calibration(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    service = make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path)
    rule = Calibration(encoder.spec.digest, -25.0, (20.0, 15.0, 5.0), 0.98, 0.9, 0.2)
    service._loader.models = FakeModels(encoder, rule)
    service._loader.models.version = lambda: "calibrated"  # type: ignore[method-assign]
    noise = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    PILImage.fromarray(pixels).save(noise, "PNG")
    with client(service) as api:
        assert api.post("/v1/reload").json()["changed"] is True
        known = api.post("/v1/match", content=crops(patterns)[0].read_bytes(), headers=PNG).json()["results"][0]
        strange = api.post("/v1/match", content=noise.getvalue(), headers=PNG).json()["results"][0]
        counted = api.get("/metrics").text
    assert known["decision"] == "accept" and known["probability"] > 0.9
    assert strange["decision"] == "unknown" and strange["probability"] < 0.2
    assert 'skumatch_decisions_total{decision="accept"} 1.0' in counted
    assert 'skumatch_decisions_total{decision="unknown"} 1.0' in counted


def test_vectors_are_the_encoders(api: TestClient, service: Service, patterns: Path) -> None:
    sent = crops(patterns)[:3]
    said = api.post("/v1/embed", files=[*files(sent), ("images", ("no.png", b"no", "image/png"))]).json()
    (batch,) = service.loaded.matcher.pipeline.embed([*sent], service.loaded.matcher.encoder)
    found = np.array([one["vector"] for one in said["results"][:3]], np.float32)
    assert np.abs(found - batch.vectors).max() < 1e-6 and said["dim"] == 32
    assert said["results"][3]["vector"] is None and "not a JPEG" in said["results"][3]["error"]


def test_a_deadline_that_passes_is_504_and_leaves_nothing_behind(
    service: Service, patterns: Path, api: TestClient
) -> None:
    data = crops(patterns)[0].read_bytes()
    with service.engine.batcher._changed:  # the engine's thread cannot take anything
        service.engine.batcher.coming = 5
        service.engine.batcher.delay = 5.0
    late = api.post("/v1/match?deadline=0.05", content=data, headers=PNG)
    assert late.status_code == 504 and late.json()["error"] == "no answer within 0.05 s"
    service.engine.batcher.coming, service.engine.batcher.delay = 0, 0.0
    assert service.engine.inside == 0
    assert api.post("/v1/match", content=data, headers=PNG).status_code == 200


def test_a_full_queue_says_when_to_come_again(service: Service, patterns: Path, api: TestClient) -> None:
    service.engine.inside = service.settings.queue
    busy = api.post("/v1/match", content=crops(patterns)[0].read_bytes(), headers=PNG)
    assert busy.status_code == 503 and int(busy.headers["retry-after"]) >= 1
    assert busy.json()["error"] == "256 pictures are being worked on"
    service.engine.inside = 0
    assert api.post("/v1/match", content=crops(patterns)[0].read_bytes(), headers=PNG).status_code == 200


def test_a_name_that_was_sent_comes_back_as_text_and_not_longer_than_need_be(api: TestClient, patterns: Path) -> None:
    data = crops(patterns)[0].read_bytes()
    for name in ("<script>alert(1)</script>.png", "../../etc/passwd", "a" * 500):
        answer = api.post("/v1/match", files={"images": (name, data)})
        assert answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"]
        assert answer.json()["results"][0]["name"] == name[:256]


def test_metrics_have_each_stage(api: TestClient, patterns: Path) -> None:
    for _ in range(3):
        api.post("/v1/match", files=files(crops(patterns)[:2]))
    api.get("/v1/nothing-here")
    text = api.get("/metrics").text
    for stage, count in (("read", 3), ("decode", 6), ("queue", 6)):
        assert f'skumatch_stage_seconds_count{{stage="{stage}"}} {count}.0' in text
    assert re.search(r'skumatch_stage_seconds_count\{stage="encode"\} [1-6]\.0', text)
    assert "skumatch_batch_size_sum 6.0" in text and "skumatch_queue_pictures 0.0" in text
    assert 'skumatch_requests_total{route="/v1/match",status="200"} 3.0' in text
    assert 'skumatch_requests_total{route="none",status="404"} 1.0' in text
    assert 'skumatch_info{gallery="v000001",model="fake"} 1.0' in text
    assert "skumatch_gallery_views 24.0" in text and "skumatch_gallery_skus 6.0" in text
    assert float(re.findall(r"^skumatch_gallery_age_seconds (\S+)", text, re.M)[0]) >= 0


def test_pictures_by_url_are_fetched_where_that_is_on(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    gallery = make_gallery(patterns, encoder, tmp_path / "gallery")
    service = make_service(gallery, encoder, tmp_path, urls=True, max_body=20_000, max_images=3)
    data = crops(patterns)[0].read_bytes()
    asked: list[tuple[str, int | None]] = []

    class Shop(Fetcher):
        async def get(self, url: str, limit: int | None = None) -> bytes:
            asked.append((url, limit))
            return data if "good" in url else await super().get(url, limit)

    service.fetcher = Shop(service.settings)
    with client(service) as api:
        urls = ["https://shop.example/good.png?key=secret", "http://127.0.0.1/x.png"]
        good, private = api.post("/v1/match", json={"urls": urls}).json()["results"]
        assert good["matches"][0]["sku"] == "sku-0" and good["name"] == "https://shop.example/good.png"
        assert private["decision"] == "error" and "not public" in private["error"]
        assert [limit for _, limit in asked] == [20_000, 20_000 - len(data)]
        assert api.post("/v1/match", json={"urls": urls[1:]}).status_code == 422
        assert api.post("/v1/views?sku=sku-0", json={"urls": urls}).status_code == 422
        assert service.loaded.gallery.version == "v000001"
        for sent, status in (([], 400), ("x", 400), ([1], 400), (urls * 2, 413)):
            assert api.post("/v1/match", json={"urls": sent}).status_code == status
        assert api.post("/v1/match", json={"urls": urls, "more": 1}).status_code == 400
        broken = api.post("/v1/match", content=b"[" * 9000, headers={"Content-Type": "application/json"})
        assert broken.status_code == 400
