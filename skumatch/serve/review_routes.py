"""``/v1/review``: the crops that the service was unsure of, what people say of them, and the figures of it."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from skumatch.images import sniff
from skumatch.serve import tallies
from skumatch.serve.learning import Judgement
from skumatch.serve.match_routes import gallery_said
from skumatch.serve.problems import Problem
from skumatch.serve.review_export import zipped
from skumatch.serve.review_schemas import (
    ClaimAsked,
    ClaimedSaid,
    DaySaid,
    JudgedSaid,
    ReleasedSaid,
    ReviewSaid,
    ReviewsSaid,
    Session,
    SessionAsked,
    ShareSaid,
    StatsSaid,
    VerdictAsked,
    review_said,
)
from skumatch.serve.schemas import failures
from skumatch.serve.sku_routes import READS, Changer
from skumatch.serve.sku_schemas import AfterNumber, Limit, said, takes
from skumatch.serve.tallies import Day, Share

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.serve.reviews import Review, Reviews
    from skumatch.serve.service import Reviewing, Service, Writer

OneCrop = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of the crop.", examples=["0" * 32])]
KINDS = ("image/jpeg", "image/png", "image/webp")
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS}}
}
ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}
BEFORE = 28  # days whose scores are compared with a day's
router = APIRouter(prefix="/v1/review", tags=["review"])


@router.get(
    "",
    response_model=ReviewsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="list_reviews",
    summary="Crops that wait for a verdict, or were judged",
)
async def list_reviews(
    request: Request,
    state: Annotated[Literal["waiting", "judged"], Query(description="Which.")] = "waiting",
    limit: Limit = 50,
    after: AfterNumber = 0,
) -> ReviewsSaid:
    """List the crops without a verdict, oldest first; or those that were judged, the latest verdict first."""
    reviews = kept_here(request).reviews
    if state == "judged":
        return await listed(reviews, await anyio.to_thread.run_sync(partial(reviews.judged, limit)))
    found = await anyio.to_thread.run_sync(partial(reviews.pending, limit + 1, after))
    return await listed(reviews, found[:limit], len(found) > limit)


@router.get(
    "/stats",
    response_model=StatsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_stats",
    summary="Figures over time",
)
async def stats(
    request: Request, days: Annotated[int, Query(ge=1, le=tallies.KEPT, description="So many, today last.")] = 30
) -> StatsSaid:
    """Tell how many crops were answered each day and how, their scores, and how often the answer was right."""
    reviewing = kept_here(request)
    return await anyio.to_thread.run_sync(partial(figures, reviewing, days))


@router.get(
    "/export",
    response_class=Response,
    responses={**failures(404), **ZIP},
    dependencies=READS,
    operation_id="export_reviews",
    summary="The corrections, for the next fine-tune",
)
async def export(request: Request) -> Response:
    """Return a ZIP file of a manifest, corrections.csv, and the crops that it names."""
    headers = {"Content-Disposition": 'attachment; filename="corrections.zip"'}
    return StreamingResponse(zipped(kept_here(request).reviews), media_type="application/zip", headers=headers)


@router.post(
    "/claim",
    response_model=ClaimedSaid,
    responses=failures(404, 408, 413, 415),
    openapi_extra=takes(ClaimAsked),
    operation_id="claim_reviews",
    summary="Get crops to look at",
)
async def claim(request: Request, who: Changer) -> ClaimedSaid:
    """Return the session's crops and the oldest that nobody looks at; no other session gets them for a while."""
    reviews = kept_here(request).reviews
    asked = await said(request, ClaimAsked)
    work = partial(reviews.claim, asked.session, asked.limit, asked.first, asked.without)
    found = await listed(reviews, await anyio.to_thread.run_sync(work))
    return ClaimedSaid(**dict(found), seconds=reviews.settings.review_claim)


@router.post(
    "/release",
    response_model=ReleasedSaid,
    responses=failures(404, 408, 413, 415),
    openapi_extra=takes(SessionAsked),
    operation_id="release_reviews",
    summary="Give crops back",
)
async def release(request: Request, who: Changer) -> ReleasedSaid:
    """Let others have the crops that a session claimed and did not judge."""
    reviews = kept_here(request).reviews
    asked = await said(request, SessionAsked)
    return ReleasedSaid(released=await anyio.to_thread.run_sync(partial(reviews.release, asked.session)))


@router.get(
    "/{crop}",
    response_model=ReviewSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_review",
    summary="One crop",
)
async def get_review(request: Request, crop: OneCrop) -> ReviewSaid:
    """Tell what was answered of a crop, and the verdict where there is one."""
    return shown(await anyio.to_thread.run_sync(partial(kept_here(request).reviews.get, crop)))


@router.get(
    "/{crop}/image",
    response_class=Response,
    responses={**failures(404), **PICTURE},
    dependencies=READS,
    operation_id="get_review_picture",
    summary="The picture of a crop",
)
async def picture(request: Request, crop: OneCrop) -> Response:
    """Return the crop as it was sent, or a JPEG of at most 1,024 px where that was more than 1 MB."""
    data = await anyio.to_thread.run_sync(partial(kept_here(request).reviews.crop, crop))
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(data, media_type=f"image/{sniff(data)}", headers=headers)


@router.post(
    "/{crop}",
    response_model=JudgedSaid,
    responses=failures(404, 408, 409, 413, 415),
    openapi_extra=takes(VerdictAsked),
    operation_id="give_verdict",
    summary="Say what a crop shows",
)
async def give_verdict(request: Request, crop: OneCrop, who: Changer) -> JudgedSaid:
    """Keep a person's verdict on a crop, and make it a reference view of the SKU that it shows."""
    service: Service = request.app.state.service
    reviewing = kept_here(request)
    asked = await said(request, VerdictAsked)
    judgement = Judgement(crop, asked.verdict, asked.sku, who.name, asked.title, asked.session)
    sku = await anyio.to_thread.run_sync(partial(reviewing.learning.check, judgement, service.loaded.gallery))
    about = {"review": crop, "verdict": asked.verdict, "sku": sku}
    if asked.enrol and sku:

        def work(home: Backend, writer: Writer) -> Review:
            return reviewing.learning.enrol(judgement, home, writer)

        review = await service.change(who, "review.enrol", about, work)
    else:

        def note() -> Review:
            judged = reviewing.reviews.verdict(crop, asked.verdict, asked.sku, who.name, asked.session)
            service.audit.write(who=who.name, action="review.verdict", **about)
            return judged

        review = await anyio.to_thread.run_sync(note)
    return JudgedSaid(review=shown(review), gallery=gallery_said(service.loaded))


@router.post(
    "/{crop}/undo",
    response_model=JudgedSaid,
    responses=failures(404, 409),
    operation_id="undo_verdict",
    summary="Take a verdict back",
)
async def undo(
    request: Request,
    crop: OneCrop,
    who: Changer,
    session: Annotated[Session | None, Query(description="Who looks at it from then on.")] = None,
) -> JudgedSaid:
    """Take a verdict back, with the reference view that it made; the crop waits again."""
    service: Service = request.app.state.service
    learning = kept_here(request).learning

    def work(home: Backend, writer: Writer) -> Review:
        return learning.undo(crop, home, session or "")

    review = await service.change(who, "review.undo", {"review": crop}, work)
    return JudgedSaid(review=shown(review), gallery=gallery_said(service.loaded))


async def listed(reviews: Reviews, found: list[Review], more: bool = False) -> ReviewsSaid:
    """Return what is told of a list of crops."""
    waiting = await anyio.to_thread.run_sync(reviews.waiting)
    following = found[-1].number if more else None
    return ReviewsSaid(reviews=[shown(one) for one in found], waiting=waiting, next=following)


def shown(review: Review) -> ReviewSaid:
    """Return what is told of a crop now."""
    return review_said(review, time.time())


def figures(reviewing: Reviewing, count: int) -> StatsSaid:
    """Return the figures of the last ``count`` days. Reads the disk."""
    days = reviewing.tallies.days(min(tallies.KEPT, count + BEFORE))
    asked, first = days[-count:], len(days) - count
    agreement = {decision: share_said(share) for decision, share in tallies.agreement(asked).items()}
    found = tallies.accuracy(asked)
    judged = sum(share.count for share in tallies.agreement(asked).values())
    value, low, high = found if found is not None else (None, None, None)
    return StatsSaid(
        days=[day_said(day, days[max(0, first + at - BEFORE) : first + at]) for at, day in enumerate(asked)],
        accuracy=ShareSaid(value=value, low=low, high=high, count=judged),
        agreement=agreement,
        waiting=reviewing.reviews.waiting(),
    )


def day_said(day: Day, before: list[Day]) -> DaySaid:
    """Return what is told of a day; ``before``: days to compare its scores with."""
    earlier: Counter[int] = Counter()
    for other in before:
        earlier.update(other.scores)
    parts = [tallies.quantile(day.scores, share) for share in (0.1, 0.5, 0.9)]
    return DaySaid(
        day=day.day,
        answered=day.answered,
        accept=day.decisions.get("accept", 0),
        review=day.decisions.get("review", 0),
        unknown=day.decisions.get("unknown", 0),
        score=[part for part in parts if part is not None] or None,
        judged=sum(day.verdicts.values()),
        right=sum(count for (_, verdict), count in day.verdicts.items() if verdict == "accept"),
        drift=tallies.drift(earlier, day.scores),
    )


def share_said(share: Share) -> ShareSaid:
    """Return what is told of a share."""
    low, high = share.interval() if share.count else (None, None)
    return ShareSaid(value=share.value, low=low, high=high, count=share.count)


def kept_here(request: Request) -> Reviewing:
    """Return where crops are kept. Raises Problem 404 where they are not."""
    service: Service = request.app.state.service
    if service.reviewing is None:
        raise Problem(404, "no crops are kept for review", "set reviews = true in [service] of skumatch.toml")
    return service.reviewing
