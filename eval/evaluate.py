"""One evaluation: which protocols the data allows, one pass of the encoder over all pictures, all figures.

Knows the order of things; how a protocol is made, searched and summed up stands in the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skumatch.calibration import Calibration
from skumatch.dataset import Dataset, Row
from skumatch.errors import ConfigError, DataError, nearest
from skumatch.eval import presets, unknowns
from skumatch.eval.calibrate import case_of
from skumatch.eval.pool import Pool
from skumatch.eval.protocol import Protocol, catalogue, closed, held_out, k_shot, shots_for, without_copies
from skumatch.eval.reliability import brier, ece, reliability
from skumatch.eval.report import detail, summary
from skumatch.eval.retrieval import Answers, retrieve
from skumatch.eval.trial import Trial
from skumatch.spec import Spec
from skumatch.techniques import NEAREST, Technique

NAMES = ("closed", "k-shot", "held-out", "catalogue", "open-set")
DEEPEST = 10  # distinct SKUs that every query is answered with at least: what the MRR looks at
LISTED = 100


@dataclass(frozen=True)
class Plan:
    """What will be measured. ``main``: the headline's trial, without the ``leaks`` (query, gallery view);
    ``protocols``: further lines; ``open_set``: groups per draw; ``skipped``: a line per protocol that cannot be."""

    dataset: Dataset
    main: Trial
    leaks: tuple[tuple[Row, str], ...]
    protocols: tuple[Protocol, ...] = ()
    open_set: tuple[unknowns.Groups, ...] = ()
    open_note: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """A row per picture that is needed."""
        rows = [*self.main.gallery, *self.main.queries, *(row for one in self.protocols for row in one.rows)]
        if self.open_set:
            rows += self.dataset.rows
        return list({row.path: row for row in rows}.values())

    def without(self, leaked: Collection[Path]) -> Plan:
        """Return the plan without the queries ``leaked`` in any protocol; one that is left without queries is skipped.

        Raises DataError when no query remains at all.
        """
        if not leaked:
            return self

        def left(trial: Trial) -> tuple[Row, ...]:
            return tuple(row for row in trial.queries if row.path not in leaked)

        if not left(self.main):
            raise DataError(f"all {len(self.main.queries)} queries are leaks: none remains", "see leaks.html")
        kept = tuple(
            replace(one, trials=tuple(replace(trial, queries=left(trial)) for trial in one.trials))
            for one in self.protocols
            if all(left(trial) for trial in one.trials)
        )
        names = {one.name for one in kept}
        gone = (f"{one.name}: all its queries are leaks" for one in self.protocols if one.name not in names)
        rows = [row for row in self.dataset.rows if row.path not in leaked]
        dataset, main = self.dataset.with_rows(rows), replace(self.main, queries=left(self.main))
        return replace(self, dataset=dataset, main=main, protocols=kept, skipped=(*self.skipped, *gone))


@dataclass(frozen=True)
class Question:
    """What is asked: the queries' ``split``, protocol ``names``, a ``preset`` instead of the data's own split, the
    false accept rate of the open set, the seed of everything drawn, and the search ``technique``."""

    split: str = "test"
    names: tuple[str, ...] = NAMES
    preset: str | None = None
    target_far: float = 0.01
    seed: int = 0
    technique: Technique = NEAREST

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                near = nearest(name, list(NAMES), 1)
                raise ConfigError(
                    f"unknown protocol '{name}'", f"did you mean {near}?" if near else f"choose {', '.join(NAMES)}"
                )
        if not 0 < self.target_far < 1:
            raise ConfigError(f"target false accept rate {self.target_far} is out of range", "choose 0.001 to 0.5")


def plan(dataset: Dataset, question: Question, held: Collection[str] = (), trained: Collection[str] = ()) -> Plan:
    """Return what can be measured of ``question``.

    ``held`` and ``trained``: SKUs that the model was kept from and trained on (both empty: untouched encoder).
    Raises ConfigError or DataError when the headline itself cannot be measured.
    """
    if question.preset is not None:
        trial = presets.preset(question.preset, dataset, question.seed)
    else:
        trial = closed(dataset, question.split)
    main, leaks = without_copies(trial)
    copies = {(row.path, row.split) for row, _ in leaks}
    dataset = dataset.with_rows([row for row in dataset.rows if (row.path, row.split) not in copies])
    protocols: list[Protocol] = []
    skipped: list[str] = []
    makers: dict[str, Callable[[], list[Protocol]]] = {
        "k-shot": lambda: [k_shot(main, views, seed=question.seed) for views in shots_for(main)],
        "held-out": lambda: _held(main, held, trained),
        "catalogue": lambda: [_clean(catalogue(dataset, main))],
    }
    for name in dict.fromkeys(question.names):
        if name not in makers:
            continue
        try:
            if main.leave_one_out:
                raise DataError(f"preset {main.name} sets every picture against all others", "leave the protocol out")
            protocols += makers[name]()
        except DataError as error:
            skipped.append(f"{name}: {error.what}")
    groups, note = _open_groups(dataset, question, held, trained, skipped)
    return Plan(dataset, main, leaks, tuple(protocols), groups, note, tuple(skipped))


def _held(trial: Trial, held: Collection[str], trained: Collection[str]) -> list[Protocol]:
    if not held:
        why = "every SKU was trained on (train with --hold-out)" if trained else "the encoder is untouched"
        raise DataError(why, "train with --hold-out")
    return held_out(trial, held)


def _clean(found: Protocol) -> Protocol:
    return replace(found, trials=tuple(without_copies(trial)[0] for trial in found.trials))


def _open_groups(
    dataset: Dataset, question: Question, held: Collection[str], trained: Collection[str], skipped: list[str]
) -> tuple[tuple[unknowns.Groups, ...], str]:
    if "open-set" not in question.names:
        return (), ""
    if question.preset is not None:
        skipped.append("open-set: a preset says nothing about unknown SKUs")
        return (), ""
    flatters = bool(trained) and not set(held) & set(dataset.skus)
    note = "the encoder was trained on the SKUs that play the unknown ones: this flatters" if flatters else ""
    try:
        shown = {row.sku for row in dataset.split(question.split)} & {
            row.sku for row in dataset.split(dataset.gallery_split)
        }
        found = tuple(unknowns.groups(sorted(shown), held, question.seed + number) for number in range(unknowns.DRAWS))
    except DataError as error:
        skipped.append(f"open-set: {error.what}")
        return (), ""
    return found, note


@dataclass(frozen=True)
class Evaluation:
    """Figures of one encoder (JSON-ready) and the headline's answers."""

    document: dict[str, Any]
    answers: Answers


def evaluate(what: Plan, question: Question, pool: Pool, spec: Spec, topk: int = 5) -> Evaluation:
    """Measure the plan on the vectors in ``pool``, made by the encoder with ``spec``. Raises DataError."""
    k = max(DEEPEST, topk)
    answers = _answer(pool, what.main, k, question.technique)
    document = {
        "model": spec.name,
        "layer": spec.layer,
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
        **summary([answers], topk),
        "leaks": len(what.leaks),
        "leaked_queries": [[str(row.path), view] for row, view in what.leaks[:LISTED]],
        "unreadable": len(pool.problems),
        "unreadable_files": list(pool.problems[:LISTED]),
        **detail(answers),
        "protocols": list(_protocols(what, question, answers, pool, topk)),
        "skipped": list(what.skipped),
    }
    if what.open_set:
        document.update(_open_set(what, question, pool, spec.digest))
    return Evaluation(document, answers)


def _answer(pool: Pool, trial: Trial, k: int, technique: Technique) -> Answers:
    return retrieve(pool.views(trial.gallery), pool.queries(trial.queries), k, technique)


def _protocols(what: Plan, question: Question, answers: Answers, pool: Pool, topk: int) -> Iterator[dict[str, Any]]:
    main = what.main
    title = "all SKUs, all views" if main.name == "closed" else main.name
    yield {"name": main.name, "title": title, **summary([answers], topk), "note": main.note}
    k = answers.nearest.skus.shape[1]
    for one in what.protocols:
        draws = [_answer(pool, trial, k, question.technique) for trial in one.trials]
        yield {
            "name": one.name,
            "title": one.title,
            "draws": len(draws),
            **summary(draws, topk),
            "note": one.note or one.trials[0].note,
        }


def _open_set(what: Plan, question: Question, pool: Pool, digest: str) -> dict[str, Any]:
    """Return {"open_set": figures}, or nothing but a line in "skipped" where there are too few crops to fit on."""
    gallery, fitting = unknowns.splits_of(what.dataset, question.split)
    how = unknowns.Setting(gallery, fitting, question.split, question.target_far, digest, question.technique)
    views, asked = pool.views(what.dataset.rows), pool.queries(what.dataset.rows)
    try:
        draws = [unknowns.draw(views, asked, how, found) for found in what.open_set]
    except DataError as error:
        return {"skipped": [*what.skipped, f"open-set: {error.what}"]}
    return {"open_set": unknowns.summary(draws, question.target_far, what.open_note)}


def judged(rule: Calibration, answers: Answers) -> dict[str, Any]:
    """Return how a model's own calibration does on the headline's queries: decisions, accuracy and reliability."""
    case = case_of(answers, rule.typical)[0]
    probability = rule.probability(case.evidence)
    said = np.array([rule.decide(float(p)) for p in probability])
    accepted = said == "accept"
    return {
        **{name: float((said == name).mean()) for name in ("accept", "review", "unknown")},
        "accuracy_accepted": float(case.right[accepted].mean()) if accepted.any() else None,
        "ece": ece(probability, case.right),
        "brier": brier(probability, case.right),
        "bins": [vars(one) for one in reliability(probability, case.right)],
        "target_far": rule.facts.get("target_far"),
        "note": "crops of known products only; the rule assumes that "
        f"{100 * float(rule.facts.get('unknown_share', 0)):.0f} % of the crops show unknown ones",
    }
