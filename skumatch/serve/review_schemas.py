"""What requests about reviews take and get."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, cast

from pydantic import Field

from skumatch.serve.reviews import Review
from skumatch.serve.schemas import VIEW_URL, GallerySaid, Said
from skumatch.serve.sku_schemas import Asked, SkuName, Text

Decision = Literal["accept", "review", "unknown"]
CropId = Annotated[str, Field(pattern="^[0-9a-f]{32}$", examples=["0" * 32])]
Session = Annotated[
    str, Field(pattern="^[0-9a-zA-Z_-]{8,64}$", description="Who looks: a word that a page makes up for itself.")
]


class CandidateSaid(Said):
    """A SKU that a crop may show."""

    sku: str
    title: str
    score: float
    view: int
    view_url: str


class ReviewSaid(Said):
    """A crop that waits for a verdict, or has one."""

    id: str
    time: str = Field(description="When it came, UTC.", examples=["2026-03-01T12:00:00Z"])
    name: str = Field(description="The file name that was sent with it.")
    decision: Decision
    probability: float | None
    candidates: list[CandidateSaid]
    model: str = Field(description="Digest of the model that answered.")
    gallery: str = Field(description="Version of the gallery that answered.")
    url: str = Field(description="Its picture.")
    claimed: bool = Field(description="Whether somebody looks at it now.")
    verdict: Literal["accept", "correct", "new", "reject"] | None
    sku: str | None
    who: str | None = Field(description="Name of the key that gave the verdict.")
    judged: str | None = Field(description="When, UTC.")
    enrolled: bool = Field(description="Whether it became a reference view.")


class ReviewsSaid(Said):
    """Crops: those that wait, oldest first, or those that were judged, the latest verdict first."""

    reviews: list[ReviewSaid]
    waiting: int = Field(description="How many wait in all.")
    next: int | None = Field(description="What `after` takes for the next page; null at the end.")


class ClaimedSaid(ReviewsSaid):
    """Crops that a session has for itself."""

    seconds: float = Field(description="For how long; asking again begins anew.")


class ClaimAsked(Asked):
    """Crops to look at."""

    session: Session
    limit: int = Field(default=10, ge=1, le=100)
    first: CropId | Literal[""] = Field(default="", description="Before all others, where nobody else has it.")
    without: list[CropId] = Field(default=[], max_length=1000, description="Not these; they are given back.")


class SessionAsked(Asked):
    """Whose crops to give back."""

    session: Session


class ReleasedSaid(Said):
    """How many crops wait for others now."""

    released: int


class VerdictAsked(Asked):
    """What a person says of a crop."""

    verdict: Literal["accept", "correct", "new", "reject"] = Field(
        description="accept: the best candidate is right; correct: it is `sku`; new: it is not in the gallery yet; "
        "reject: it shows no product."
    )
    sku: SkuName | Literal[""] = Field(default="", examples=["arla-milk-1l"])
    title: Text = Field(default="", description="Of a new SKU.")
    enrol: bool = Field(default=True, description="Whether the crop becomes a reference view of that SKU.")
    session: Session | Literal[""] = Field(default="", description="Who claimed it.")


class JudgedSaid(Said):
    """A verdict, or its undoing, and the version of the gallery that answers from now on."""

    review: ReviewSaid
    gallery: GallerySaid


class ShareSaid(Said):
    """A share with its 95 % interval; null where nothing was judged."""

    value: float | None
    low: float | None
    high: float | None
    count: int = Field(description="How many crops were judged.")


class DaySaid(Said):
    """One UTC day."""

    day: str = Field(examples=["2026-03-01"])
    answered: int
    accept: int
    review: int
    unknown: int
    score: list[float] | None = Field(description="10th, 50th and 90th percentile of the best scores.")
    judged: int = Field(description="How many of the crops that came on this day were judged.")
    right: int = Field(description="Of how many of these the best candidate was right.")
    drift: float | None = Field(
        description="Population stability index of the best scores against the days before: under 0.1 little, over "
        "0.25 much."
    )


class StatsSaid(Said):
    """Figures over time. Shares are of the crops that were judged, decision by decision; the accuracy weights them by
    how many answers each decision had, and is null while a decision that had answers has no verdicts."""

    days: list[DaySaid]
    accuracy: ShareSaid
    agreement: dict[Decision, ShareSaid] = Field(description="How often the best candidate was right.")
    waiting: int


def review_said(review: Review, now: float) -> ReviewSaid:
    """Return what is told of a crop."""
    facts = dict(review.facts)
    candidates = [CandidateSaid(**one, view_url=VIEW_URL.format(view=one["view"])) for one in facts.pop("candidates")]
    return ReviewSaid(
        id=review.id,
        time=_utc(review.kept),
        decision=cast(Decision, review.decision),
        candidates=candidates,
        url=f"/v1/review/{review.id}/image",
        claimed=review.verdict is None and review.until is not None and review.until >= now,
        verdict=review.verdict,
        sku=review.sku,
        who=review.who,
        judged=None if review.judged is None else _utc(review.judged),
        enrolled=review.state == "done",
        **facts,
    )


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
