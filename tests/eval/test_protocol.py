"""The closed protocol with an encoder whose right answers are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Dataset, Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.eval.metrics import hit_ranks, top_k
from skumatch.eval.protocol import Answers, Closed, answer, closed
from skumatch.readers import open_dataset

PIPELINE = Pipeline(batch=5, workers=2)


def top1(answers: Answers) -> float:
    return float(top_k(hit_ranks(answers.nearest.skus, answers.truth), 1).mean())


def test_an_encoder_that_knows_the_patterns_is_always_right(patterns: Path, encoder: Encoder) -> None:
    found = answer(closed(open_dataset(patterns)), encoder, PIPELINE, 5)
    assert top1(found) == 1.0
    assert (len(found.gallery), len(found.queries), len(found.skus)) == (24, 12, 6)
    assert found.unreadable == ()
    assert found.seconds > 0
    assert found.nearest.skus.shape == found.views.shape == (12, 5)
    assert all(len(set(line)) == 5 for line in found.nearest.skus.tolist())


def test_the_nearest_views_are_those_of_brute_force(patterns: Path, encoder: Encoder) -> None:
    protocol = closed(open_dataset(patterns))
    found = answer(protocol, encoder, PIPELINE, 5)
    sides = []
    for rows in (protocol.gallery, protocol.queries):
        sides.append(np.concatenate([b.vectors for b in PIPELINE.embed([row.path for row in rows], encoder)]))
    order = np.argsort(-(sides[1] @ sides[0].T), axis=1, kind="stable")[:, :5]
    expected = [[protocol.gallery[i].sku for i in line] for line in order]
    assert [[found.skus[code] for code in line] for line in found.views.tolist()] == expected


def test_with_shuffled_labels_it_is_chance(patterns: Path, make_encoder: Callable[[int], Encoder]) -> None:
    dataset = open_dataset(patterns)
    hits = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        names = rng.permutation([row.sku for row in dataset])
        shuffled = dataset.with_rows([replace(row, sku=str(n)) for row, n in zip(dataset, names, strict=True)])
        hits.append(top1(answer(closed(shuffled), make_encoder(0), PIPELINE, 5)))
    assert 0.05 < np.mean(hits) < 0.3  # 1 in 6


def test_leaks_are_left_out(store: Path, encoder: Encoder) -> None:
    copy = store / "test" / "sku-3" / "copy.png"
    shutil.copy(store / "train" / "sku-1" / "2.png", copy)
    protocol = closed(open_dataset(store))
    assert [(row.path, view) for row, view in protocol.leaks] == [(copy, str(store / "train" / "sku-1" / "2.png"))]
    assert copy not in {row.path for row in protocol.queries}
    assert len(protocol.queries) == 12
    assert top1(answer(protocol, encoder, PIPELINE, 5)) == 1.0


def test_queries_that_are_all_leaks_are_an_error(store: Path) -> None:
    shutil.rmtree(store / "test")
    shutil.copytree(store / "train", store / "test")
    with pytest.raises(DataError, match="every query in split 'test' is a copy"):
        closed(open_dataset(store))


def test_a_query_without_a_gallery_view_counts_as_wrong(store: Path, encoder: Encoder) -> None:
    shutil.rmtree(store / "train" / "sku-2")
    found = answer(closed(open_dataset(store)), encoder, PIPELINE, 5)
    assert [row.sku for row, code in zip(found.queries, found.truth, strict=True) if code < 0] == ["sku-2", "sku-2"]
    assert top1(found) == pytest.approx(10 / 12)


@pytest.mark.parametrize("side", ["train", "test"])
def test_unreadable_pictures_are_reported_on_either_side(store: Path, encoder: Encoder, side: str) -> None:
    bad = store / side / "sku-1" / ("0.png" if side == "train" else "4.png")
    bad.write_bytes(b"broken")
    found = answer(closed(open_dataset(store)), encoder, PIPELINE, 5)
    assert len(found.unreadable) == 1
    assert str(bad) in found.unreadable[0]
    assert len(found.gallery) + len(found.queries) == 35
    assert top1(found) == 1.0


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_side_without_any_readable_picture_is_an_error(store: Path, encoder: Encoder, side: str) -> None:
    for number, path in enumerate(store.glob(f"{side}/*/*.png")):
        path.write_bytes(b"broken %d" % number)
    with pytest.raises(DataError, match=r"no readable picture on one side .*\.png"):
        answer(closed(open_dataset(store)), encoder, PIPELINE, 5)


def test_the_gallery_is_not_evaluated_against_itself(patterns: Path) -> None:
    with pytest.raises(ConfigError, match="split 'train' is the gallery"):
        closed(open_dataset(patterns), "train")


def test_an_unknown_split_lists_the_splits(patterns: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures in split 'val' - its splits are: .*train"):
        closed(open_dataset(patterns), "val")


def test_a_split_named_gallery_is_preferred(tmp_path: Path) -> None:
    rows = [Row(tmp_path / f"{split}.png", "a", split) for split in ("train", "gallery", "test")]
    protocol = closed(Dataset(tmp_path, "csv", tuple(rows)))
    assert protocol == Closed((rows[1],), (rows[2],), ())


def test_more_answers_than_views_are_padded(store: Path, encoder: Encoder) -> None:
    for path in store.glob("train/*/[123].png"):
        path.unlink()
    found = answer(closed(open_dataset(store)), encoder, PIPELINE, 9)
    assert found.views.shape == (12, 6)
    assert found.nearest.skus.shape == (12, 9)
    assert (found.nearest.skus[:, 6:] == -1).all()
    assert top1(found) == 1.0
