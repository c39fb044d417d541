"""Why a crop got an answer: the reference view that won, how alike the SKU's views are, which other SKU is near.

Tells what the gallery and the calibration know of an answer that was given; it does not look at the crop again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from skumatch.calibration import NOTHING, Calibration, Decision
from skumatch.errors import GalleryError
from skumatch.gallery_seam import AnyGallery
from skumatch.words import counted

if TYPE_CHECKING:
    from skumatch.match import Match

DIGITS = (2, 4, 7, 17)  # decimals to try until a probability and a threshold read differently


@dataclass(frozen=True)
class Rival:
    """The other SKU with the view most like the one that won: ``sku``, ``title`` ("" if none), ``cosine`` -1..1."""

    sku: str
    title: str
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """Why an answer was given.

    ``sku``, ``title``, ``score``, ``rank``, ``decision`` and ``probability`` are those of the Match, as are ``view``,
    the id of the reference view that won, and ``source``, where it came from. ``facts``: all that is known of the SKU,
    by column. ``picture``: the view's JPEG thumbnail, b"" where it has none. ``views``: how many the SKU has.
    ``cohesion``: mean cosine of its views to the nearest sister, -1..1, None for a single view. ``rival``: None where
    there is no other SKU. ``thresholds``: probabilities from which on an answer is accepted and below which the crop
    shows no known SKU, None without a calibration. ``words``: all that in sentences.
    """

    sku: str
    title: str
    facts: dict[str, str]
    score: float
    rank: int
    view: int
    source: str
    picture: bytes
    views: int
    cohesion: float | None
    rival: Rival | None
    thresholds: tuple[float, float] | None
    probability: float | None
    decision: Decision
    words: str

    def __str__(self) -> str:
        return self.words


def explain(gallery: AnyGallery, calibration: Calibration | None, match: Match) -> Explanation:
    """Explain an answer that ``gallery`` gave, under the ``calibration`` that decided.

    Raises GalleryError when the view is not there any more, or is another SKU's.
    """
    row = gallery.view(match.view)
    if row.sku != match.sku:
        what = f"view {match.view} of gallery {gallery.store} shows '{row.sku}', not '{match.sku}'"
        raise GalleryError(what, "explain an answer with the gallery that gave it")
    alike, views = gallery.cohesion(gallery.code_of(match.sku))
    bare = Explanation(
        sku=match.sku,
        title=match.title,
        facts=gallery.facts.of(match.sku),
        score=match.score,
        rank=match.rank,
        view=match.view,
        source=match.source,
        picture=gallery.thumb(match.view),
        views=views,
        cohesion=None if math.isnan(alike) else alike,
        rival=_rival(gallery, match),
        thresholds=None if calibration is None else (calibration.accept, calibration.unknown),
        probability=match.probability,
        decision=match.decision,
        words="",
    )
    return replace(bare, words=_words(bare))


def _rival(gallery: AnyGallery, match: Match) -> Rival | None:
    """Return the other SKU with the view most like the one that won."""
    found = gallery.search(gallery.vectors_of(np.array([match.view], np.int64)), 2)
    for score, code in zip(found.scores[0].tolist(), found.skus[0].tolist(), strict=True):
        if code >= 0 and gallery.skus[code] != match.sku:
            return Rival(str(gallery.skus[code]), gallery.title(code), float(score))
    return None


def _words(told: Explanation) -> str:
    which = "the only view of it" if told.views == 1 else f"one of {counted(told.views, 'view')} of it"
    if told.cohesion is not None:
        which += f", whose cosine to the nearest sister is {told.cohesion:.2f} on average"
    first = f"{told.sku} scores {told.score:.2f} by view {told.view} ({told.source}), {which}."
    second = "The gallery has no other SKU."
    if told.rival is not None:
        second = f"The other SKU most like this view is {told.rival.sku} (cosine {told.rival.cosine:.2f})."
    return f"{first} {second} {_decided(told)}"


def _decided(told: Explanation) -> str:
    """Say why the decision is what it is."""
    if told.thresholds is None:
        return "There is no calibration, so every answer is for review."
    if told.probability is None:
        return f"This is answer {told.rank}; the decision, {told.decision}, is about the best one."
    accept, unknown = told.thresholds
    if told.decision == "accept":
        return "It is accepted: probability {} is at least {}.".format(*_apart(told.probability, accept))
    if told.decision == "unknown":
        return "The crop shows no known SKU: probability {} is below {}.".format(*_apart(told.probability, unknown))
    if accept >= NOTHING:
        return f"It is for review: the calibration accepts no probability, not even {told.probability:.2f}."
    return "It is for review: probability {} is below {}, which acceptance needs.".format(
        *_apart(told.probability, accept)
    )


def _apart(one: float, other: float) -> tuple[str, str]:
    """Write two numbers with as many decimals as tell them apart."""
    texts = [(f"{one:.{digits}f}", f"{other:.{digits}f}") for digits in DIGITS]
    return next((pair for pair in texts if one == other or pair[0] != pair[1]), texts[-1])
