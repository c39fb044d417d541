"""``skumatch dedupe``, ``dedupe-learn`` and ``dedupe-apply``: postings of the same product in a catalogue."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import Device, ModelOption, encoder_of, note, pipeline_of, progress_bar, workspace_or_none
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.catalogue.dedupe import Evidence, Found, Looks
    from skumatch.catalogue.pictures import Pictures
    from skumatch.catalogue.postings import Catalogue
    from skumatch.catalogue.rules import Rule
    from skumatch.embed import Progress
    from skumatch.spec import Vectors

WORK = ".work"
CatalogueFile = Annotated[Path, typer.Argument(metavar="CATALOGUE", help="CSV, TSV or Parquet of postings.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]
ImagesOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the pictures.", show_default="the catalogue's")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="KIND=NAME", help="What posting, image, title, phash, group are called."),
]
TextOption = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Encoder of titles: sentences:DIR|REPO, or a model with a text tower."),
]
VectorsOption = Annotated[
    Path | None, typer.Option(metavar="FILE.npy", help="Vectors of the pictures, made before: one row per posting.")
]
BlendOption = Annotated[int, typer.Option(min=0, max=5, help="Rounds of neighbourhood blending.")]
NeighboursOption = Annotated[int, typer.Option(min=1, max=1000, help="Per posting and signal.")]
LargestOption = Annotated[int, typer.Option("--largest", min=2, help="Postings in a group.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]


@dataclass(frozen=True)
class Source:
    """Where a catalogue lies, and what makes vectors of it."""

    catalogue: Catalogue
    model: str | None
    text: str | None
    vectors: Path | None
    device: str | None
    work: Path


class Stages:
    """Shows a bar for each stage in turn, and tells how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = ExitStack()
        self._what = ""

    def __call__(self, what: str, total: int | None) -> Progress:
        """End the stage before and begin one of ``total`` steps; None: not known, and no bar."""
        self.end()
        self._what, self._begun = what, time.perf_counter()
        if total is None:
            return lambda done: None
        return self._bar.enter_context(progress_bar(what, total))

    def end(self) -> None:
        """End the stage."""
        self._bar.close()
        if self._what:
            self.seconds[self._what] = self.seconds.get(self._what, 0.0) + time.perf_counter() - self._begun
        self._what = ""

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


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
    neighbours: NeighboursOption = 50,
    blend: BlendOption = 0,
    largest: LargestOption = 50,
    seed: SeedOption = 0,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON on stdout.")] = False,
) -> None:
    """Find postings of the same product by picture and title, group them, and say how sure that is."""
    from skumatch.catalogue.dedupe import Looks
    from skumatch.catalogue.rules import read_rule

    known = read_rule(rule) if rule is not None else None
    with Stages() as stages:
        stages("reading", None)
        source = Source(_catalogue(catalogue, column, images), model, text, vectors, device, out / WORK)
        _require_labels(source.catalogue, measure)
        looks = Looks(neighbours, blend, seed=seed) if known is None else looks_of(known)
        evidence, made_with = _evidence(source, looks, known, stages)
        chosen = known or _unlabelled(evidence, largest)
        found = _write(evidence, chosen, source, out, stages)
    facts = {**made_with, **_facts(source.catalogue, found, chosen), "seconds": stages.seconds}
    if measure:
        facts["eval"] = _measured(source.catalogue, found, seed)
    _finish(out, facts, html, source.catalogue)
    if as_json:
        typer.echo(json.dumps(facts))


def dedupe_learn(
    catalogue: CatalogueFile,
    rule: Annotated[Path, typer.Argument(metavar="RULE.json", help="Where to write the rule.")],
    images: ImagesOption = None,
    column: ColumnOption = None,
    model: ModelOption = None,
    text: TextOption = None,
    vectors: VectorsOption = None,
    kind: Annotated[str, typer.Option(help="learned, union, noisy-or, or best of them.")] = "learned",
    precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the matches, to keep to.", show_default="the best F1")
    ] = None,
    neighbours: NeighboursOption = 50,
    blend: BlendOption = 0,
    largest: LargestOption = 50,
    seed: SeedOption = 0,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON on stdout.")] = False,
) -> None:
    """Learn from labelled groups what a match is, for catalogues like these."""
    from skumatch.catalogue.dedupe import Looks
    from skumatch.catalogue.groups import Grouping
    from skumatch.catalogue.rules import write_rule
    from skumatch.finetune.duplicates import Lesson, learn

    source = Source(_catalogue(catalogue, column, images), model, text, vectors, device, rule.with_suffix(".work"))
    groups = _require_labels(source.catalogue, True)
    lesson = Lesson(kind, grouping=Grouping(most=largest), precision=precision, seed=seed)
    looks = Looks(neighbours, blend, seed=seed)
    with Stages() as stages:
        evidence, made_with = _evidence(source, looks, None, stages)
    note(f"learning from {counted(len(evidence.pairs), 'pair')}")
    learned = replace(learn(evidence, groups, lesson), signals={**made_with, "looks": asdict(looks)})
    write_rule(rule, learned)
    for name, one in learned.facts["out_of_fold"].items():
        said = ", ".join(f"{what} {one[what]:.3f}" for what in ("f1", "precision", "recall"))
        note(f"{name}: {said} on groups it had not seen, from {one['threshold']:.3f} on")
    note(f"wrote {rule}")
    if as_json:
        typer.echo(json.dumps(dict(learned.facts)))


def dedupe_apply(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="What `skumatch dedupe --out` wrote.")],
    decisions: Annotated[Path, typer.Argument(metavar="FILE", help="Decisions that the review page exported.")],
    to: Annotated[Path, typer.Option(help="Folder of the reviewed matches.csv and groups.csv.")] = Path("reviewed"),
) -> None:
    """Apply what people decided on groups: accepted, split and merged ones."""
    from skumatch.catalogue.reviewed import apply_to

    groups, changed = apply_to(out, decisions, to)
    note(f"{counted(changed, 'decision')} applied: {counted(groups, 'group')} in {to}")


def looks_of(rule: Rule) -> Looks:
    """Return how the neighbours were found from which ``rule`` was learned. Raises ConfigError."""
    from skumatch.catalogue.dedupe import Looks
    from skumatch.errors import ConfigError

    try:
        return Looks(**rule.signals["looks"])
    except (KeyError, TypeError) as error:
        raise ConfigError("the rule does not say how its neighbours were found", "learn it anew") from error


def _catalogue(path: Path, column: list[str] | None, images: Path | None) -> Catalogue:
    from skumatch.catalogue.postings import Columns, read_catalogue
    from skumatch.dataset import parse_filters

    found = read_catalogue(path, Columns.of(parse_filters(column or [], "--column")), images)
    for line in found.warnings:
        note(f"warning: {line}")
    return found


def _require_labels(catalogue: Catalogue, wanted: bool) -> Any:
    from skumatch.errors import DataError

    if wanted and catalogue.groups is None:
        what = f"{catalogue.source} has no column label_group to compare with"
        raise DataError(what, "add it, or name it with --column group=NAME")
    return catalogue.groups


def _evidence(source: Source, looks: Looks, rule: Rule | None, stages: Stages) -> tuple[Evidence, dict[str, Any]]:
    """Return what is known of the catalogue before a rule judges it, and the models it was made with."""
    from skumatch.catalogue.dedupe import evidence, signals_of

    made_with: dict[str, Any] = {}
    pictures = _pictures(source, made_with, stages)
    texts = _texts(source, made_with, stages)
    if rule is not None:
        _require_same(made_with, rule.signals)
    signals = signals_of(source.catalogue, pictures, texts, looks, stages)
    found = evidence(source.catalogue, signals, looks, stages)
    stages.end()
    names = ", ".join(signal.name for signal in found.features.signals)
    note(f"{counted(len(found.pairs), 'candidate pair')} by {names}")
    return found, made_with


def _require_same(here: Mapping[str, Any], rule: Mapping[str, Any]) -> None:
    """Raise ConfigError where the rule was learned with other models."""
    from skumatch.errors import ConfigError

    for what in ("image", "text"):
        if here.get(what) != rule.get(what):
            name = (rule.get(what) or {}).get("name", "none")
            option = {"image": "--model", "text": "--text"}[what]
            raise ConfigError(f"the rule was learned with another {what} encoder ({name})", f"give it with {option}")


def _pictures(source: Source, made_with: dict[str, Any], stages: Stages) -> Pictures | None:
    from skumatch.catalogue.pictures import look
    from skumatch.catalogue.pictures import with_vectors as given

    catalogue = source.catalogue
    if source.vectors is not None:
        pictures = given(catalogue, source.vectors)
        made_with["image"] = {"name": source.vectors.name, "digest": f"{pictures.vectors.shape[1]} numbers"}  # type: ignore[union-attr]
        return pictures
    count = sum(1 for name in catalogue.pictures if name)
    if not count:
        return None
    workspace = workspace_or_none()
    encoder = None
    if source.model is not None or workspace is not None:
        encoder = encoder_of(workspace, source.model, source.device)
        made_with["image"] = {"name": encoder.spec.name, "digest": encoder.spec.digest}
    else:
        note("no --model and no workspace: pictures are compared by their hashes alone")
    pictures = look(catalogue, encoder, pipeline_of(workspace), source.work, stages("pictures", count))
    stages.end()
    for failure in pictures.failures[:5]:
        note(f"unreadable: {failure.why}")
    if pictures.failures:
        note(f"{counted(len(pictures.failures), 'picture')} could not be read: matched by the title alone")
    return pictures


def _texts(source: Source, made_with: dict[str, Any], stages: Stages) -> Vectors | None:
    if source.text is None:
        return None
    from skumatch import artefact
    from skumatch.catalogue.texts import embed_titles
    from skumatch.catalogue.titles import normalised
    from skumatch.towers.sentences import open_text_encoder

    encoder = open_text_encoder(source.text)
    made_with["text"] = {"name": source.text.rpartition("/")[2], "digest": encoder.digest}
    titles = [normalised(title) for title in source.catalogue.titles]
    digest = artefact.file_digest(source.catalogue.source)
    return embed_titles(titles, digest, encoder, source.work, stages("titles", len(titles)))


def _unlabelled(evidence: Evidence, largest: int) -> Rule:
    from skumatch.catalogue.groups import Grouping
    from skumatch.catalogue.rules import unlabelled

    note("no --rule: scores are no probabilities; `skumatch dedupe-learn` learns them from some labelled groups")
    return unlabelled(evidence.floors, Grouping(most=largest))


def _write(evidence: Evidence, rule: Rule, source: Source, out: Path, stages: Stages) -> Found:
    """Judge the pairs and write everything but the facts."""
    from skumatch.catalogue import output
    from skumatch.catalogue.dedupe import judge, outcome

    ids, features = source.catalogue.ids, evidence.features
    signals = [signal.name for signal in features.signals]
    table = output.PairTable(out / output.PAIRS, ids, features.names, signals)
    with table:
        judged = judge(evidence, rule, table, progress=stages("judging pairs", len(evidence.pairs)))
    stages("grouping", None)
    found = outcome(evidence, judged, rule)
    stages("writing", None)
    output.write_matches(out / output.MATCHES, ids, found.matches)
    output.write_groups(out / output.GROUPS, source.catalogue, found.groups, judged)
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


def _measured(catalogue: Catalogue, found: Found, seed: int) -> dict[str, Any]:
    from skumatch.eval.duplicates import figures

    measured = figures(found.matches, catalogue.groups, seed)  # type: ignore[arg-type]
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
