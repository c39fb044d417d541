"""Tables for a gallery, one SKU or a million: pictures to enrol, facts about SKUs, SKUs to remove; and what
``gallery export`` wrote.

A table is CSV, TSV or Parquet with a column ``sku`` (or ``label``); a column ``path`` (or ``image``) names pictures,
relative to the table; further columns are facts. Rows are read as they are needed.

A table with columns ``group`` and ``posting_id`` instead is of duplicate postings, as ``skumatch dedupe`` writes it: a
group, whose lines follow each other, is a SKU with the pictures of its postings, and the title of the surest of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch import artefact, lock
from skumatch.dataset import Row
from skumatch.enrol import KnownViews, Supply
from skumatch.errors import DataError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery
from skumatch.gallery_changes import Change, apply, create, write_segment
from skumatch.gallery_export import BLOCK, FACTS, FORMAT, VECTORS, VIEWS
from skumatch.gallery_export import ROWS as VIEW_ROWS
from skumatch.readers_common import safe_text
from skumatch.readers_tables import TABLE_SUFFIXES, Table, read_table
from skumatch.segment import Views
from skumatch.sku_table import SKU, TITLE, LayerBuilder
from skumatch.spec import Spec
from skumatch.words import counted

if TYPE_CHECKING:
    from pyarrow import Table as Layer

PATHS, NAMES = ("path", "image"), ("sku", "label", "group")
POSTING, CONFIDENCE = "posting_id", "confidence"
Told = tuple[int, list[str], str, Mapping[str, str]]  # number, cells, SKU and facts of a line


def has_pictures(path: Path) -> bool:
    """Return whether the table at ``path`` names pictures. Raises DataError when it cannot be read."""
    return read_table(path).find(*PATHS) is not None


def table_supply(path: Path) -> Supply:
    """Return the pictures that a table names, with what it says of their SKUs.

    Raises DataError for a file that is no table, here, or for a bad line, naming it, when it comes to it.
    """
    _columns(read_table(path))
    return Supply(lambda: _rows(path), artefact.file_digest(path))


def without_picture(path: Path) -> int:
    """Return how many postings of a table of groups name no picture, and are skipped; 0 for any other table.

    Raises DataError naming a bad line.
    """
    table = read_table(path)
    if not _of_postings(table):
        return 0
    picture = table.column(*PATHS)
    return sum(not cells[picture].strip() for _, cells in table.records)


def _rows(path: Path) -> Iterator[Row]:
    table = read_table(path)
    picture = table.column(*PATHS)
    skipped = _of_postings(table)
    for number, cells, sku, said in _told(table, (picture,)):
        name = cells[picture]
        if skipped and not name.strip():
            continue
        if not name.strip() or "\0" in name:
            raise DataError(f"{table.where(number)} has no usable path", "give the picture's path, or remove the line")
        yield Row((path.parent / name).absolute(), sku, "gallery", extra=said)


def table_layer(path: Path) -> Layer:
    """Return what a table says of SKUs. Raises DataError when it says nothing, or naming a bad line."""
    table = read_table(path)
    builder = LayerBuilder()
    for _, _, sku, said in _told(table, ()):
        builder.note(sku, said)
    layer = builder.layer()
    if layer is None:
        raise DataError(f"{path} says nothing about its SKUs", "add columns such as title, brand or gtin")
    return layer


def _told(table: Table, used: tuple[int, ...]) -> Iterator[Told]:
    """Yield number, cells, SKU and facts of each line; lines of one group have the title of its surest posting."""
    lines = ((number, cells, _sku(table, number, cells), _facts(table, cells, used)) for number, cells in table.records)
    if not _of_postings(table):
        return lines
    return chain.from_iterable(_titled(table, list(group)) for _, group in groupby(lines, key=itemgetter(2)))


def _titled(table: Table, group: list[Told]) -> Iterator[Told]:
    """Give the lines of a group one title: that of the highest confidence, of several the first."""
    at = table.find(TITLE)
    if at is None:
        return iter(group)
    named = [(_confidence(table, number, cells), said[table.columns[at]]) for number, cells, _, said in group]
    title = max((one for one in named if one[1]), key=itemgetter(0), default=(0.0, ""))[1]
    return ((number, cells, sku, {**said, table.columns[at]: title}) for number, cells, sku, said in group)


def _confidence(table: Table, number: int, cells: list[str]) -> float:
    at = table.find(CONFIDENCE)
    try:
        return 0.0 if at is None else float(cells[at])
    except ValueError:
        raise DataError(f"{table.where(number)} has no number as {CONFIDENCE}", "write one, such as 0.9") from None


def _of_postings(table: Table) -> bool:
    """Return whether the table is of duplicate postings: its SKUs are groups."""
    return table.find(*NAMES) == table.find("group") is not None and table.find(POSTING) is not None


def skus_in(path: Path) -> list[str]:
    """Return the SKUs that a table or a text file with one per line names, each once. Raises DataError."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(path)
        return list(dict.fromkeys(_sku(table, number, cells) for number, cells in table.records))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error})", "give a text file with one SKU per line") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _columns(table: Table) -> tuple[int, int]:
    return table.column(*PATHS), table.column(*NAMES)


def _sku(table: Table, number: int, cells: list[str]) -> str:
    sku = safe_text(cells[table.column(*NAMES)].strip())
    if not sku:
        raise DataError(f"{table.where(number)} has an empty sku", "name the SKU, or remove the line")
    return sku


def _facts(table: Table, cells: list[str], used: tuple[int, ...]) -> Mapping[str, str]:
    """Return a line's further cells by column; ``split`` is of data sets, a posting's id and confidence are its own."""
    own = (table.find(POSTING), table.find(CONFIDENCE)) if _of_postings(table) else ()
    others = (*used, table.column(*NAMES), table.find("split"), *own)
    named = enumerate(table.columns)
    return {safe_text(name): safe_text(cells[at].strip()) for at, name in named if name and at not in others}


@dataclass(frozen=True)
class Embedded:
    """Views that were embedded elsewhere: the encoder's ``spec``, the ``views`` (anew each time), and what is known of
    their SKUs."""

    spec: Spec
    views: Callable[[], Iterator[Views]]
    layer: Layer | None = None


def read_exported(folder: Path) -> Embedded:
    """Return the views and facts in ``folder``, which ``gallery export`` wrote. They have no thumbnails.

    Raises GalleryError when the folder is something else or one of its files differs.
    """
    spec, digests = _exported_spec(folder)
    for name, digest in digests.items():
        if not (folder / name).is_file() or artefact.file_digest(folder / name) != digest:
            raise GalleryError(f"{folder / name} is not the file that {VIEWS} tells of", "export the gallery again")
    return Embedded(spec, lambda: _exported_views(folder, spec.dim), _exported_layer(folder))


def require_same(spec: Spec, embedded: Embedded) -> None:
    """Raise SpecMismatch when ``embedded`` was made with another model than ``spec``'s."""
    if spec.digest != embedded.spec.digest:
        raise SpecMismatch(
            f"its vectors were made with another model ({embedded.spec.name}, {embedded.spec.digest[:12]}; the "
            f"gallery's is {spec.name}, {spec.digest[:12]})",
            "make them with this one",
        )


def import_embedded(embedded: Embedded, store: Path, gallery: Gallery | None) -> Gallery:
    """Add views to ``gallery``; without one, publish a gallery of them in ``store``. They are numbered anew; files that
    their SKU has already are skipped. Raises SpecMismatch when they were made with another model.
    """
    spec, layer = embedded.spec, embedded.layer
    if gallery is not None:
        require_same(gallery.spec, embedded)
    with lock.preparing(store):
        if gallery is None:
            segment = write_segment(store, spec.dim, embedded.views())
            return create(store, spec, [segment], layer, f"import {counted(segment[1], 'view')}")
        views = _news(embedded.views(), KnownViews(gallery))
        first = next(views, None)
        segments = () if first is None else (write_segment(store, spec.dim, chain([first], views)),)
        if layer is not None and gallery.facts.table.knows(layer):
            layer = None
        if not segments and layer is None:
            return gallery
        reason = f"import {counted(sum(rows for _, rows in segments), 'view')}"
        return apply(gallery, Change(reason, segments, layer=layer))


def _news(batches: Iterator[Views], known: KnownViews) -> Iterator[Views]:
    """Leave out what its SKU has already; yields no empty batch."""
    for views in batches:
        new = [place for place in range(len(views)) if known.add(views.skus[place], views.sha256[place])]
        columns = (views.skus, views.sources, views.sha256)
        skus, sources, sha256 = ([column[i] for i in new] for column in columns)
        if new:
            yield Views(skus, sources, sha256, [views.thumbs[i] for i in new], views.vectors[new])


def _exported_spec(folder: Path) -> tuple[Spec, dict[str, str]]:
    """Return the encoder that the vectors are of, and the digests of the other files."""
    try:
        document: dict[str, Any] = json.loads((folder / VIEWS).read_text(encoding="utf-8"))
        if document["format"] == FORMAT:
            tables = {name: str(document["tables"][name]) for name in (VIEW_ROWS, FACTS)}
            return Spec.from_json(document["spec"]), {VECTORS: str(document["sha256"]), **tables}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    what = f"{folder} was not written by `skumatch gallery export` or `skumatch embed`"
    raise GalleryError(what, f"give a folder with {VIEWS} or embed.json")


def _exported_views(folder: Path, dim: int) -> Iterator[Views]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / VIEW_ROWS)
    rows = np.memmap(folder / VECTORS, "<f4", "r").reshape(-1, dim)
    if len(rows) != file.metadata.num_rows:
        raise GalleryError(f"{folder / VIEW_ROWS} has another number of views", "export the gallery again")
    start = 0
    for batch in file.iter_batches(BLOCK):
        count = len(batch)
        texts = [batch.column(name).to_pylist() for name in (SKU, "source", "sha256")]
        yield Views(texts[0], texts[1], texts[2], [b""] * count, np.asarray(rows[start : start + count]))
        start += count


def _exported_layer(folder: Path) -> Layer | None:
    import pyarrow.parquet as pq

    facts = pq.read_table(folder / FACTS)
    builder = LayerBuilder()
    for row in facts.to_pylist():
        builder.note(row.pop(SKU), {name: value or "" for name, value in row.items()})
    return builder.layer()
