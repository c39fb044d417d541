"""A synthetic store on disk: noisy shelf crops of made-up SKUs for demos, tests and benchmarks at scale.

``write_store`` lays out train/<sku>/ and test/<sku>/ crops, catalogue/<sku>.jpg studio pictures and products.csv. The
look of packs and scenes is in ``synth_design``, ``synth_pack`` and ``synth_scene``; their public names are here too.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from skumatch.errors import ArtefactError, ConfigError, DataError
from skumatch.spec import Image
from skumatch.synth_design import FAMILY, Pack, design_packs
from skumatch.synth_pack import render_pack
from skumatch.synth_scene import NOISE, Noise, render_crop

__all__ = ["NOISE", "Noise", "Pack", "design_packs", "neighbours_of", "render_crop", "render_pack", "write_store"]

QUALITY = (40, 90)  # JPEG quality of crops, both ends included
STUDIO_QUALITY = 92
STUDIO_WIDTH = 192  # as wide as the scene paints packs, so that one painting serves both
AISLE = 60  # packs of the seed that any neighbour comes from, besides the SKU's own family
COLUMNS = ("sku", "title", "brand", "flavour", "size")


def write_store(
    out: Path,
    skus: int,
    views: int,
    test_views: int,
    seed: int,
    size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render ``views`` training and ``test_views`` test crops (size x size pixels) per SKU under ``out``; return it.

    Each file is keyed by seed, SKU, split and number alone: a larger store holds the files of a smaller one byte for
    byte (on the same library versions). products.csv is written last, so a store that has it is complete.
    ``progress`` is called with crops done and crops in all. Raises DataError when ``out`` is a file or not empty,
    ConfigError for a number out of range and ArtefactError when a file cannot be written.
    """
    packs = design_packs(skus, seed)
    if views < 1 or test_views < 0 or not 32 <= size <= 1024:
        raise ConfigError(
            f"cannot render {views} views and {test_views} test views of {size} pixels",
            "ask for at least 1 view, 0 or more test views and 32 to 1024 pixels",
        )
    _claim(out)
    splits = {"train": views, "test": test_views}
    total, done = skus * sum(splits.values()), 0
    for pack, neighbours in zip(packs, neighbours_of(skus, seed), strict=True):
        _save(out / "catalogue" / f"{pack.sku}.jpg", _jpeg(render_pack(pack, STUDIO_WIDTH), STUDIO_QUALITY))
        for split, count in splits.items():
            for number in range(count):
                crop = _crop_file(pack, neighbours, (seed, split, number), size)
                _save(out / split / pack.sku / f"{number:04d}.jpg", crop)
                done += 1
                if progress is not None:
                    progress(done, total)
    _save(out / "products.csv", _products(packs))
    return out


def neighbours_of(skus: int, seed: int) -> Iterator[list[Pack]]:
    """Yield, for each of the first ``skus`` packs, those that stand beside it: its family and some of the aisle.

    They depend on the seed and the SKU only, never on ``skus``. Raises ConfigError as ``design_packs`` does.
    """
    whole = design_packs(-(-max(skus, AISLE) // FAMILY) * FAMILY, seed)
    for number in range(skus):
        first = number // FAMILY * FAMILY
        strangers = _rng(seed, whole[number].sku, "aisle", 0).permutation(AISLE)[:FAMILY]
        yield [*whole[first : first + FAMILY], *(whole[i] for i in strangers)]


def _rng(seed: int, sku: str, split: str, number: int) -> np.random.Generator:
    """Return the generator of one file, the same whatever else is rendered."""
    key = hashlib.sha256(f"{seed}/{sku}/{split}/{number}".encode()).digest()
    return np.random.default_rng(np.frombuffer(key, np.uint32))


def _crop_file(pack: Pack, neighbours: list[Pack], key: tuple[int, str, int], size: int) -> bytes:
    seed, split, number = key
    rng = _rng(seed, pack.sku, split, number)
    crop = render_crop(pack, neighbours, rng, size)
    return _jpeg(crop, int(rng.integers(QUALITY[0], QUALITY[1] + 1)))


def _jpeg(image: Image, quality: int) -> bytes:
    import cv2

    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ArtefactError("OpenCV could not encode a JPEG", "install opencv-python-headless from its own wheel")
    return data.tobytes()


def _claim(out: Path) -> None:
    """Refuse a path that is taken, before anything is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder", "choose a new folder for the synthetic store")


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}", "free space or choose another folder") from error


def _products(packs: list[Pack]) -> bytes:
    """Return the product table as UTF-8 CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(pack, column) for column in COLUMNS] for pack in packs)
    return text.getvalue().encode()
