"""A service over the fake encoder, for the tests of its routes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from skumatch.backend import backend
from skumatch.calibration import Calibration
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.readers import open_dataset
from skumatch.search import Search
from skumatch.serve.app import make_app
from skumatch.serve.loaded import Opened
from skumatch.serve.service import Service
from skumatch.serve.settings import Settings

HOST = "http://localhost"


class FakeModels:
    """A model home whose ``encoder`` may be exchanged; counts how often it was opened."""

    def __init__(self, encoder: Encoder, calibration: Calibration | None = None) -> None:
        self.encoder = encoder
        self.calibration = calibration
        self.opened = 0

    def version(self) -> str:
        return self.encoder.spec.digest

    def open(self) -> Opened:
        self.opened += 1
        encoder = self.encoder
        return Opened(encoder, self.calibration, Search(), lambda: encoder)


def make_gallery(patterns: Path, encoder: Encoder, folder: Path) -> Path:
    """Build a gallery of the 6 SKUs of ``patterns``: titles "Title 0" to "Title 5", brands brand-0 and brand-1."""
    rows = [
        replace(row, title=f"Title {row.sku[-1]}", extra={"brand": f"brand-{int(row.sku[-1]) % 2}"})
        for row in open_dataset(patterns).split("train").rows
    ]
    build_gallery(folder, Supply.of(rows), encoder, Pipeline())
    return folder


def make_service(gallery: Path, encoder: Encoder, folder: Path, **settings: Any) -> Service:
    """Return a loaded service; ``folder``: its state."""
    service = Service(Settings(**settings), FakeModels(encoder), backend(gallery), folder / "state")
    service.load()
    return service


@contextmanager
def client(service: Service, **headers: str) -> Iterator[TestClient]:
    """Run the service's app while the block runs."""
    with TestClient(make_app(service), base_url=HOST, headers=headers, raise_server_exceptions=True) as found:
        yield found


class Clock:
    """A time that the test sets, in seconds since 1970."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
