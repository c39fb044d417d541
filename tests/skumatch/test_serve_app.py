"""The application as a whole: health, reload, what is not there, the OpenAPI document, changes and draining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from skumatch.backend import Backend
from skumatch.encoder import Encoder
from skumatch.errors import GalleryError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import create_from, remove_skus
from skumatch.segment import NewView
from skumatch.serve.keys import LOCAL
from skumatch.serve.problems import Problem
from skumatch.serve.service import Service, Writer
from tests.skumatch.serving import FakeModels, client, make_service

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def gallery_path(service: Service, tmp_path: Path) -> Path:
    return tmp_path / "gallery"


def best(api: TestClient, path: Path) -> tuple[str, str]:
    """Return (SKU, version)."""
    said = api.post("/v1/match", content=path.read_bytes(), headers=PNG).json()
    return said["results"][0]["matches"][0]["sku"], said["gallery"]["version"]


def test_health(api: TestClient, service: Service) -> None:
    assert api.get("/healthz").json() == api.get("/readyz").json() == {"status": "ok"}
    asyncio.run(service.drain())
    assert api.get("/healthz").status_code == 200
    gone = api.get("/readyz")
    assert (gone.status_code, gone.json()["error"], gone.headers["retry-after"]) == (503, "going away", "1")


def test_a_service_without_a_gallery_is_not_ready(gallery_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    service = make_service(gallery_path, encoder, tmp_path)
    service._loaded = None
    with client(service) as api:
        assert api.get("/readyz").status_code == 503 and api.get("/healthz").status_code == 200
        answer = api.post("/v1/match", content=b"x", headers=PNG)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_what_is_not_there_is_said_as_everything_else_is(api: TestClient) -> None:
    for method, path, status in (("GET", "/v1/x", 404), ("GET", "/docs", 404), ("PUT", "/v1/match", 405)):
        answer = api.request(method, path)
        assert answer.status_code == status and set(answer.json()) == {"error", "todo", "request"}
    assert api.request("PUT", "/v1/match").headers["allow"] == "POST"


def test_a_reload_takes_up_what_others_published(
    api: TestClient, service: Service, gallery_path: Path, patterns: Path
) -> None:
    crop = patterns / "test" / "sku-0" / "5.png"
    assert best(api, crop) == ("sku-0", "v000001")
    assert api.post("/v1/reload").json()["changed"] is False
    remove_skus(open_gallery(gallery_path), ["sku-0"])
    assert best(api, crop) == ("sku-0", "v000001")
    said = api.post("/v1/reload").json()
    assert said["changed"] is True and said["gallery"] == {"version": "v000002"}
    sku, version = best(api, crop)
    assert sku != "sku-0" and version == "v000002"
    text = api.get("/metrics").text
    assert 'skumatch_reloads_total{result="new"} 1.0' in text and 'result="same"} 1.0' in text


def test_a_reload_that_fails_leaves_what_answers(
    api: TestClient, service: Service, gallery_path: Path, patterns: Path, make_encoder: Callable[[int], Encoder]
) -> None:
    view = NewView("a", "", "", b"", np.eye(1, 32, dtype=np.float32)[0])
    create_from(gallery_path, make_encoder(1).spec, [view])
    answer = api.post("/v1/reload")
    assert answer.status_code == 409 and "built with another model" in answer.json()["error"]
    crop = patterns / "test" / "sku-0" / "5.png"
    assert best(api, crop) == ("sku-0", "v000001")
    models = service._loader.models
    assert isinstance(models, FakeModels)
    models.encoder = make_encoder(1)
    assert api.post("/v1/reload").json()["changed"] is True
    assert best(api, crop) == ("a", "v000002")


def test_somebody_elses_change_is_seen_where_the_service_watches(
    gallery_path: Path, encoder: Encoder, tmp_path: Path, patterns: Path
) -> None:
    with client(make_service(gallery_path, encoder, tmp_path, watch=0.02)) as api:
        remove_skus(open_gallery(gallery_path), ["sku-0"])
        crop = patterns / "test" / "sku-0" / "5.png"
        while best(api, crop)[1] != "v000002":
            pass
        assert best(api, crop)[0] != "sku-0"


def test_a_change_is_answered_from_at_once_and_audited(service: Service, tmp_path: Path) -> None:
    def work(home: Backend, writer: Writer) -> str:
        home.remove_skus(["sku-1"])
        assert writer.encoder().spec.digest == writer.loaded.model["digest"]
        return "done"

    def failing(home: Backend, writer: Writer) -> None:
        raise GalleryError("no such thing", "look again")

    async def run() -> None:
        await service.start()
        assert await service.change(LOCAL, "remove", {"sku": "sku-1"}, work, "v000001") == "done"
        assert service.loaded.gallery.version == "v000002"
        with pytest.raises(Problem, match="412: the gallery's version is v000002, not v000001"):
            await service.change(LOCAL, "remove", {"sku": "sku-1"}, work, "v000001")
        with pytest.raises(GalleryError, match="no such thing"):
            await service.change(LOCAL, "fail", {"sku": "x\ny"}, failing)
        await service.close()

    asyncio.run(run())
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    told = [(one["action"], one["state"], one["version"], one["who"]) for one in lines]
    assert told == [
        ("remove", "begun", "v000001", "local"),
        ("remove", "done", "v000002", "local"),
        ("fail", "begun", "v000002", "local"),
        ("fail", "failed", "v000002", "local"),
    ]
    assert lines[2]["sku"] == "x\ny" and "no such thing" in lines[3]["error"]


def test_a_change_does_not_wait_for_a_newer_model(service: Service, make_encoder: Callable[[int], Encoder]) -> None:
    def work(home: Backend, writer: Writer) -> None:
        home.remove_skus(["sku-1"])

    async def run() -> None:
        await service.start()
        models = service._loader.models
        assert isinstance(models, FakeModels)
        models.encoder = make_encoder(1)  # its gallery is not there yet
        await service.change(LOCAL, "remove", {}, work)
        assert service.loaded.gallery.version == "v000002" and service.loaded.model["digest"] == f"{0:064x}"
        with pytest.raises(SpecMismatch):
            await service.reload("test")
        await service.close()

    asyncio.run(run())


def test_a_change_is_made_also_where_its_version_cannot_be_taken_up(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(held: object) -> None:
        raise GalleryError("its file is gone", "look at the disk")

    def work(home: Backend, writer: Writer) -> str:
        home.remove_skus(["sku-1"])
        return "done"

    async def run() -> None:
        await service.start()
        with monkeypatch.context() as patch:
            patch.setattr(service._loader, "refresh", broken)
            assert await service.change(LOCAL, "remove", {}, work) == "done"
        assert service.loaded.gallery.version == "v000001" and "its file is gone" in caplog.text
        assert await service.reload("test") and service.loaded.gallery.version == "v000002"
        await service.close()

    asyncio.run(run())


def test_changes_take_turns(service: Service) -> None:
    order: list[str] = []

    def work(name: str) -> Callable[[Backend, Writer], None]:
        def run(home: Backend, writer: Writer) -> None:
            order.append(f"{name} begins")
            home.remove_skus([name])
            order.append(f"{name} ends")

        return run

    async def run() -> None:
        await service.start()
        await asyncio.gather(*(service.change(LOCAL, "remove", {}, work(f"sku-{n}")) for n in range(4)))
        await service.close()

    asyncio.run(run())
    assert order == [f"sku-{n} {what}" for n in range(4) for what in ("begins", "ends")]
    assert service.loaded.gallery.version == "v000005" and len(service.loaded.gallery.skus) == 2


def test_the_document_names_every_route_with_its_failures(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    assert {"/v1/match", "/v1/embed", "/v1/reload", "/healthz", "/readyz", "/metrics"} <= set(document["paths"])
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))
    content = document["paths"]["/v1/match"]["post"]["requestBody"]["content"]
    assert {"image/jpeg", "image/png", "image/webp", "multipart/form-data"} <= set(content)
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            assert one.get("summary"), (path, method)
            if path.startswith("/v1/"):
                assert {"401", "403", "422", "429", "503"} <= set(one["responses"]), (path, method)
