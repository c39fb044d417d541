"""``/v1/review``: the crops that the service was unsure of, and what people say of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request, Response

from skumatch.images import sniff
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import failures
from skumatch.serve.sku_routes import READS, Changer
from skumatch.serve.sku_schemas import (
    AfterNumber,
    Limit,
    ReviewSaid,
    ReviewsSaid,
    VerdictAsked,
    review_said,
    said,
    takes,
)

if TYPE_CHECKING:
    from skumatch.serve.reviews import Review, Reviews
    from skumatch.serve.service import Service

OneCrop = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of the crop.", examples=["0" * 32])]
KINDS = ("image/jpeg", "image/png", "image/webp")
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS}}
}
router = APIRouter(prefix="/v1/review", tags=["review"])


@router.get(
    "",
    response_model=ReviewsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="list_reviews",
    summary="Crops that wait for a verdict",
)
async def list_reviews(request: Request, limit: Limit = 50, after: AfterNumber = 0) -> ReviewsSaid:
    """List the crops without a verdict, oldest first."""
    reviews = kept_here(request)
    found = await anyio.to_thread.run_sync(partial(reviews.pending, limit + 1, after))
    page = found[:limit]
    following = page[-1].number if len(found) > limit else None
    waiting = await anyio.to_thread.run_sync(reviews.waiting)
    return ReviewsSaid(reviews=[review_said(one) for one in page], waiting=waiting, next=following)


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
    return review_said(await anyio.to_thread.run_sync(partial(kept_here(request).get, crop)))


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
    data = await anyio.to_thread.run_sync(partial(kept_here(request).crop, crop))
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(data, media_type=f"image/{sniff(data)}", headers=headers)


@router.post(
    "/{crop}",
    response_model=ReviewSaid,
    responses=failures(404, 408, 409, 413, 415),
    openapi_extra=takes(VerdictAsked),
    operation_id="give_verdict",
    summary="Say what a crop shows",
)
async def give_verdict(request: Request, crop: OneCrop, who: Changer) -> ReviewSaid:
    """Keep a person's verdict on a crop. The gallery stays as it is."""
    service: Service = request.app.state.service
    reviews = kept_here(request)
    asked = await said(request, VerdictAsked)

    def work() -> Review:
        if asked.verdict == "correct" and asked.sku and service.loaded.gallery.skus.code(asked.sku) < 0:
            raise Problem(422, f"no SKU is called '{asked.sku}'", "say new where it is not in the gallery")
        judged = reviews.verdict(crop, asked.verdict, asked.sku, who.name)
        about = {"review": crop, "verdict": judged.verdict, "sku": judged.sku}
        service.audit.write(who=who.name, action="review.verdict", **about)
        return judged

    return review_said(await anyio.to_thread.run_sync(work))


def kept_here(request: Request) -> Reviews:
    """Return where crops are kept. Raises Problem 404 where they are not."""
    service: Service = request.app.state.service
    if service.reviews is None:
        raise Problem(404, "no crops are kept for review", "set reviews = true in [service] of skumatch.toml")
    return service.reviews
