"""What ``dedupe`` and ``dedupe-learn`` share: options, stages, and looking at a catalogue before it is judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import encoder_of, note, pipeline_of, progress_bar, workspace_or_none
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.catalogue.dedupe import Evidence, Looks
    from skumatch.catalogue.pictures import Failure, Pictures
    from skumatch.catalogue.postings import Catalogue
    from skumatch.catalogue.rules import Rule
    from skumatch.embed import Progress
    from skumatch.encoder import Encoder
    from skumatch.spec import Ids, Vectors
    from skumatch.towers.sentences import SentenceEncoder, TextSide

    TextEncoder = SentenceEncoder | TextSide

CatalogueFile = Annotated[Path, typer.Argument(metavar="CATALOGUE", help="CSV, TSV or Parquet of postings.")]
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
BlendOption = Annotated[
    int | None, typer.Option(min=0, max=5, help="Rounds of neighbourhood blending.", show_default="0")
]
NeighboursOption = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Per posting and signal.", show_default="50")
]
LargestOption = Annotated[int | None, typer.Option("--largest", min=2, help="Postings in a group.", show_default="50")]
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


def looks_of(rule: Rule | None, neighbours: int | None, blend: int | None, seed: int) -> Looks:
    """Return how neighbours are found: as asked, or as they were when ``rule`` was learned.

    Raises ConfigError where the rule does not say that, or where ``neighbours`` or ``blend`` were asked for and are
    others.
    """
    from skumatch.catalogue.dedupe import Looks
    from skumatch.errors import ConfigError

    asked: dict[str, Any] = {name: value for name, value in (("k", neighbours), ("blend", blend)) if value is not None}
    if rule is None:
        return Looks(**asked, seed=seed)
    try:
        looks = Looks(**rule.signals["looks"])
    except (KeyError, TypeError) as error:
        raise ConfigError("the rule does not say how its neighbours were found", "learn it anew") from error
    for name, value in asked.items():
        if value != getattr(looks, name):
            option = {"k": "--neighbours"}.get(name, f"--{name}")
            what = f"the rule was learned with {option} {getattr(looks, name)}, not {value}"
            raise ConfigError(what, "leave the option out, or learn the rule anew with it")
    return looks


def catalogue_of(path: Path, column: list[str] | None, images: Path | None) -> Catalogue:
    """Read a catalogue, and tell what is odd about it."""
    from skumatch.catalogue.postings import Columns, read_catalogue
    from skumatch.dataset import parse_filters

    found = read_catalogue(path, Columns.of(parse_filters(column or [], "--column")), images)
    for line in found.warnings:
        note(f"warning: {line}")
    return found


def labels_of(catalogue: Catalogue) -> Ids:
    """Return the labelled groups. Raises DataError where there are none."""
    from skumatch.errors import DataError

    if catalogue.groups is None:
        what = f"{catalogue.source} has no column label_group to compare with"
        raise DataError(what, "add it, or name it with --column group=NAME")
    return catalogue.groups


@dataclass(frozen=True)
class Gathered:
    """What is known of a catalogue before a rule judges it, the models it was made with, and unreadable pictures."""

    catalogue: Catalogue
    evidence: Evidence
    made_with: dict[str, Any]
    failures: tuple[Failure, ...]


def gathered_of(source: Source, looks: Looks, rule: Rule | None, stages: Stages) -> Gathered:
    """Look at pictures and titles, and find the candidate pairs."""
    from skumatch.catalogue.dedupe import evidence, signals_of

    catalogue = source.catalogue
    encoder, texts = _encoder(source), _text_encoder(source)
    made_with = _made_with(source, encoder, texts)
    if rule is not None:
        _require_same(made_with, rule.signals)
    pictures = _pictures(source, encoder, stages)
    said = None if texts is None else _texts(source, texts, stages)
    found = evidence(catalogue, signals_of(catalogue, pictures, said, looks, stages), looks, stages)
    stages.end()
    names = ", ".join(signal.name for signal in found.features.signals)
    note(f"{counted(len(found.pairs), 'candidate pair')} by {names}")
    return Gathered(catalogue, found, made_with, () if pictures is None else pictures.failures)


def _encoder(source: Source) -> Encoder | None:
    """Return what sees the pictures: the one that was asked for, else the workspace's, else none.

    Raises ConfigError where vectors made before were given too.
    """
    from skumatch.errors import ConfigError

    if source.vectors is not None and source.model is not None:
        raise ConfigError("--vectors and --model both say what the pictures look like", "leave one of them out")
    if source.vectors is not None or not any(source.catalogue.pictures):
        return None
    workspace = workspace_or_none()
    if source.model is None and workspace is None:
        note("no --model and no workspace: pictures are compared by their hashes alone")
        return None
    return encoder_of(workspace, source.model, source.device)


def _text_encoder(source: Source) -> TextEncoder | None:
    if source.text is None:
        return None
    from skumatch.towers.sentences import open_text_encoder

    return open_text_encoder(source.text, source.device or "auto")


def _made_with(source: Source, encoder: Encoder | None, texts: TextEncoder | None) -> dict[str, Any]:
    """Return the models by kind: what a rule that was learned with them asks for."""
    found: dict[str, Any] = {}
    if encoder is not None:
        found["image"] = {"name": encoder.spec.name, "digest": encoder.spec.digest}
    elif source.vectors is not None:
        found["image"] = {"name": "--vectors", "digest": ""}  # nothing tells which encoder made them
    if texts is not None:
        found["text"] = {"name": texts.name, "digest": texts.digest}
    return found


def _require_same(here: Mapping[str, Any], rule: Mapping[str, Any]) -> None:
    """Raise ConfigError where the rule was learned with other models."""
    from skumatch.errors import ConfigError

    for what in ("image", "text"):
        if here.get(what) != rule.get(what):
            name = (rule.get(what) or {}).get("name", "none")
            option = {"image": "--model", "text": "--text"}[what]
            raise ConfigError(f"the rule was learned with another {what} encoder ({name})", f"give it with {option}")


def _pictures(source: Source, encoder: Encoder | None, stages: Stages) -> Pictures | None:
    from skumatch.catalogue.pictures import look, with_vectors

    catalogue = source.catalogue
    if source.vectors is not None:
        return with_vectors(catalogue, source.vectors)
    count = sum(1 for name in catalogue.pictures if name)
    if not count:
        return None
    pictures = look(catalogue, encoder, pipeline_of(workspace_or_none()), source.work, stages("pictures", count))
    stages.end()
    for failure in pictures.failures[:5]:
        note(f"unreadable: {failure.why}")
    if pictures.failures:
        note(f"{counted(len(pictures.failures), 'picture')} could not be read: matched by the title alone")
    return pictures


def _texts(source: Source, encoder: TextEncoder, stages: Stages) -> Vectors:
    from skumatch import artefact
    from skumatch.catalogue.texts import embed_titles
    from skumatch.catalogue.titles import normalised

    titles = [normalised(title) for title in source.catalogue.titles]
    digest = artefact.file_digest(source.catalogue.source)
    return embed_titles(titles, digest, encoder, source.work, stages("titles", len(titles)))
