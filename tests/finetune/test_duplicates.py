"""Learning rules for duplicate postings from labelled groups, on a made-up catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch.catalogue.dedupe import Evidence, Looks, evidence, judge, outcome, signals_of
from skumatch.catalogue.pictures import look
from skumatch.catalogue.postings import Catalogue, read_catalogue
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.eval.duplicates import figures
from skumatch.finetune.duplicates import Lesson, learn
from skumatch.finetune.pair_scorer import Fit
from skumatch.spec import Ids
from tests.skumatch.catalogues import write_catalogue

SIZES = (2, 3, 2, 5, 2, 1, 3, 4, 2, 3, 2, 6, 2, 2, 3)
FEW = Fit(trees=10, leaf=3)


@pytest.fixture
def made(tmp_path: Path, encoder: Encoder) -> Callable[[int], tuple[Catalogue, Evidence, Ids]]:
    """Return a function that makes a catalogue with another seed, and what is known of its pairs."""

    def make(seed: int) -> tuple[Catalogue, Evidence, Ids]:
        catalogue = read_catalogue(write_catalogue(tmp_path / f"shop{seed}", SIZES, seed))
        pictures = look(catalogue, encoder, Pipeline(), tmp_path / f"work{seed}")
        looks = Looks(20)
        assert catalogue.groups is not None
        return catalogue, evidence(catalogue, signals_of(catalogue, pictures, None, looks), looks), catalogue.groups

    return make


Made = Callable[[int], tuple[Catalogue, Evidence, Ids]]


@pytest.mark.parametrize("kind", ["logistic", "union", "noisy-or"])
def test_a_rule_learned_on_one_catalogue_serves_another(made: Made, kind: str) -> None:
    _, found, groups = made(0)
    rule = learn(found, groups, Lesson(kind))
    _, other, truth = made(1)
    answer = outcome(other.count, judge(other, rule), rule)
    assert figures(answer.matches, truth)["f1"]["value"] > 0.8
    told = rule.facts["out_of_fold"][kind]
    assert 0.7 < told["f1"] <= 1 and rule.threshold == told["threshold"]
    assert rule.judge.kind == (kind if kind != "logistic" else "learned")


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_a_scorer_of_the_kind_that_was_asked_for_is_fitted(made: Made, kind: str) -> None:
    _, found, groups = made(0)
    rule = learn(found, groups, Lesson(kind, fit=FEW, folds=3))
    assert rule.judge.kind == "learned"
    assert rule.judge.to_json()["scorer"]["model"]["kind"] == kind


def test_the_best_is_the_one_with_the_highest_f1_out_of_fold(made: Made) -> None:
    _, found, groups = made(0)
    rule = learn(found, groups, Lesson("best", FEW))
    told = rule.facts["out_of_fold"]
    assert set(told) == {"logistic", "boosting", "union", "noisy-or"}
    best = max(one["f1"] for one in told.values())
    assert rule.threshold in {one["threshold"] for one in told.values() if one["f1"] == best}


def test_labels_that_mean_nothing_promise_nothing(made: Made) -> None:
    """Out of fold a judge cannot know groups drawn at random; what it was fitted on it could learn by heart."""
    _, found, groups = made(0)
    shuffled = np.random.default_rng(0).permutation(groups)
    honest = learn(found, groups, Lesson("logistic")).facts["out_of_fold"]["logistic"]["f1"]
    nonsense = learn(found, shuffled, Lesson("logistic")).facts["out_of_fold"]["logistic"]["f1"]
    assert nonsense < 0.65 < honest


def test_a_wanted_precision_is_kept_to(made: Made) -> None:
    _, found, groups = made(0)
    rule = learn(found, groups, Lesson("noisy-or", precision=0.97))
    assert rule.facts["out_of_fold"]["noisy-or"]["precision"] >= 0.97


def test_the_same_seed_learns_the_same(made: Made) -> None:
    _, found, groups = made(0)
    one, other = (learn(found, groups, Lesson("logistic", seed=3)).to_bytes() for _ in range(2))
    assert one == other
    assert (
        learn(found, groups, Lesson("logistic", seed=4)).facts != learn(found, groups, Lesson("logistic", seed=3)).facts
    )


def test_too_few_groups_and_labels_without_pairs_are_said(made: Made) -> None:
    _, found, groups = made(0)
    with pytest.raises(DataError, match="0 groups of two and more postings are too few"):
        learn(found, np.arange(len(groups)), Lesson())
    with pytest.raises(DataError, match="no threshold reaches"):
        learn(found, groups, Lesson("union", precision=1.5))
    with pytest.raises(DataError, match="there is no kind of rule 'oracle'"):
        learn(found, groups, Lesson("oracle"))
