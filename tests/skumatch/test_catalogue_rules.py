"""Rules: what they say of features, and that they are the same after writing and reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skumatch.catalogue.groups import Grouping
from skumatch.catalogue.rules import Learned, NoisyOr, Rule, Union, read_rule, unlabelled, write_rule
from skumatch.catalogue.scorer import Linear, PairScorer
from skumatch.errors import ConfigError

NAMES = ("image", "chars", "amounts_contradict")
NAN = float("nan")


def values(*rows: tuple[float, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array(rows, np.float32)


def test_union_is_a_half_at_a_threshold_and_takes_the_best() -> None:
    rule = Union({"image": 0.8, "chars": 0.4})
    said = rule.probability(
        values((0.8, 0, 0), (0, 0.4, 0), (0.4, 0.2, 0), (0.9, 0.4, 0), (1, 0, 0), (NAN, 0.7, 0)), NAMES
    )
    np.testing.assert_allclose(said, [0.5, 0.5, 0.25, 0.75, 1, 0.75], atol=1e-6)


def test_noisy_or_is_one_less_the_product() -> None:
    said = NoisyOr({"image": 0.0, "chars": 0.0}).probability(values((0.5, 0.5, 0), (NAN, 0.3, 0), (-1, 0, 0)), NAMES)
    np.testing.assert_allclose(said, [0.75, 0.3, 0], atol=1e-6)


def test_a_score_counts_from_its_floor_on() -> None:
    said = NoisyOr({"image": 0.6}).probability(values((0.6, 0, 0), (0.8, 0, 0), (1, 0, 0), (0.1, 0, 0)), NAMES)
    np.testing.assert_allclose(said, [0, 0.5, 1, 0], atol=1e-6)


@pytest.mark.parametrize("rule", [Union({"image": 0.5}, veto=True), NoisyOr({"image": 0.0}, veto=True)])
def test_amounts_that_contradict_are_a_veto(rule: Union | NoisyOr) -> None:
    said = rule.probability(values((0.9, 0, 0), (0.9, 0, 1), (0.9, 0, 2)), NAMES)
    assert said[0] > 0.8
    assert said[1:].tolist() == [0, 0]


def scorer(names: tuple[str, ...] = NAMES) -> PairScorer:
    count = len(names)
    model = Linear(-1.0, (2.0,) * count, (0.5,) * count, (1.0,) * count)
    return PairScorer(names, (0.0,) * count, model, 1.0, 0.0, {})


@pytest.mark.parametrize(
    "judge", [Union({"image": 0.5}, veto=True), NoisyOr({"image": 0.25, "chars": 0.0}), Learned(scorer())]
)
def test_a_rule_is_the_same_after_writing_and_reading(tmp_path: Path, judge: Union | NoisyOr | Learned) -> None:
    rule = Rule(judge, 0.7, Grouping(most=9), closed=True, signals={"looks": {"k": 5}}, facts={"pairs": 3})
    write_rule(tmp_path / "rule.json", rule)
    again = read_rule(tmp_path / "rule.json")
    assert (again.threshold, again.grouping, again.closed, again.signals) == (
        0.7,
        Grouping(most=9),
        True,
        {"looks": {"k": 5}},
    )
    features = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    np.testing.assert_array_equal(again.judge.probability(features, NAMES), judge.probability(features, NAMES))


def test_a_learned_rule_refuses_other_features() -> None:
    with pytest.raises(ConfigError, match=r"learned from other signals \(it lacks: words; here lack: chars\)"):
        Learned(scorer()).probability(values((0, 0, 0)), ("image", "words", "amounts_contradict"))


def test_a_rule_without_its_signal_is_refused() -> None:
    with pytest.raises(ConfigError, match="the rule needs the signal 'text', which this catalogue lacks"):
        NoisyOr({"text": 0.0}).probability(values((0, 0, 0)), NAMES)


def test_settings_out_of_range_are_refused() -> None:
    for make in (
        lambda: Union({}),
        lambda: Union({"image": 1.0}),
        lambda: NoisyOr({}),
        lambda: NoisyOr({"image": 1.0}),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize("broken", ["nothing", "version", "kind", "scorer", "text", "absent"])
def test_a_file_that_is_no_rule_is_one_line(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "rule.json"
    document = json.loads(Rule(Learned(scorer()), 0.5).to_bytes())
    if broken == "version":
        document["format"] = 99
    elif broken == "kind":
        document["judge"]["kind"] = "oracle"
    elif broken == "scorer":
        del document["judge"]["scorer"]["model"]
    elif broken == "text":
        document = "rule"
    if broken != "absent":
        path.write_text("" if broken == "nothing" else json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        read_rule(path)
    assert "rule.json" in caught.value.what and caught.value.todo and "\n" not in str(caught.value)


def test_without_labels_the_signals_that_are_there_decide() -> None:
    rule = unlabelled({"image": 0.4, "words": 0.0, "chars": 0.0, "hash": 0.5}, Grouping())
    assert rule.judge == NoisyOr({"image": 0.4, "chars": 0.0}, veto=True)
    assert unlabelled({"hash": 0.5}, Grouping()).judge == NoisyOr({"hash": 0.5}, veto=True)
    with pytest.raises(ConfigError):
        unlabelled({}, Grouping())
