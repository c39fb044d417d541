"""Readers for two metric-learning benchmarks: Stanford Online Products and DeepFashion's In-shop Clothes Retrieval.

They read the authors' lists as they are distributed; whether the pictures exist is for the data check to say. Which
rows are queries and which are gallery in the published protocols is ``skumatch.eval.presets``'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skumatch.dataset import Row
from skumatch.errors import DataError
from skumatch.readers_common import NO_EXTRA, SkuNames, read_lines, safe_text, shown

SOP_FOLDER = "Stanford_Online_Products"
SOP_LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
SOP_HEADER = ["image_id", "class_id", "super_class_id", "path"]
INSHOP_LIST = Path("Eval", "list_eval_partition.txt")
INSHOP_HEADER = ["image_name", "item_id", "evaluation_status"]
INSHOP_SPLITS = {"train": "train", "query": "test", "gallery": "gallery"}
AGAIN = "unpack the data set again"


def is_sop(root: Path) -> bool:
    """Return whether ``root`` or ``root/Stanford_Online_Products`` has one of the Ebay lists."""
    return _sop_base(root) is not None


def read_sop(root: Path) -> list[Row]:
    """Return the rows of Stanford Online Products in the order of Ebay_train.txt and Ebay_test.txt.

    SKU: class_id; group: the super-class that the picture's folder names (``bicycle_final`` -> ``bicycle``). The two
    lists share no class. Raises DataError for missing lists or a line that is not four cells.
    """
    base = _sop_base(root)
    if base is None:
        raise DataError(
            f"{shown(root)} has no Ebay_train.txt or Ebay_test.txt, nor has its {SOP_FOLDER}/",
            f"point at the folder {SOP_FOLDER} that holds them",
        )
    lists = [(base / name, split) for split, name in SOP_LISTS.items() if (base / name).is_file()]
    rows = [row for path, split in lists for row in _sop_rows(path, split)]
    if not rows:
        raise DataError(f"the lists in {shown(base)} name no pictures", AGAIN)
    return rows


def is_inshop(root: Path) -> bool:
    """Return whether ``root`` has Eval/list_eval_partition.txt with the columns of the In-shop benchmark.

    The file name alone says little: CelebA and other parts of DeepFashion use it too.
    """
    path = root / INSHOP_LIST
    if not path.is_file():
        return False
    try:
        return _inshop_header(path)[1]
    except DataError:
        return False


def read_inshop(root: Path) -> list[Row]:
    """Return the rows of the In-shop Clothes Retrieval benchmark in the order of its partition list.

    SKU: item_id; split: train, gallery, or test for "query"; group: the folders between img/ and the item, such as
    ``WOMEN/Dresses``. The pictures lie in ``img/`` or, where Img/img.zip was unpacked in place, ``Img/img/``. Raises
    DataError for a missing or foreign list, a bad line, or another number of lines than the list says.
    """
    path = root / INSHOP_LIST
    if not path.is_file():
        raise DataError(
            f"{shown(root)} has no {INSHOP_LIST.as_posix()}", "point at the folder that holds Eval/ and img/"
        )
    declared, fits = _inshop_header(path)
    if not fits:
        raise DataError(
            f"{shown(path)} does not have the columns {' '.join(INSHOP_HEADER)}",
            "point at the In-shop Clothes Retrieval benchmark: other benchmarks name their list so too",
        )
    pictures = root / "Img" if (root / "Img" / "img").is_dir() and not (root / "img").is_dir() else root
    rows = list(_inshop_rows(path, pictures))
    if not rows or len(rows) != declared:
        raise DataError(f"{shown(path)} says {declared} pictures and names {len(rows)}", AGAIN)
    return rows


def _sop_base(root: Path) -> Path | None:
    for base in (root, root / SOP_FOLDER):
        if any((base / name).is_file() for name in SOP_LISTS.values()):
            return base
    return None


def _sop_rows(path: Path, split: str) -> Iterator[Row]:
    sku_of = SkuNames(path)
    groups: dict[str, str] = {}
    for number, line in read_lines(path):
        cells = line.split(maxsplit=3)
        if cells == SOP_HEADER:
            continue
        if len(cells) != 4:
            raise DataError(f"{shown(path)}, line {number}, is not '{' '.join(SOP_HEADER)}'", AGAIN)
        name = cells[3].strip()
        folder = name.partition("/")[0]
        group = groups.setdefault(folder, safe_text(folder.removesuffix("_final")))
        yield Row(path.parent / name, sku_of(cells[1]), split, group=group, extra=NO_EXTRA)


def _inshop_header(path: Path) -> tuple[int, bool]:
    """Return the number of pictures that the first line declares (-1 for none), and whether the columns fit."""
    lines = read_lines(path)
    count = next(lines, (0, ""))[1].strip()
    columns = next(lines, (0, ""))[1].split()
    return (int(count) if count.isascii() and count.isdecimal() else -1), columns == INSHOP_HEADER


def _inshop_rows(path: Path, pictures: Path) -> Iterator[Row]:
    sku_of = SkuNames(path)
    groups: dict[str, str] = {}
    for number, line in list(read_lines(path))[2:]:
        cells = line.split()
        if len(cells) != 3 or cells[2] not in INSHOP_SPLITS:
            raise DataError(
                f"{shown(path)}, line {number}, is not 'picture item train|query|gallery'", f"correct it, or {AGAIN}"
            )
        folders = "/".join(cells[0].split("/")[1:-2])
        group = groups.setdefault(folders, safe_text(folders))
        yield Row(pictures / cells[0], sku_of(cells[1]), INSHOP_SPLITS[cells[2]], group=group, extra=NO_EXTRA)
