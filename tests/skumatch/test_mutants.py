"""Broken files by the thousand: each is answered once, in order, the fine ones right, and memory stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.gallery import open_gallery
from skumatch.images import load_pixels
from skumatch.match import CropMatches, Matcher
from skumatch.readers import open_dataset
from tests.skumatch.mutants import EDITS, EVERY, draw, mutants, sku_of

SLACK = 1.1  # times the memory after the warm-up
KEPT_OUT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives big blocks back as they are freed: what stays is ours


@pytest.fixture
def matcher(patterns: Path, encoder: Encoder, tmp_path: Path) -> Matcher:
    rows = open_dataset(patterns).split("train").rows
    build_gallery(tmp_path / "gallery", Supply.of(rows), encoder, Pipeline())
    return Matcher(encoder, open_gallery(tmp_path / "gallery"), Pipeline(batch=16, workers=2))


def anonymous(process: int) -> int:
    """Return the bytes of memory that a process has for itself. Skips the test where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    if not found:
        pytest.skip("only Linux tells the anonymous memory of a process")
    return found[0]


def check(names: list[str], found: list[CropMatches]) -> None:
    """Hold answers against the names of what was asked: fine ones are recognised, and enough of the others fail."""
    for name, crop in zip(names, found, strict=True):
        sku = sku_of(name)
        if sku is not None:
            assert crop.error is None and crop.matches[0].sku == sku, name
        assert (crop.error is None) == bool(crop.matches), name
    assert sum(crop.error is not None for crop in found) > len(found) // 3


def test_the_same_seed_gives_the_same_files() -> None:
    one, again, other = (list(mutants(seed, 200)) for seed in (1, 1, 2))
    assert one == again and one != other
    assert len({name for name, _ in one}) == 200
    assert [sku_of(name) is not None for name, _ in one] == [number % EVERY == EVERY - 1 for number in range(200)]
    assert {name.split("-")[1] for name, _ in one} == {*EDITS, "valid"}
    assert sorted(len(data) for _, data in one)[180] < 40_000


def test_each_is_answered_once_and_the_fine_ones_right(matcher: Matcher) -> None:
    made = list(mutants(0, 300))
    found = list(matcher.stream((data for _, data in made), 3))
    assert [crop.crop for crop in found] == [data for _, data in made]
    check([name for name, _ in made], found)


def test_the_same_from_files(matcher: Matcher, tmp_path: Path) -> None:
    made = dict(mutants(1, 100))
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    found = list(matcher.stream((tmp_path / name for name in made), 3))
    assert [crop.crop for crop in found] == [tmp_path / name for name in made]
    check(list(made), found)
    assert all(str(crop.crop) in crop.error.what for crop in found if crop.error is not None)


@pytest.mark.slow
def test_the_command_matches_ten_thousand(patterns: Path, tmp_path: Path) -> None:
    command = str(Path(sys.executable).parent / "skumatch")
    model = ["--data", str(patterns), "--model", "open_clip:skumatch-tiny-96", "--random-init"]
    subprocess.run([command, "init", "shop", *model], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([command, "gallery", "build"], cwd=tmp_path / "shop", check=True, capture_output=True)
    crops = tmp_path / "crops"
    crops.mkdir()
    made = list(mutants(3, 10_000))
    for name, data in made:
        (crops / name).write_bytes(data)
    words = [command, "match", str(crops), "--topk", "1", "--json"]
    env = {**os.environ, **KEPT_OUT}
    # what it says goes to a file: nobody reads a pipe meanwhile
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(
            words, cwd=tmp_path / "shop", stdout=subprocess.PIPE, stderr=said, text=True, env=env
        ) as process,
    ):
        assert process.stdout is not None
        rows, used = [], []
        for line in process.stdout:
            rows.append(json.loads(line))
            if len(rows) % 500 == 0:
                used.append(anonymous(process.pid))
    assert process.returncode == 0, (tmp_path / "said").read_text()[-2000:]
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert [Path(row["crop"]).name for row in rows] == [name for name, _ in made]
    fine = [row for row in rows if sku_of(Path(row["crop"]).name)]
    assert [row["sku"] for row in fine] == [sku_of(Path(row["crop"]).name) for row in fine]
    assert max(used[-4:]) < SLACK * max(used[3:6])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_a_line_of_pixels_is_turned_upright(encoder: Encoder, size: tuple[int, int], orientation: int) -> None:
    exif, buffer = PILImage.Exif(), BytesIO()
    exif[0x0112] = orientation
    PILImage.new("RGB", size, (200, 30, 40)).save(buffer, "JPEG", exif=exif)
    pixels = load_pixels(buffer.getvalue(), encoder.spec)
    assert np.abs(pixels.mean(axis=(1, 2)) - (200, 30, 40)).max() < 4


def test_the_drawn_pictures_are_those_of_the_gallery(patterns: Path) -> None:
    assert (patterns / "test" / "sku-3" / "5.png").read_bytes() == _as_png(3, 5)


def _as_png(sku: int, view: int) -> bytes:
    buffer = BytesIO()
    draw(sku, view).save(buffer, "PNG")
    return buffer.getvalue()
