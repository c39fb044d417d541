"""The synthetic store: designs are distinct and stable, pictures are what was asked for, trees repeat byte for byte."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from skumatch.cli.synth import synth
from skumatch.errors import ArtefactError, ConfigError, DataError
from skumatch.spec import Image
from skumatch.synth import NOISE, Pack, design_packs, neighbours_of, render_crop, render_pack, write_store
from skumatch.synth_design import FAMILY, distance
from skumatch.synth_pack import LAYOUTS


def tree(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shoot(packs: list[Pack], number: int, strength: float, size: int = 64) -> list[Image]:
    return [render_crop(p, packs, np.random.default_rng([number, i]), size, strength) for i, p in enumerate(packs)]


def pixel_accuracy(queries: list[Image], gallery: list[Image]) -> float:
    """Share of queries whose nearest gallery picture, pixel by pixel, has the same place in the list."""
    rows = [np.stack(pictures).reshape(len(pictures), -1).astype(np.float64) for pictures in (queries, gallery)]
    rows = [row - row.mean(1, keepdims=True) for row in rows]
    rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    return float(np.mean((rows[0] @ rows[1].T).argmax(1) == np.arange(len(queries))))


@pytest.mark.slow
def test_ids_are_distinct_safe_names_at_scale() -> None:
    skus = [pack.sku for pack in design_packs(100_000, 0)]
    assert len(set(skus)) == 100_000
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)+", sku) for sku in skus)


def test_small_designs_start_large_ones_and_follow_the_seed() -> None:
    assert design_packs(7, 3) == design_packs(60, 3)[:7]
    assert design_packs(7, 3) != design_packs(7, 4)


@pytest.mark.parametrize(("skus", "seed"), [(0, 0), (10**7, 0), (5, -1)])
def test_design_refuses_numbers_out_of_range(skus: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        design_packs(skus, seed)


def test_families_hold_look_alikes_of_every_kind() -> None:
    packs = design_packs(60, 0)
    kinds = {"label": 0, "size": 0, "band": 0}
    for start in range(0, 60, FAMILY):
        family = packs[start : start + FAMILY]
        assert len({(p.brand, p.noun, p.look) for p in family}) == 1
        for a, b in combinations(family, 2):
            differ = [name for name in kinds if getattr(a, name) != getattr(b, name)]
            assert differ
            if len(differ) == 1:
                kinds[differ[0]] += 1
    assert min(kinds.values()) >= 2


def test_bands_stand_apart_from_the_ground_and_each_other() -> None:
    packs = design_packs(500, 1)
    assert min(distance(p.band, p.look.ground) for p in packs) >= 90
    for start in range(0, 500, FAMILY):
        bands = {p.band for p in packs[start : start + FAMILY]}
        assert min(distance(a, b) for a, b in combinations(bands, 2)) >= 90


def test_studio_pictures_are_all_different_and_sized_by_shape() -> None:
    packs = design_packs(60, 0)
    pictures = [render_pack(pack) for pack in packs]
    assert all(p.dtype == np.uint8 and p.shape[1:] == (192, 3) and p.shape[0] > 192 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 60
    assert len({pack.look.shape for pack in packs}) == 4
    assert render_pack(packs[0], 64, 100).shape == (100, 64, 3)


def test_look_alikes_differ_in_a_visible_part_only() -> None:
    packs = design_packs(200, 0)
    pairs = [(a, b) for a, b in combinations(packs, 2) if a.look == b.look and (a.label, a.band) == (b.label, b.band)]
    assert pairs
    for a, b in pairs:
        changed = np.abs(render_pack(a).astype(int) - render_pack(b)).max(2) > 40
        assert 0.005 < changed.mean() < 0.15


def test_flavour_words_fill_the_band_and_stay_inside_it() -> None:
    boxes = [pack for pack in design_packs(300, 2) if pack.look.shape == "box"]
    for pack in boxes:
        picture = render_pack(pack).astype(int)
        place = LAYOUTS[pack.look.arrangement].band
        height = picture.shape[0]
        band = picture[round((place.y - place.h / 2) * height) + 1 : round((place.y + place.h / 2) * height) - 1]
        ink = np.abs(band - pack.band).max(2) > 60
        assert not ink[:2].any() and not ink[-2:].any() and not ink[:, :8].any() and not ink[:, -8:].any(), pack.sku
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        assert np.ptp(columns) > 0.8 * 192 or np.ptp(rows) > 0.7 * len(band), pack.sku


def test_tiny_pictures_are_refused() -> None:
    pack = design_packs(1, 0)[0]
    for width, height in ((8, None), (64, 8)):
        with pytest.raises(ConfigError):
            render_pack(pack, width, height)


@pytest.mark.parametrize("size", [32, 96, 200])
def test_crops_have_the_size_asked_for(size: int) -> None:
    packs = design_packs(5, 0)
    crop = render_crop(packs[0], packs, np.random.default_rng(0), size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert crop.std() > 10


def test_crops_need_no_neighbours_and_follow_the_generator() -> None:
    pack = design_packs(1, 0)[0]
    first, same, other = (render_crop(pack, [], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_strength_scales_the_disturbance() -> None:
    packs = design_packs(60, 0)
    clean = shoot(packs, 0, 0)
    shifts = [
        float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(clean, shoot(packs, 1, s), strict=True)]))
        for s in (0.0, 0.5, 1.0, 2.0)
    ]
    assert shifts == sorted(shifts) and shifts[1] > shifts[0] + 5
    assert NOISE.scaled(0.5).rotation == NOISE.rotation / 2


def test_clean_crops_are_told_apart_by_pixels_and_noisy_ones_are_not() -> None:
    packs = design_packs(60, 0)
    clean = shoot(packs, 0, 0)
    assert pixel_accuracy(shoot(packs, 1, 0), clean) > 0.75
    assert pixel_accuracy(shoot(packs, 1, 1), clean) < 0.7


@pytest.mark.parametrize(("size", "strength"), [(16, 1.0), (2048, 1.0), (64, -1.0), (64, 9.0), (64, float("nan"))])
def test_crop_refuses_numbers_out_of_range(size: int, strength: float) -> None:
    pack = design_packs(1, 0)[0]
    with pytest.raises(ConfigError):
        render_crop(pack, [], np.random.default_rng(0), size, strength)


def test_neighbours_do_not_depend_on_the_size_of_the_store() -> None:
    small, large = list(neighbours_of(7, 5)), list(neighbours_of(90, 5))
    assert small == large[:7]
    assert all(pack in beside for pack, beside in zip(design_packs(90, 5), large, strict=True))


def test_store_has_the_layout_and_the_product_table(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = write_store(tmp_path / "store", 6, 2, 1, 0, 48, lambda done, total: calls.append((done, total)))
    packs = design_packs(6, 0)
    files = set(tree(out))
    assert {f"train/{p.sku}/{n:04d}.jpg" for p in packs for n in range(2)} < files
    assert {f"test/{p.sku}/0000.jpg" for p in packs} | {f"catalogue/{p.sku}.jpg" for p in packs} < files
    assert len(files) == 6 * 4 + 1
    assert calls == [(n, 18) for n in range(1, 19)]
    with (out / "products.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["sku"] for row in rows] == [p.sku for p in packs]
    assert list(rows[0]) == ["sku", "title", "brand", "flavour", "size"]


def test_store_files_depend_on_seed_and_sku_alone(tmp_path: Path) -> None:
    first = tree(write_store(tmp_path / "a", 5, 2, 1, 0, 64))
    again = tree(write_store(tmp_path / "b", 5, 2, 1, 0, 64))
    larger = tree(write_store(tmp_path / "c", 8, 3, 2, 0, 64))
    other = tree(write_store(tmp_path / "d", 5, 2, 1, 1, 64))
    assert first == again
    assert {name: larger[name] for name in first if name != "products.csv"}.items() <= first.items()
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == len(first)


def test_store_refuses_a_taken_place_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="choose a new folder"):
            write_store(out, 5, 1, 0, 0)
    assert tree(tmp_path).keys() == {"mine.txt"}
    with pytest.raises(ArtefactError, match="cannot write"):
        write_store(tmp_path / "mine.txt" / "store", 5, 1, 0, 0)


@pytest.mark.parametrize(("views", "test_views", "size"), [(0, 1, 64), (1, -1, 64), (1, 1, 8)])
def test_store_checks_its_numbers_first(tmp_path: Path, views: int, test_views: int, size: int) -> None:
    with pytest.raises(ConfigError):
        write_store(tmp_path / "store", 5, views, test_views, 0, size)
    assert not (tmp_path / "store").exists()


def test_import_is_light() -> None:
    code = "import sys, skumatch.cli.synth, skumatch.synth; print([m for m in ('cv2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_command_reports_on_stdout_and_names_the_next_step(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(synth)
    out = tmp_path / "store"
    options = ["--skus", "5", "--views", "2", "--test-views", "1", "--size", "48", "--seed", "1"]
    result = CliRunner().invoke(app, [str(out), *options])
    assert result.exit_code == 0
    assert result.stdout.strip() == f"wrote 15 crops of 5 SKUs to {out} - next: skumatch init --data {out}"
    assert "crops/s" in result.stderr
    assert tree(out) == tree(write_store(tmp_path / "again", 5, 2, 1, 1, 48))
