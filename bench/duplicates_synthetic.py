"""A catalogue of any size, made up: postings.csv in the columns of the Shopee task, and vectors.npy beside it.

What is sold and what its titles say: see ``duplicates_goods``. A group's centre lies near its family's, a posting's
vector near its group's centre. Two postings of a group have a cosine of about 0.75 to 0.95, two of a family 0.5 to 0.8,
others of 0, so that near groups overlap with wide ones. Of a group's postings ``COPIED`` show the same photo: their
hashes differ in a few bits, those of others in half.

Ten thousand postings are of the same kind as a million, so that times per posting can be compared. The same seed and
number give the same bytes. Both files are written in blocks, in an order that says nothing about groups.

    python bench/duplicates_synthetic.py --out DIR --postings 1000000 --seed 0
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from duplicates_goods import Goods, make_goods
from numpy.typing import NDArray

from skumatch.spec import Ids, Vectors

FILES: Final = ("postings.csv", "vectors.npy")
COLUMNS: Final = ("posting_id", "image", "image_phash", "title", "label_group")
ROWS: Final = 8192  # postings at a time
# Vectors: shares of the squared length
OF_FAMILY: Final = (0.66, 0.86)  # of a group's centre
OF_GROUP: Final = (0.76, 0.95)  # of a posting
COPIED: Final = 0.3
FLIPPED: Final = 3  # bits at most


@dataclass(frozen=True)
class Listing:
    """Where the N postings of a catalogue stand: ``row`` int64 (N,) of each posting in order of groups, ``group`` int64
    (N,) and ``copied`` bool (N,) of each row."""

    row: Ids
    group: Ids
    copied: NDArray[np.bool_]


def make_synthetic(folder: Path, postings: int, seed: int, dim: int = 512) -> None:
    """Write postings.csv and vectors.npy, float32 (postings, dim) with rows of unit length, into ``folder``.

    Raises ValueError for less than one posting.
    """
    if postings < 1:
        raise ValueError(f"a catalogue needs a posting, not {postings}")
    rng = np.random.default_rng([seed, 0])
    goods = make_goods(postings, rng)
    row = rng.permutation(postings)
    group = np.empty_like(row)
    group[row] = np.repeat(np.arange(len(goods.sizes)), goods.sizes)
    listing = Listing(row, group, rng.random(postings) < COPIED)
    folder.mkdir(parents=True, exist_ok=True)
    table, vectors = (folder / name for name in FILES)
    _write_vectors(vectors, goods, listing, (seed, dim))
    _write_table(table, goods, listing, seed)


def _write_table(path: Path, goods: Goods, listing: Listing, seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    ids, labels = _numbers(len(listing.row), rng), _numbers(len(goods.sizes), rng)
    photos = _hashes(len(goods.sizes), rng)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for start in range(0, len(listing.row), ROWS):
            group, copied = listing.group[start : start + ROWS], listing.copied[start : start + ROWS]
            hashes = np.where(copied, photos[group] ^ _flips(len(group), rng), _hashes(len(group), rng)).tolist()
            names = [f"p{number:010d}" for number in ids[start : start + ROWS].tolist()]
            typing = random.Random(f"{seed} {start}")
            titles = [goods.title(place, typing) for place in group.tolist()]
            for name, bits, title, label in zip(names, hashes, titles, labels[group].tolist(), strict=True):
                writer.writerow((name, f"{name}.jpg", f"{bits:016x}", title, label))


def _numbers(count: int, rng: np.random.Generator) -> Ids:
    """Return distinct numbers in an order that says nothing."""
    return rng.permutation(count) * 1000 + rng.integers(0, 1000, count)


def _hashes(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    return rng.integers(0, 1 << 64, count, np.uint64)


def _flips(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Return numbers with at most ``FLIPPED`` of 64 bits set."""
    bits = np.left_shift(np.uint64(1), rng.integers(0, 64, (count, FLIPPED), np.uint64))
    bits[rng.random(bits.shape) < 0.5] = 0
    flips: NDArray[np.uint64] = np.bitwise_or.reduce(bits, axis=1)
    return flips


def _write_vectors(path: Path, goods: Goods, listing: Listing, drawn: tuple[int, int]) -> None:
    """Write the vectors block by block, in the order of groups, each to its row."""
    seed, dim = drawn
    np.lib.format.open_memmap(path, "w+", np.float32, (len(listing.row), dim)).flush()
    begins = np.append(0, np.cumsum(goods.sizes))
    for first, last in _blocks(goods):
        rows = listing.row[begins[first] : begins[last]]
        rng = np.random.default_rng([seed, 2, first])
        centres = _centres(goods.family[first:last], dim, rng)
        vectors = _around(np.repeat(centres, goods.sizes[first:last], axis=0), listing.copied[rows], rng)
        # Opened anew for each block: else the pages of the whole file count as this process's memory
        np.lib.format.open_memmap(path, "r+")[rows] = vectors


def _blocks(goods: Goods) -> Iterator[tuple[int, int]]:
    """Yield the first group and the one behind the last of runs with about ``ROWS`` postings, families whole."""
    ends = np.append(np.flatnonzero(np.diff(goods.family)) + 1, len(goods.family))
    full = np.diff(np.cumsum(goods.sizes)[ends - 1] // ROWS, append=-1) != 0
    yield from itertools.pairwise([0, *ends[full].tolist()])


def _centres(family: Ids, dim: int, rng: np.random.Generator) -> Vectors:
    """Return the centre of each group, near that of its family; unit rows."""
    families = _directions(int(family[-1] - family[0]) + 1, dim, rng)
    return _mixed(families[family - family[0]], rng.uniform(*OF_FAMILY, len(family)), rng)


def _around(centres: Vectors, copied: NDArray[np.bool_], rng: np.random.Generator) -> Vectors:
    """Return a vector near each centre; copies of a photo are the nearest."""
    low, high = OF_GROUP
    return _mixed(centres, np.where(copied, high, rng.uniform(low, high, len(centres))), rng)


def _mixed(centres: Vectors, shares: NDArray[np.float64], rng: np.random.Generator) -> Vectors:
    """Return unit rows with ``shares`` (N,) of their squared length along ``centres``, the rest in any direction."""
    noise = _directions(len(centres), centres.shape[1], rng)
    along, across = np.sqrt(shares).astype(np.float32)[:, None], np.sqrt(1 - shares).astype(np.float32)[:, None]
    return _unit(along * centres + across * noise)


def _directions(count: int, dim: int, rng: np.random.Generator) -> Vectors:
    return _unit(rng.standard_normal((count, dim), np.float32))


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def main() -> None:
    """Write a catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for postings.csv and vectors.npy")
    parser.add_argument("--postings", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_synthetic(options.out, options.postings, options.seed)


if __name__ == "__main__":
    main()
