"""Protocols: which rows are reference views and which are queries, for each question worth asking.

closed          every SKU is in the gallery, as published figures have it
k-shot          1, 3, 5 or 10 reference views per SKU, drawn several times
held-out SKUs   queries of SKUs that the model was never trained on
catalogue       the gallery is the studio pictures of a catalogue, the queries come from the shelf

The open set, where queries show SKUs that the gallery lacks, stands in ``unknowns``. Nothing is embedded here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from skumatch.dataset import Dataset, Row
from skumatch.errors import ConfigError, DataError
from skumatch.eval.leaks import identical
from skumatch.eval.trial import Trial
from skumatch.readers_catalogue import catalogue_rows

KS = (1, 3, 5)
SHOTS = (1, 3, 5, 10)
DRAWS = 5


@dataclass(frozen=True)
class Protocol:
    """One line of the table: its ``trials`` (several where views are drawn at random), same queries in each."""

    name: str
    title: str
    trials: tuple[Trial, ...]
    note: str = ""

    @property
    def rows(self) -> list[Row]:
        """The rows of all trials; a picture may be there more than once."""
        return [row for trial in self.trials for row in (*trial.gallery, *trial.queries)]


def closed(dataset: Dataset, split: str = "test") -> Trial:
    """Set the gallery split against ``split``.

    Raises ConfigError when ``split`` is the gallery itself, DataError when rows are missing.
    """
    source = dataset.gallery_split
    if split == source:
        raise ConfigError(f"split '{split}' is the gallery", "evaluate on test or val")
    return Trial("closed", dataset.split(source).rows, dataset.split(split).rows)


def without_copies(trial: Trial) -> tuple[Trial, tuple[tuple[Row, str], ...]]:
    """Leave out queries that are byte for byte another row's gallery view: (trial, (query, view) pairs left out).

    Raises DataError when no query remains.
    """
    if trial.leave_one_out:
        return trial, ()
    copies = identical(trial.gallery, trial.queries)
    kept = tuple(row for row in trial.queries if row.path not in copies)
    if not kept:
        split = trial.queries[0].split if trial.queries else "test"
        raise DataError(f"every query in split '{split}' is a copy of a gallery view", "give other queries")
    leaks = tuple((row, str(copies[row.path])) for row in trial.queries if row.path in copies)
    return replace(trial, queries=kept), leaks


def k_shot(trial: Trial, views: int, draws: int = DRAWS, seed: int = 0) -> Protocol:
    """Leave ``views`` reference views per SKU, drawn ``draws`` times; SKUs with fewer keep all they have."""
    by_sku: dict[str, list[Row]] = {}
    for row in trial.gallery:
        by_sku.setdefault(row.sku, []).append(row)
    trials = tuple(
        replace(trial, name=f"k-shot {views}", gallery=_drawn(by_sku, views, (seed, draw))) for draw in range(draws)
    )
    fewer = sum(len(rows) < views for rows in by_sku.values())
    note = f"{fewer} of {len(by_sku)} SKUs have fewer views" if fewer else ""
    title = f"{views} view{'s' if views > 1 else ''} per SKU, {draws} draws"
    return Protocol(f"k-shot {views}", title, trials, note)


def _drawn(by_sku: dict[str, list[Row]], views: int, seed: tuple[int, int]) -> tuple[Row, ...]:
    rng = np.random.default_rng(seed)
    chosen = []
    for sku in sorted(by_sku):
        places = np.sort(rng.permutation(len(by_sku[sku]))[:views])
        chosen += [by_sku[sku][int(i)] for i in places]
    return tuple(chosen)


def held_out(trial: Trial, skus: Collection[str]) -> list[Protocol]:
    """Ask for queries of ``skus`` only: once among all SKUs, as after enrolling new products, once among themselves.

    Raises DataError when no query shows one of them.
    """
    queries = tuple(row for row in trial.queries if row.sku in skus)
    if not queries:
        raise DataError("no query shows a held-out SKU", "train with --hold-out on the same data")
    alone = tuple(row for row in trial.gallery if row.sku in skus)
    return [
        Protocol("held-out SKUs", "held-out SKUs, among all", (replace(trial, name="held-out", queries=queries),)),
        Protocol(
            "held-out SKUs alone",
            "held-out SKUs alone",
            (replace(trial, name="held-out alone", gallery=alone, queries=queries),),
        ),
    ]


def catalogue(dataset: Dataset, trial: Trial) -> Protocol:
    """Replace the gallery by the catalogue pictures of its SKUs.

    Raises DataError when the data set has none, or when they are the gallery already.
    """
    shown = {row.sku for row in trial.gallery}
    views = tuple(row for row in catalogue_rows(dataset) if row.sku in shown)
    if not views:
        raise DataError("no SKU of the gallery has a catalogue picture", "leave the protocol out")
    if {row.path for row in views} == {row.path for row in trial.gallery}:
        raise DataError("the gallery is the catalogue already", "leave the protocol out")
    per_sku = len(views) / len({row.sku for row in views})
    note = f"{per_sku:.1f} pictures per SKU"
    return Protocol("catalogue", "catalogue pictures", (replace(trial, name="catalogue", gallery=views),), note)


def shots_for(trial: Trial, shots: Sequence[int] = SHOTS) -> list[int]:
    """Return the shots that leave something out: those below the largest number of views that a SKU has.

    Raises DataError when there is none.
    """
    counts: dict[str, int] = {}
    for row in trial.gallery:
        counts[row.sku] = counts.get(row.sku, 0) + 1
    found = [views for views in shots if views < max(counts.values(), default=0)]
    if not found:
        raise DataError(f"no SKU has more than {min(shots)} reference view", "leave the protocol out")
    return found
