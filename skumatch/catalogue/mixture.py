"""Judging pairs without labels: two kinds are assumed, matches and others, and told apart by what they have in common.

The model of record linkage: each signal falls into a level, and a level is more frequent among matches (m) than among
the others (u) or less so; the kinds are found by expectation maximisation (Fellegi and Sunter 1969, "A Theory for
Record Linkage"; Winkler 1988 for the estimation). Signals are taken as independent within a kind, which they are not
quite: the probability is surer of itself than it should be. Knows nothing about signals but their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.neighbours import Scores
from skumatch.errors import DataError

CUTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)  # quantiles between levels
ROUNDS: Final = 100
STILL: Final = 1e-6  # change of the prior that ends the rounds
FEWEST: Final = 50  # pairs
SAMPLE: Final = 400_000
SMOOTH: Final = 1.0  # pairs added to each level of each kind
CONTRADICT: Final = "amounts_contradict"


@dataclass(frozen=True)
class Mixture:
    """``edges`` between the levels of each signal, ascending; ``odds``: log of m / u per level, ``prior`` the share of
    matches among candidates. Levels with larger scores never speak less for a match."""

    edges: Mapping[str, tuple[float, ...]]
    odds: Mapping[str, tuple[float, ...]]
    prior: float
    kind: str = field(default="mixture", init=False)

    def probability(self, features: NDArray[np.float32], names: Sequence[str]) -> Scores:
        """Return float32 (P,) in 0..1; an absent signal says nothing. Raises KeyError for a signal not in ``names``."""
        total = np.full(len(features), np.log(self.prior / (1 - self.prior)))
        for name, edges in self.edges.items():
            column = features[:, list(names).index(name)]
            total += np.append(np.array(self.odds[name]), 0.0)[_level(column, np.array(edges))]
        return (1 / (1 + np.exp(-total.clip(-30, 30)))).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes."""
        levels = {name: {"edges": list(self.edges[name]), "odds": list(self.odds[name])} for name in self.edges}
        return {"kind": self.kind, "prior": self.prior, "levels": levels}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Mixture:
        """Return the mixture that ``to_json`` described. Raises KeyError, TypeError or ValueError."""
        levels = document["levels"]
        edges = {str(name): tuple(map(float, one["edges"])) for name, one in levels.items()}
        odds = {str(name): tuple(map(float, one["odds"])) for name, one in levels.items()}
        prior = float(document["prior"])
        if not 0 < prior < 1 or any(len(odds[name]) != len(edges[name]) + 1 for name in edges):
            raise ValueError("its levels do not fit")
        return Mixture(edges, odds, prior)


def fit_mixture(features: NDArray[np.float32], names: Sequence[str], signals: Sequence[str], seed: int = 0) -> Mixture:
    """Find the two kinds among candidate pairs: ``features`` float32 (P, F) with columns ``names``, NaN where absent.

    Uses the columns ``signals`` and "amounts_contradict"; begins with the pairs for which the mean rank over the signals is in
    the upper tenth as matches. A level may not speak less for a match than a lower one (for amounts: not more).
    Raises DataError for fewer than 50 pairs.
    """
    if len(features) < FEWEST:
        raise DataError(f"{len(features)} pairs are too few to find out what matches look like", "give --rule")
    if len(features) > SAMPLE:
        features = features[np.sort(np.random.default_rng(seed).choice(len(features), SAMPLE, replace=False))]
    columns = {name: features[:, list(names).index(name)] for name in (*signals, CONTRADICT)}
    edges = {name: _edges(name, column) for name, column in columns.items()}
    levels = {name: _level(column, edges[name]) for name, column in columns.items()}
    match = _first_guess([columns[name] for name in signals])
    prior = float(match.mean())
    for _ in range(ROUNDS):
        odds = {name: _odds(name, levels[name], len(edges[name]) + 1, match) for name in columns}
        total = np.log(prior / (1 - prior)) + sum(np.append(odds[name], 0.0)[levels[name]] for name in columns)
        match = 1 / (1 + np.exp(-total.clip(-30, 30)))
        before, prior = prior, float(match.mean().clip(1e-6, 1 - 1e-6))
        if abs(prior - before) < STILL:
            break
    return Mixture(
        {name: tuple(map(float, edges[name])) for name in columns},
        {name: tuple(map(float, odds[name])) for name in columns},
        prior,
    )


def _edges(name: str, column: NDArray[np.float32]) -> NDArray[np.float64]:
    if name == CONTRADICT:
        return np.array([0.5])
    there = column[~np.isnan(column)]
    return np.unique(np.quantile(there, CUTS)) if len(there) else np.array([0.5])


def _level(column: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the level of each score, int64 (P,); one more than the highest for NaN."""
    return np.where(np.isnan(column), len(edges) + 1, np.searchsorted(edges, column, side="right"))


def _first_guess(columns: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    ranks = [np.argsort(np.argsort(np.nan_to_num(column, nan=-1.0))) for column in columns]
    mean = np.mean(ranks, axis=0)
    return np.where(mean >= np.quantile(mean, 0.9), 0.9, 0.1)


def _odds(name: str, levels: NDArray[np.int64], count: int, match: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(m / u) of each level, non-decreasing (for amounts non-increasing), by pooling adjacent ones."""
    from scipy.optimize import isotonic_regression

    m = np.bincount(levels, match, minlength=count + 1)[:count] + SMOOTH
    u = np.bincount(levels, 1 - match, minlength=count + 1)[:count] + SMOOTH
    weight = m + u
    order = slice(None, None, -1 if name == CONTRADICT else 1)
    share = np.asarray(isotonic_regression((m / weight)[order], weights=weight[order]).x)[order]
    return np.log(share / (1 - share)) - np.log(m.sum() / u.sum())
