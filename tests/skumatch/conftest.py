"""A prepared gallery with a process that is killed while it changes it, for the tests of crashes and failing disks;
a service over the fake encoder; and a browser."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from skumatch.encoder import Encoder
from tests.skumatch.crash_trials import Bench
from tests.skumatch.gallery_oracle import quick_disk

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from starlette.testclient import TestClient

    from skumatch.serve.service import Service


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Return a prepared store and a worker."""
    with tempfile.TemporaryDirectory(dir=quick_disk()) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKUMATCH_CACHE", f"{folder}/cache")
        (Path(folder) / "stores").mkdir()
        with Bench(Path(folder) / "stores") as bench:
            yield bench


@pytest.fixture
def service(patterns: Path, encoder: Encoder, tmp_path: Path) -> Service:
    """Return a service over 6 SKUs, sku-0 to sku-5, of 4 views each, at most 20 pictures a request; its gallery is in
    ``tmp_path / "gallery"``, its state in ``tmp_path / "state"``."""
    from tests.skumatch.serving import make_gallery, make_service

    return make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path, max_images=20)


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    """Return what asks the service's app."""
    from tests.skumatch.serving import client

    with client(service) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a started chromium. The modules that take it skip their tests where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()
