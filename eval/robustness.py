"""How far top-1 falls when the queries go bad: every corruption at every strength, against the same gallery.

The gallery stays clean, as it would in use. All cells look at the same queries, so a drop is measured query by query.
A run of 30 cells embeds the queries 31 times: finished cells can be kept in a file, and a later run goes on from there.
It knows nothing about how pictures are corrupted (``corrupt``) or shown (the report).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress, unchanged
from skumatch.encoder import Encoder, asking
from skumatch.errors import ConfigError, DataError
from skumatch.eval.corrupt import KINDS, STRENGTHS, VALUES, VERSION, check, corrupt, value_text
from skumatch.eval.intervals import bootstrap
from skumatch.eval.metrics import Accuracy
from skumatch.eval.retrieval import own_views
from skumatch.eval.views import Views, codes_in, embed_rows
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids

Cell = tuple[str, int]  # a kind and its strength
Hits = NDArray[np.int8]  # (N,), one per query: 1 right, 0 wrong, -1 unreadable
CLEAN: Cell = ("clean", 0)
BLOCK = 4096  # queries per search
SIGNS = {"0": 0, "1": 1, "-": -1}


@dataclass(frozen=True)
class Corruptions:
    """What to measure: ``kinds`` at ``strengths`` 1 to 5, on at most ``per_sku`` queries of each SKU (0: all).

    ``seed`` draws the queries, places, noise and intervals. ``pipeline``: how pictures are read; it changes no figure.
    Raises ConfigError for an unknown kind or strength, one given twice, or none.
    """

    kinds: tuple[str, ...] = KINDS
    strengths: tuple[int, ...] = STRENGTHS
    per_sku: int = 0
    seed: int = 0
    pipeline: Pipeline = field(default_factory=Pipeline)

    def __post_init__(self) -> None:
        for what, given in (("kinds of corruption", self.kinds), ("strengths", self.strengths)):
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"{what} are {given or 'none'}", "name each at most once, and at least one")
        for cell in self.cells():
            check(*cell)
        if 0 in self.strengths or self.per_sku < 0:
            raise ConfigError(f"strength 0 or {self.per_sku} queries per SKU", "give strengths 1 to 5, queries from 0")

    def cells(self) -> list[Cell]:
        """Return every (kind, strength), kinds first."""
        return [(kind, strength) for kind in self.kinds for strength in sorted(self.strengths)]

    def sample(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return at most ``per_sku`` of ``rows`` for each SKU, in their order; one SKU's draw depends on no other."""
        if not self.per_sku:
            return tuple(rows)
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.sku, []).append(place)
        kept: list[int] = []
        for sku, own in places.items():
            digest = hashlib.blake2b(f"{self.seed}|{sku}".encode(errors="surrogateescape"), digest_size=16).digest()
            drawn = np.random.default_rng(int.from_bytes(digest, "big")).permutation(len(own))[: self.per_sku]
            kept += [own[int(i)] for i in drawn]
        return tuple(rows[place] for place in sorted(kept))


class State(Protocol):
    """Keeps finished cells between runs."""

    def begin(self, key: str) -> Mapping[Cell, Hits]:
        """Return the cells finished under ``key``, which names everything that the figures depend on."""
        ...

    def finished(self, cell: Cell, hits: Hits) -> None:
        """Keep ``cell``."""
        ...


class NoState:
    """Keeps nothing."""

    def begin(self, key: str) -> Mapping[Cell, Hits]:
        """Return no cells."""
        return {}

    def finished(self, cell: Cell, hits: Hits) -> None:
        """Forget ``cell``."""


NO_STATE = NoState()


class RobustnessState:
    """Keeps finished cells in one small JSON file (a byte per query and cell), replaced atomically after each.

    Cells of another encoder, gallery, seed, set of queries or version of the corruptions are not used, and replaced
    with the first new one; so is a file that is not such a state. ``resumed``: how many cells were taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resumed = 0
        self._key = ""
        self._cells: dict[str, str] = {}

    def begin(self, key: str) -> Mapping[Cell, Hits]:
        """Return the cells that the file has under ``key``."""
        self._key = key
        try:
            document = json.loads(self.path.read_bytes())
            self._cells = dict(document["cells"]) if document["key"] == key else {}
            found = {_cell(name): _hits_of(signs) for name, signs in self._cells.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._cells, found = {}, {}
        self.resumed = len(found)
        return found

    def finished(self, cell: Cell, hits: Hits) -> None:
        """Write ``cell`` down. Raises ArtefactError when the disk refuses."""
        self._cells[f"{cell[0]} {cell[1]}"] = "".join("01-"[int(hit)] for hit in hits)
        document = {"key": self._key, "cells": self._cells}
        artefact.write_file(self.path, (json.dumps(document, indent=1) + "\n").encode())


def _cell(name: str) -> Cell:
    kind, _, strength = name.rpartition(" ")
    return kind, int(strength)


def _hits_of(signs: str) -> Hits:
    return np.array([SIGNS[sign] for sign in signs], np.int8)


@dataclass(frozen=True)
class Point:
    """One cell: ``value`` says what the strength means; ``drop``: clean top-1 minus this, on the same queries."""

    strength: int
    value: str
    top1: Accuracy
    drop: Accuracy


@dataclass(frozen=True)
class Robustness:
    """Top-1 of the nearest view, ``clean`` and per kind by rising strength, all with 95 % intervals by SKU.

    ``mean``: over all cells, each counting the same. ``queries``: the readable ones, of ``skus`` SKUs; ``unreadable``:
    how many were not. A query whose SKU has no view in the gallery counts as wrong.
    """

    clean: Accuracy
    kinds: Mapping[str, tuple[Point, ...]]
    mean: Accuracy
    queries: int
    skus: int
    unreadable: int
    how: Corruptions

    @property
    def relative_drop(self) -> float:
        """The share of the clean top-1 that is lost on average; 0 where there was none to lose."""
        return 1 - self.mean.value / self.clean.value if self.clean.value else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values; accuracies in 0..1, drops in -1..1."""
        return {
            "clean": {"top1": self.clean.value, "ci95": _ends(self.clean)},
            "kinds": {kind: [_point(point) for point in points] for kind, points in self.kinds.items()},
            "mean_top1": self.mean.value,
            "mean_ci95": _ends(self.mean),
            "relative_drop": self.relative_drop,
            "queries": self.queries,
            "skus": self.skus,
            "unreadable": self.unreadable,
            "per_sku": self.how.per_sku,
            "seed": self.how.seed,
        }


def _ends(figure: Accuracy) -> list[float]:
    return [figure.low, figure.high]


def _point(point: Point) -> dict[str, Any]:
    return {
        "strength": point.strength,
        "value": point.value,
        "top1": point.top1.value,
        "ci95": _ends(point.top1),
        "drop": point.drop.value,
        "drop_ci95": _ends(point.drop),
    }


def robustness(
    gallery: Views,
    rows: Sequence[Row],
    encoder: Encoder,
    how: Corruptions,
    state: State = NO_STATE,
    progress: Progress = no_progress,
) -> Robustness:
    """Look the queries ``rows`` up in ``gallery`` (embedded by ``encoder``), clean and corrupted.

    ``progress`` is told of every picture of every cell, also of cells that ``state`` had: in all the sample times
    (cells + 1). Only the queries' vectors of one cell are in memory. Interrupted, it goes on with the cells that
    ``state`` lacks. Raises DataError when one side has no readable picture or a picture changed meanwhile.
    """
    queries = how.sample(rows)
    if not len(gallery) or not queries:
        raise DataError("no readable picture on one side of the robustness test", "see `skumatch data check`")
    done = state.begin(_key(gallery, queries, encoder, how))
    index = ExactIndex(gallery.vectors.shape[1])
    index.add(np.arange(len(gallery), dtype=np.int64), gallery.vectors)
    found: dict[Cell, Hits] = {}
    for cell in (CLEAN, *how.cells()):
        if cell in done and len(done[cell]) == len(queries):
            found[cell] = done[cell]
            progress(len(queries))
            continue
        change = partial(corrupt, kind=cell[0], strength=cell[1], seed=how.seed) if cell != CLEAN else unchanged
        plain, problems = embed_rows(queries, encoder, how.pipeline, progress, change)
        views = Views(plain.rows, asking(encoder, plain.vectors))
        if not len(views):
            raise DataError("no query of the robustness test is readable", f"first: {problems[0]}")
        found[cell] = np.full(len(queries), -1, np.int8)
        found[cell][_places(queries, views.rows)] = _right(gallery, index, views)
        state.finished(cell, found[cell])
    return _figures(queries, found, how)


def _key(gallery: Views, queries: Sequence[Row], encoder: Encoder, how: Corruptions) -> str:
    """Return a digest of everything that a cell's hits depend on."""
    key = hashlib.sha256(json.dumps([VERSION, VALUES, encoder.spec.digest, how.seed]).encode())
    key.update(np.ascontiguousarray(gallery.vectors).data)
    for row in gallery.rows:
        key.update(f"{row.path}\0{row.sku}\n".encode(errors="surrogateescape"))
    for row in queries:
        key.update(f"{row.path}\0{row.sku}\0{_stamp(row.path)}\n".encode(errors="surrogateescape"))
    return key.hexdigest()


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _places(rows: Sequence[Row], kept: Sequence[Row]) -> Ids:
    """Return where in ``rows`` those ``kept`` stand; they are the same objects in the same order."""
    number = iter(range(len(rows)))
    return np.array([next(place for place in number if rows[place] is row) for row in kept], np.int64)


def _right(gallery: Views, index: ExactIndex, queries: Views) -> NDArray[np.bool_]:
    """Tell per query whether its nearest view, its own picture aside, shows its SKU."""
    own = own_views(gallery, queries)
    nearest = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        _, ids = index.search(queries.vectors[part], 2)  # where there is one view, the second is -1
        nearest[part] = np.where(ids[:, 0] == own[part], ids[:, 1], ids[:, 0])
    truth = codes_in(queries.rows, gallery.skus)
    right: NDArray[np.bool_] = (nearest >= 0) & (gallery.codes[nearest] == truth)
    return right


def _figures(queries: Sequence[Row], found: Mapping[Cell, Hits], how: Corruptions) -> Robustness:
    """Return the table. Raises DataError when a cell could not read what another could."""
    readable = found[CLEAN] >= 0
    if any(((hits >= 0) != readable).any() for hits in found.values()):
        raise DataError("a query picture changed during the robustness test", "run it again")
    skus = sorted({row.sku for row in queries})
    units = codes_in(queries, skus)[readable]
    hits = {cell: values[readable].astype(np.float64) for cell, values in found.items()}

    def sure(values: NDArray[np.float64]) -> Accuracy:
        return bootstrap(values, units, how.seed)

    def point(cell: Cell) -> Point:
        return Point(cell[1], value_text(*cell), sure(hits[cell]), sure(hits[CLEAN] - hits[cell]))

    kinds = {kind: tuple(point((kind, s)) for s in sorted(how.strengths)) for kind in how.kinds}
    mean = sure(np.mean([hits[cell] for cell in how.cells()], axis=0))
    counts = len(units), len(set(units.tolist())), int((~readable).sum())
    return Robustness(sure(hits[CLEAN]), kinds, mean, *counts, how)
