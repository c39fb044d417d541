"""Proposed fixes as a CSV that a person edits, and the corrected data set as a new manifest.

Writes lists only: no picture is moved, renamed or opened, and no manifest is replaced.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skumatch import artefact
from skumatch.csv_cells import safe_cell
from skumatch.dataset import Dataset, Row
from skumatch.errors import DataError, nearest
from skumatch.eval.audit import Suspect
from skumatch.eval.audit_folders import Pair, Split
from skumatch.readers_common import shown
from skumatch.readers_tables import Table, read_table

COLUMNS = ("path", "sku", "proposed_sku", "kind", "score", "reason")
KINDS = ("relabel", "merge", "split", "look")


@dataclass(frozen=True)
class Fix:
    """One line of the CSV.

    ``relabel`` and ``split`` give one picture another SKU, ``merge`` gives all pictures of ``sku`` (then ``path`` is
    empty) the SKU ``proposed``, ``look`` changes nothing. ``line``: where it stands in the file that it was read from.
    """

    path: str
    sku: str
    proposed: str
    kind: str
    score: float = 0.0
    reason: str = ""
    line: int = 0


def proposals(suspects: Iterable[Suspect], pairs: Iterable[Pair], splits: Iterable[Split]) -> list[Fix]:
    """Return the fixes for what the audit found: crops first, then pairs, then splits, each in its ranking.

    A picture is named once: what is to be relabelled is not part of a split as well.
    """
    fixes = [_crop_fix(suspect) for suspect in suspects]
    for pair in pairs:
        reason = f"mixing {pair.mixing:.2f} of chance, cosine of the mean vectors {pair.similarity:.3f}"
        fixes.append(Fix("", pair.b, pair.a, "merge", pair.mixing, reason))
    named = {fix.path for fix in fixes if fix.path}
    for split in splits:
        reason = f"in the smaller of two groups ({len(split.smaller)} of {len(split.smaller) + len(split.larger)})"
        paths = [str(row.path) for row in split.smaller]
        fixes += [
            Fix(path, split.sku, second_name(split.sku), "split", split.deviations, reason)
            for path in paths
            if path not in named
        ]
    return fixes


def second_name(sku: str) -> str:
    """Return the name proposed for the second product of a SKU's folder; a person will know a better one."""
    return f"{sku} (2)"


def _crop_fix(suspect: Suspect) -> Fix:
    near = len(suspect.neighbours)
    said = (
        f"{round(suspect.support * near)} of {near} neighbours are proposed_sku, {round(suspect.agreement * near)} sku"
    )
    return Fix(str(suspect.row.path), suspect.row.sku, suspect.proposed, suspect.kind, suspect.score, said)


def write_fixes(path: Path, fixes: Iterable[Fix]) -> None:
    """Write the CSV. Raises ArtefactError when the disk refuses."""
    names = ((fix, [safe_cell(text) for text in (fix.path, fix.sku, fix.proposed)]) for fix in fixes)
    lines = ((*cells, fix.kind, f"{fix.score:.4f}", fix.reason) for fix, cells in names)
    artefact.write_file(path, _csv(COLUMNS, lines))


def read_fixes(path: Path) -> list[Fix]:
    """Return the lines that a person left in the CSV. Raises DataError naming file and line for a bad one."""
    table = read_table(path)
    places = [table.column(name) for name in COLUMNS[:4]]
    fixes = []
    for number, cells in table.records:
        picture, sku, proposed, kind = (cells[place] for place in places)
        kind = kind.strip().lower()
        if kind not in KINDS:
            raise DataError(f"{table.where(number)} has the kind '{kind}'", f"use one of {', '.join(KINDS)}")
        fix = Fix(picture, sku.strip(), proposed.strip(), kind, line=number)
        _check(table, fix)
        fixes.append(fix)
    return fixes


def _check(table: Table, fix: Fix) -> None:
    if fix.kind == "look":
        return
    where = table.where(fix.line)
    if not fix.proposed:
        raise DataError(f"{where} has an empty proposed_sku", "name the SKU, or remove the line")
    if fix.proposed == fix.sku:
        raise DataError(f"{where} proposes the SKU that it has, '{shown(Path(fix.sku))}'", "remove the line")
    if not fix.path and fix.kind != "merge":
        raise DataError(f"{where} is a {fix.kind} without a path", "name the picture, or remove the line")


def apply(dataset: Dataset, fixes: Sequence[Fix], source: Path) -> tuple[list[Row], Counter[str]]:
    """Return all rows of ``dataset`` with the fixes applied, and how many pictures each kind of fix changed.

    A merge moves whatever its SKU holds after the relabelling. Title, group and further columns that have one value
    per SKU throughout the data set follow the new SKU; all others, and the split, stay as they are. Raises DataError
    naming the line of ``source`` for a picture that the data set lacks, a label that is no longer the current one, a
    picture or merge named twice, or merges in a circle.
    """
    moves = _moves(dataset, fixes, source)
    merges = _merges(dataset, fixes, source)
    follow = _follower(dataset)
    changed: Counter[str] = Counter()
    rows = []
    for row in dataset:
        fix = moves.get(str(row.path))
        sku = fix.proposed if fix else row.sku
        merged = merges.get(sku, sku)
        if fix:
            changed[fix.kind] += 1
        elif merged != sku:
            changed["merge"] += 1
        rows.append(follow(row, merged) if merged != row.sku else row)
    return rows, changed


def _moves(dataset: Dataset, fixes: Sequence[Fix], source: Path) -> dict[str, Fix]:
    """Return the fixes of single pictures by path, checked against the current labels."""
    wanted = [fix for fix in fixes if fix.kind in ("relabel", "split")]
    asked = {fix.path for fix in wanted}
    current = {str(row.path): row.sku for row in dataset if str(row.path) in asked}
    moves: dict[str, Fix] = {}
    for fix in wanted:
        where = f"{shown(source)}, line {fix.line},"
        picture = shown(Path(fix.path))
        if fix.path not in current:
            raise DataError(f"{where} names {picture}, which the data set lacks", "audit this data set anew")
        if current[fix.path] != fix.sku:
            raise DataError(
                f"{where} says that {picture} is '{fix.sku}', but its label is '{current[fix.path]}'",
                "remove the line, or audit this data set anew",
            )
        if fix.path in moves:
            raise DataError(f"{where} names {picture} again, after line {moves[fix.path].line}", "keep one of them")
        moves[fix.path] = fix
    return moves


def _merges(dataset: Dataset, fixes: Sequence[Fix], source: Path) -> dict[str, str]:
    """Return, per merged SKU, the SKU that it ends in."""
    into: dict[str, Fix] = {}
    for fix in (fix for fix in fixes if fix.kind == "merge"):
        where = f"{shown(source)}, line {fix.line},"
        for sku in (fix.sku, fix.proposed):
            if sku not in dataset.skus:
                near = nearest(sku, dataset.skus)
                raise DataError(f"{where} merges '{sku}', which the data set lacks", f"nearest: {near or 'none'}")
        if fix.sku in into:
            raise DataError(f"{where} merges '{fix.sku}' again, after line {into[fix.sku].line}", "keep one of them")
        into[fix.sku] = fix
        end = fix.proposed
        while end in into:
            end = into[end].proposed
            if end == fix.sku:
                raise DataError(f"{where} merges '{fix.sku}' in a circle", "remove one of the merges")
    return {sku: _end(fix.proposed, into) for sku, fix in into.items()}


def _end(sku: str, into: Mapping[str, Fix]) -> str:
    while sku in into:
        sku = into[sku].proposed
    return sku


def _follower(dataset: Dataset) -> Callable[[Row, str], Row]:
    """Return a function that gives a row another SKU, with the columns that depend on the SKU alone."""
    extras = sorted({key for row in dataset for key in row.extra})
    values: dict[str, dict[str, str]] = {}  # SKU -> column -> value
    fixed = {"title", "group", *extras}
    for row in dataset:
        known = values.setdefault(row.sku, {})
        for key in sorted(fixed):
            if known.setdefault(key, row.value(key)) != row.value(key):
                fixed.discard(key)

    def follow(row: Row, sku: str) -> Row:
        new = {key: values[sku][key] for key in fixed} if sku in values else {}
        extra = {key: new.get(key, value) for key, value in row.extra.items()}
        return replace(row, sku=sku, title=new.get("title", row.title), group=new.get("group", row.group), extra=extra)

    return follow


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as a new CSV manifest that the csv format reads back.

    Paths below the manifest's folder are written relative to it, others in full. Raises DataError where ``path`` is
    there already or does not end in .csv, ArtefactError when the disk refuses.
    """
    check_new(path)
    extras = sorted({key for row in rows for key in row.extra})
    folder = path.absolute().parent

    def lines() -> Iterator[Sequence[str]]:
        for row in rows:
            named = (_from(row.path, folder), row.sku, row.split, row.title, row.group)
            yield [safe_cell(text) for text in (*named, *(row.value(key) for key in extras))]

    with artefact.disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    artefact.write_file(path, _csv(("path", "sku", "split", "title", "group", *map(safe_cell, extras)), lines()))


def check_new(path: Path) -> None:
    """Raise DataError unless a new manifest may be written at ``path``."""
    if path.suffix.lower() != ".csv":
        raise DataError(f"{shown(path)} does not end in .csv", "name the new manifest NEW.csv")
    if os.path.lexists(path):
        raise DataError(f"{shown(path)} exists already", "name a new file: no manifest is replaced")


def _from(path: Path, folder: Path) -> str:
    whole = path.absolute()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _csv(head: Sequence[str], lines: Iterable[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(head)
    table.writerows(lines)
    return stream.getvalue().encode("utf-8", "surrogateescape")
