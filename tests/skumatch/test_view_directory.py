"""Where views lie: the directory says what a dict per view would, whatever the segments and whatever was removed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skumatch.gallery_changes import write_segment
from skumatch.segment import Segment, Views
from skumatch.spec import Ids
from skumatch.view_directory import Directory, SkuNames, directory, member


def segment(store: Path, skus: list[str]) -> Segment:
    vectors = np.tile(np.eye(1, 4, dtype=np.float32), (len(skus), 1))
    views = Views(skus, ["" for _ in skus], ["" for _ in skus], [b"" for _ in skus], vectors)
    return Segment(store / "segments" / write_segment(store, 4, [views])[0])


def same(made: Directory, oracle: dict[int, tuple[str, int, int]]) -> None:
    """Compare with ``oracle``: id -> (SKU, segment, position)."""
    assert made.ids.tolist() == sorted(oracle)
    found = [
        (made.skus[int(code)], int(number), int(position))
        for code, number, position in zip(made.codes, made.segments, made.positions, strict=True)
    ]
    assert found == [oracle[i] for i in sorted(oracle)]
    names = {sku for sku, _, _ in oracle.values()}
    assert len(made.skus) == len(names) and set(made.skus) == names
    for code, sku in enumerate(made.skus):
        theirs = sorted(i for i, entry in oracle.items() if entry[0] == sku)
        assert made.ids_with(code).tolist() == theirs and made.skus.code(sku) == code
    some = np.arange(0, len(made.skus), 2, dtype=np.int32)
    chosen = {made.skus[int(code)] for code in some}
    assert made.ids_of_codes(some).tolist() == sorted(i for i in oracle if oracle[i][0] in chosen)
    asked = np.array([[-1, 10**12], [min(oracle), max(oracle)]])
    places = made.find(asked)
    assert places.tolist() == [[-1, -1], [0, len(oracle) - 1]]


@pytest.mark.parametrize("seed", range(6))
def test_random_segments_against_a_dict(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    following = 0
    parts: list[tuple[Segment, Ids]] = []
    oracle: dict[int, tuple[str, int, int]] = {}
    for number in range(4):
        skus = [f"sku-{chance.randrange(9)}" for _ in range(chance.randint(1, 12))]
        ids = sorted(chance.sample(range(following, following + 20), len(skus)))  # with gaps, as merging leaves them
        following += 20
        parts.append((segment(tmp_path, skus), np.array(ids)))
        oracle |= {i: (sku, number, place) for place, (i, sku) in enumerate(zip(ids, skus, strict=True))}
    gone = sorted(chance.sample(sorted(oracle), len(oracle) // 3))
    kept = {i: entry for i, entry in oracle.items() if i not in gone}
    same(directory(parts, np.array([*gone, 10**6])), kept)
    order = chance.sample(range(4), 4)  # compaction may leave segments whose ids do not ascend
    turned = {i: (sku, order.index(number), place) for i, (sku, number, place) in kept.items()}
    same(directory([parts[number] for number in order], np.array(gone)), turned)


def test_codes_run_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    parts = [(segment(tmp_path, list("cab")), np.arange(3)), (segment(tmp_path, list("dac")), np.arange(3, 6))]
    assert list(directory(parts, np.empty(0, np.int64)).skus) == list("cabd")
    assert list(directory(parts, np.array([0, 1, 2])).skus) == list("cad")  # b has no view any more


def test_nothing_there_is_found_nowhere(tmp_path: Path) -> None:
    none = np.empty(0, np.int64)
    for empty in (directory([], none), directory([(segment(tmp_path, ["a"]), np.arange(1))], np.arange(1))):
        assert (len(empty.ids), len(empty.skus), list(empty.skus)) == (0, 0, [])
        assert empty.find(np.array([0, 5])).tolist() == [-1, -1] and empty.starts.tolist() == [0]
        assert "a" not in empty.skus and empty.skus.code("a") == -1


def test_membership_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 200):
        among = np.unique(rng.integers(-50, 50, size))
        asked = rng.integers(-60, 60, 300)
        assert member(asked, among).tolist() == np.isin(asked, among).tolist()
    assert member(np.empty(0, np.int64), np.arange(3)).shape == (0,)


def test_names_are_a_sequence() -> None:
    given = ["b", "", "a", "\N{SNOWMAN}", "x" * 10_000]
    names = SkuNames(pa.array(given))
    assert list(names) == given and len(names) == 5 and names[-1] == given[-1] and names[np.int64(2)] == "a"
    assert names[1:4] == given[1:4] and names[::-2] == given[::-2] and names.index("a") == 2
    for code in (5, -6):
        with pytest.raises(IndexError):
            names[code]
    assert "" in names and "A" not in names
    assert not any(odd in names for odd in (3, None, b"a"))  # type: ignore[comparison-overlap]
    asked = ["a", "zz", "b", "a", "caf\udce9", "\ud800"]
    assert names.codes(asked).tolist() == [2, -1, 0, 2, -1, -1] and names.codes([]).tolist() == []
    assert "caf\udce9" not in names
    twice = SkuNames(pa.array(["e\u0301", "\u00e9"]))  # looks alike, is not the same name
    assert (twice.code("\u00e9"), twice.code("e\u0301")) == (1, 0)
