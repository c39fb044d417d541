"""``skumatch dedupe`` and ``dedupe-apply``: postings of the same product in a catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import Device, ModelOption, note
from skumatch.cli.dedupe_look import (
    BlendOption,
    CatalogueFile,
    ColumnOption,
    Gathered,
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

if TYPE_CHECKING:
    from skumatch.catalogue.dedupe import Evidence, Found
    from skumatch.catalogue.judged import Judged
    from skumatch.catalogue.pictures import Failure
    from skumatch.catalogue.postings import Catalogue
    from skumatch.catalogue.rules import Rule
    from skumatch.spec import Ids

WORK = ".work"
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]


def dedupe(
    catalogue: CatalogueFile,
    out: OutOption = Path("dedupe"),
    images: ImagesOption = None,
    column: ColumnOption = None,
    model: ModelOption = None,
    text: TextOption = None,
    vectors: VectorsOption = None,
    rule: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A rule of dedupe-learn.", show_default="one that needs no labels"),
    ] = None,
    measure: Annotated[bool, typer.Option("--eval", help="Compare the matches with the labelled groups.")] = False,
    html: Annotated[Path | None, typer.Option(help="Page of the groups, the least sure first.")] = None,
    neighbours: NeighboursOption = None,
    blend: BlendOption = None,
    largest: LargestOption = None,
    seed: SeedOption = 0,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON on stdout.")] = False,
) -> None:
    """Find postings of the same product by picture and title, group them, and say how sure that is."""
    from skumatch import artefact
    from skumatch.catalogue.rules import read_rule

    known = read_rule(rule) if rule is not None else None
    looks = looks_of(known, neighbours, blend, seed)
    with artefact.disk_errors(out):  # before the long work, not after it
        out.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        stages("reading", None)
        source = Source(catalogue_of(catalogue, column, images), model, text, vectors, device, out / WORK)
        labels = labels_of(source.catalogue) if measure else None
        verdict = _verdict(gathered_of(source, looks, known, stages), known, largest, out, stages)
        found = _write(verdict, source.catalogue, out, stages)
    facts = {**verdict.made_with, **_facts(source.catalogue, found, verdict.rule), "seconds": stages.seconds}
    if labels is not None:
        facts["eval"] = _measured(found, labels, seed)
    _finish(out, facts, html, source.catalogue)
    if as_json:
        typer.echo(json.dumps(facts))


def dedupe_apply(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="What `skumatch dedupe --out` wrote.")],
    decisions: Annotated[Path, typer.Argument(metavar="FILE", help="Decisions that the review page exported.")],
    to: Annotated[Path, typer.Option(help="Folder of the reviewed matches.csv and groups.csv.")] = Path("reviewed"),
) -> None:
    """Apply what people decided on groups: accepted, split and merged ones."""
    from skumatch.catalogue.reviewed import apply_to

    groups, changed = apply_to(out, decisions, to)
    note(f"{counted(changed, 'decision')} applied: {counted(groups, 'group')} in {to}")


@dataclass(frozen=True)
class Verdict:
    """The ``judged`` pairs and the ``rule`` they were judged by; the evidence is not needed, and not held, any more."""

    judged: Judged
    rule: Rule
    made_with: dict[str, Any]
    failures: tuple[Failure, ...]


def _verdict(gathered: Gathered, known: Rule | None, largest: int | None, out: Path, stages: Stages) -> Verdict:
    """Judge the pairs, and write them."""
    from skumatch.catalogue.dedupe import judge
    from skumatch.catalogue.output import PAIRS, PairTable

    evidence = gathered.evidence
    rule, features = known or _unlabelled(evidence), evidence.features
    if largest is not None:
        rule = replace(rule, grouping=replace(rule.grouping, most=largest))
    names = [signal.name for signal in features.signals]
    with PairTable(out / PAIRS, gathered.catalogue.ids, features.names, names) as table:
        judged = judge(evidence, rule, table, progress=stages("judging pairs", len(evidence.pairs)))
    return Verdict(judged, rule, gathered.made_with, gathered.failures)


def _unlabelled(evidence: Evidence) -> Rule:
    from skumatch.catalogue.groups import Grouping
    from skumatch.catalogue.rules import unlabelled

    note("no --rule: scores are no probabilities; `skumatch dedupe-learn` learns them from some labelled groups")
    return unlabelled(evidence.floors, Grouping())


def _write(verdict: Verdict, catalogue: Catalogue, out: Path, stages: Stages) -> Found:
    """Group the postings, and write matches, groups and errors."""
    from skumatch.catalogue import output
    from skumatch.catalogue.dedupe import outcome

    stages("grouping", None)
    found = outcome(len(catalogue), verdict.judged, verdict.rule)
    stages("writing", None)
    output.write_matches(out / output.MATCHES, catalogue.ids, found.matches)
    output.write_groups(out / output.GROUPS, catalogue, found.groups, verdict.judged)
    output.write_errors(out / output.ERRORS, catalogue, verdict.failures)
    return found


def _facts(catalogue: Catalogue, found: Found, rule: Rule) -> dict[str, Any]:
    import numpy as np

    from skumatch import artefact

    sizes = np.bincount(found.groups)
    return {
        "catalogue": str(catalogue.source),
        "digest": artefact.file_digest(catalogue.source),
        "postings": len(catalogue),
        "pairs": len(found.judged),
        "groups": int((sizes > 1).sum()),
        "grouped": int(sizes[sizes > 1].sum()),
        "largest": int(sizes.max()),
        "rule": {"kind": rule.judge.kind, "threshold": rule.threshold, "closed": rule.closed, **asdict(rule.grouping)},
        "warnings": list(catalogue.warnings),
    }


def _measured(found: Found, labels: Ids, seed: int) -> dict[str, Any]:
    from skumatch.eval.duplicates import figures

    measured = figures(found.matches, labels, seed)
    for name, one in measured.items():
        note(f"{name}: {one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})")
    return measured


def _finish(out: Path, facts: Mapping[str, Any], html: Path | None, catalogue: Catalogue) -> None:
    from skumatch.catalogue import output

    output.write_facts(out / output.FACTS, facts)
    said = f"{facts['grouped']:,} of {counted(facts['postings'], 'posting')} in {counted(facts['groups'], 'group')}"
    note(f"{said}, the largest of {facts['largest']:,}; wrote {out}")
    if html is not None:
        from skumatch.catalogue.page import write_page

        write_page(out, html, catalogue)
        note(f"wrote {html}")
