"""``skumatch dedupe-learn``: what a match is, from labelled groups."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from skumatch.cli.common import Device, ModelOption, note
from skumatch.cli.dedupe_look import (
    BlendOption,
    CatalogueFile,
    ColumnOption,
    ImagesOption,
    LargestOption,
    NeighboursOption,
    SeedOption,
    Source,
    Stages,
    TextOption,
    VectorsOption,
    catalogue_of,
    gathered_of,
    labels_of,
    looks_of,
)
from skumatch.words import counted


def dedupe_learn(
    catalogue: CatalogueFile,
    rule: Annotated[Path, typer.Argument(metavar="RULE.json", help="Where to write the rule.")],
    images: ImagesOption = None,
    column: ColumnOption = None,
    model: ModelOption = None,
    text: TextOption = None,
    vectors: VectorsOption = None,
    kind: Annotated[str, typer.Option(help="logistic, boosting, union, noisy-or, or the best of them.")] = "best",
    precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the matches, to keep to.", show_default="the best F1")
    ] = None,
    neighbours: NeighboursOption = None,
    blend: BlendOption = None,
    largest: LargestOption = None,
    seed: SeedOption = 0,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON on stdout.")] = False,
) -> None:
    """Learn from labelled groups what a match is, for catalogues like these."""
    from skumatch.catalogue.groups import Grouping
    from skumatch.catalogue.rules import write_rule
    from skumatch.errors import ConfigError
    from skumatch.finetune.duplicates import Lesson, learn

    if rule.is_dir():
        raise ConfigError(f"{rule} is a folder", "give the file to write the rule to")
    source = Source(catalogue_of(catalogue, column, images), model, text, vectors, device, rule.with_suffix(".work"))
    groups = labels_of(source.catalogue)
    grouping = Grouping() if largest is None else Grouping(most=largest)
    lesson = Lesson(kind, grouping=grouping, precision=precision, seed=seed)
    looks = looks_of(None, neighbours, blend, seed)
    with Stages() as stages:
        gathered = gathered_of(source, looks, None, stages)
    note(f"learning from {counted(len(gathered.evidence.pairs), 'pair')}")
    rules = learn(gathered.evidence, groups, lesson)
    learned = replace(rules, signals={**gathered.made_with, "looks": asdict(looks)})
    write_rule(rule, learned)
    for name, one in learned.facts["out_of_fold"].items():
        said = ", ".join(f"{what} {one[what]:.3f}" for what in ("f1", "precision", "recall"))
        note(f"{name}: {said} on groups it had not seen, from {one['threshold']:.3f} on")
    note(f"wrote {rule}")
    if as_json:
        typer.echo(json.dumps(dict(learned.facts)))
