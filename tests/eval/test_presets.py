"""Presets on small trees in the real layouts: who is gallery, who is query, and what the note admits."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from skumatch.dataset import Dataset, Row
from skumatch.errors import ConfigError, DataError
from skumatch.eval.presets import PRESETS, preset
from skumatch.eval.trial import Trial
from skumatch.readers import FORMATS, open_dataset


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rp2k(root: Path) -> Dataset:
    """Twelve train and nine test views of two classes, two of a third, and one class on one side only."""
    touch(root, *(f"all/train/{sku}/{i}.jpg" for sku in ("tea", "oat") for i in range(12)))
    touch(root, *(f"all/test/{sku}/{i}.jpg" for sku in ("tea", "oat") for i in range(20, 29)))
    touch(root, "all/train/fig/1.jpg", "all/train/fig/2.jpg", "all/test/fig/3.jpg", "all/test/nut/1.jpg")
    return open_dataset(root)


def names(rows: tuple[Row, ...]) -> list[str]:
    return [f"{row.sku}/{row.path.name}" for row in rows]


def test_every_preset_says_its_source_and_sizes() -> None:
    for name, one in PRESETS.items():
        assert one.name == name and one.format in FORMATS[1:] and one.source
        assert one.summary.endswith(".") and len(one.summary) < 120
        assert "Source:" in one.about and "Sizes:" in one.about
        known = [f"{n:,}" for n in (one.sizes.gallery, one.sizes.queries, one.sizes.skus) if n]
        shared = PRESETS["grocery-store"].about if name == "grocery-store-catalogue" else ""
        assert all(number in one.about + shared for number in known)
        if name != "catalogue":
            assert re.search(r"https?://|Source: as ``", one.about)


def test_unknown_names_and_other_formats_are_one_clear_line(tmp_path: Path) -> None:
    dataset = rp2k(tmp_path)
    with pytest.raises(ConfigError, match="unknown preset 'rp2k-clap' - did you mean rp2k-clip"):
        preset("rp2k-clap", dataset)
    with pytest.raises(
        ConfigError, match=r"preset sop needs a data set of format sop, .* rp2k - presets .*: rp2k, rp2k-clip"
    ):
        preset("sop", dataset)
    folder = open_dataset(tmp_path / "all" / "train")
    with pytest.raises(ConfigError, match="is of format folder - presets for it: none"):
        preset("rp2k", folder)


def test_rp2k_is_train_against_test(tmp_path: Path) -> None:
    trial = preset("rp2k", rp2k(tmp_path))
    assert Counter(row.sku for row in trial.gallery) == {"tea": 12, "oat": 12, "fig": 2}
    assert Counter(row.sku for row in trial.queries) == {"tea": 9, "oat": 9, "fig": 1, "nut": 1}
    assert not trial.leave_one_out
    assert trial.note == "3 SKUs where 2,388 are published; 1 queries show a SKU without another reference view"


def test_rp2k_clip_draws_five_views_per_class_and_side(tmp_path: Path) -> None:
    trial = preset("rp2k-clip", rp2k(tmp_path), seed=3)
    assert Counter(row.sku for row in trial.gallery) == {"tea": 5, "oat": 5, "fig": 2}
    assert Counter(row.sku for row in trial.queries) == {"tea": 5, "oat": 5, "fig": 1}
    assert {row.split for row in trial.gallery} == {"train"} and {row.split for row in trial.queries} == {"test"}
    assert "drawn with seed 3" in trial.note and "left out 1 classes that lack a side" in trial.note


def test_rp2k_clip_draws_by_seed_alone(tmp_path: Path) -> None:
    dataset = rp2k(tmp_path / "one")
    first = preset("rp2k-clip", dataset, seed=1)
    assert first == preset("rp2k-clip", dataset, seed=1)
    assert {names(preset("rp2k-clip", dataset, seed=s).gallery)[5] for s in range(9)} != {names(first.gallery)[5]}
    moved = Path(shutil.copytree(tmp_path / "one", tmp_path / "elsewhere"))
    touch(moved, "all/train/zen/1.jpg", "all/test/zen/2.jpg")  # another class changes no draw
    again = preset("rp2k-clip", open_dataset(moved), seed=1)
    assert names(again.gallery)[: len(first.gallery)] == names(first.gallery)


def test_rp2k_clip_without_a_class_on_both_sides(tmp_path: Path) -> None:
    touch(tmp_path, "train/tea/1.jpg", "test/oat/1.jpg")
    with pytest.raises(DataError, match="'rp2k-clip' has no pictures on the side 'gallery'"):
        preset("rp2k-clip", open_dataset(tmp_path))


def test_a_missing_side_is_one_clear_line(tmp_path: Path) -> None:
    touch(tmp_path, "train/tea/1.jpg")
    with pytest.raises(DataError, match="no pictures in split 'test'"):
        preset("rp2k", open_dataset(tmp_path))
    write(tmp_path / "train.csv", "name,class,group", "1.jpg,7,0")
    with pytest.raises(DataError, match="no pictures in split 'test'"):
        preset("products-10k", open_dataset(tmp_path))


def test_products_10k(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train.csv", "name,class,group", "1.jpg,7,0", "2.jpg,8,0")
    write(tmp_path / "test_kaggletest.csv", "name,class,Usage", "3.jpg,7,Public", "4.jpg,9,Private")
    trial = preset("products-10k", open_dataset(tmp_path))
    assert (names(trial.gallery), names(trial.queries)) == (["7/1.jpg", "8/2.jpg"], ["7/3.jpg", "9/4.jpg"])
    assert "2 SKUs where 9,691 are published" in trial.note and "1 queries show a SKU without" in trial.note


def grocery(root: Path) -> Dataset:
    columns = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"
    write(root / "classes.csv", columns, "Milk,0,Dairy,0,/iconic/Milk.jpg", "Gala,1,Apple,1,/iconic/Gala.jpg")
    write(root / "train.txt", "train/Packages/Milk/1.jpg, 0, 0", "train/Fruit/Gala/2.jpg, 1, 1")
    write(root / "val.txt", "val/Packages/Milk/9.jpg, 0, 0")
    write(root / "test.txt", "test/Packages/Milk/3.jpg, 0, 0")
    return open_dataset(root)


def test_grocery_store_and_its_catalogue(tmp_path: Path) -> None:
    dataset = grocery(tmp_path)
    trial = preset("grocery-store", dataset)
    assert (names(trial.gallery), names(trial.queries)) == (["Milk/1.jpg", "Gala/2.jpg"], ["Milk/3.jpg"])
    assert trial.note == (
        "2 reference views where 2,640 are published; 1 queries where 2,485 are published; "
        "2 SKUs where 81 are published"
    )
    studio = preset("grocery-store-catalogue", dataset)
    assert names(studio.gallery) == ["Gala/Gala.jpg", "Milk/Milk.jpg"] and studio.queries == trial.queries


def test_a_manifest_with_catalogue_pictures(tmp_path: Path) -> None:
    write(tmp_path / "m.csv", "path,sku,split", "a.jpg,tea,catalogue", "b.jpg,tea,test", "c.jpg,tea,train")
    trial = preset("catalogue", open_dataset(tmp_path / "m.csv"))
    assert (names(trial.gallery), names(trial.queries), trial.note) == (["tea/a.jpg"], ["tea/b.jpg"], "")


def grozi(root: Path) -> Dataset:
    """Three products; 1 and 2 are shown by all of four videos, 3 by one."""
    touch(root, *(f"inVitro/{n}/web/JPEG/web1.jpg" for n in (1, 2, 3)))
    for product, videos in (("1", (2, 5, 7, 29)), ("2", (29, 7, 5, 2)), ("3", (5,))):
        touch(root, *(f"inSitu/{product}/video/video{i + 1}.png" for i in range(3 * len(videos))))
        boxes = [f"{video}\t{frame}\t0\t0\t9\t9" for video in videos for frame in (10, 15, 20)]
        write(root / "inSitu" / product / "coordinates.txt", *boxes)
    return open_dataset(root)


def test_grozi_sets_web_pictures_against_video_crops(tmp_path: Path) -> None:
    trial = preset("grozi-120", grozi(tmp_path))
    assert len(trial.gallery) == 3 and len(trial.queries) == 27
    assert not {row.group for row in trial.gallery} - {""} and all(row.group for row in trial.queries)
    assert trial.note == "3 SKUs where 120 are published"


def test_grozi_leaves_out_queries_from_a_video_of_the_gallery(tmp_path: Path) -> None:
    dataset = grozi(tmp_path)
    moved = [
        Row(r.path, r.sku, "gallery" if r.group == "Shelf_5" and r.sku == "1" else r.split, group=r.group)
        for r in dataset
    ]
    trial = preset("grozi-120", dataset.with_rows(moved))
    assert {row.group for row in trial.gallery} == {"", "Shelf_5"}
    assert {row.group for row in trial.queries} == {"Shelf_2", "Shelf_7", "Shelf_29"}
    assert trial.note.startswith("left out 6 queries from videos of the gallery")


@pytest.mark.parametrize("seed", range(4))
def test_grozi_video_never_has_a_video_on_both_sides(tmp_path: Path, seed: int) -> None:
    dataset = grozi(tmp_path)
    trial = preset("grozi-120-video", dataset, seed)
    sides = [{row.group for row in rows} for rows in (trial.gallery, trial.queries)]
    assert not sides[0] & sides[1] and len(sides[0]) == len(sides[1]) == 2
    assert {row.sku for row in trial.queries} <= {row.sku for row in trial.gallery}
    assert trial == preset("grozi-120-video", dataset, seed)
    assert "2 of 4 videos" in trial.note


def test_grozi_video_needs_two_videos(tmp_path: Path) -> None:
    dataset = grozi(tmp_path)
    with pytest.raises(DataError, match="has crops from 1 video - two are needed"):
        preset("grozi-120-video", dataset.where({"group": "Shelf_5"}))


def test_sop_leaves_each_query_out_of_its_own_gallery(tmp_path: Path) -> None:
    header = "image_id class_id super_class_id path"
    write(tmp_path / "Ebay_train.txt", header, "1 1 1 mug_final/1_0.JPG")
    write(tmp_path / "Ebay_test.txt", header, *(f"{i} {11319 + i // 2} 1 mug_final/9_{i}.JPG" for i in range(5)))
    trial = preset("sop", open_dataset(tmp_path))
    assert trial.leave_one_out and trial.gallery == trial.queries and len(trial.gallery) == 5
    assert {row.split for row in trial.gallery} == {"test"}
    assert "1 queries show a SKU without another reference view" in trial.note


def test_in_shop_is_query_against_gallery(tmp_path: Path) -> None:
    lines = ("img/MEN/Denim/a/1.jpg a query", "img/MEN/Denim/a/2.jpg a gallery", "img/MEN/Denim/b/3.jpg b train")
    write(tmp_path / "Eval/list_eval_partition.txt", "3", "image_name item_id evaluation_status", *lines)
    trial = preset("in-shop", open_dataset(tmp_path))
    assert (names(trial.gallery), names(trial.queries)) == (["a/2.jpg"], ["a/1.jpg"])
    assert "1 queries where 14,218 are published" in trial.note


def test_data_of_the_published_size_needs_no_remark() -> None:
    sizes: dict[str, Callable[[int], str]] = {"train": lambda i: str(i % 81), "test": lambda i: str(i % 81)}
    counts = {"train": 2640, "test": 2485}
    rows = [Row(Path(f"{s}/{i}.jpg"), sku(i), s) for s, sku in sizes.items() for i in range(counts[s])]
    assert preset("grocery-store", Dataset(Path(), "grocery-store", tuple(rows))).note == ""


def test_a_trial_refuses_nonsense() -> None:
    row = Row(Path("a.jpg"), "tea", "test")
    with pytest.raises(DataError, match="no pictures on the side 'queries'"):
        Trial("t", (row,), ())
    with pytest.raises(DataError, match="that is not its queries"):
        Trial("t", (row,), (row, row), leave_one_out=True)
