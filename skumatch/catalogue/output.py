"""What a search for duplicates leaves on disk.

OUT/matches.csv      posting_id, matches: those of the same product, itself included, as the Shopee task wants them
OUT/groups.csv       group, posting_id, image, title, confidence: groups of two and more
OUT/pairs.parquet    left, right, probability, one column per signal, amounts_contradict, amounts_agree
OUT/errors.csv       posting_id, image, error: pictures that could not be read
OUT/dedupe.json      what it was made of and with; written last

Each file is complete under its name, or absent and an older one untouched. It knows nothing about how pairs are judged.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.catalogue.features import Pairs
from skumatch.catalogue.judged import Judged, Matches
from skumatch.catalogue.pictures import Failure
from skumatch.catalogue.postings import Catalogue
from skumatch.csv_cells import safe_cell
from skumatch.errors import DataError
from skumatch.readers_common import safe_text
from skumatch.readers_tables import read_table
from skumatch.spec import Ids

MATCHES, GROUPS, PAIRS, ERRORS, FACTS = "matches.csv", "groups.csv", "pairs.parquet", "errors.csv", "dedupe.json"
AMOUNTS: Final = ("amounts_contradict", "amounts_agree")
MATCH_COLUMNS: Final = ("posting_id", "matches")
GROUP_COLUMNS: Final = ("group", "posting_id", "image", "title", "confidence")
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Listed:
    """A posting in a group as ``groups.csv`` tells it: ``image`` an absolute path, or "" for none; ``confidence`` in
    0..1 that it belongs there."""

    group: str
    posting: str
    image: str
    title: str
    confidence: float


def write_matches(path: Path, ids: Sequence[str], matches: Matches) -> None:
    """Write one line per posting, in their order. Raises ArtefactError when the disk refuses."""

    def lines() -> Iterator[Sequence[str]]:
        for place, posting in enumerate(ids):
            yield posting, " ".join(ids[other] for other in matches.of(place))

    write_csv(path, MATCH_COLUMNS, lines())


def read_matches(path: Path) -> dict[str, list[str]]:
    """Return the matches of each posting. Raises DataError for a file that is none, or that names a posting twice."""
    table = read_table(path)
    posting, matches = table.column("posting_id"), table.column("matches")
    found: dict[str, list[str]] = {}
    for number, cells in table.records:
        if found.setdefault(cells[posting], cells[matches].split()) and cells[posting] not in cells[matches].split():
            raise DataError(f"{table.where(number)} does not match '{cells[posting]}' with itself", "write it anew")
    return found


def write_groups(path: Path, catalogue: Catalogue, groups: Ids, judged: Judged) -> int:
    """Write the groups of at least two; return their number.

    ``confidence`` of a posting: the mean probability of its pairs within the group. Pictures are written with their
    folder, so that the table can be given to ``skumatch gallery import``.
    """
    sizes = np.bincount(groups)
    several = np.flatnonzero(sizes[groups] > 1)
    several = several[np.argsort(groups[several], kind="stable")]
    numbers = {code: number for number, code in enumerate(dict.fromkeys(groups[several].tolist()), start=1)}
    sure = confidence(groups, judged)

    def lines() -> Iterator[Sequence[str]]:
        for place in several.tolist():
            picture = catalogue.picture(place)
            name = "" if picture is None else os.fspath(picture.absolute())
            title = safe_text(catalogue.titles[place])
            yield f"g{numbers[int(groups[place])]:06d}", catalogue.ids[place], name, title, f"{sure[place]:.6f}"

    write_csv(path, GROUP_COLUMNS, lines())
    return len(numbers)


def read_groups(path: Path) -> Iterator[Listed]:
    """Yield the postings of ``groups.csv`` in their order, as they are needed.

    Raises DataError for a file that is none, or, naming the line, without a group or posting or with a confidence that
    is no number in 0..1. Whether a posting comes twice is the caller's to find out.
    """
    table = read_table(path)
    folder = os.fspath(path.parent.absolute())
    group, posting, image, title, sure = (table.column(name) for name in GROUP_COLUMNS)
    for number, cells in table.records:
        value = _share(cells[sure])
        if value is None or not cells[group] or not cells[posting]:
            what = f"{table.where(number)} has no group, no posting or no confidence in 0..1"
            raise DataError(what, "write it anew with `skumatch dedupe`")
        picture = cells[image] if cells[image][:1] in ("", "/") else f"{folder}/{cells[image]}"  # a Path takes 10 us
        yield Listed(cells[group], cells[posting], picture, cells[title], value)


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def confidence(groups: Ids, judged: Judged) -> NDArray[np.float64]:
    """Return per posting the mean probability of the known pairs that it has within its group; 0 without any."""
    inside = groups[judged.left] == groups[judged.right]
    ends = np.concatenate([judged.left[inside], judged.right[inside]])
    sums = np.bincount(ends, np.concatenate([judged.probability[inside]] * 2), minlength=len(groups))
    return np.asarray(sums / np.maximum(np.bincount(ends, minlength=len(groups)), 1))


def write_errors(path: Path, catalogue: Catalogue, failures: Sequence[Failure]) -> None:
    """Write which pictures could not be read, and why."""
    rows = ((catalogue.ids[one.place], safe_text(one.picture), safe_text(one.why)) for one in failures)
    write_csv(path, ("posting_id", "image", "error"), rows)


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``dedupe.json``."""
    artefact.write_file(path, (json.dumps({"format": FORMAT, **facts}, indent=1) + "\n").encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``write_facts`` wrote in ``folder``. Raises DataError for another folder."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
        if facts["format"] == FORMAT:
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{folder} was not written by `skumatch dedupe`", "give the folder that --out named")


class PairTable:
    """Context manager over ``pairs.parquet``: takes blocks of pairs in order, one row group each.

    ``columns``: the features to keep, by name and place among all.
    """

    def __init__(self, path: Path, ids: Sequence[str], names: Sequence[str], signals: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._arrow, self._parquet = pa, pq
        self.path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._ids = ids
        self._columns = {name: list(names).index(name) for name in (*signals, *AMOUNTS)}
        kinds = {name: pa.uint8() if name in AMOUNTS else pa.float32() for name in self._columns}
        first = [("left", pa.string()), ("right", pa.string()), ("probability", pa.float32())]
        self._schema = pa.schema([*first, *kinds.items()])

    def __enter__(self) -> PairTable:
        with artefact.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._parquet.ParquetWriter(self._part, self._schema)
        return self

    def __call__(self, pairs: Pairs, probability: NDArray[np.float32], features: NDArray[np.float32]) -> None:
        """Write one block. Raises ArtefactError when the disk refuses."""
        if not len(pairs):
            return
        names = [[self._ids[place] for place in side] for side in (pairs.left, pairs.right)]
        values = [self._kind(name, features[:, at]) for name, at in self._columns.items()]
        table = self._arrow.Table.from_arrays(
            [*map(self._arrow.array, names), self._arrow.array(probability), *map(self._arrow.array, values)],
            schema=self._schema,
        )
        with artefact.disk_errors(self.path):
            self._file.write_table(table)

    def _kind(self, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
        return values.astype(np.uint8) if name in AMOUNTS else values

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with artefact.disk_errors(self.path):
                self._file.close()
                if kind is None:
                    self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table as it comes, no cell of which a spreadsheet runs. Raises ArtefactError when the disk refuses."""
    with renamed(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        table.writerows([safe_cell(cell) for cell in row] for row in rows)


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes ``path`` when the block ends without an error.

    Raises ArtefactError where the block or the renaming meets a disk that refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with artefact.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
