"""Finding duplicate postings: signals -> neighbours -> candidate pairs -> probabilities -> matches and groups.

Candidates are scored block by block, so memory grows with postings and not with what is known of their pairs. It knows
nothing about files but the table of pairs that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.amounts import amounts
from skumatch.catalogue.blend import blended
from skumatch.catalogue.features import BLOCK, Features, Pairs, Surroundings
from skumatch.catalogue.groups import groups_of
from skumatch.catalogue.judged import Judged, Matches, matches_of, matches_of_groups
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
HALF_NORMAL: Final = 0.6745  # the median distance from the middle of a normal distribution, in standard deviations
KEEP: Final = 0.05  # pairs of less probability are not kept

Watch = Callable[[str, int | None], Progress]  # told what begins and how many steps it has, where that is known


def unwatched(what: str, total: int | None) -> Progress:
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

    @property
    def floors(self) -> dict[str, float]:
        """The score of each signal that means nothing."""
        return {signal.name: max(0.0, signal.middle) for signal in self.features.signals}


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
    watch("normalising titles", None)
    plain = [normalised(title) for title in catalogue.titles]
    found: list[Signal] = []
    if pictures is not None and pictures.vectors is not None and pictures.present.any():
        found.append(vector_signal("image", pictures.vectors, pictures.present, looks))
    if texts is not None:
        found.append(vector_signal("text", texts, np.abs(texts).sum(axis=1) > 0, looks))
    if any(plain):
        for kind in (WORDS, CHARS):
            found.append(TextSignal(kind.name, tfidf(plain, kind, watch(f"weighing {kind.name}", len(plain)))))
    if pictures is not None and pictures.hashed.any():
        found.append(HashSignal(pictures.hashes, pictures.hashed))
    if not found:
        raise DataError("no posting has a readable picture or a title", "check the folder of the pictures (--images)")
    return found


def vector_signal(name: str, vectors: Vectors, present: NDArray[np.bool_], looks: Looks) -> VectorSignal:
    """Return the signal of unit rows ``vectors``; neighbours reach a cosine that ``looks.k`` postings reach by chance.

    Chance is what random pairs have: a normal distribution around their median, as wide as their median distance from
    it says. The few random pairs that are of one product do not move either.
    """
    seed = looks.seed
    there = np.flatnonzero(present)
    if len(there) < 2:
        return VectorSignal(name, vectors, present, seed=seed)
    rng = np.random.default_rng(seed)
    left, right = rng.choice(there, RANDOM), rng.choice(there, RANDOM)
    apart = left != right
    scores = VectorSignal(name, vectors, present).scores(np.sort(left[apart]), right[apart])
    middle = float(np.median(scores))
    spread = float(np.median(np.abs(scores - middle))) / HALF_NORMAL
    by_chance = NormalDist().inv_cdf(1 - min(0.5, looks.k / len(there)))
    floor = min(max(0.0, middle + by_chance * spread), 0.99)
    return VectorSignal(name, vectors, present, floor, min(max(0.0, middle), 0.99), seed)


def evidence(catalogue: Catalogue, signals: Sequence[Signal], looks: Looks, watch: Watch = unwatched) -> Evidence:
    """Find the neighbours of each posting by each signal, and the candidate pairs. Raises DataError for one posting."""
    count = len(catalogue)
    if count < 2:
        raise DataError("the catalogue has one posting", "give at least two: there is nothing to compare it with")
    every, around, pairs = [], [], []
    for signal in _with_joint(signals, looks):
        for one, near in _looked(signal, looks, watch):
            every.append(one)
            around.append(Surroundings.of(near))
            pairs.append(Pairs.of(count, *near.pairs()))
    watch("amounts in titles", None)
    plain = [normalised(title) for title in catalogue.titles]
    words = np.array([len(text.split()) for text in plain], np.int64)
    said = amounts(plain)
    watch("candidate pairs", None)
    return Evidence(count, Features(every, around, said, words), Pairs.together(count, pairs))


def judge(
    found: Evidence, rule: Rule, sink: Sink = no_sink, keep: float = KEEP, progress: Progress = no_progress
) -> Judged:
    """Return the candidates whose probability by ``rule`` is at least ``keep``; ``sink`` gets them with their features.

    Raises ConfigError where the rule needs other signals.
    """
    parts = [Judged(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))]
    for pairs, values in features_of(found):
        sure = rule.judge.probability(values, found.features.names)
        kept = sure >= keep
        some = pairs.take(kept)
        sink(some, sure[kept], values[kept])
        parts.append(Judged(some.left.astype(np.int32), some.right.astype(np.int32), sure[kept]))
        progress(len(pairs))
    return Judged(
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.probability for part in parts]),
    )


def features_of(found: Evidence, size: int = BLOCK) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Yield the candidates block by block with their features, float32 (M, F)."""
    for pairs in found.pairs.blocks(size):
        yield pairs, found.features.of(pairs)


def outcome(count: int, judged: Judged, rule: Rule) -> Found:
    """Return the groups and the matches that the ``judged`` pairs of ``count`` postings make by ``rule``."""
    groups = groups_of(count, judged, rule.threshold, rule.grouping)
    if rule.closed:
        return Found(judged, groups, matches_of_groups(groups, judged))
    return Found(judged, groups, matches_of(count, judged.above(rule.threshold)))


def _with_joint(signals: Sequence[Signal], looks: Looks) -> list[Signal]:
    """Add the signal that is picture and title in one."""
    vectors = {signal.name: signal for signal in signals if isinstance(signal, VectorSignal)}
    if not (looks.joint and {"image", "text"} <= set(vectors)):
        return list(signals)
    image, text = vectors["image"], vectors["text"]
    rows = np.concatenate([image.vectors, text.vectors], axis=1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return [*signals, vector_signal("joint", rows, image.present | text.present, looks)]


def _looked(signal: Signal, looks: Looks, watch: Watch) -> Iterator[tuple[Signal, Neighbours]]:
    """Yield a signal with the neighbours it finds and, where it is to be blended, the blended one with its own."""
    near = signal.nearest(looks.k, watch(f"neighbours by {signal.name}", int(signal.present.sum())))
    yield signal, near
    if not (looks.blend and isinstance(signal, VectorSignal)):
        return
    for turn in range(looks.blend):
        rows = blended(signal, near, _upper(near)).vectors
        signal = vector_signal(f"{signal.name.removesuffix('_blended')}_blended", rows, signal.present, looks)
        near = signal.nearest(looks.k, watch(f"blending {signal.name}, {turn + 1}", int(signal.present.sum())))
    yield signal, near


def _upper(near: Neighbours) -> float:
    """Return the score above which a neighbour is blended: what half of the nearest reach."""
    best = near.scores[near.places[:, 0] >= 0, 0]
    return float(np.median(best)) if len(best) else 1.0
