"""Open a data set in any of the formats that skumatch reads, as one ``Dataset``.

This module chooses the format; how each is read stands in the other ``readers_*`` modules. Nothing here opens a
picture: a million names stream in seconds, and ``skumatch.datacheck`` says which files are bad.
"""

from __future__ import annotations

from pathlib import Path

from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError, nearest
from skumatch.readers_benchmarks import is_inshop, is_sop, read_inshop, read_sop
from skumatch.readers_common import contents, safe_text, shown
from skumatch.readers_folders import is_folder, is_rp2k, read_folder, read_rp2k
from skumatch.readers_grozi import is_grozi, read_grozi
from skumatch.readers_lists import is_grocery, is_products, read_grocery, read_manifest, read_products
from skumatch.readers_tables import TABLE_SUFFIXES

__all__ = ["FORMATS", "detect_format", "open_dataset", "safe_text"]

FORMATS = ("auto", "rp2k", "folder", "csv", "grocery-store", "products-10k", "grozi-120", "sop", "in-shop")
# The most particular first: Products-10K and Grocery Store have a train/ folder too, and the folders of pictures that
# Stanford Online Products and GroZi-120 have at their root would pass for SKUs.
_DETECTORS = {
    "grocery-store": is_grocery,
    "products-10k": is_products,
    "grozi-120": is_grozi,
    "sop": is_sop,
    "in-shop": is_inshop,
    "rp2k": is_rp2k,
    "folder": is_folder,
}
_READERS = {
    "rp2k": read_rp2k,
    "grocery-store": read_grocery,
    "products-10k": read_products,
    "grozi-120": read_grozi,
    "sop": read_sop,
    "in-shop": read_inshop,
}
_LOOKED_FOR = (
    "looked for grocery-store (train.txt and classes.csv), products-10k (train.csv with name,class beside train/), "
    "grozi-120 (inVitro/ beside inSitu/), sop (Ebay_train.txt), in-shop (Eval/list_eval_partition.txt), "
    "rp2k (train/<sku>/<picture>, also under all/) and folder (<sku>/<picture>)"
)


def open_dataset(path: Path, format: str = "auto", seed: int = 0) -> Dataset:
    """List the pictures of the data set at ``path``: a folder, or the manifest file itself for "csv".

    ``format``: one of ``FORMATS``. ``seed``: decides the split where the data brings none (folder, csv without a split
    column). Rows carry absolute paths and come in a fixed order. Raises DataError, in one line that says what was
    found, for an unknown format, a missing path, a layout that does not fit, a malformed list, or no pictures at all.
    """
    if format not in FORMATS:
        near = nearest(format, list(FORMATS), n=1)
        hint = f"did you mean {near}? " if near else ""
        raise DataError(f"unknown data format '{format}'", f"{hint}choose {', '.join(FORMATS)}")
    path = path.absolute()
    _check_exists(path)
    chosen = detect_format(path) if format == "auto" else format
    _check_kind(path, chosen)
    root = path.parent if chosen == "csv" else path
    return Dataset(root, chosen, tuple(_read(path, chosen, seed)))


def detect_format(path: Path) -> str:
    """Return the format of the data set at ``path``. Raises DataError, saying what was looked for, when none fits."""
    _check_exists(path)
    if path.is_file():
        if path.suffix.lower() in TABLE_SUFFIXES:
            return "csv"
        raise DataError(
            f"{shown(path)} is a file but not a manifest", f"give a folder, or a {', '.join(TABLE_SUFFIXES)} file"
        )
    for name, fits in _DETECTORS.items():
        if fits(path):
            return name
    raise DataError(f"{shown(path)} fits no data format: found {contents(path)}", _advice(path))


def _read(path: Path, format: str, seed: int) -> list[Row]:
    if format == "csv":
        return read_manifest(path, seed)
    if format == "folder":
        return read_folder(path, seed)
    return _READERS[format](path)


def _check_exists(path: Path) -> None:
    try:
        found = path.exists()
    except OSError as error:
        raise DataError(f"cannot look into {shown(path.parent)}: {error.strerror}", "check its permissions") from error
    if not found:
        raise DataError(f"there is no data set at {shown(path)}", "check the path, or unpack the data set there")


def _check_kind(path: Path, format: str) -> None:
    if format == "csv" and not path.is_file():
        raise DataError(f"{shown(path)} is a folder, and format csv needs a file", "give the manifest file itself")
    if format != "csv" and not path.is_dir():
        raise DataError(f"{shown(path)} is a file, and format {format} needs a folder", "give the data set's folder")


def _advice(path: Path) -> str:
    manifests = sorted(file.name for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    if manifests:
        return f"{_LOOKED_FOR}; to use a manifest, give the file itself: {shown(path / manifests[0])}"
    return f"{_LOOKED_FOR}; pictures end in .jpg, .jpeg, .png or .webp"
