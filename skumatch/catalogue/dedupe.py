"""Finding duplicate postings: signals -> neighbours -> candidate pairs -> probabilities -> matches and groups.

Candidates are scored block by block, so memory grows with postings and not with what is known of their pairs. It knows
nothing about files but the table of pairs that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.amounts import amounts
from skumatch.catalogue.blend import blended
from skumatch.catalogue.features import BLOCK, Features, Pairs, candidates
from skumatch.catalogue.groups import groups_of
from skumatch.catalogue.judged import Judged, Matches, matches_of, matches_of_groups
from skumatch.catalogue.mixture import SAMPLE, fit_mixture
from skumatch.catalogue.neighbours import Neighbours
from skumatch.catalogue.pictures import Pictures
from skumatch.catalogue.postings import Catalogue
from skumatch.catalogue.rules import Rule
from skumatch.catalogue.signals import HashSignal, Signal, TextSignal, VectorSignal
from skumatch.catalogue.tfidf import CHARS, WORDS, tfidf
from skumatch.catalogue.titles import normalised
from skumatch.embed import Progress, no_progress
from skumatch.errors import ConfigError, DataError
from skumatch.spec import Ids, Vectors

RANDOM: Final = 100_000  # pairs that tell which cosines mean nothing
MEANS_NOTHING: Final = 0.999  # quantile of those
KEEP: Final = 0.01  # pairs of less probability are not kept

Watch = Callable[[str, int], Progress]  # told what begins and how many steps it has


def unwatched(what: str, total: int) -> Progress:
    """Show nothing."""
    return no_progress


@dataclass(frozen=True)
class Looks:
    """How neighbours are found: ``k`` per posting and signal; ``blend`` rounds of neighbourhood blending of each vector
    signal, which then counts as one more signal; ``joint``: picture and title as one vector, one more signal. ``seed``
    of approximate indexes. Raises ConfigError for values out of range."""

    k: int = 50
    blend: int = 0
    joint: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.k <= 1000 and 0 <= self.blend <= 5):
            raise ConfigError(f"k {self.k} or blend {self.blend} is out of range", "give 1 to 1000 and 0 to 5")


@dataclass(frozen=True)
class Evidence:
    """Everything about a catalogue before a rule judges it: ``features`` of the candidate ``pairs`` among ``count``
    postings."""

    count: int
    features: Features
    pairs: Pairs


@dataclass(frozen=True)
class Found:
    """``judged`` pairs, the ``groups`` int64 (N,) of postings, and the ``matches`` of each."""

    judged: Judged
    groups: Ids
    matches: Matches


class Sink(Protocol):
    """Takes judged pairs with their features, block by block, in order."""

    def __call__(self, pairs: Pairs, probability: NDArray[np.float32], features: NDArray[np.float32], /) -> None:
        """Take one block."""
        ...


def no_sink(pairs: Pairs, probability: NDArray[np.float32], features: NDArray[np.float32]) -> None:
    """Keep nothing."""


def signals_of(
    catalogue: Catalogue,
    pictures: Pictures | None,
    texts: Vectors | None,
    looks: Looks,
    watch: Watch = unwatched,
) -> list[Signal]:
    """Return the signals that a catalogue has: vectors of pictures and of titles (``texts`` float32 (N, D), zeros for
    empty titles), where they are given; words and character n-grams; hashes. Raises DataError where nothing is left.
    """
    plain = _normalised(catalogue.titles, watch)
    found: list[Signal] = []
    if pictures is not None and pictures.vectors is not None and pictures.present.any():
        found.append(vector_signal("image", pictures.vectors, pictures.present, looks.seed))
    if texts is not None:
        found.append(vector_signal("text", texts, np.abs(texts).sum(axis=1) > 0, looks.seed))
    if any(plain):
        for kind in (WORDS, CHARS):
            found.append(TextSignal(kind.name, tfidf(plain, kind, watch(f"weighing {kind.name}", len(plain)))))
    if pictures is not None and pictures.hashed.any():
        found.append(HashSignal(pictures.hashes, pictures.hashed))
    if not found:
        raise DataError("no posting has a readable picture or a title", "check the folder of the pictures (--images)")
    return found


def vector_signal(name: str, vectors: Vectors, present: NDArray[np.bool_], seed: int = 0) -> VectorSignal:
    """Return the signal of unit rows ``vectors``; neighbours reach what 999 of 1,000 random pairs do not."""
    there = np.flatnonzero(present)
    if len(there) < 2:
        return VectorSignal(name, vectors, present, 0.0, seed)
    rng = np.random.default_rng(seed)
    left, right = rng.choice(there, RANDOM), rng.choice(there, RANDOM)
    apart = left != right
    scores = VectorSignal(name, vectors, present).scores(np.sort(left[apart]), right[apart])
    return VectorSignal(name, vectors, present, max(0.0, float(np.quantile(scores, MEANS_NOTHING))), seed)


def evidence(catalogue: Catalogue, signals: Sequence[Signal], looks: Looks, watch: Watch = unwatched) -> Evidence:
    """Find the neighbours of each posting by each signal, and the candidate pairs. Raises DataError for one posting."""
    count = len(catalogue)
    if count < 2:
        raise DataError("the catalogue has one posting", "give at least two: there is nothing to compare it with")
    every, near = [], []
    for signal in _with_joint(signals, looks):
        for one, found in _looked(signal, looks, watch):
            every.append(one)
            near.append(found)
    plain = _normalised(catalogue.titles, unwatched)
    words = np.array([len(text.split()) for text in plain], np.int64)
    return Evidence(count, Features(every, near, amounts(plain), words), candidates(near))


def judge(
    found: Evidence, rule: Rule, sink: Sink = no_sink, keep: float = KEEP, progress: Progress = no_progress
) -> Judged:
    """Return the candidates whose probability by ``rule`` is at least ``keep``; ``sink`` gets them with their features.

    Raises ConfigError where the rule needs other signals.
    """
    parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
    for pairs, values in features_of(found):
        sure = rule.judge.probability(values, found.features.names)
        kept = sure >= keep
        sink(Pairs(pairs.left[kept], pairs.right[kept]), sure[kept], values[kept])
        parts.append((pairs.left[kept].astype(np.int32), pairs.right[kept].astype(np.int32), sure[kept]))
        progress(len(pairs))
    return Judged(*(_joined([part[at] for part in parts], kind) for at, kind in enumerate("iif")))


def features_of(found: Evidence, size: int = BLOCK) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Yield the candidates block by block with their features, float32 (M, F)."""
    for pairs in found.pairs.blocks(size):
        yield pairs, found.features.of(pairs)


def outcome(found: Evidence, judged: Judged, rule: Rule) -> Found:
    """Return the groups and the matches that the ``judged`` pairs make by ``rule``."""
    groups = groups_of(found.count, judged, rule.threshold, rule.grouping)
    if rule.closed:
        return Found(judged, groups, matches_of_groups(groups, judged))
    return Found(judged, groups, matches_of(found.count, judged.above(rule.threshold)))


def _normalised(titles: Iterable[str], watch: Watch) -> list[str]:
    return [normalised(title) for title in titles]


def _with_joint(signals: Sequence[Signal], looks: Looks) -> list[Signal]:
    """Add the signal that is picture and title in one."""
    vectors = {signal.name: signal for signal in signals if isinstance(signal, VectorSignal)}
    if not (looks.joint and {"image", "text"} <= set(vectors)):
        return list(signals)
    image, text = vectors["image"], vectors["text"]
    rows = np.concatenate([image.vectors, text.vectors], axis=1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return [*signals, vector_signal("joint", rows, image.present | text.present, looks.seed)]


def _looked(signal: Signal, looks: Looks, watch: Watch) -> Iterator[tuple[Signal, Neighbours]]:
    """Yield a signal with the neighbours it finds and, where it is to be blended, the blended one with its own."""
    near = signal.nearest(looks.k, watch(f"neighbours by {signal.name}", int(signal.present.sum())))
    yield signal, near
    if not (looks.blend and isinstance(signal, VectorSignal)):
        return
    for turn in range(looks.blend):
        rows = blended(signal, near, _upper(near)).vectors
        signal = vector_signal(f"{signal.name.removesuffix('_blended')}_blended", rows, signal.present, looks.seed)
        near = signal.nearest(looks.k, watch(f"blending {signal.name}, {turn + 1}", int(signal.present.sum())))
    yield signal, near


def _upper(near: Neighbours) -> float:
    """Return the score above which a neighbour is blended: what half of the nearest reach."""
    best = near.scores[near.places[:, 0] >= 0, 0]
    return float(np.median(best)) if len(best) else 1.0


def _joined(parts: Sequence[NDArray[np.generic]], kind: str) -> NDArray[np.generic]:
    return np.concatenate([np.empty(0, {"i": np.int32, "f": np.float32}[kind]), *parts])


def unlabelled_rule(found: Evidence, seed: int = 0) -> Rule:
    """Return a rule found on the catalogue itself, without labels: a mixture, and a match from probability 0.5 on.

    Raises DataError for fewer than 50 candidate pairs.
    """
    features = found.features
    chosen = sampled(found.pairs, SAMPLE, seed)
    values = np.concatenate(
        [np.empty((0, len(features.names)), np.float32), *(features.of(p) for p in chosen.blocks())]
    )
    names = [signal.name for signal in features.signals]
    return Rule(fit_mixture(values, features.names, names, seed), 0.5, facts={"pairs": len(chosen)})


def sampled(pairs: Pairs, most: int, seed: int) -> Pairs:
    """Return at most ``most`` of ``pairs``, drawn with ``seed``, in their order."""
    if len(pairs) <= most:
        return pairs
    chosen = np.sort(np.random.default_rng(seed).choice(len(pairs), most, replace=False))
    return Pairs(pairs.left[chosen], pairs.right[chosen])
