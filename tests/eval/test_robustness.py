"""Accuracy under corruption: it falls, it is measured on the same queries, and a run that was cut short goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Dataset, Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.eval.corrupt import KINDS, STRENGTHS, corrupt, value_text
from skumatch.eval.robustness import CLEAN, Cell, Corruptions, Hits, Robustness, RobustnessState, robustness
from skumatch.eval.views import Views, embed_rows
from skumatch.readers import open_dataset
from skumatch.spec import Pixels, Spec, Vectors

PIPELINE = Pipeline(batch=5, workers=2)
FEW = Corruptions(("darkness", "occlusion"), (1, 5), pipeline=PIPELINE)


class CountingEncoder:
    """Passes on to another encoder, counts pictures and stops where told."""

    def __init__(self, inner: Encoder, most: int = 10**9) -> None:
        self.inner, self.most, self.pictures = inner, most, 0

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    def encode(self, pixels: Pixels) -> Vectors:
        if self.pictures + len(pixels) > self.most:
            raise KeyboardInterrupt
        self.pictures += len(pixels)
        return self.inner.encode(pixels)


@pytest.fixture
def dataset(patterns: Path) -> Dataset:
    return open_dataset(patterns)


@pytest.fixture
def gallery(dataset: Dataset, encoder: Encoder) -> Views:
    return embed_rows(dataset.split("train").rows, encoder, PIPELINE)[0]


@pytest.fixture
def queries(dataset: Dataset) -> tuple[Row, ...]:
    return dataset.split("test").rows


def test_accuracy_falls_with_strength(gallery: Views, queries: tuple[Row, ...], encoder: Encoder) -> None:
    found = robustness(gallery, queries, encoder, Corruptions(pipeline=PIPELINE))
    assert found.clean.value == 1.0 and found.queries == 12 and found.skus == 6 and found.unreadable == 0
    assert list(found.kinds) == list(KINDS)
    assert all([point.strength for point in points] == list(STRENGTHS) for points in found.kinds.values())
    weakest, strongest = (np.mean([points[i].top1.value for points in found.kinds.values()]) for i in (0, -1))
    assert strongest < weakest - 0.1
    assert found.kinds["darkness"][4].top1.value < found.kinds["darkness"][0].top1.value
    cells = [point for points in found.kinds.values() for point in points]
    assert found.mean.value == pytest.approx(np.mean([point.top1.value for point in cells]))
    assert found.mean.low <= found.mean.value <= found.mean.high < 1
    assert found.relative_drop == pytest.approx(1 - found.mean.value)
    assert all(point.drop.value == pytest.approx(1 - point.top1.value) for point in cells)


def test_it_is_what_corrupting_and_searching_by_hand_gives(
    gallery: Views, queries: tuple[Row, ...], encoder: Encoder
) -> None:
    found = robustness(gallery, queries, encoder, replace(FEW, seed=3))
    for kind, points in found.kinds.items():
        for point in points:
            change = partial(corrupt, kind=kind, strength=point.strength, seed=3)
            views, _ = embed_rows(queries, encoder, PIPELINE, change=change)
            best = (views.vectors @ gallery.vectors.T).argmax(axis=1)
            hits = [gallery.rows[int(i)].sku == row.sku for i, row in zip(best, queries, strict=True)]
            assert point.top1.value == pytest.approx(np.mean(hits))
            assert point.value == value_text(kind, point.strength)


def test_the_json_is_what_the_report_reads(gallery: Views, queries: tuple[Row, ...], encoder: Encoder) -> None:
    document = json.loads(json.dumps(robustness(gallery, queries, encoder, FEW).to_json()))
    assert document["clean"]["top1"] == 1.0 and document["clean"]["ci95"] == [1.0, 1.0]
    assert {kind: [cell["strength"] for cell in cells] for kind, cells in document["kinds"].items()} == {
        "darkness": [1, 5],
        "occlusion": [1, 5],
    }
    cell = document["kinds"]["darkness"][1]
    assert cell["value"] == value_text("darkness", 5)
    assert cell["ci95"][0] <= cell["top1"] <= cell["ci95"][1]
    assert cell["drop_ci95"][0] <= cell["drop"] <= cell["drop_ci95"][1]
    assert document["queries"] == 12 and 0 <= document["relative_drop"] < 1 and 0 < document["mean_top1"] <= 1


def test_an_interrupted_run_goes_on_and_ends_in_the_same_table(
    gallery: Views, queries: tuple[Row, ...], encoder: Encoder, tmp_path: Path
) -> None:
    whole = robustness(gallery, queries, encoder, FEW)
    path = tmp_path / "state.json"
    cut = CountingEncoder(encoder, most=12 * 2 + 5)  # clean, one cell and a part of the next
    with pytest.raises(KeyboardInterrupt):
        robustness(gallery, queries, cut, FEW, RobustnessState(path))
    rest, told, state = CountingEncoder(encoder), list[int](), RobustnessState(path)
    assert robustness(gallery, queries, rest, FEW, state, told.append) == whole
    assert rest.pictures == 12 * 3 and state.resumed == 2
    assert sum(told) == 12 * 5
    again = CountingEncoder(encoder)
    assert robustness(gallery, queries, again, FEW, RobustnessState(path)).to_json() == whole.to_json()
    assert again.pictures == 0


def test_more_kinds_later_compute_only_what_is_new(
    gallery: Views, queries: tuple[Row, ...], encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    robustness(gallery, queries, encoder, FEW, RobustnessState(path))
    more = CountingEncoder(encoder)
    robustness(gallery, queries, more, replace(FEW, kinds=("darkness", "occlusion", "jpeg")), RobustnessState(path))
    assert more.pictures == 12 * 2


def test_cells_of_anything_else_are_not_taken_over(
    gallery: Views, store: Path, make_encoder: Callable[[int], Encoder], tmp_path: Path
) -> None:
    path, encoder = tmp_path / "state.json", make_encoder(0)
    queries = open_dataset(store).split("test").rows
    robustness(gallery, queries, encoder, FEW, RobustnessState(path))
    kept = path.read_bytes()

    def encoded(views: Views, rows: tuple[Row, ...], other: Encoder, how: Corruptions) -> int:
        path.write_bytes(kept)
        count = CountingEncoder(other)
        robustness(views, rows, count, how, RobustnessState(path))
        return count.pictures

    assert encoded(gallery, queries, encoder, FEW) == 0
    assert encoded(gallery, queries, make_encoder(1), FEW) == 12 * 5
    assert encoded(gallery, queries, encoder, replace(FEW, seed=1)) == 12 * 5
    assert encoded(gallery, queries[:-1], encoder, FEW) == 11 * 5
    assert encoded(gallery.take(np.arange(20)), queries, encoder, FEW) == 12 * 5
    renamed = Views(tuple(replace(row, sku="x" + row.sku) for row in gallery.rows), gallery.vectors)
    assert encoded(renamed, queries, encoder, FEW) == 12 * 5
    os.utime(queries[0].path, (1, 1))
    assert encoded(gallery, queries, encoder, FEW) == 12 * 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"cells": {}}',
        b'{"key": "K", "cells": 3}',
        b'{"key": "K", "cells": {"blur": "01"}}',
        b'{"key": "K", "cells": {"blur 1": "012"}}',
        b'{"key": "K", "cells": {"blur 1": 4}}',
    ],
)
def test_a_broken_state_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    state = RobustnessState(path)
    assert not state.begin("K") and state.resumed == 0
    state.finished(("blur", 2), np.array([1, 0, -1], np.int8))
    after = RobustnessState(path).begin("K")
    assert list(after) == [("blur", 2)] and after["blur", 2].tolist() == [1, 0, -1]


class Memory:
    """A state in memory."""

    def __init__(self, done: dict[Cell, Hits]) -> None:
        self.done = done

    def begin(self, key: str) -> dict[Cell, Hits]:
        return dict(self.done)

    def finished(self, cell: Cell, hits: Hits) -> None:
        self.done[cell] = hits


def test_unreadable_queries_are_counted_and_left_out(gallery: Views, store: Path, encoder: Encoder) -> None:
    queries = open_dataset(store).split("test").rows
    queries[3].path.write_bytes(b"no picture")
    memory = Memory({})
    found = robustness(gallery, queries, encoder, FEW, memory)
    assert (found.queries, found.unreadable, found.clean.value) == (11, 1, 1.0)
    assert [place for place, hit in enumerate(memory.done[CLEAN]) if hit < 0] == [3]
    memory.done["darkness", 1] = np.abs(memory.done["darkness", 1])  # as if it could be read then
    with pytest.raises(DataError, match="changed"):
        robustness(gallery, queries, encoder, FEW, memory)


def test_nothing_to_measure_is_an_error(gallery: Views, store: Path, encoder: Encoder) -> None:
    queries = open_dataset(store).split("test").rows
    with pytest.raises(DataError, match="one side"):
        robustness(gallery, (), encoder, FEW)
    with pytest.raises(DataError, match="one side"):
        robustness(gallery.take(np.arange(0)), queries, encoder, FEW)
    for row in queries:
        row.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no query.*not a JPEG"):
        robustness(gallery, queries, encoder, FEW)


def test_a_sku_without_views_is_wrong_and_the_own_picture_no_answer(
    gallery: Views, queries: tuple[Row, ...], encoder: Encoder
) -> None:
    strangers = tuple(replace(row, sku="unheard of") if row.sku == "sku-0" else row for row in queries)
    assert robustness(gallery, strangers, encoder, FEW).clean.value == pytest.approx(10 / 12)
    own = robustness(gallery, gallery.rows, encoder, FEW)  # each query among the views
    assert own.clean.value == 1.0  # by the other views of its SKU
    alone = gallery.take(np.arange(0, 24, 4))  # one view per SKU: only its own picture could be right
    assert robustness(alone, alone.rows, encoder, FEW).clean.value == 0.0
    one = gallery.take(np.arange(1))
    assert robustness(one, one.rows, encoder, FEW).clean.value == 0.0
    assert robustness(one, one.rows, encoder, FEW).relative_drop == 0.0


def test_the_sample_takes_some_of_every_sku_in_order(dataset: Dataset) -> None:
    rows = dataset.rows
    taken = Corruptions(per_sku=2, seed=4).sample(rows)
    assert [sum(row.sku == sku for row in taken) for sku in dataset.skus] == [2] * 6
    assert [row for row in rows if row in taken] == list(taken)
    assert taken == Corruptions(per_sku=2, seed=4).sample(rows) != Corruptions(per_sku=2, seed=5).sample(rows)
    rest = [row for row in rows if row.sku != "sku-0"]
    assert Corruptions(per_sku=2, seed=4).sample(rest) == tuple(row for row in taken if row.sku != "sku-0")
    assert Corruptions(per_sku=99).sample(rows) == Corruptions().sample(rows) == tuple(rows)


def test_the_sample_is_what_is_measured(gallery: Views, queries: tuple[Row, ...], encoder: Encoder) -> None:
    count = CountingEncoder(encoder)
    found: Robustness = robustness(gallery, queries, count, replace(FEW, per_sku=1))
    assert found.queries == 6 and count.pictures == 6 * 5 and found.to_json()["per_sku"] == 1


@pytest.mark.parametrize(
    ("kinds", "strengths", "per_sku"),
    [
        ((), (1,), 0),
        (("blur",), (), 0),
        (("blur", "blur"), (1,), 0),
        (("blur",), (1, 1), 0),
        (("fog",), (1,), 0),
        (("blur",), (0, 1), 0),
        (("blur",), (6,), 0),
        (("blur",), (1,), -1),
    ],
)
def test_what_cannot_be_measured_is_refused(kinds: tuple[str, ...], strengths: tuple[int, ...], per_sku: int) -> None:
    with pytest.raises(ConfigError):
        Corruptions(kinds, strengths, per_sku)
