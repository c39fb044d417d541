"""The sweep switches on what helps and nothing else, on data where the right answer was planted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.eval.options import Option, embed_settings, families, trial
from skumatch.eval.sweep import holm, sign_flip, sweep
from skumatch.eval.views import Views
from skumatch.spec import Vectors
from skumatch.technique_store import unit_rows
from skumatch.techniques import NEAREST, Technique, search
from skumatch.testviews import ViewSetting, with_views

DIM = 32
SMALL = (
    Technique("vote", 5),
    Technique("vote", 20),
    Technique("prototype", strength=0.5),
    Technique("prototype", strength=1.0),
    Technique("expand", 3),
    Technique("augment", 3),
    Technique("reciprocal", 6, candidates=20),
)


def views(vectors: NDArray[np.float64], codes: NDArray[np.int64], kind: str) -> Views:
    rows = tuple(Row(Path(f"{kind}-{n}.png"), f"sku-{code:03d}", kind) for n, code in enumerate(codes))
    return Views(rows, unit_rows(vectors.astype(np.float32)))


def planted(seed: int, noise: float, per_sku: int = 8, skus: int = 30, asked: int = 8) -> tuple[Views, Views]:
    """Return reference views and queries of ``skus`` SKUs with noise that differs from view to view."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(skus, DIM))
    codes, shown = np.repeat(np.arange(skus), per_sku), np.repeat(np.arange(skus), asked)
    gallery = centres[codes] + rng.normal(0, noise, (len(codes), DIM))
    return views(gallery, codes, "train"), views(centres[shown] + rng.normal(0, noise, (len(shown), DIM)), shown, "val")


def nothing_to_find(seed: int) -> tuple[Views, Views, Vectors]:
    """Return data where queries have nothing to do with their SKU: no way to answer is better than another."""
    rng = np.random.default_rng(seed)
    gallery = views(rng.normal(size=(48, DIM)), np.repeat(np.arange(8), 6), "train")
    queries = views(rng.normal(size=(160, DIM)), rng.integers(0, 8, 160), "val")
    return gallery, queries, unit_rows(rng.normal(size=(160, DIM)).astype(np.float32))


def coin_flips(seed: int) -> tuple[Views, Views, Vectors]:
    """Return data where the queries of a SKU lie together, halfway to another SKU: all right or all wrong, by luck."""
    rng = np.random.default_rng(seed)
    centres, codes, shown = rng.normal(size=(40, DIM)), np.repeat(np.arange(40), 6), np.repeat(np.arange(40), 6)
    gallery = views(centres[codes] + rng.normal(0, 0.7, (240, DIM)), codes, "train")
    between = centres + centres[(np.arange(40) + 1) % 40] + rng.normal(0, 0.3, (40, DIM))
    drawn = [between[shown] + rng.normal(0, 0.3, (240, DIM)) for _ in range(2)]
    return gallery, views(drawn[0], shown, "val"), unit_rows(drawn[1].astype(np.float32))


def test_noisy_views_switch_a_mean_over_views_on() -> None:
    gallery, queries = planted(0, noise=2.2)
    found = sweep(gallery, queries, grid=SMALL)
    arms = {arm.family: arm for arm in found.rounds[0]}
    assert arms["prototype"].gains and arms["prototype"].paired.difference > 0.1
    assert found.chosen.technique.name in ("prototype", "vote", "augment") and found.chosen.views == "none"
    fresh_gallery, fresh = planted(0, noise=2.2, asked=40)  # the same gallery, new queries
    assert np.allclose(fresh_gallery.vectors, gallery.vectors)
    task = trial(fresh_gallery, fresh)
    hits = {option: float((task.measure(option).ranks == 1).mean()) for option in (Option(), found.chosen)}
    assert hits[found.chosen] > hits[Option()] + 0.05


def test_one_view_per_sku_and_clean_queries_leave_everything_off() -> None:
    gallery, queries = planted(1, noise=0.3, per_sku=1)
    found = sweep(gallery, queries, {"flip": queries.vectors}, SMALL)
    assert found.chosen == Option(NEAREST, "none") and len(found.rounds) == 1
    assert not any(arm.gains for arm in found.rounds[0])


@pytest.mark.parametrize("data", [nothing_to_find, coin_flips])
def test_where_nothing_helps_nothing_is_switched_on(data: Callable[[int], tuple[Views, Views, Vectors]]) -> None:
    switched = 0
    for seed in range(16):
        gallery, queries, other = data(seed)
        found = sweep(gallery, queries, {"flip": other}, SMALL, seed)
        gains = [arm.paired.difference for arm in found.rounds[0]]
        assert len(gains) == 6 and any(gain != 0 for gain in gains)  # they do answer differently
        switched += found.chosen != Option()
    assert switched <= 1


def test_better_query_vectors_switch_views_on_and_a_technique_on_top_is_tried() -> None:
    gallery, blurred = planted(2, noise=2.2)
    _, sharp = planted(2, noise=1.1)
    settings: dict[ViewSetting, Vectors] = {"flip": sharp.vectors, "scale": blurred.vectors[::-1].copy()}
    found = sweep(gallery, blurred, settings, SMALL[:1])
    assert found.chosen.views == "flip"
    assert [[arm.family for arm in arms] for arms in found.rounds] == [["vote", "views"], ["vote"]]
    assert found.rounds[1][0].option.views == "flip" and found.rounds[1][0].encodings == 2


def test_a_setting_is_judged_on_skus_that_did_not_choose_it() -> None:
    """Many useless options: the best of them looks good on all queries, and does not when judged crosswise."""
    gallery, queries, _ = nothing_to_find(3)
    grid = [Technique("expand", n, alpha=alpha) for n in range(1, 13) for alpha in (0.0, 1.0, 3.0)]
    (arm,) = sweep(gallery, queries, grid=grid).rounds[0]
    task = trial(gallery, queries)
    looks = max(float((task.measure(Option(technique)).ranks == 1).mean()) for technique in grid)
    plain = float((task.measure(Option()).ranks == 1).mean())
    assert looks > plain + 0.02 > arm.top[1]


def test_costs_are_counted() -> None:
    gallery, queries = planted(4, noise=1.5)
    settings: dict[ViewSetting, Vectors] = {"flip+scale": queries.vectors}
    grid = [Technique("prototype"), Technique("expand", 3)]
    found = sweep(gallery, queries, settings, grid)
    arms = {arm.family: arm for arm in found.rounds[0]}
    assert 1 <= found.plain_searches < 3
    assert arms["prototype"].searches == 1 and 2 <= arms["expand"].searches < 4
    assert [arms[name].encodings for name in ("prototype", "expand", "views")] == [1, 1, 3]
    assert all(arm.milliseconds > 0 for arm in arms.values())


def test_the_measure_is_the_search_itself() -> None:
    gallery, queries = planted(5, noise=2.0)
    task, technique = trial(gallery, queries), Technique("vote", 9)
    found = search(technique, task.store, queries.vectors, 5)
    expected = [
        skus.tolist().index(code) + 1 if code in skus else 0
        for skus, code in zip(found.skus, queries.codes, strict=True)
    ]
    assert task.measure(Option(technique)).ranks.tolist() == expected


def test_same_seed_same_sweep_and_json(tmp_path: Path) -> None:
    gallery, queries = planted(6, noise=2.0)
    found = sweep(gallery, queries, grid=SMALL, seed=5).to_json()
    again = sweep(gallery, queries, grid=SMALL, seed=5).to_json()
    for document in (found, again):
        assert document.pop("plain_milliseconds") > 0
        for arm in document["rounds"][0]:
            assert arm.pop("milliseconds") > 0
    assert found == again == json.loads(json.dumps(found))
    assert Technique.from_json(found["technique"]).name == found["technique"]["name"]
    assert set(found) >= {"technique", "views", "plain", "queries", "left_out", "seed"}


def test_the_table_has_a_row_per_arm() -> None:
    gallery, queries = planted(7, noise=1.0)
    found = sweep(gallery, queries, grid=SMALL)
    head, rows = found.table()
    assert len(rows) == 1 + sum(len(arms) for arms in found.rounds) and {len(row) for row in rows} == {len(head)}
    assert rows[0][:3] == ["nearest", "none", f"{100 * found.plain[1]:.1f}"]


def test_queries_of_other_skus_are_left_out_and_counted() -> None:
    gallery, queries = planted(8, noise=1.0)
    part = gallery.take(np.flatnonzero(gallery.codes < 20))
    found = sweep(part, queries, grid=SMALL[:1])
    assert (found.queries, found.left_out) == (160, 80)
    kept = sweep(part, queries.take(np.flatnonzero(queries.codes < 20)), grid=SMALL[:1])
    assert kept.plain == found.plain


def test_what_cannot_be_swept() -> None:
    gallery, queries = planted(9, noise=1.0)
    with pytest.raises(DataError, match="240 queries are reference views themselves"):
        sweep(gallery, gallery, grid=SMALL[:1])
    with pytest.raises(DataError, match="no validation query shows a SKU"):
        sweep(gallery.take(np.arange(24)), queries.take(np.arange(40, 80)), grid=SMALL[:1])
    with pytest.raises(DataError, match="one SKU only"):
        sweep(gallery, queries.take(np.arange(8)), grid=SMALL[:1])
    with pytest.raises(DataError, match="views 'flip' are"):
        sweep(gallery, queries, {"flip": queries.vectors[1:]}, SMALL[:1])


def test_a_large_gallery_is_not_searched_against_itself() -> None:
    grid = (Technique("augment"), Technique("augment", same_sku=False), Technique("vote"))
    assert [t.same_sku for t in families(grid, 1000)["augment"]] == [True, False]
    assert [t.same_sku for t in families(grid, 1_000_000)["augment"]] == [True]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.01, 0.01], [0.02, 0.02]),
        ([], []),
    ],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected)


def test_sign_flips_against_every_flip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        units = rng.integers(0, 10, 60)
        change = rng.choice([-1.0, 0, 0, 1, 1], 60)
        total = np.bincount(units, change, 10)
        flips = np.array(list(itertools.product([-1, 1], repeat=10))) @ total
        expected = float((np.abs(flips) >= abs(total.sum()) - 1e-9).mean())
        assert sign_flip(change, units) == pytest.approx(expected, abs=0.02)


def test_queries_of_one_sku_count_as_one() -> None:
    change = np.concatenate([np.ones(30), np.zeros(30)])
    assert sign_flip(change, np.repeat([0, 1], 30)) == 1.0  # one SKU changed, however many queries it has
    assert sign_flip(change, np.arange(60)) == pytest.approx(1e-4)
    assert sign_flip(np.zeros(5), np.arange(5)) == 1.0


def test_vectors_for_every_setting(patterns: Path, encoder: Encoder, make_encoder: Callable[[int], Encoder]) -> None:
    paths = [*sorted(patterns.glob("test/*/*.png")), patterns / "missing.png"]
    rows = [Row(path, path.parent.name, "test") for path in paths]
    plain, settings, problems = embed_settings(rows, encoder, Pipeline())
    assert len(plain) == 12 and len(problems) == 1 and "missing.png" in problems[0]
    assert np.array_equal(settings["none"], plain.vectors)
    for name, vectors in settings.items():
        found = [batch.vectors for batch in Pipeline().embed(paths[:-1], with_views(encoder, name))]
        assert np.allclose(np.concatenate(found), vectors, atol=1e-6)
