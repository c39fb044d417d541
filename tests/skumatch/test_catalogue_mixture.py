"""Telling matches from others without labels, on made-up scores."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from skumatch.catalogue.mixture import FEWEST, Mixture, fit_mixture
from skumatch.errors import DataError

NAMES = ("image", "words", "amounts_contradict")


def made_up(count: int, share: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Two kinds of pairs: matches have higher scores in both signals and seldom amounts that contradict."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < share
    image = np.where(same, rng.beta(8, 2, count), rng.beta(3, 4, count))
    words = np.where(same, rng.beta(5, 3, count), rng.beta(2, 6, count))
    contradict = rng.random(count) < np.where(same, 0.03, 0.4)
    return np.stack([image, words, contradict], axis=1).astype(np.float32), same


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_matches_are_found_without_labels(share: float) -> None:
    features, same = made_up(20_000, share, 0)
    mixture = fit_mixture(features, NAMES, ("image", "words"))
    sure = mixture.probability(features, NAMES)
    assert abs(mixture.prior - share) < 0.05
    assert abs(float(sure.mean()) - share) < 0.05
    answered = sure >= 0.5
    assert (answered & same).sum() / answered.sum() > 0.75
    assert (answered & same).sum() / same.sum() > 0.7
    for low in (0.2, 0.4, 0.6, 0.8):  # calibrated where the signals are independent, as they are here
        part = (sure >= low) & (sure < low + 0.2)
        if part.sum() > 300:
            assert abs(same[part].mean() - sure[part].mean()) < 0.12


def test_more_alike_never_speaks_less_for_a_match() -> None:
    features, _ = made_up(2_000, 0.1, 1)
    mixture = fit_mixture(features, NAMES, ("image", "words"))
    for name in ("image", "words"):
        assert (np.diff(mixture.odds[name]) >= -1e-12).all()
    assert mixture.odds["amounts_contradict"][0] >= mixture.odds["amounts_contradict"][1]


def test_an_absent_signal_says_nothing() -> None:
    features, _ = made_up(5_000, 0.2, 2)
    features[::3, 0] = np.nan
    mixture = fit_mixture(features, NAMES, ("image", "words"))
    pair = np.array([[np.nan, np.nan, 0], [np.nan, 0.9, 0], [0.95, 0.9, 0]], np.float32)
    none, words, both = mixture.probability(pair, NAMES)
    assert none < words < both


def test_it_is_the_same_after_writing_and_reading() -> None:
    features, _ = made_up(2_000, 0.1, 3)
    mixture = fit_mixture(features, NAMES, ("image", "words"))
    again = Mixture.from_json(mixture.to_json())
    assert again == mixture
    broken = mixture.to_json()
    broken["levels"]["image"]["odds"].pop()
    with pytest.raises(ValueError, match="levels do not fit"):
        Mixture.from_json(broken)


def test_few_pairs_are_refused_and_all_alike_are_no_trouble() -> None:
    features, _ = made_up(FEWEST - 1, 0.5, 4)
    with pytest.raises(DataError, match="49 pairs are too few"):
        fit_mixture(features, NAMES, ("image", "words"))
    same = np.ones((100, 3), np.float32)
    assert np.isfinite(fit_mixture(same, NAMES, ("image", "words")).probability(same, NAMES)).all()
