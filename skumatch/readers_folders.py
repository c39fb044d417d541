"""Readers for data sets whose folder names are the SKUs: RP2K as distributed, and a plain ``<sku>/<picture>`` tree.

They list names only; whether a file is a readable picture is for the data check to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skumatch.dataset import Row
from skumatch.errors import DataError
from skumatch.readers_common import (
    NO_EXTRA,
    SPLITS,
    SkuNames,
    contents,
    holds_pictures,
    holds_sku_folders,
    list_folder,
    seeded_splits,
    shown,
)


def is_rp2k(root: Path) -> bool:
    """Return whether ``root`` or ``root/all`` has a split folder (train, val, test, gallery) of SKU folders."""
    return _rp2k_base(root) is not None


def is_folder(root: Path) -> bool:
    """Return whether ``root`` has sub-folders with pictures directly in them."""
    return holds_sku_folders(root)


def read_rp2k(root: Path) -> list[Row]:
    """Return the rows of ``[all/]<split>/<sku>/<picture>``, ordered by split (train, val, test, gallery), SKU and name.

    Raises DataError when no split folder holds pictures, or for folders inside a SKU folder that hold pictures.
    """
    base = _rp2k_base(root)
    if base is None:
        raise DataError(
            f"{shown(root)} has no train/, val/, test/ or gallery/ with <sku>/<picture> in it: found {contents(root)}",
            "point at the folder that holds train/ or all/train/, or use --format folder for <sku>/<picture>",
        )
    sku_of = SkuNames(root)
    rows: list[Row] = []
    for split in SPLITS:
        for folder, name in _sku_pictures(base / split):
            rows.append(Row(folder / name, sku_of(folder.name), split, extra=NO_EXTRA))
    return rows


def read_folder(root: Path, seed: int) -> list[Row]:
    """Return the rows of ``<sku>/<picture>``, ordered by SKU and name, split 80/20 within each SKU by ``seed``.

    Raises DataError when there are no pictures, or for folders inside a SKU folder that hold pictures.
    """
    sku_of = SkuNames(root)
    found = [(folder, name, sku_of(folder.name)) for folder, name in _sku_pictures(root)]
    if not found:
        raise DataError(
            f"{shown(root)} has no <sku>/<picture> in it: found {contents(root)}",
            "put the .jpg, .jpeg, .png or .webp files of each SKU into one folder named after it",
        )
    splits = seeded_splits([(sku, name) for _, name, sku in found], seed)
    return [
        Row(folder / name, sku, split, extra=NO_EXTRA) for (folder, name, sku), split in zip(found, splits, strict=True)
    ]


def _rp2k_base(root: Path) -> Path | None:
    for base in (root / "all", root):
        if any(holds_sku_folders(base / split) for split in SPLITS):
            return base
    return None


def _sku_pictures(parent: Path) -> Iterator[tuple[Path, str]]:
    """Yield (SKU folder, picture name) under ``parent``; nothing when it does not exist."""
    if not parent.is_dir():
        return
    for sku in list_folder(parent)[0]:
        folder = parent / sku
        inner, pictures = list_folder(folder)
        for name in inner:
            # Skipping these would drop pictures in silence, and guessing their SKU would mislabel them.
            if holds_pictures(folder / name):
                raise DataError(
                    f"the SKU folder {shown(folder)} has a folder '{shown(Path(name))}' with pictures in it",
                    "move them up into the SKU folder, or list them in a CSV manifest",
                )
        for name in pictures:
            yield folder, name
