"""The rungs of the ladder: reference systems and our own on one split of postings, each judged on its test groups.

A reference system scores all pairs by one similarity, and matches those from a threshold on that has the highest F1 on
the validation groups. Ours are what ``skumatch dedupe-learn`` and ``dedupe`` do, learned on the same validation groups.
The test groups are looked at once, at the threshold that validation chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from duplicates_postings import Splits
from numpy.typing import NDArray

from skumatch.catalogue import dedupe
from skumatch.catalogue.groups import Grouping
from skumatch.catalogue.judged import Judged, Matches, matches_of
from skumatch.catalogue.pictures import look
from skumatch.catalogue.postings import Catalogue, read_catalogue
from skumatch.catalogue.rules import Rule, unlabelled
from skumatch.catalogue.texts import embed_titles
from skumatch.catalogue.tfidf import CHARS, PRESENCE, WORDS, TextKind, inverse_frequency, tfidf
from skumatch.catalogue.titles import normalised
from skumatch.catalogue.word_vectors import averaged, read_glove
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.eval.duplicates import best_f1, score
from skumatch.finetune.autoencoder import AutoencoderHow, train_autoencoder
from skumatch.finetune.duplicates import Lesson, learn
from skumatch.finetune.references import small_pixels
from skumatch.spec import Vectors
from skumatch.towers.sentences import SentenceEncoder

NEAR = 50  # pairs per posting whose scores the thresholds are chosen among
STEPS = 40  # thresholds of each signal that the union tries
Square = NDArray[np.float32]  # (N, N) similarities in 0..1


@dataclass(frozen=True)
class Split:
    """The postings of one split with their groups, and what makes vectors of them."""

    catalogue: Catalogue
    work: Path

    @cached_property
    def titles(self) -> list[str]:
        """Return the titles as they are compared."""
        return [normalised(title) for title in self.catalogue.titles]

    @property
    def groups(self) -> NDArray[np.int64]:
        """Return the group of each posting."""
        if self.catalogue.groups is None:
            raise SystemExit("postings without groups")
        return self.catalogue.groups

    @cached_property
    def paths(self) -> list[Path]:
        """Return where the pictures lie."""
        return [self.catalogue.folder / name for name in self.catalogue.pictures]

    def pictures(self, name: str, encoder: Encoder) -> Any:
        """Return what ``encoder`` sees in the pictures."""
        return look(self.catalogue, encoder, Pipeline(), self.work / name)

    def texts(self, encoder: SentenceEncoder) -> Vectors:
        """Return the titles as vectors."""
        return embed_titles(self.titles, str(self.catalogue.source), encoder, self.work / "texts")


@dataclass(frozen=True)
class Data:
    """The three splits of one seed."""

    train: Split
    val: Split
    test: Split

    @staticmethod
    def of(splits: Splits, work: Path) -> Data:
        """Read the splits."""
        found = [read_catalogue(path, images=splits.images) for path in (splits.train, splits.val, splits.test)]
        return Data(*(Split(one, work / name) for one, name in zip(found, ("train", "val", "test"), strict=True)))


@dataclass(frozen=True)
class Rung:
    """F1, precision and recall of each test posting, and how the system was set: the validation F1 and ``chosen``."""

    f1: list[float]
    precision: list[float]
    recall: list[float]
    validation: float
    chosen: dict[str, Any]


def cosines(vectors: Vectors) -> Square:
    """Return the cosines of unit rows, those below 0 as 0."""
    return np.clip(vectors @ vectors.T, 0, 1).astype(np.float32)


def nearness(vectors: Vectors) -> Square:
    """Return 1 / (1 + Euclidean distance)."""
    squares = (vectors**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * vectors @ vectors.T, 0))
    return np.asarray(1 / (1 + distance), np.float32)


def sparse_cosines(titles: list[str], kind: TextKind) -> Square:
    """Return the cosines of weighted terms."""
    matrix = tfidf(titles, kind).matrix
    return np.asarray((matrix @ matrix.T).todense(), np.float32)


def pairs_of(square: Square) -> Judged:
    """Return the pairs that are among the nearest of either end."""
    count = len(square)
    near = np.zeros(square.shape, bool)
    best = np.argsort(-square - 2 * np.eye(count, dtype=np.float32), axis=1)[:, 1 : NEAR + 1]
    np.put_along_axis(near, best, True, axis=1)
    left, right = np.nonzero(np.triu(near | near.T, 1))
    return Judged(left.astype(np.int32), right.astype(np.int32), square[left, right])


def rung(matches: Matches, split: Split, validation: float, chosen: dict[str, Any]) -> Rung:
    """Compare ``matches`` with the test groups."""
    found = score(matches, split.groups)
    return Rung(found.f1.tolist(), found.precision.tolist(), found.recall.tolist(), validation, chosen)


def single(data: Data, similarity: Callable[[Split], Square], distance: str) -> Rung:
    """Return the rung of one similarity with the threshold that validation chose."""
    choice = best_f1(pairs_of(similarity(data.val)), data.val.groups)
    found = pairs_of(similarity(data.test)).above(choice.threshold)
    at = 1 / choice.threshold - 1 if distance == "Euclidean" else choice.threshold
    return rung(matches_of(len(data.test.groups), found), data.test, choice.f1, {"distance": distance, "threshold": at})


def union(data: Data, one: Callable[[Split], Square], other: Callable[[Split], Square]) -> Rung:
    """Return the rung of two similarities, either of which suffices; both thresholds chosen together."""
    val = one(data.val), other(data.val)
    grids = [np.quantile(square[np.triu_indices(len(square), 1)], np.linspace(0.8, 0.9999, STEPS)) for square in val]
    best = (-1.0, 0.0, 0.0)
    for a in grids[0]:
        for b in grids[1]:
            f1 = float(score(_either(val, (a, b)), data.val.groups).f1.mean())
            best = max(best, (f1, float(a), float(b)))
    found = _either((one(data.test), other(data.test)), best[1:])
    return rung(found, data.test, best[0], {"distance": "cosine, cosine", "threshold": best[1:]})


def _either(squares: tuple[Square, Square], thresholds: tuple[float, ...]) -> Matches:
    """Return the matches of pairs that reach one of two thresholds, the surest by how far they are above it."""
    above = [square - threshold for square, threshold in zip(squares, thresholds, strict=True)]
    left, right = np.nonzero(np.triu((above[0] >= 0) | (above[1] >= 0), 1))
    sure = np.clip(0.5 + np.maximum(above[0], above[1])[left, right] / 2, 0, 1)
    return matches_of(len(squares[0]), Judged(left.astype(np.int32), right.astype(np.int32), sure))


def autoencoder(data: Data, quick: bool) -> Callable[[Split], Square]:
    """Train the autoencoder on the training pictures; return its similarity."""
    how = AutoencoderHow(epochs=2 if quick else 20)
    model = train_autoencoder(small_pixels(data.train.paths, how.size), how)
    return lambda split: nearness(model.encode(small_pixels(split.paths, how.size)))


def word_vectors(data: Data, glove: Path, weighted: bool) -> Callable[[Split], Square]:
    """Return the similarity of averaged word vectors, weighted by inverse frequency or plain."""
    titles = [title for split in (data.train, data.val, data.test) for title in split.titles]
    vectors = read_glove(glove, {word for title in titles for word in title.split()})
    idf = inverse_frequency(titles) if weighted else None
    return lambda split: cosines(averaged(split.titles, vectors, idf))


def text_rungs(data: Data, encoder: SentenceEncoder | None, glove: Path | None) -> dict[str, Callable[[Split], Square]]:
    """Return the similarities of titles."""
    found: dict[str, Callable[[Split], Square]] = {
        "IDF-weighted words": lambda split: sparse_cosines(split.titles, PRESENCE),
        "TF-IDF words": lambda split: sparse_cosines(split.titles, WORDS),
        "TF-IDF characters": lambda split: sparse_cosines(split.titles, CHARS),
    }
    if glove is not None:
        found["GloVe, mean"] = word_vectors(data, glove, weighted=False)
        found["GloVe, IDF-weighted mean"] = word_vectors(data, glove, weighted=True)
    if encoder is not None:
        found["sentence encoder"] = lambda split: cosines(split.texts(encoder))
    return found


def ours(data: Data, name: str, encoder: Encoder, text: SentenceEncoder | None) -> dict[str, Callable[[], Rung]]:
    """Return our own systems over the pictures as ``encoder`` sees them, and the titles."""

    def evidence(split: Split, looks: dedupe.Looks) -> dedupe.Evidence:
        texts = split.texts(text) if text is not None else None
        signals = dedupe.signals_of(split.catalogue, split.pictures(name, encoder), texts, looks)
        return dedupe.evidence(split.catalogue, signals, looks)

    def learned(lesson: Lesson, looks: dedupe.Looks) -> Rung:
        rule = learn(evidence(data.val, looks), data.val.groups, lesson)
        return judged(rule, looks, rule.facts["out_of_fold"][lesson.kind]["f1"])

    def judged(rule: Rule, looks: dedupe.Looks, validation: float) -> Rung:
        test = evidence(data.test, looks)
        found = dedupe.outcome(test.count, dedupe.judge(test, rule), rule)
        chosen = {"distance": rule.judge.kind, "threshold": rule.threshold, "closed": rule.closed}
        return rung(found.matches, data.test, validation, chosen)

    def without_labels() -> Rung:
        looks = dedupe.Looks()
        rules = unlabelled(evidence(data.val, looks).floors, Grouping())
        val = evidence(data.val, looks)
        f1 = float(score(dedupe.outcome(val.count, dedupe.judge(val, rules), rules).matches, data.val.groups).f1.mean())
        return judged(unlabelled(evidence(data.test, looks).floors, Grouping()), looks, f1)

    plain, blended = dedupe.Looks(), dedupe.Looks(blend=1)
    return {
        "ours, no labels": without_labels,
        "ours, union": lambda: learned(Lesson("union"), plain),
        "ours, noisy-or": lambda: learned(Lesson("noisy-or"), plain),
        "ours, logistic": lambda: learned(Lesson("logistic"), plain),
        "ours, boosting": lambda: learned(Lesson("boosting"), plain),
        "ours, logistic, blended": lambda: learned(Lesson("logistic"), blended),
        "ours, boosting, blended": lambda: learned(Lesson("boosting"), blended),
    }


def as_json(found: Rung) -> Mapping[str, Any]:
    """Return a rung as JSON-ready values."""
    return {name: getattr(found, name) for name in ("f1", "precision", "recall", "validation", "chosen")}
