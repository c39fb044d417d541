"""Look at every picture of a data set once and say what would spoil training or make a measurement lie.

It knows the ``Dataset`` noun and the bytes on disk, not the format the rows were read from, and changes nothing.
"""

from __future__ import annotations

import hashlib
import stat
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError, ImageError
from skumatch.images import read_image
from skumatch.readers_common import safe_text, shown

QUERY_SPLITS = ("val", "test")
_BATCH = 64  # pictures in flight per worker: bounds the memory, not the speed
_NO_SIZE = -1

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class BadFile:
    """A picture that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Identical:
    """Pictures whose bytes are the same; ``splits`` and ``skus`` run beside ``paths``."""

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    skus: tuple[str, ...]


@dataclass(frozen=True)
class Views:
    """Reference views per SKU in the gallery split."""

    split: str
    minimum: int
    median: float
    maximum: int


@dataclass(frozen=True)
class CheckReport:
    """What a data check found. ``problems`` say what to mend, ``notes`` what to know; ``ok`` means no problems.

    ``pictures`` and ``skus``: counts per split. ``across_splits``: the same bytes in more than one split.
    ``two_skus``: the same bytes under different SKUs of one split. ``without_views``: SKUs that are queried (val, test)
    but have no view in the gallery split. ``single``: SKUs with one picture in all. Paths and SKUs are valid text.
    """

    root: str
    format: str
    pictures: dict[str, int]
    skus: dict[str, int]
    views: Views | None
    unreadable: tuple[BadFile, ...]
    missing: tuple[str, ...]
    across_splits: tuple[Identical, ...]
    two_skus: tuple[Identical, ...]
    without_views: tuple[str, ...]
    single: tuple[str, ...]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, ``ok`` included."""
        return {**asdict(self), "ok": self.ok}


def check(dataset: Dataset, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Decode every picture of ``dataset`` on ``workers`` threads and report; never raises for what it finds.

    ``progress``: called with (pictures done, pictures in all) from the calling thread. Only files that share their size
    with another are hashed (SHA-256). Memory beside the rows stays under about 200 bytes per picture.
    """
    looks = _Looks(dataset.rows)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        looks.measure(pool, workers)
        looks.read(pool, workers, progress or (lambda done, total: None))
    across, two_skus = looks.identical()
    report = CheckReport(
        root=shown(dataset.root),
        format=dataset.format,
        pictures=dataset.splits,
        skus=_skus_per_split(dataset),
        views=_views(dataset),
        unreadable=looks.unreadable(),
        missing=tuple(shown(dataset.rows[i].path) for i in looks.missing),
        across_splits=across,
        two_skus=two_skus,
        without_views=_without_views(dataset),
        single=tuple(sorted(sku for sku, n in _pictures_per_sku(dataset).items() if n == 1)),
    )
    return replace(report, problems=list(_problems(report, dataset)), notes=list(_notes(report)))


class _Looks:
    """What one pass over the sizes and one over the contents found, by row number."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.sizes = array("q")
        self.missing: list[int] = []
        self.reasons: dict[int, str] = {}
        self.first: dict[bytes, int] = {}  # digest -> its first row
        self.same: defaultdict[bytes, list[int]] = defaultdict(list)  # digest -> the further rows

    def measure(self, pool: ThreadPoolExecutor, workers: int) -> None:
        """Find the size of every file, the missing ones and what is no file."""
        for i, (size, reason) in enumerate(_stream(pool, _size, (row.path for row in self.rows), workers)):
            self.sizes.append(size)
            if reason:
                self.reasons[i] = reason
            elif size == _NO_SIZE:
                self.missing.append(i)

    def read(self, pool: ThreadPoolExecutor, workers: int, progress: Callable[[int, int], None]) -> None:
        """Decode every file, and hash those that share their size with another."""
        counts = Counter(self.sizes)
        sized = zip(self.rows, self.sizes, strict=True)
        items = ((row.path, counts[size] > 1) if size != _NO_SIZE else None for row, size in sized)
        progress(0, len(self.rows))
        for i, (digest, reason) in enumerate(_stream(pool, _look, items, workers)):
            if reason:
                self.reasons[i] = reason
            elif digest is not None and self.first.setdefault(digest, i) != i:
                self.same[digest].append(i)
            progress(i + 1, len(self.rows))

    def unreadable(self) -> tuple[BadFile, ...]:
        """Return the files that exist and cannot be decoded, in row order."""
        return tuple(BadFile(shown(self.rows[i].path), reason) for i, reason in sorted(self.reasons.items()))

    def identical(self) -> tuple[tuple[Identical, ...], tuple[Identical, ...]]:
        """Return the groups that span splits, and the groups with several SKUs inside one split."""
        across: list[Identical] = []
        two_skus: list[Identical] = []
        for digest, further in self.same.items():
            rows = [self.rows[i] for i in (self.first[digest], *further)]
            if len({row.split for row in rows}) > 1:
                across.append(_group(rows))
            for split in sorted({row.split for row in rows}):
                inside = [row for row in rows if row.split == split]
                if len({row.sku for row in inside}) > 1:
                    two_skus.append(_group(inside))
        return tuple(across), tuple(two_skus)


def _group(rows: Sequence[Row]) -> Identical:
    return Identical(
        tuple(shown(row.path) for row in rows), tuple(row.split for row in rows), tuple(row.sku for row in rows)
    )


def _stream(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield ``function(item)`` in order; ``pool.map`` alone would queue a million futures at once."""
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH * max(1, workers))):
        yield from pool.map(function, batch)


def _size(path: Path) -> tuple[int, str]:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _NO_SIZE, ""
    except OSError as error:
        return _NO_SIZE, error.strerror or type(error).__name__
    if not stat.S_ISREG(found.st_mode):
        return _NO_SIZE, "is not a regular file"  # opening a pipe would wait for ever
    return found.st_size, ""


def _look(item: tuple[Path, bool] | None) -> tuple[bytes | None, str]:
    if item is None:
        return None, ""
    path, hashed = item
    try:
        read_image(path)
        return (_digest(path) if hashed else None), ""
    except ImageError as error:
        return None, _reason(error, path)
    except OSError as error:
        return None, error.strerror or type(error).__name__


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _reason(error: ImageError, path: Path) -> str:
    """Return what was wrong without the path, which stands beside it in the report."""
    name = str(path).encode("utf-8", "backslashreplace").decode("utf-8")  # as images.py writes it
    return safe_text(error.what).removeprefix(name).lstrip(": ")


def _pictures_per_sku(dataset: Dataset, splits: Sequence[str] = ()) -> Counter[str]:
    return Counter(row.sku for row in dataset.rows if not splits or row.split in splits)


def _skus_per_split(dataset: Dataset) -> dict[str, int]:
    return {split: len(_pictures_per_sku(dataset, [split])) for split in dataset.splits}


def _views(dataset: Dataset) -> Views | None:
    try:
        split = dataset.gallery_split
    except DataError:
        return None
    counts = _pictures_per_sku(dataset, [split]).values()
    return Views(split, min(counts), float(statistics.median(counts)), max(counts))


def _without_views(dataset: Dataset) -> tuple[str, ...]:
    views = _views(dataset)
    have = _pictures_per_sku(dataset, [views.split]) if views else Counter[str]()
    return tuple(sorted(set(_pictures_per_sku(dataset, QUERY_SPLITS)) - set(have)))


def _problems(report: CheckReport, dataset: Dataset) -> Iterator[str]:
    if report.unreadable:
        yield f"{_count(report.unreadable, 'picture')} cannot be read"
    if report.missing:
        yield f"{_count(report.missing, 'picture')} missing on disk"
    if report.across_splits:
        yield f"{_count(report.across_splits, 'picture')} in more than one split: results would come out too good"
    if report.two_skus:
        yield f"{_count(report.two_skus, 'picture')} under different SKUs of one split: a label is wrong"
    if report.views is None:
        yield "no split 'train' or 'gallery': there are no reference views to match against"
    elif report.without_views:
        yield (
            f"{_count(report.without_views, 'SKU')} in val or test without a view in split '{report.views.split}': "
            "never matched"
        )
    if len(report.single) == len(dataset.skus):
        yield "no SKU has two pictures: nothing can be learnt or measured"


def _notes(report: CheckReport) -> Iterator[str]:
    if report.single:
        yield f"{_count(report.single, 'SKU')} with a single picture, for example {report.single[0]}"
    if not set(QUERY_SPLITS) & set(report.pictures):
        yield "no split 'val' or 'test': there is nothing to evaluate on"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"
