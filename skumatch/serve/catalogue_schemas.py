"""What requests about groups of duplicates take and get."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field

from skumatch.catalogue.cards import Reason
from skumatch.serve.catalogue_store import Group, Kind, Posting, Taken
from skumatch.serve.schemas import Said
from skumatch.serve.sku_schemas import LAST, Asked

PICTURE_URL = "/v1/catalogue/image?posting={posting}"
GroupName = Annotated[str, Field(min_length=1, max_length=1000, examples=["g000001"])]
PostingId = Annotated[str, Field(min_length=1, max_length=1000, examples=["train_129225211"])]
DecisionId = Annotated[str, Field(pattern="^[0-9a-f]{32}$", examples=["0" * 32])]


class GroupSaid(Said):
    """A group of postings of one product."""

    group: str = Field(examples=["g000001"])
    version: int = Field(description="Of its last change; a decision names the one that the person saw.")
    size: int
    confidence: float = Field(description="Of the posting that is least sure to belong to it, 0 to 1.")
    decided: Kind | None = Field(description="What a person decided that made it as it is; null: it waits.")
    who: str | None = Field(description="Name of the key that decided.")
    at: str | None = Field(description="When, UTC.", examples=["2026-03-01T12:00:00Z"])


class GroupsSaid(Said):
    """Groups: those that wait, the least sure first, or those that were decided, the latest first."""

    groups: list[GroupSaid]
    waiting: int = Field(description="How many wait in all.")
    next: int | None = Field(description="What `after` takes for the next page; null at the end.")


class PostingSaid(Said):
    """A posting of a group."""

    posting: str
    title: str
    confidence: float = Field(description="That it belongs to the group, 0 to 1.")
    url: str | None = Field(description="Its picture; null where it names none.")


class WordSaid(Said):
    """What scores say in words."""

    text: str = Field(examples=["amounts contradict"])
    speaks_for: bool


class ReasonSaid(Said):
    """A pair of postings, and what speaks for and against it."""

    left: str
    right: str
    probability: float
    scores: dict[str, float] = Field(description="Of the signals that know both postings.")
    says: list[WordSaid]


class SuggestionSaid(GroupSaid):
    """Another group that may be the same product, and the pair that says so most."""

    reason: ReasonSaid


class OneGroupSaid(GroupSaid):
    """A group with all that a person needs to decide."""

    postings: list[PostingSaid] = Field(description="The surest first.")
    reasons: list[ReasonSaid] = Field(description="The three most probable pairs, and the least.")
    suggestions: list[SuggestionSaid] = Field(description="What it may be merged with, the most probable first.")


class Seen(Asked):
    """A group as the person saw it."""

    group: GroupName
    version: int = Field(ge=0, le=LAST)


class DecisionAsked(Asked):
    """What a person decides."""

    decision: Kind = Field(
        description="accept: the group is one product; split: it is several, `parts`; merge: all `groups` are one."
    )
    groups: list[Seen] = Field(min_length=1, max_length=100, description="The first gives its name to what is made.")
    parts: list[Annotated[list[PostingId], Field(min_length=1)]] = Field(
        default=[], description="Of a split: each posting in one of them; the first keeps the group's name."
    )
    id: DecisionId | Literal[""] = Field(
        default="", description="A word of the client's own: asked again with it, the decision is taken once."
    )


class DecisionSaid(Said):
    """A decision that was taken."""

    id: str
    decision: Kind
    groups: list[str] = Field(description="Which it was about.")
    parts: list[list[str]]
    who: str
    at: str
    withdrawn: bool = Field(description="Whether it was undone.")


class DecisionsSaid(Said):
    """Decisions, the latest first."""

    decisions: list[DecisionSaid]


class GroupStatsSaid(Said):
    """How far the review is."""

    groups: int = Field(description="Of two postings and more, as decided so far.")
    waiting: int
    accept: int = Field(description="Decisions that stand.")
    split: int
    merge: int


def group_said(group: Group) -> GroupSaid:
    """Return what is told of a group."""
    return GroupSaid(**_facts(group))


def one_group_said(
    group: Group, postings: list[Posting], reasons: list[Reason], suggested: list[tuple[Group, Reason]]
) -> OneGroupSaid:
    """Return all that is told of a group."""
    return OneGroupSaid(
        **_facts(group),
        postings=[_posting_said(one) for one in postings],
        reasons=[_reason_said(one) for one in reasons],
        suggestions=[SuggestionSaid(**_facts(other), reason=_reason_said(why)) for other, why in suggested],
    )


def decision_said(taken: Taken) -> DecisionSaid:
    """Return what is told of a decision."""
    one = taken.decision
    if one.decision == "undo":
        raise ValueError("an undo is told by what it withdraws")
    parts = [list(part) for part in one.parts]
    return DecisionSaid(
        id=one.id,
        decision=one.decision,
        groups=list(one.groups),
        parts=parts,
        who=one.who,
        at=one.at,
        withdrawn=taken.withdrawn,
    )


def _facts(group: Group) -> dict[str, Any]:
    told = {name: getattr(group, name) for name in ("version", "size", "decided", "who", "at")}
    return {"group": group.name, "confidence": group.least, **told}


def _posting_said(one: Posting) -> PostingSaid:
    url = PICTURE_URL.format(posting=quote(one.posting, safe="")) if one.pictured else None
    return PostingSaid(posting=one.posting, title=one.title, confidence=one.confidence, url=url)


def _reason_said(reason: Reason) -> ReasonSaid:
    says = [WordSaid(text=text, speaks_for=speaks_for) for text, speaks_for in reason.said()]
    ends = {"left": reason.left, "right": reason.right}
    return ReasonSaid(**ends, probability=reason.probability, scores=dict(reason.scores), says=says)
