"""Reader for GroZi-120: pictures of 120 products from the web (in vitro) and cropped from shop videos (in situ).

The layout is the one that the README of the authors' archive describes (UCSD, summer 2006):

    Index/UPC_index.txt                 blocks of number, UPC code and description
    inVitro/<number>/web/JPEG/web<i>.jpg
    inSitu/<number>/video/video<i>.png  crops, in the order of coordinates.txt
    inSitu/<number>/coordinates.txt     one line per crop: video, frame, x, y, width, height

It lists names and reads the coordinates; it opens no picture and no film.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from skumatch.dataset import Row
from skumatch.errors import DataError
from skumatch.readers_common import NO_EXTRA, SkuNames, list_folder, read_lines, safe_text, shown

WEB, VIDEO = Path("web", "JPEG"), Path("video")
IN_VITRO, IN_SITU = "inVitro", "inSitu"
UPC_LISTS = (Path("Index", "UPC_index.txt"), Path("UPC_index.txt"))


def is_grozi(root: Path) -> bool:
    """Return whether ``root`` has inVitro/ and inSitu/."""
    return (root / IN_VITRO).is_dir() and (root / IN_SITU).is_dir()


def read_grozi(root: Path) -> list[Row]:
    """Return the rows of GroZi-120: web pictures as split "gallery", then video crops as split "test", by number.

    SKU: the product's number, "1" to "120"; title: its description where UPC_index.txt is there. ``group``: the video
    that a crop was cut from (``Shelf_7``), empty for web pictures; extra ``frame``: the frame's number in that video.
    Raises DataError when there are no pictures, or when a crop's video cannot be told: without it, frames of one
    video could land on both sides of a split.
    """
    if not is_grozi(root):
        raise DataError(f"{shown(root)} has no {IN_VITRO}/ beside {IN_SITU}/", "point at the folder that holds both")
    titles = _titles(root)
    sku_of = SkuNames(root)
    rows: list[Row] = []
    for product in _products(root / IN_VITRO):
        for name in _numbered(root / IN_VITRO / product / WEB):
            path = root / IN_VITRO / product / WEB / name
            rows.append(Row(path, sku_of(product), "gallery", titles.get(product, ""), extra=NO_EXTRA))
    for product in _products(root / IN_SITU):
        rows += _crops(root / IN_SITU / product, sku_of(product), titles.get(product, ""))
    if not rows:
        raise DataError(
            f"{shown(root)} has no <number>/web/JPEG/<picture> in {IN_VITRO}/ and no <number>/video/<picture> in "
            f"{IN_SITU}/",
            "unpack the data set again",
        )
    return rows


def _products(folder: Path) -> list[str]:
    """Return the product folders by number; other names come last, by name."""
    names = list_folder(folder)[0]
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _numbered(folder: Path) -> list[str]:
    """Return the pictures in ``folder`` by the number in their name: video2.png before video10.png."""
    names = list_folder(folder)[1] if folder.is_dir() else []
    return sorted(names, key=lambda name: (_number(name), name))


def _number(name: str) -> int:
    found = re.search(r"(\d+)\.[^.]*$", name)
    return int(found[1]) if found else -1


def _crops(folder: Path, sku: str, title: str) -> Iterator[Row]:
    names = _numbered(folder / VIDEO)
    if not names:
        return
    frames = _frames(folder / "coordinates.txt")
    # The README names the crops video%d and does not say where the count starts.
    first = 0 if _number(names[0]) == 0 else 1
    for name in names:
        line = _number(name) - first
        if not 0 <= line < len(frames):
            raise DataError(
                f"{shown(folder / 'coordinates.txt')} has {len(frames)} lines and none for {safe_text(name)}",
                "unpack the data set again: a crop's video is known from there alone",
            )
        video, frame = frames[line]
        yield Row(folder / VIDEO / name, sku, "test", title, f"Shelf_{video}", {"frame": str(frame)})


def _frames(path: Path) -> list[tuple[int, int]]:
    """Return (video, frame) per line."""
    if not path.is_file():
        raise DataError(f"{shown(path)} is missing", "unpack the data set again: it says which video a crop is from")
    found = []
    for number, line in read_lines(path):
        cells = line.split()
        if len(cells) != 6 or not (cells[0].isdecimal() and cells[1].isdecimal()):
            raise DataError(
                f"{shown(path)}, line {number}, is not 'video frame x y width height'", "unpack the data set again"
            )
        found.append((int(cells[0]), int(cells[1])))
    return found


def _titles(root: Path) -> dict[str, str]:
    """Return description by product number, from blocks of three lines; lines that fit no block are passed over."""
    path = next((root / name for name in UPC_LISTS if (root / name).is_file()), None)
    if path is None:
        return {}
    lines = [line.strip() for _, line in read_lines(path)]
    titles: dict[str, str] = {}
    at = 0
    while at + 2 < len(lines):
        if lines[at] == str(len(titles) + 1) and lines[at + 1].isdecimal():
            titles[lines[at]] = safe_text(lines[at + 2])
            at += 3
        else:
            at += 1
    return titles
