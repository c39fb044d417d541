"""Postings out of the Grocery Store data set: its photos, with titles as sellers would write them.

A group is one of the 81 classes, with 2 to 50 of its photos from all three lists. Sizes are log-uniform: many small
groups, few large. Classes are dealt into train, val and test (30, 16 and 35 of 81) so that each has fruit, packaged
goods and vegetables in the share of the whole. Look-alikes stay together, one kind of one brand (the milks of Arla) or
one kind of fruit (the apples): telling them apart is what makes each split hard. Titles: see ``duplicates_titles``.

Files are CSV in the columns of the Shopee product-matching task; pictures are named relative to ``Splits.images``.

    python bench/duplicates_postings.py --data DIR --out DIR --seed 0
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common import SHARED
from duplicates_products import DEPARTMENTS, Entry, products_of, read_entries
from duplicates_titles import Product, write_title

from skumatch.phash import fingerprint

SIZES: Final = (2, 50)
SHARES: Final = {"train": 30, "val": 16, "test": 35}
COLUMNS: Final = ("posting_id", "image", "image_phash", "title", "label_group")


@dataclass(frozen=True)
class Splits:
    """The files of postings, and the folder that their pictures are relative to."""

    train: Path
    val: Path
    test: Path
    images: Path


def make_postings(data: Path, out: Path, seed: int) -> Splits:
    """Write train.csv, val.csv and test.csv into ``out`` from the data root ``data``, and return where they lie.

    The same seed gives the same bytes. Raises SystemExit where ``data`` holds no grocery-store/.
    """
    store = data / "grocery-store"
    if not (store / "classes.csv").is_file():
        raise SystemExit(f"{store} has no classes.csv: --data names the folder that holds grocery-store/")
    entries, photos = read_entries(store), read_photos(store)
    products = {product.name: product for product in products_of(entries)}
    out.mkdir(parents=True, exist_ok=True)
    files = {split: out / f"{split}.csv" for split in SHARES}
    ids = iter(random.Random(f"{seed} ids").sample(range(10**8, 10**9), sum(map(len, photos.values()))))
    for split, classes in dealt(entries, seed).items():
        rows = [row for name in classes for row in _group(products[name], photos[name], seed)]
        random.Random(f"{seed} {split}").shuffle(rows)
        _write(files[split], rows, ids, store)
    return Splits(**files, images=store)


def read_photos(store: Path) -> dict[str, list[str]]:
    """Return the photos of each class from all lists, relative to ``store``, sorted."""
    with (store / "classes.csv").open(encoding="utf-8-sig", newline="") as stream:
        names = {line[1]: line[0] for line in list(csv.reader(stream))[1:]}
    found = defaultdict(list)
    for split in SHARES:
        for line in (store / f"{split}.txt").read_text().splitlines():
            path, code, _ = line.split(",")
            found[names[code.strip()]].append(path.strip())
    return {name: sorted(paths) for name, paths in found.items()}


def dealt(entries: Sequence[Entry], seed: int) -> dict[str, list[str]]:
    """Deal the classes into the splits, department by department, and return their names. Families stay together."""
    rng = random.Random(f"{seed} classes")
    splits: dict[str, list[str]] = {split: [] for split in SHARES}
    for department in DEPARTMENTS:
        families = defaultdict(list)
        for entry in entries:
            if entry.department == department:
                families[entry.family].append(entry.name)
        room = _quotas(sum(map(len, families.values())))
        shuffled = rng.sample(list(families.values()), len(families))
        for names in sorted(shuffled, key=len, reverse=True):  # the large ones while there is room for them
            fit = [split for split in room if room[split] >= len(names)] or [max(room, key=lambda split: room[split])]
            split = rng.choices(fit, [max(1, room[split]) for split in fit])[0]
            splits[split] += names
            room[split] -= len(names)
    return splits


def _quotas(count: int) -> dict[str, int]:
    """Return how many of ``count`` classes each split is to have: their shares, by largest remainder."""
    exact = {split: count * share / sum(SHARES.values()) for split, share in SHARES.items()}
    found = {split: int(value) for split, value in exact.items()}
    for split in sorted(exact, key=lambda split: found[split] - exact[split])[: count - sum(found.values())]:
        found[split] += 1
    return found


def _group(product: Product, photos: Sequence[str], seed: int) -> list[tuple[str, str, str]]:
    """Return picture, title and group of each posting of one product."""
    # Apart, so that another recipe of titles leaves the pictures as they are
    pictures, titles = random.Random(f"{seed} {product.name}"), random.Random(f"{seed} {product.name} titles")
    least, most = SIZES
    wanted = int(least * ((most + 1) / least) ** pictures.random())
    chosen = pictures.sample(photos, min(wanted, most, len(photos)))
    return [(photo, write_title(product, titles), product.name) for photo in chosen]


def _write(file: Path, rows: Sequence[tuple[str, str, str]], ids: Iterator[int], store: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for photo, title, group in rows:
            writer.writerow((f"p{next(ids)}", photo, f"{fingerprint(store / photo).bits:016x}", title, group))


def main() -> None:
    """Write the postings and show some of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="data root with grocery-store/ in it")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.csv, val.csv and test.csv")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    splits = make_postings(options.data, options.out, options.seed)
    for file in (splits.train, splits.val, splits.test):
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        print(f"{file.name}: {len(rows)} postings in {len({row['label_group'] for row in rows})} groups")
    for row in random.Random(options.seed).sample(rows, min(20, len(rows))):
        print(f"{row['label_group']:40} {row['title']}")


if __name__ == "__main__":
    main()
