"""The readers of GroZi-120, Stanford Online Products, In-shop and catalogue pictures on small trees in their layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from skumatch.dataset import Dataset
from skumatch.errors import DataError
from skumatch.readers import detect_format, open_dataset
from skumatch.readers_catalogue import catalogue_rows

SOP_HEADER = "image_id class_id super_class_id path"
INSHOP_HEADER = "image_name item_id evaluation_status"
UPC = (
    "List of products in the database, with UPC code\n\n1\n310119030486\nRenu Solution\n\n2 \n016\n26OZ BLUE WINDEX  \n"
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def listing(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    return [(row.path.relative_to(dataset.root).as_posix(), row.sku, row.split, row.group) for row in dataset]


def sop(base: Path) -> Path:
    write(base / "Ebay_train.txt", SOP_HEADER, "1 1 1 bicycle_final/111_0.JPG", "2 1 1 bicycle_final/111_1.JPG")
    write(base / "Ebay_test.txt", SOP_HEADER, "3 11319 12 toaster_final/9_0.JPG", "4 11319 12 toaster_final/9_1.JPG")
    return touch(base, "bicycle_final/111_0.JPG", "bicycle_final/111_1.JPG")


@pytest.mark.parametrize("inside", ["", "Stanford_Online_Products"])
def test_sop(tmp_path: Path, inside: str) -> None:
    sop(tmp_path / inside)
    dataset = open_dataset(tmp_path)
    assert dataset.format == "sop"  # and not "folder", which bicycle_final/ would pass for
    assert dataset.rows[0].path == tmp_path / inside / "bicycle_final/111_0.JPG"
    assert [row[1:] for row in listing(dataset)] == [
        ("1", "train", "bicycle"),
        ("1", "train", "bicycle"),
        ("11319", "test", "toaster"),
        ("11319", "test", "toaster"),
    ]
    assert dataset.rows[0].path.is_file()


def test_sop_with_one_list_and_with_bad_lines(tmp_path: Path) -> None:
    (sop(tmp_path) / "Ebay_train.txt").unlink()
    assert open_dataset(tmp_path).splits == {"test": 2}
    write(tmp_path / "Ebay_test.txt", SOP_HEADER, "3 11319 toaster_final/9_0.JPG")
    with pytest.raises(DataError, match=r"Ebay_test\.txt, line 2, is not 'image_id class_id"):
        open_dataset(tmp_path)
    write(tmp_path / "Ebay_test.txt", SOP_HEADER)
    with pytest.raises(DataError, match="name no pictures"):
        open_dataset(tmp_path)
    (tmp_path / "Ebay_test.txt").unlink()
    with pytest.raises(DataError, match=r"no Ebay_train\.txt or Ebay_test\.txt"):
        open_dataset(tmp_path, "sop")


def in_shop(root: Path, *lines: str) -> Path:
    return write(root / "Eval" / "list_eval_partition.txt", *lines)


INSHOP_LINES = (
    "img/WOMEN/Dresses/id_00000002/02_1_front.jpg    id_00000002 train",
    "img/MEN/Denim/id_00000080/01_1_front.jpg id_00000080 query",
    "img/MEN/Denim/id_00000080/01_2_side.jpg id_00000080 gallery",
)


@pytest.mark.parametrize("unpacked", ["img", "Img/img"])
def test_in_shop(tmp_path: Path, unpacked: str) -> None:
    in_shop(tmp_path, "3", INSHOP_HEADER.replace(" ", "   "), *INSHOP_LINES)
    touch(tmp_path / unpacked, "MEN/Denim/id_00000080/01_1_front.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "in-shop"
    assert [row[1:] for row in listing(dataset)] == [
        ("id_00000002", "train", "WOMEN/Dresses"),
        ("id_00000080", "test", "MEN/Denim"),
        ("id_00000080", "gallery", "MEN/Denim"),
    ]
    assert dataset.gallery_split == "gallery"
    assert dataset.rows[1].path == tmp_path / unpacked / "MEN/Denim/id_00000080/01_1_front.jpg"
    assert dataset.rows[1].path.is_file()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("4", INSHOP_HEADER, *INSHOP_LINES), "says 4 pictures and names 3"),
        (("?", INSHOP_HEADER, *INSHOP_LINES), "says -1 pictures and names 3"),
        (("0", INSHOP_HEADER), "says 0 pictures and names 0"),
        (("1", INSHOP_HEADER, "img/a/b.jpg id_1 val"), "line 3, is not 'picture item train|query|gallery'"),
        (("1", INSHOP_HEADER, "img/a/b.jpg id_1"), "line 3, is not"),
    ],
)
def test_in_shop_names_what_is_wrong(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    in_shop(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_lists_of_other_benchmarks_under_the_same_name_are_not_in_shop(tmp_path: Path) -> None:
    in_shop(tmp_path, "202599", "000001.jpg 0")  # CelebA
    with pytest.raises(DataError, match="fits no data format"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match="does not have the columns image_name item_id evaluation_status"):
        open_dataset(tmp_path, "in-shop")
    (tmp_path / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"has no Eval/list_eval_partition\.txt"):
        open_dataset(tmp_path, "in-shop")


def grozi(root: Path) -> Path:
    touch(root, *(f"inVitro/{n}/web/{name}" for n in (1, 2, 10) for name in ("JPEG/web1.jpg", "masks/mask1.png")))
    touch(root, "Index/1.jpeg", "Video/Shelf_2.avi", *(f"inSitu/2/video/video{i}.png" for i in (1, 2, 3, 10)))
    write(root / "Index/UPC_index.txt", UPC)
    boxes = [f"5\t{frame}\t1\t2\t3\t4" for frame in range(10, 20)]
    write(root / "inSitu/2/coordinates.txt", *boxes[:2], *(f"16\t{frame}\t1\t2\t3\t4" for frame in range(100, 108)))
    return root


def test_grozi(tmp_path: Path) -> None:
    dataset = open_dataset(grozi(tmp_path))
    assert dataset.format == "grozi-120"  # and not "folder", which Index/ would pass for
    assert listing(dataset) == [
        ("inVitro/1/web/JPEG/web1.jpg", "1", "gallery", ""),
        ("inVitro/2/web/JPEG/web1.jpg", "2", "gallery", ""),
        ("inVitro/10/web/JPEG/web1.jpg", "10", "gallery", ""),
        ("inSitu/2/video/video1.png", "2", "test", "Shelf_5"),
        ("inSitu/2/video/video2.png", "2", "test", "Shelf_5"),
        ("inSitu/2/video/video3.png", "2", "test", "Shelf_16"),
        ("inSitu/2/video/video10.png", "2", "test", "Shelf_16"),
    ]
    assert [row.title for row in dataset][:4] == ["Renu Solution", "26OZ BLUE WINDEX", "", "26OZ BLUE WINDEX"]
    assert [row.extra["frame"] for row in dataset.rows[3:]] == ["10", "11", "100", "107"]


def test_grozi_whose_crops_count_from_zero_and_without_titles(tmp_path: Path) -> None:
    grozi(tmp_path)
    (tmp_path / "Index/UPC_index.txt").unlink()
    touch(tmp_path, "inSitu/2/video/video0.png")
    (tmp_path / "inSitu/2/video/video10.png").unlink()
    crops = open_dataset(tmp_path).split("test").rows
    assert [row.group for row in crops] == ["Shelf_5", "Shelf_5", "Shelf_16", "Shelf_16"]
    assert crops[0].path.name == "video0.png" and not crops[0].title


def test_grozi_refuses_a_crop_whose_video_is_not_known(tmp_path: Path) -> None:
    grozi(tmp_path)
    touch(tmp_path, "inSitu/2/video/video11.png")
    with pytest.raises(DataError, match=r"coordinates\.txt has 10 lines and none for video11\.png"):
        open_dataset(tmp_path)
    write(tmp_path / "inSitu/2/coordinates.txt", "5 10 1 2 3")
    with pytest.raises(DataError, match=r"coordinates\.txt, line 1, is not 'video frame x y width height'"):
        open_dataset(tmp_path)
    (tmp_path / "inSitu/2/coordinates.txt").unlink()
    with pytest.raises(DataError, match=r"coordinates\.txt is missing"):
        open_dataset(tmp_path)


def test_grozi_without_pictures_or_folders(tmp_path: Path) -> None:
    (tmp_path / "inVitro/1").mkdir(parents=True)
    with pytest.raises(DataError, match="no inVitro/ beside inSitu/"):
        open_dataset(tmp_path, "grozi-120")
    (tmp_path / "inSitu/1").mkdir(parents=True)
    with pytest.raises(DataError, match="has no <number>/web/JPEG/<picture>"):
        open_dataset(tmp_path)


def grocery(root: Path) -> Path:
    columns = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"
    write(root / "classes.csv", columns, "Milk,0,Dairy,0,/iconic/Milk_Iconic.jpg", "Royal-Gala,1,Apple,1,/iconic/R.jpg")
    write(root / "train.txt", "train/Packages/Milk/1.jpg, 0, 0", "train/Fruit/Apple/Royal-Gala/2.jpg, 1, 1")
    write(root / "test.txt", "test/Packages/Milk/3.jpg, 0, 0")
    return root


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_catalogue_pictures_of_the_grocery_store(tmp_path: Path, inside: str) -> None:
    dataset = open_dataset(grocery(tmp_path / inside).parent if inside else grocery(tmp_path))
    milk, apple = catalogue_rows(dataset)
    assert (milk.path, milk.sku, milk.split) == (tmp_path / inside / "iconic/Milk_Iconic.jpg", "Milk", "catalogue")
    assert (apple.title, apple.group, apple.extra) == ("Royal Gala", "Apple", {"department": "fruit"})
    assert [row.sku for row in catalogue_rows(dataset.where({"department": "packages"}))] == ["Milk"]
    assert "catalogue" not in dataset.splits


def test_a_class_without_a_catalogue_picture(tmp_path: Path) -> None:
    dataset = open_dataset(grocery(tmp_path))
    text = (tmp_path / "classes.csv").read_text().replace("/iconic/R.jpg", "")
    write(tmp_path / "classes.csv", text)
    with pytest.raises(DataError, match="no iconic picture for Royal-Gala"):
        catalogue_rows(dataset)


def test_catalogue_rows_of_a_manifest(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", "path,sku,split", "a.jpg,tea,catalogue", "b.jpg,tea,test", "c.jpg,tea,train")
    dataset = open_dataset(manifest)
    assert [row.path.name for row in catalogue_rows(dataset)] == ["a.jpg"]
    assert dataset.gallery_split == "train"
    with pytest.raises(DataError, match="no pictures in split 'catalogue'"):
        catalogue_rows(dataset.split("test"))
