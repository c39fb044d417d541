"""Components and correlation clustering, against plain implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from skumatch.catalogue import groups
from skumatch.catalogue.groups import Grouping, groups_of, log_odds
from skumatch.catalogue.judged import Judged
from skumatch.errors import ConfigError


def judged(pairs: dict[tuple[int, int], float]) -> Judged:
    left, right = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Judged(left, right, np.array([pairs[key] for key in sorted(pairs)], np.float32))


def parts(codes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(codes == code).tolist()) for code in np.unique(codes)}


def cost(codes: np.ndarray[tuple[int], np.dtype[np.int64]], pairs: dict[tuple[int, int], float]) -> float:
    """Log-odds within groups: what correlation clustering maximises."""
    inside = [probability for (one, other), probability in pairs.items() if codes[one] == codes[other]]
    return float(log_odds(np.array(inside)).sum())


def test_components_join_chains() -> None:
    chain = judged({(0, 1): 0.9, (1, 2): 0.8, (2, 3): 0.3, (4, 5): 0.7})
    found = groups_of(7, chain, 0.5, Grouping("components"))
    assert found.tolist() == [0, 0, 0, 1, 2, 2, 3]


def test_what_speaks_against_a_group_tears_a_chain() -> None:
    chain = {(0, 1): 0.95, (1, 2): 0.6, (0, 2): 0.02}
    assert parts(groups_of(3, judged(chain), 0.5)) == {frozenset({0, 1}), frozenset({2})}
    assert parts(groups_of(3, judged(chain), 0.5, Grouping("components"))) == {frozenset({0, 1, 2})}


def test_pairs_nobody_called_neighbours_speak_against_a_group() -> None:
    weak = judged({(0, 1): 0.95, (1, 2): 0.55})
    assert parts(groups_of(3, weak, 0.5)) == {frozenset({0, 1}), frozenset({2})}
    assert parts(groups_of(3, weak, 0.5, Grouping(absent=0.0))) == {frozenset({0, 1, 2})}


@pytest.mark.parametrize("how", ["components", "correlation"])
def test_no_group_is_larger_than_the_most(how: str) -> None:
    every = dict.fromkeys(itertools.combinations(range(23), 2), 0.9)
    sizes = np.bincount(groups_of(23, judged(every), 0.5, Grouping(how, most=5)))  # type: ignore[arg-type]
    assert sizes.max() == 5
    assert sizes.sum() == 23


def test_the_threshold_moves_what_counts_as_a_match() -> None:
    pairs = judged({(0, 1): 0.7, (1, 2): 0.4, (0, 2): 0.4})
    assert len(parts(groups_of(3, pairs, 0.8))) == 3
    assert len(parts(groups_of(3, pairs, 0.5))) == 2
    assert len(parts(groups_of(3, pairs, 0.3))) == 1


def test_clusters_are_nearly_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(30):
        truth = rng.integers(0, 3, 7)
        pairs = {
            (one, other): float(np.clip(rng.normal(0.75 if truth[one] == truth[other] else 0.25, 0.2), 0.02, 0.98))
            for one, other in itertools.combinations(range(7), 2)
        }
        found = cost(groups_of(7, judged(pairs), 0.5), pairs)
        best = max(cost(np.array(codes), pairs) for codes in itertools.product(range(4), repeat=7))
        ratios.append(found / best if best > 0 else 1.0)
    assert np.mean(ratios) > 0.97
    assert min(ratios) > 0.75


def test_components_equal_a_plain_search_on_random_graphs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        edges = {tuple(sorted(rng.choice(30, 2, replace=False).tolist())) for _ in range(20)}
        found = parts(groups_of(30, judged(dict.fromkeys(edges, 0.9)), 0.5, Grouping("components")))
        reach = [{place} for place in range(30)]
        for one, other in edges:
            both = reach[one] | reach[other]
            for member in both:
                reach[member] = both
        assert found == {frozenset(members) for members in reach}


def test_a_component_too_large_is_torn_at_its_weakest_links(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    shuffled = rng.permutation(60)
    links = {(place, place + 1): 0.95 if (place + 1) % 6 else 0.6 + place / 1000 for place in range(59)}
    links |= {(place, place + 2): 0.9 for place in range(58) if place % 6 < 4}
    ends = {(int(shuffled[one]), int(shuffled[other])): sure for (one, other), sure in links.items()}
    pairs = {(min(pair), max(pair)): sure for pair, sure in ends.items()}
    wanted = {frozenset(shuffled[start : start + 6].tolist()) for start in range(0, 60, 6)}
    joined = groups_of(60, judged(pairs), 0.5, Grouping("components", most=60))
    assert len(parts(joined)) == 1
    monkeypatch.setattr(groups, "LARGEST", 7)
    assert parts(groups_of(60, judged(pairs), 0.5, Grouping("components", most=59))) == wanted
    monkeypatch.setattr(groups, "LARGEST", 12)  # the surest of the weak links join two and two, from the end
    pairwise = parts(groups_of(60, judged(pairs), 0.5, Grouping("components", most=59)))
    assert pairwise == {frozenset(shuffled[start : start + 12].tolist()) for start in range(0, 60, 12)}


@pytest.mark.parametrize("how", ["components", "correlation"])
def test_tearing_leaves_smaller_components_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    pairs: dict[tuple[int, int], float] = {}
    for start, size in ((0, 40), (40, 12), (52, 5)):
        for one, other in itertools.combinations(range(start, start + size), 2):
            if other == one + 1 or rng.random() < 0.1:
                pairs[one, other] = float(rng.uniform(0.3, 0.99) if other > one + 1 else rng.uniform(0.5, 0.99))
    before = parts(groups_of(60, judged(pairs), 0.5, Grouping(how, most=15)))  # type: ignore[arg-type]
    monkeypatch.setattr(groups, "LARGEST", 20)
    after = parts(groups_of(60, judged(pairs), 0.5, Grouping(how, most=15)))  # type: ignore[arg-type]
    assert {part for part in before if min(part) >= 40} == {part for part in after if min(part) >= 40}
    assert max(map(len, after)) <= 15
    assert sorted(place for part in after for place in part) == list(range(60))


def test_codes_are_in_order_of_the_first_posting_and_need_no_pairs() -> None:
    none = Judged(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    assert groups_of(3, none, 0.5).tolist() == [0, 1, 2]
    assert groups_of(4, judged({(1, 3): 0.9}), 0.5).tolist() == [0, 1, 2, 1]


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"how": "chain"}, {"most": 0}, {"absent": 0.1}):
        with pytest.raises(ConfigError):
            Grouping(**wrong)
