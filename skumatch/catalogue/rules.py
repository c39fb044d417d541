"""How features of a pair become one number, 0..1, and from where on two postings are one product.

    union      the best of the signals, each measured against its own threshold
    noisy-or   1 - (1 - a)(1 - b)(1 - c): independent witnesses (Pearl 1988, section 4.3.2)
    learned    a scorer fitted on labelled groups, whose number is a calibrated probability

A rule knows the names of the features that it needs and nothing about where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.catalogue.groups import Grouping
from skumatch.catalogue.neighbours import Scores
from skumatch.catalogue.scorer import PairScorer
from skumatch.errors import ConfigError, ModelError, SkumatchError

FORMAT: Final = 1
CONTRADICT: Final = "amounts_contradict"
UNLABELLED: Final = ("image", "text", "chars"), 0.6  # docs/catalogue.md tells how they were chosen
TODO: Final = "give a file that `skumatch dedupe-learn` wrote"
Values = NDArray[np.float32]  # (P, F)


class Judge(Protocol):
    """Turns features into a number per pair."""

    @property
    def kind(self) -> str:
        """What rule files call it."""
        ...

    def probability(self, features: Values, names: Sequence[str]) -> Scores:
        """Return float32 (P,) in 0..1 of ``features`` float32 (P, F), whose columns are called ``names``."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return what ``judge_from`` takes."""
        ...


@dataclass(frozen=True)
class Union:
    """The best signal decides: 0.5 at its threshold, 0 at score 0, 1 at score 1. ``veto``: 0 where amounts contradict.

    Raises ConfigError for no thresholds or ones outside 0..1.
    """

    thresholds: Mapping[str, float]
    veto: bool = False
    kind: str = field(default="union", init=False)

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 < value < 1 for value in self.thresholds.values()):
            raise ConfigError(f"thresholds {dict(self.thresholds)}", "give one between 0 and 1 for each signal")

    def probability(self, features: Values, names: Sequence[str]) -> Scores:
        """As Judge says. Where the only signals asked for are absent: 0."""
        best = np.zeros(len(features), np.float32)
        for name, threshold in self.thresholds.items():
            score = np.nan_to_num(_column(features, names, name), nan=0.0).clip(0, 1)
            below, above = score / (2 * threshold), 0.5 + (score - threshold) / (2 * (1 - threshold))
            best = np.maximum(best, np.where(score < threshold, below, above))
        return _vetoed(best, features, names, self.veto)

    def to_json(self) -> dict[str, Any]:
        """As Judge says."""
        return {"kind": self.kind, "thresholds": dict(self.thresholds), "veto": self.veto}


@dataclass(frozen=True)
class NoisyOr:
    """1 - the product of (1 - score) over the signals; absent ones count for nothing. ``veto`` as in Union.

    ``floors``: by signal, the score that means nothing, as random pairs have it: an encoder whose cosines all lie
    between 0.6 and 1 says as much as one that uses all of 0 to 1. Scores are measured from there to 1. Raises
    ConfigError for no signals or floors outside 0..1.
    """

    floors: Mapping[str, float]
    veto: bool = False
    kind: str = field(default="noisy-or", init=False)

    def __post_init__(self) -> None:
        if not self.floors or not all(0 <= value < 1 for value in self.floors.values()):
            raise ConfigError(f"floors {dict(self.floors)}", "give one from 0 to below 1 for each signal")

    def probability(self, features: Values, names: Sequence[str]) -> Scores:
        """As Judge says."""
        against = np.ones(len(features), np.float32)
        for name, floor in self.floors.items():
            score = np.nan_to_num(_column(features, names, name), nan=0.0)
            against *= 1 - ((score - floor) / (1 - floor)).clip(0, 1)
        return _vetoed(1 - against, features, names, self.veto)

    def to_json(self) -> dict[str, Any]:
        """As Judge says."""
        return {"kind": self.kind, "floors": dict(self.floors), "veto": self.veto}


@dataclass(frozen=True)
class Learned:
    """What ``scorer`` says, which was fitted on features of the same names."""

    scorer: PairScorer
    kind: str = field(default="learned", init=False)

    def probability(self, features: Values, names: Sequence[str]) -> Scores:
        """As Judge says. Raises ConfigError where the features are others than it was fitted on."""
        if tuple(names) != tuple(self.scorer.names):
            lack = ", ".join(name for name in self.scorer.names if name not in names)
            more = ", ".join(name for name in names if name not in self.scorer.names)
            what = f"the rule was learned from other signals (it lacks: {more or 'none'}; here lack: {lack or 'none'})"
            raise ConfigError(what, "give the models it was learned with, or learn it anew")
        return self.scorer.probability(features)

    def to_json(self) -> dict[str, Any]:
        """As Judge says."""
        return {"kind": self.kind, "scorer": self.scorer.to_json()}


@dataclass(frozen=True)
class Rule:
    """``judge`` and the ``threshold`` from which on a pair is a match; how to group; whether ``matches`` of a posting
    are its group (``closed``) or its pairs. ``signals``: what the features were made with; ``facts``: how it was found.
    """

    judge: Judge
    threshold: float
    grouping: Grouping = field(default_factory=Grouping)
    closed: bool = False
    signals: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the JSON that ``read_rule`` takes."""
        document = {
            "format": FORMAT,
            "judge": self.judge.to_json(),
            "threshold": self.threshold,
            "grouping": asdict(self.grouping),
            "closed": self.closed,
            "signals": dict(self.signals),
            "facts": dict(self.facts),
        }
        return (json.dumps(document, indent=1) + "\n").encode()


def unlabelled(floors: Mapping[str, float], grouping: Grouping) -> Rule:
    """Return the rule for catalogues without labels: noisy-or of picture and title, unless amounts contradict.

    ``floors``: of the signals there are. Its number is no probability. Raises ConfigError where none of its signals is
    there.
    """
    signals, threshold = UNLABELLED
    chosen = {name: floors[name] for name in signals if name in floors} or dict(floors)
    return Rule(NoisyOr(chosen, veto=True), threshold, grouping, closed=True)


def write_rule(path: Path, rule: Rule) -> None:
    """Write ``rule`` to ``path``, whole or not at all. Raises ArtefactError when the disk refuses."""
    artefact.write_file(path, rule.to_bytes())


def read_rule(path: Path) -> Rule:
    """Return what ``write_rule`` wrote. Raises ConfigError for a file that is missing or no rule."""
    try:
        found = json.loads(path.read_bytes())
        if found["format"] == FORMAT:
            return Rule(
                judge=judge_from(found["judge"]),
                threshold=float(found["threshold"]),
                grouping=Grouping(**found["grouping"]),
                closed=bool(found["closed"]),
                signals=dict(found["signals"]),
                facts=dict(found["facts"]),
            )
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})", TODO) from error
    except (ValueError, KeyError, TypeError, AttributeError, SkumatchError) as error:
        raise ConfigError(f"{path} is no rule ({error!s:.100})", TODO) from error
    raise ConfigError(f"{path} was written by another version", "learn the rule anew")


def judge_from(document: Mapping[str, Any]) -> Judge:
    """Return the judge that ``to_json`` described. Raises SkumatchError, KeyError, TypeError or ValueError."""
    kind = document["kind"]
    if kind == "union":
        return Union({str(k): float(v) for k, v in document["thresholds"].items()}, bool(document["veto"]))
    if kind == "noisy-or":
        return NoisyOr({str(k): float(v) for k, v in document["floors"].items()}, bool(document["veto"]))
    if kind == "learned":
        return Learned(PairScorer.from_json(document["scorer"]))
    raise ModelError(f"unknown kind of rule '{kind}'", "learn it anew")


def _column(features: Values, names: Sequence[str], name: str) -> NDArray[np.float32]:
    """Return one column. Raises ConfigError where there is none."""
    if name not in names:
        raise ConfigError(f"the rule needs the signal '{name}', which this catalogue lacks", "choose another rule")
    return features[:, list(names).index(name)]


def _vetoed(scores: Scores, features: Values, names: Sequence[str], veto: bool) -> Scores:
    return np.where(_column(features, names, CONTRADICT) > 0, np.float32(0), scores) if veto else scores
