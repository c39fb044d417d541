"""The readers against small trees of every format: they list names only, so the pictures are empty files."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from skumatch.dataset import Dataset
from skumatch.errors import DataError
from skumatch.readers import FORMATS, detect_format, open_dataset, safe_text

needs_any_bytes = pytest.mark.skipif(sys.platform != "linux", reason="file names are not plain bytes here")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def listing(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(row.path.relative_to(dataset.root).as_posix(), row.sku, row.split) for row in dataset]


def test_rp2k_as_distributed(tmp_path: Path) -> None:
    touch(tmp_path, "all/train/可口可乐/2.jpg", "all/train/可口可乐/1.JPG", "all/test/可口可乐/3.png", "readme.txt")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "rp2k"
    assert listing(dataset) == [
        ("all/train/可口可乐/1.JPG", "可口可乐", "train"),
        ("all/train/可口可乐/2.jpg", "可口可乐", "train"),
        ("all/test/可口可乐/3.png", "可口可乐", "test"),
    ]


def test_rp2k_at_the_root_with_val_and_gallery(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "gallery/a/3.webp", "val/b/4.jpeg")
    assert open_dataset(tmp_path).splits == {"train": 1, "val": 1, "test": 1, "gallery": 1}
    assert detect_format(tmp_path) == "rp2k"


def test_junk_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.jpg", "a/Thumbs.db", "a/.DS_Store", "a/notes.txt", "a/x.jpg.part")
    touch(tmp_path, "__MACOSX/a/1.jpg", ".cache/1.jpg", "a/2.JPEG", "a/3.WebP", "a/4.PNG", "a/folder.jpg/note.txt")
    assert [row.path.name for row in open_dataset(tmp_path)] == ["1.jpg", "2.JPEG", "3.WebP", "4.PNG"]


def test_order_is_by_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "B/1.jpg", "é/1.jpg", "茶/1.jpg", "a/2.jpg", "a/10.jpg")
    paths = [row.path.relative_to(tmp_path).as_posix() for row in open_dataset(tmp_path)]
    assert paths == ["B/1.jpg", "a/10.jpg", "a/2.jpg", "b/1.jpg", "é/1.jpg", "茶/1.jpg"]


@pytest.mark.parametrize(("pictures", "tests"), [(1, 0), (2, 1), (3, 1), (5, 1), (8, 2), (10, 2), (50, 10)])
def test_folder_split_is_80_20_per_sku(tmp_path: Path, pictures: int, tests: int) -> None:
    touch(tmp_path, *(f"tea/{i}.jpg" for i in range(pictures)))
    assert Counter(row.split for row in open_dataset(tmp_path, "folder"))["test"] == tests


def test_folder_split_depends_on_seed_and_sku_alone(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{sku}/{i}.jpg" for sku in ("oat", "tea") for i in range(20)))

    def tested(sku: str, seed: int) -> set[str]:
        return {row.path.name for row in open_dataset(tmp_path, seed=seed) if (row.sku, row.split) == (sku, "test")}

    before = tested("tea", 0)
    assert before == tested("tea", 0)
    assert before != tested("tea", 1)
    assert before != tested("oat", 0)
    touch(tmp_path, *(f"fig/{i}.jpg" for i in range(9)))
    assert tested("tea", 0) == before


def test_folder_split_hardly_moves_when_a_picture_is_added(tmp_path: Path) -> None:
    touch(tmp_path, *(f"tea/{i}.jpg" for i in range(40)))
    before = {row.path.name: row.split for row in open_dataset(tmp_path)}
    touch(tmp_path, "tea/new.jpg")
    after = {row.path.name: row.split for row in open_dataset(tmp_path)}
    assert sum(after[name] != split for name, split in before.items()) <= 1


@needs_any_bytes
def test_names_that_are_not_utf8_become_text_and_still_open(tmp_path: Path) -> None:
    folder = tmp_path / "train" / os.fsdecode(b"\xbf\xc9")  # GBK, as old archives unpack
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"bytes")
    (row,) = open_dataset(tmp_path, "rp2k")
    assert row.sku == "\\xbf\\xc9"
    assert row.path.read_bytes() == b"bytes"


@needs_any_bytes
def test_two_names_for_one_sku_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "\\xbf/1.jpg", os.fsdecode(b"\xbf/1.jpg"))
    with pytest.raises(DataError, match="two SKU names"):
        open_dataset(tmp_path)


def test_safe_text_leaves_valid_text_alone() -> None:
    for text in ("tea", "可口可乐", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")):
        assert safe_text(text) == text
    assert safe_text("a\udcffb") == "a\\xffb"
    assert safe_text("a\ud800b").encode("utf-8") == b"a\\ud800b"


def test_pictures_deeper_than_the_sku_folder_are_not_dropped_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "tea/1.jpg", "tea/more/2.jpg")
    with pytest.raises(DataError, match="folder 'more' with pictures in it"):
        open_dataset(tmp_path)


def test_a_broken_link_is_listed_for_the_check_to_report(tmp_path: Path) -> None:
    touch(tmp_path, "tea/1.jpg")
    (tmp_path / "tea/2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert len(open_dataset(tmp_path)) == 2


def test_bad_places_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data set at .*gone"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match=r"found nothing - looked for grocery-store .* products-10k .* rp2k .* folder"):
        open_dataset(tmp_path)
    touch(tmp_path, "a.txt", "b.pdf", "sub/c.txt")
    with pytest.raises(DataError, match=r"found 1 folders, 2 files \(\.pdf 1, \.txt 1\)") as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is a file but not a manifest"):
        open_dataset(tmp_path / "a.txt")


@pytest.mark.parametrize("format", ["rp2k", "folder", "grocery-store", "products-10k", "csv"])
def test_a_format_that_does_not_fit_is_refused(tmp_path: Path, format: str) -> None:
    touch(tmp_path, "loose.jpg")
    with pytest.raises(DataError):
        open_dataset(tmp_path, format)


def test_format_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean rp2k"):
        open_dataset(tmp_path, "rpk2")
    touch(tmp_path, "m.csv")
    with pytest.raises(DataError, match="needs a folder"):
        open_dataset(tmp_path / "m.csv", "folder")
    with pytest.raises(DataError, match=r"give the file itself: .*m\.csv"):
        open_dataset(tmp_path)
    assert FORMATS[0] == "auto"


def grocery(root: Path) -> None:
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"
    write(root / "classes.csv", f"{header}\r\nGolden-Delicious,0,Apple,0,/i.jpg\r\nOatly_Milk,1,Oat-Milk,1,/j.jpg\r\n")
    write(root / "train.txt", "train/Fruit/Apple/Golden-Delicious/1.jpg, 0, 0\n")
    write(root / "val.txt", "val/Packages/Oat-Milk/Oatly, Milk/2.jpg, 1, 1\n\n")
    write(root / "test.txt", "test/Packages/Oat-Milk/3.jpg, 1, 1\n")


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_grocery_store(tmp_path: Path, inside: str) -> None:
    grocery(tmp_path / inside)
    dataset = open_dataset(tmp_path)
    assert dataset.format == "grocery-store"
    assert dataset.splits == {"train": 1, "val": 1, "test": 1}
    apple, milk, _ = dataset
    assert (apple.sku, apple.title, apple.group) == ("Golden-Delicious", "Golden Delicious", "Apple")
    assert milk.title == "Oatly Milk"
    assert milk.path == tmp_path / inside / "val/Packages/Oat-Milk/Oatly, Milk/2.jpg"
    assert len(dataset.where({"department": "packages"})) == 2


@pytest.mark.parametrize(("line", "words"), [("a.jpg, 7, 0", "line 2, names class 7"), ("a.jpg", "line 2, is not")])
def test_grocery_store_names_the_bad_line(tmp_path: Path, line: str, words: str) -> None:
    grocery(tmp_path)
    write(tmp_path / "train.txt", f"train/Fruit/1.jpg, 0, 0\n{line}\n")
    with pytest.raises(DataError, match=rf"train\.txt, {words}"):
        open_dataset(tmp_path)


def test_the_real_grocery_store() -> None:
    root = os.environ.get("SKUMATCH_TEST_DATA")
    if not root or not (Path(root) / "grocery-store").is_dir():
        pytest.skip("SKUMATCH_TEST_DATA names no data root with grocery-store/")
    dataset = open_dataset(Path(root) / "grocery-store")
    assert dataset.splits == {"train": 2640, "val": 296, "test": 2485}
    assert len(dataset.skus) == 81
    assert len(dataset.where({"department": "packages"}).skus) == 31
    assert all(row.path.is_file() for row in dataset)


@pytest.mark.parametrize("test_list", ["test.csv", "test_kaggletest.csv"])
def test_products_10k(tmp_path: Path, test_list: str) -> None:
    touch(tmp_path, "train/1.jpg", "test/2.jpg")
    write(tmp_path / "train.csv", "name,class,group\n1.jpg,17,3\n")
    write(tmp_path / test_list, "name,class,group,Usage\n2.jpg,17,3,Public\n")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "products-10k"
    assert listing(dataset) == [("train/1.jpg", "17", "train"), ("test/2.jpg", "17", "test")]
    assert dataset.rows[1].group == "3"
    assert len(dataset.where({"usage": "Public"})) == 1


def test_products_10k_without_labels_for_its_test_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg")
    write(tmp_path / "train.csv", "name,class,group\n1.jpg,17,3\n")
    assert open_dataset(tmp_path).splits == {"train": 1}
    write(tmp_path / "test.csv", "name\n2.jpg\n")
    with pytest.raises(DataError, match=r"test\.csv, line 1, has no column 'class'"):
        open_dataset(tmp_path)
