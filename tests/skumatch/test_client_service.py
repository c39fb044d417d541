"""The client against the whole service, over a real connection: every method, every answer typed, errors by status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image as PILImage

from skumatch import Client, ServiceError
from skumatch.client_answers import Sku
from skumatch.encoder import Encoder
from skumatch.errors import ImageError
from skumatch.serve.app import make_app
from skumatch.serve.service import Service
from tests.skumatch.serving import make_gallery, make_service


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """Run the service's app on a free port of this machine."""
    config = uvicorn.Config(make_app(service), port=0, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def service(patterns: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with listening(service) as url:
        yield url


@pytest.fixture
def client(service: Service, url: str) -> Iterator[Client]:
    with Client(url, service.keys.add("app", ["read", "match", "write"]), retries=0) as client:
        yield client


def file_of(draw_view: Callable[[int, int], PILImage.Image], sku: int, view: int) -> bytes:
    stream = BytesIO()
    draw_view(sku, view).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_are_matched_and_embedded(client: Client, service: Service, encoder: Encoder, patterns: Path) -> None:
    crops = sorted((patterns / "test").rglob("*.png"))[:6]
    found = client.match([*crops, b"no picture"], k=2, where={"brand": "brand-1"}, deadline=9)
    plain = service.loaded.matcher.among({"brand": "brand-1"}).match([*crops], 2)
    for one, expected, path in zip(found.results, plain, crops, strict=False):
        assert one.name == path.name and one.decision == expected.decision and one.error is None
        assert [(m.rank, m.sku, m.title, m.view) for m in one.matches] == [
            (m.rank, m.sku, m.title, m.view) for m in expected.matches
        ]
        assert [m.score for m in one.matches] == pytest.approx([m.score for m in expected.matches], abs=1e-5)
    assert found.results[-1].decision == "error" and found.results[-1].matches == () and found.results[-1].error
    assert found.model.digest == encoder.spec.digest and found.gallery.version == "v000001" and found.request
    vectors = client.embed(crops)
    assert vectors.shape == (6, encoder.spec.dim) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    best = service.loaded.matcher.answers(vectors, 1)
    assert [answers[0].sku for answers in best] == [path.parent.name for path in crops]
    with pytest.raises(ImageError, match="picture-1"):
        client.embed([crops[0], b"no picture"])


def test_skus_and_views_come_and_go(
    client: Client, draw_view: Callable[[int, int], PILImage.Image], tmp_path: Path
) -> None:
    assert client.ready()
    assert [one.sku for one in client.skus(limit=4)] == [f"sku-{number}" for number in range(6)]
    assert list(client.skus("title 3 BRAND-1", limit=1)) == [Sku("sku-3", "Title 3", 4, {"brand": "brand-1"})]
    name, fresh = "pear/juice 1 l?", file_of(draw_view, 9, 5)
    assert client.match(fresh).results[0].matches[0].sku != name
    made = client.add_views(name, [file_of(draw_view, 9, 0), file_of(draw_view, 9, 1)], "Pear", "v000001")
    assert (made.sku, len(made.views), made.known, made.gallery.version) == (name, 2, 0, "v000002")
    (answer,) = client.match(fresh, k=1).results
    assert answer.matches[0].sku == name and answer.matches[0].title == "Pear" and answer.matches[0].view in made.views
    assert client.add_views(name, file_of(draw_view, 9, 1)).known == 1
    version = client.set_facts(name, {"brand": "nordo"}).version
    assert client.sku(name) == Sku(name, "Pear", 2, {"brand": "nordo"})
    views = list(client.views(name, limit=1))
    assert tuple(view.view for view in views) == made.views and {view.sku for view in views} == {name}
    with PILImage.open(BytesIO(client.view_picture(made.views[0]))) as picture:
        assert picture.format == "JPEG"
    with pytest.raises(ServiceError) as caught:
        client.remove_view(made.views[0], if_version="v000001")
    assert caught.value.status == 412 and client.gallery().gallery.version == version
    client.remove_view(made.views[0], if_version=version)
    replaced = client.replace_views(name, file_of(draw_view, 9, 2))
    assert [view.view for view in client.views(name)] == list(replaced.views)
    client.remove_sku(name)
    assert client.match(fresh).results[0].matches[0].sku != name
    gone: list[Callable[[], object]] = [
        lambda: client.sku(name),
        lambda: list(client.views(name)),
        lambda: client.remove_sku(name),
        lambda: client.view_picture(made.views[0]),
        lambda: client.remove_view(10_000),
        lambda: client.rollback("v999999"),
    ]
    for ask in gone:
        with pytest.raises(ServiceError) as caught:
            ask()
        assert caught.value.status == 404 and caught.value.todo and caught.value.request


def test_versions_are_told_and_gone_back_to(client: Client, encoder: Encoder) -> None:
    client.set_facts("sku-1", {"brand": "other"})
    newest, first = client.log()
    assert (newest.version, newest.current, newest.parent, first.current) == ("v000002", True, "v000001", False)
    assert client.log(limit=1) == (newest,)
    facts = client.gallery()
    assert (facts.dim, facts.skus, facts.views, facts.digest) == (encoder.spec.dim, 6, 24, encoder.spec.digest)
    assert facts.gallery.version == facts.current.version == "v000002" and set(facts.columns) == {"title", "brand"}
    assert client.rollback("v000001").version == "v000001"
    assert client.sku("sku-1").facts == {"brand": "brand-1"}
    told = client.reload()
    assert not told.changed and told.gallery.version == "v000001" and told.model.digest == encoder.spec.digest


def test_refusals_are_told_by_status(client: Client, service: Service, url: str) -> None:
    wrong: list[tuple[Callable[[], object], int]] = [
        (lambda: client.match(b"no picture"), 422),
        (lambda: client.match(b"", k=1), 422),
        (lambda: client.match(b"x", k=0), 422),
        (lambda: client.match(b"x", where={"colour": "red"}), 422),
        (lambda: client.add_views("a", [b"no picture"]), 422),
        (lambda: client.set_facts("sku-1", {}), 422),
    ]
    for ask, status in wrong:
        with pytest.raises(ServiceError) as caught:
            ask()
        assert caught.value.status == status and caught.value.what and caught.value.request
    with Client(url, service.keys.add("reader", ["read"])) as reader:
        assert reader.sku("sku-1").views == 4
        for refused in (lambda: reader.match(b"x"), lambda: reader.remove_sku("sku-1"), reader.reload):
            with pytest.raises(ServiceError) as caught:
                refused()
            assert caught.value.status == 403
    for key in (None, "skm_00000000_wrong"):
        with Client(url, key) as nobody, pytest.raises(ServiceError) as caught:
            nobody.sku("sku-1")
        assert caught.value.status == 401 and nobody is not None
