"""A prepared gallery with a process that is killed while it changes it: for the tests of crashes and failing disks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.skumatch.crash_trials import Bench
from tests.skumatch.gallery_oracle import quick_disk


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Return a prepared store and a worker."""
    with tempfile.TemporaryDirectory(dir=quick_disk()) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKUMATCH_CACHE", f"{folder}/cache")
        (Path(folder) / "stores").mkdir()
        with Bench(Path(folder) / "stores") as bench:
            yield bench
