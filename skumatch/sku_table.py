"""What is known of each SKU beside its views: title, brand, GTIN, group and free columns, all text, in Parquet layers.

    tables/<digest>/table.json      digests
                    skus.parquet    column "sku", "_forget", and one column of text per fact

A change writes a small layer; later layers win, cell by cell: null leaves what was said before, "" takes it back, and
"_forget" drops all that earlier layers said of the SKU. It knows nothing about views or versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skumatch import arrow, artefact
from skumatch.errors import ArtefactError, ConfigError, GalleryError, nearest
from skumatch.readers_common import safe_text

if TYPE_CHECKING:
    from pyarrow import Array, Table

MANIFEST = "table.json"
FILE = "skus.parquet"
FORMAT = 1
SKU, FORGET = "sku", "_forget"
TITLE = "title"
RESERVED = (SKU, FORGET)
NEAR = 20_000  # values among which similar ones are looked for
Facts = Mapping[str, Mapping[str, str]]  # SKU -> column -> text


class SkuTable:
    """The layers of a version, opened; they are merged when first asked."""

    def __init__(self, store: Path, names: Sequence[str], full: bool = False) -> None:
        """Check the digests of the layers ``names`` in ``store``. Raises ArtefactError naming the file."""
        self.store = store
        self.names = list(names)
        self._opened = []
        for name in names:
            artefact.read_manifest(store / name, MANIFEST, full)
            if artefact.file_digest(store / name / MANIFEST)[:20] != name:
                raise ArtefactError(f"{store / name} holds another table", "restore it from a copy")
            self._opened.append(arrow.mapped(store / name / FILE))  # now: it stays readable after a prune

    @cached_property
    def table(self) -> Table:
        """All that is known: Arrow table of text, a row per SKU, column "sku" first."""
        import pyarrow.compute as pc

        merged = merge(
            [_read(file, self.store / name / FILE) for file, name in zip(self._opened, self.names, strict=True)]
        )
        said = pc.equal(merged[SKU], None)
        for name in merged.column_names:
            if name not in RESERVED:
                said = pc.or_kleene(said, pc.greater(pc.binary_length(merged[name]), 0))
        table = merged.filter(pc.fill_null(said, False))
        return table.select([SKU, *(name for name in table.column_names if name not in RESERVED)])

    @property
    def columns(self) -> list[str]:
        """Names of the columns, "sku" first."""
        return list(self.table.column_names)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def places(self, skus: Array) -> Any:
        """Return the row of each of ``skus`` (Arrow array of strings), int32 (N,), -1 where nothing is known."""
        import pyarrow.compute as pc

        found = pc.index_in(skus, value_set=self.table[SKU].combine_chunks())
        return found.fill_null(-1).to_numpy()

    def facts(self, sku: str) -> dict[str, str]:
        """Return what is known of ``sku`` by column, empty cells left out."""

        place = int(self.places(arrow.findable([sku]))[0])
        if place < 0:
            return {}
        row = {name: self.table[name][place].as_py() for name in self.columns if name != SKU}
        return {name: value for name, value in row.items() if value}

    def column(self, name: str) -> list[str]:
        """Return a column as text, "" where nothing is known. Raises GalleryError when there is none of that name."""
        self._require(name)
        return [value or "" for value in self.table[name].to_pylist()]

    def matching(self, filters: Mapping[str, str], places: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return whether the cells of the SKUs in the rows ``places`` (N,) equal all of ``filters``, bool (N,).

        -1 stands for a SKU of which nothing is known: all its cells are "". Raises GalleryError for an unknown column,
        or, naming the nearest values, where no row is like that.
        """
        import pyarrow.compute as pc

        mask = pc.is_valid(self.table[SKU])
        for name, value in filters.items():
            self._require(name)
            mask = pc.and_(mask, pc.equal(pc.fill_null(self.table[name], ""), arrow.findable([value])[0]))
        unknown = not any(filters.values())
        found = np.append(mask.to_numpy(), unknown)  # the last for the rows -1
        if not found.any():
            asked = ", ".join(f"{name}={value}" for name, value in filters.items())
            raise GalleryError(f"no SKU has {asked}", f"nearest values are {'; '.join(self._near(filters))}")
        matches: NDArray[np.bool_] = found[places]
        return matches

    def knows(self, layer: Table) -> bool:
        """Return whether all that ``layer`` says is known already: it would change nothing."""
        import pyarrow as pa
        import pyarrow.compute as pc

        places = pa.array(self.places(layer[SKU].combine_chunks()))
        places = pc.if_else(pc.less(places, 0), None, places)
        news = pc.any(layer[FORGET]).as_py() or False
        for name in (name for name in layer.column_names if name not in RESERVED):
            known = self.table[name].take(places) if name in self.columns else pa.nulls(len(layer), pa.string())
            news = news or pc.any(pc.not_equal(layer[name], pc.fill_null(known, ""))).as_py() or False
        return not news

    def _require(self, name: str) -> None:
        if name not in self.columns:
            raise GalleryError(f"the SKU table has no column '{name}'", f"its columns are: {', '.join(self.columns)}")

    def _near(self, filters: Mapping[str, str]) -> list[str]:
        import pyarrow.compute as pc

        valid = {name: pc.unique(self.table[name].drop_null()).to_pylist()[:NEAR] for name in filters}
        return [f"{name}: {nearest(value, valid[name]) or 'no similar value'}" for name, value in filters.items()]


def layer_of(facts: Facts, forget: Iterable[str] = ()) -> Table:
    """Return a layer that says ``facts`` and drops what earlier ones say of the SKUs in ``forget``.

    Raises ConfigError for a column of a reserved name and for text that is not Unicode.
    """
    import pyarrow as pa

    gone = set(forget)
    skus = list(dict.fromkeys([*facts, *gone]))
    named = list(dict.fromkeys(name for said in facts.values() for name in said))
    for name in named:
        _require_free(name)
    cells = {name: _texts([facts.get(sku, {}).get(name) for sku in skus]) for name in named}
    return pa.table({SKU: _texts(skus), FORGET: pa.array([sku in gone for sku in skus], pa.bool_()), **cells})


def _texts(values: Sequence[str | None]) -> Array:
    import pyarrow as pa

    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise ConfigError(f"'{safe_text(error.object)}' holds bytes that are not UTF-8", "write it in UTF-8") from None


def _require_free(name: str) -> None:
    if name in RESERVED or not name or safe_text(name) != name:
        raise ConfigError(f"a column of the SKU table cannot be called '{name}'", "choose another name")


class LayerBuilder:
    """Gathers what many rows say of their SKUs, column by column: the first word on a fact counts, "" is no word."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._cells: dict[str, list[str | None]] = {}

    def note(self, sku: str, said: Mapping[str, str]) -> None:
        """Note what a row says of ``sku``."""
        if not any(said.values()):
            return
        place = self._places.setdefault(sku, len(self._places))
        for name, value in said.items():
            if value:
                cells = self._cells.setdefault(name, [])
                cells.extend([None] * (place + 1 - len(cells)))
                cells[place] = cells[place] or value

    def of(self, sku: str) -> dict[str, str]:
        """Return what was noted of ``sku`` so far."""
        place = self._places.get(sku, -1)
        cells = {name: values[place] for name, values in self._cells.items() if 0 <= place < len(values)}
        return {name: text for name, text in cells.items() if text}

    def layer(self) -> Table | None:
        """Return what was noted as a layer, None where nothing was. Raises ConfigError for a reserved column name."""
        import pyarrow as pa

        if not self._places:
            return None
        for name in self._cells:
            _require_free(name)
        count = len(self._places)
        cells = {name: _texts(values + [None] * (count - len(values))) for name, values in self._cells.items()}
        return pa.table({SKU: _texts(list(self._places)), FORGET: pa.array([False] * count), **cells})


def write_layer(store: Path, layer: Table) -> str:
    """Write a sealed layer into ``store`` and return its name. Raises ArtefactError when the disk refuses."""
    import pyarrow.parquet as pq

    with artefact.staged(store, "new", by_content=True) as stage:
        with (stage.folder / FILE).open("wb") as stream:  # Arrow takes no name but in UTF-8
            pq.write_table(layer, stream)
        artefact.seal(stage.folder, MANIFEST, {"kind": "table", "format": FORMAT, "rows": layer.num_rows})
        stage.name = artefact.file_digest(stage.folder / MANIFEST)[:20]
    return stage.name


def read_layer(store: Path, name: str) -> Table:
    """Return a layer. Raises ArtefactError when it cannot be read."""
    path = store / name / FILE
    return _read(arrow.mapped(path), path)


def _read(file: Any, path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ArtefactError(f"{path} is corrupt", "restore it from a copy") from error


def merge(layers: Sequence[Table]) -> Table:
    """Return one layer that says what ``layers``, oldest first, say together; rows in the order of first mention."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not layers:
        return layer_of({})
    kept = []
    for number, layer in enumerate(layers):
        later = [other[SKU].filter(other[FORGET]).combine_chunks() for other in layers[number + 1 :]]
        gone = pa.concat_arrays([_flat(array) for array in later]) if later else pa.array([], pa.string())
        kept.append(layer.filter(pc.invert(pc.is_in(layer[SKU], value_set=gone))) if len(gone) else layer)
    table = pa.concat_tables(kept, promote_options="default")
    named = [name for name in table.column_names if name not in RESERVED]
    last = pc.ScalarAggregateOptions(skip_nulls=True)
    asked = [(FORGET, "max", last), *((name, "last", last) for name in named)]
    merged = table.group_by(SKU, use_threads=False).aggregate(asked)
    renamed = {f"{FORGET}_max": FORGET, **{f"{name}_last": name for name in named}}
    return merged.rename_columns([renamed.get(name, name) for name in merged.column_names])


def _flat(array: Any) -> Any:
    """Return a chunked array's one chunk: combine_chunks gives either, by the version."""
    import pyarrow as pa

    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
