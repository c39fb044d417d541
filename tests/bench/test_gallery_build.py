"""The gallery that the benchmark builds is a whole one, and what it reports of it is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.gallery import Gallery, open_gallery

ROOT = Path(__file__).parents[2]
ROWS = 6600  # two pieces


def run(job: str, store: Path, *words: str) -> dict[str, Any]:
    """Run the script as the benchmark does."""
    command = [sys.executable, str(ROOT / "bench" / "gallery_build.py"), job, "--store", str(store), *words]
    environment = {**os.environ, "SKUMATCH_CACHE": str(store.parent / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "gallery"


@pytest.fixture(scope="module")
def built(store: Path) -> dict[str, Any]:
    return run("build", store, "--rows", str(ROWS), "--kind", "ivf-rabitq")


@pytest.fixture(scope="module")
def gallery(store: Path, built: dict[str, Any]) -> Gallery:
    return open_gallery(store)


def test_each_sku_has_a_title_and_a_brand_of_its_own(gallery: Gallery, built: dict[str, Any]) -> None:
    assert len(gallery) == ROWS and gallery.spec.dim == 512
    assert len(gallery.skus) == built["skus"] and 0.45 * ROWS < built["skus"] < 0.55 * ROWS
    titles = {gallery.title(code) for code in range(len(gallery.skus))}
    assert len(titles) == len(gallery.skus) and "" not in titles
    brands = {gallery.facts.cell(code, "brand") for code in range(len(gallery.skus))}
    assert 1 < len(brands) < len(titles) / 100
    assert len(gallery.thumb(ROWS - 1)) == 2000 and gallery.view(ROWS - 1).source == f"shelf/{ROWS - 1:07d}.jpg"


def test_views_of_a_sku_are_those_that_were_made_for_it(gallery: Gallery) -> None:
    """A SKU's views have a cosine of about .9; those of its look-alikes have at most .97 of that."""
    cosines = []
    for code in range(0, len(gallery.skus), 7):
        vectors = gallery.vectors_of(np.array(gallery.ids_of(gallery.skus[code])))
        if len(vectors) > 1:
            cosines.append(float(vectors[0] @ vectors[1]))
    assert len(cosines) > 100 and min(cosines) > 0.88 and max(cosines) < 0.92


def test_the_report_of_building_is_whole(built: dict[str, Any]) -> None:
    assert set(built["seconds"]) == set(built["core seconds"]) == {"rows", "publishing", "index"}
    assert all(seconds > 0 for kind in ("seconds", "core seconds") for seconds in built[kind].values())
    assert built["peak bytes"] > ROWS * 512 * 4 and built["tuned"]["rows"] == ROWS


def test_searching_reports_rates_memory_and_recall(store: Path, gallery: Gallery) -> None:
    found = run("search", store, "--queries", "64")
    assert found["recall@1"] >= 0.95 and found["overlap@5"] >= 0.9
    assert set(found["anonymous bytes"]) == {"opened", "index", "facts"}
    assert found["anonymous bytes"]["index"] > ROWS * 512  # the 8-bit rows alone
    assert found["mapped bytes"] > 0 and set(found["seconds"]) == {"open", "first answer", "first name"}
    assert all(rate > 0 for rate in (*found["queries/s"].values(), found["one by one/s"]))
    assert found["core seconds/query"]["gallery"] > 0 and gallery.published.state.index is not None
