"""The data check on small real pictures with one fault each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skumatch.datacheck import CheckReport, Views, check
from skumatch.dataset import Dataset, Row
from skumatch.readers import open_dataset


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def shop(root: Path) -> Path:
    """Two SKUs with three views and one query each: nothing wrong."""
    for s, sku in enumerate(("oat", "tea")):
        for i in range(3):
            picture(root / "train" / sku / f"{i}.png", 10 * s + i)
        picture(root / "test" / sku / "q.png", 10 * s + 9)
    return root


def report(root: Path) -> CheckReport:
    return check(open_dataset(root), workers=2)


def test_a_sound_data_set_is_ok(tmp_path: Path) -> None:
    found = report(shop(tmp_path))
    assert found.ok
    assert (found.problems, found.notes) == ([], [])
    assert found.pictures == {"train": 6, "test": 2}
    assert found.skus == {"train": 2, "test": 2}
    assert found.views == Views("train", 3, 3.0, 3)


def test_views_are_those_of_the_gallery_split(tmp_path: Path) -> None:
    picture(shop(tmp_path) / "gallery/oat/g.png", 100)
    picture(tmp_path / "gallery/tea/g.png", 101)
    picture(tmp_path / "gallery/tea/h.png", 102)
    assert report(tmp_path).views == Views("gallery", 1, 1.5, 2)


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = picture(shop(tmp_path) / "train/oat/cut.png", 5).read_bytes()
    (tmp_path / "train/oat/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/oat/empty.jpg").touch()
    (tmp_path / "train/oat/text.jpg").write_text("not a picture")
    found = report(tmp_path)
    assert [Path(bad.path).name for bad in found.unreadable] == ["cut.png", "empty.jpg", "text.jpg"]
    assert all(bad.reason and str(tmp_path) not in bad.reason for bad in found.unreadable)
    assert found.missing == ()
    assert found.problems == ["3 pictures cannot be read"]


def test_missing_files_are_not_called_unreadable(tmp_path: Path) -> None:
    (shop(tmp_path) / "train/tea/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = report(tmp_path)
    assert found.missing == (str(tmp_path / "train/tea/gone.png"),)
    assert found.unreadable == ()
    assert not found.ok


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang_the_check(tmp_path: Path) -> None:
    os.mkfifo(shop(tmp_path) / "train/tea/pipe.png")
    (bad,) = report(tmp_path).unreadable
    assert bad.reason == "is not a regular file"


def test_the_same_bytes_in_two_splits_are_a_leak(tmp_path: Path) -> None:
    picture(shop(tmp_path) / "test/tea/again.png", 11)
    found = report(tmp_path)
    (same,) = found.across_splits
    assert same.paths == (str(tmp_path / "train/tea/1.png"), str(tmp_path / "test/tea/again.png"))
    assert (same.splits, same.skus) == (("train", "test"), ("tea", "tea"))
    assert found.two_skus == ()
    assert "more than one split" in found.problems[0]


def test_the_same_bytes_under_two_skus_of_one_split_are_a_wrong_label(tmp_path: Path) -> None:
    picture(shop(tmp_path) / "train/oat/odd.png", 11)
    found = report(tmp_path)
    (same,) = found.two_skus
    assert same.skus == ("oat", "tea")
    assert found.across_splits == ()
    assert "a label is wrong" in found.problems[0]


def test_files_of_one_size_and_other_bytes_are_not_the_same(tmp_path: Path) -> None:
    a, b = (picture(shop(tmp_path) / f"{split}/oat/bmp.png", 77) for split in ("train", "test"))
    b.write_bytes(a.read_bytes()[:-1] + b"\0")  # past the end chunk's length and name, in its unread checksum
    assert a.stat().st_size == b.stat().st_size
    assert report(tmp_path).across_splits == ()


def test_unreadable_copies_are_not_reported_twice(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (shop(tmp_path) / split / "oat/empty.jpg").touch()
    found = report(tmp_path)
    assert (len(found.unreadable), found.across_splits) == (2, ())


def test_queried_skus_without_a_view(tmp_path: Path) -> None:
    picture(shop(tmp_path) / "test/fig/q.png", 200)
    found = report(tmp_path)
    assert (found.without_views, found.single) == (("fig",), ("fig",))
    assert "never matched" in found.problems[0]
    assert found.notes == ["1 SKU with a single picture, for example fig"]


def test_single_pictures_throughout_and_no_gallery(tmp_path: Path) -> None:
    rows = tuple(Row(picture(tmp_path / f"{sku}.png", i), sku, "test") for i, sku in enumerate(("oat", "tea")))
    found = check(Dataset(tmp_path, "csv", rows), workers=1)
    assert found.views is None
    assert any("no split 'train' or 'gallery'" in problem for problem in found.problems)
    assert any("no SKU has two pictures" in problem for problem in found.problems)
    alone = check(Dataset(tmp_path, "csv", (Row(rows[0].path, "oat", "train"),)), workers=1)
    assert any("nothing to evaluate on" in note for note in alone.notes)


def test_progress_counts_every_picture_in_order(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rows = open_dataset(shop(tmp_path)).rows * 40  # more than one batch
    check(Dataset(tmp_path, "rp2k", rows), workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 320) for i in range(321)]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are not plain bytes here")
def test_the_json_is_plain_text_for_any_file_name(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(shop(tmp_path) / "train/tea") + b"/\xff.jpg"))
    odd.write_text("not a picture")
    found = report(tmp_path)
    text = json.dumps(found.to_json(), ensure_ascii=False)
    assert text.encode("utf-8")
    again = json.loads(text)
    assert again["ok"] is False
    assert again["unreadable"][0]["path"].endswith("/\\xff.jpg")
    assert "tea" not in again["unreadable"][0]["reason"]
    assert again["views"] == {"split": "train", "minimum": 3, "median": 3.5, "maximum": 4}
