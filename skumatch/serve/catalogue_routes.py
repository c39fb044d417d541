"""``/v1/catalogue``: groups of duplicates that ``skumatch dedupe`` found, and what people decide on them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from skumatch.errors import ImageError
from skumatch.images import thumbnail
from skumatch.serve.catalogue_schemas import (
    DecisionAsked,
    DecisionId,
    DecisionSaid,
    DecisionsSaid,
    GroupName,
    GroupsSaid,
    GroupStatsSaid,
    OneGroupSaid,
    PostingId,
    decision_said,
    group_said,
    one_group_said,
)
from skumatch.serve.catalogue_store import Taken, Wanted
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import failures
from skumatch.serve.sku_routes import READS, Changer, aside
from skumatch.serve.sku_schemas import AfterNumber, Limit, said, takes

if TYPE_CHECKING:
    from skumatch.serve.catalogue_store import GroupReviews
    from skumatch.serve.service import Service

OneGroup = Annotated[GroupName, Path(description="Name of the group.")]
OneDecision = Annotated[DecisionId, Path(description="Id of the decision.")]
JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}
LINES = "application/x-ndjson"
EXPORT: dict[int | str, dict[str, Any]] = {200: {"content": {LINES: {"schema": {"type": "string"}}}}}
SIDE = 320  # pixels of a picture
KEPT = "private, max-age=3600"
router = APIRouter(prefix="/v1/catalogue", tags=["catalogue"])


@router.get(
    "/groups",
    response_model=GroupsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="list_groups",
    summary="Groups that wait for a decision, or were decided",
)
async def list_groups(
    request: Request,
    state: Annotated[Literal["waiting", "decided"], Query(description="Which.")] = "waiting",
    limit: Limit = 50,
    after: AfterNumber = 0,
) -> GroupsSaid:
    """List the groups without a decision, the least sure first; or those that were decided, the latest first."""
    groups = kept_here(request)

    def work() -> GroupsSaid:
        found = groups.decided(limit) if state == "decided" else groups.waiting(limit + 1, after)
        more = found[limit - 1].rank if len(found) > limit else None
        return GroupsSaid(groups=list(map(group_said, found[:limit])), waiting=groups.counts()["waiting"], next=more)

    return await anyio.to_thread.run_sync(work)


@router.get(
    "/groups/{group:path}",
    response_model=OneGroupSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_group",
    summary="One group",
)
async def get_group(request: Request, group: OneGroup) -> OneGroupSaid:
    """Tell the postings of a group, why they are one, and which groups it may be merged with."""
    groups = kept_here(request)

    def work() -> OneGroupSaid:
        found = groups.group(group)
        return one_group_said(found, groups.postings(group), groups.reasons(group), groups.suggested(group))

    return await anyio.to_thread.run_sync(work)


@router.get(
    "/image",
    response_class=Response,
    responses={**failures(404), **JPEG},
    dependencies=READS,
    operation_id="get_posting_picture",
    summary="The picture of a posting",
)
async def picture(
    request: Request, posting: Annotated[PostingId, Query(description="Id of a posting of a group.")]
) -> Response:
    """Return a JPEG of at most 320 px."""
    groups = kept_here(request)
    service: Service = request.app.state.service

    def work() -> bytes:
        try:
            return thumbnail(groups.picture(posting), SIDE, service.settings.max_pixels)
        except ImageError as error:  # its words name a path
            raise Problem(404, "the picture is not there any more, or cannot be read", "see errors.csv") from error

    return Response(await aside(request, work), media_type="image/jpeg", headers={"Cache-Control": KEPT})


@router.get(
    "/decisions",
    response_model=DecisionsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="list_decisions",
    summary="What was decided",
)
async def list_decisions(request: Request, limit: Limit = 50) -> DecisionsSaid:
    """List the decisions, the latest first."""
    found = await anyio.to_thread.run_sync(partial(kept_here(request).latest, limit))
    return DecisionsSaid(decisions=list(map(decision_said, found)))


@router.post(
    "/decisions",
    response_model=DecisionSaid,
    responses=failures(404, 408, 409, 413, 415),
    openapi_extra=takes(DecisionAsked),
    operation_id="decide_group",
    summary="Accept, split or merge groups",
)
async def decide(request: Request, who: Changer) -> DecisionSaid:
    """Take a person's decision; 409 where a group changed since the person saw it."""
    service: Service = request.app.state.service
    groups = kept_here(request)
    asked = await said(request, DecisionAsked)
    versions = {one.group: one.version for one in asked.groups}
    if len(versions) < len(asked.groups):
        raise Problem(422, "a group is named twice", "name each once")
    wanted = Wanted(asked.decision, versions, asked.parts, asked.id)

    def work() -> Taken:
        taken = groups.decide(wanted, who.name)
        about = {"groups": list(versions), "decision": taken.decision.id}
        service.audit.write(who=who.name, action=f"group.{asked.decision}", **about)
        return taken

    return decision_said(await anyio.to_thread.run_sync(work))


@router.post(
    "/decisions/{decision}/undo",
    response_model=DecisionSaid,
    responses=failures(404, 409),
    operation_id="undo_decision",
    summary="Take a decision back",
)
async def undo(request: Request, decision: OneDecision, who: Changer) -> DecisionSaid:
    """Withdraw a decision; its groups are as before. 409 where a later decision is about one of them."""
    service: Service = request.app.state.service
    groups = kept_here(request)

    def work() -> Taken:
        taken = groups.undo(decision, who.name)
        service.audit.write(who=who.name, action="group.undo", decision=decision)
        return taken

    return decision_said(await anyio.to_thread.run_sync(work))


@router.get(
    "/export",
    response_class=Response,
    responses={**failures(404), **EXPORT},
    dependencies=READS,
    operation_id="export_decisions",
    summary="The decisions, for skumatch dedupe-apply",
)
async def export(request: Request) -> Response:
    """Return the decisions as lines of JSON, in the order in which they were taken."""
    headers = {"Content-Disposition": 'attachment; filename="decisions.jsonl"'}
    return StreamingResponse(kept_here(request).export(), media_type=LINES, headers=headers)


@router.get(
    "/stats",
    response_model=GroupStatsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_group_stats",
    summary="How far the review is",
)
async def stats(request: Request) -> GroupStatsSaid:
    """Count the groups, those that wait, and the decisions of each kind that stand."""
    return GroupStatsSaid(**await anyio.to_thread.run_sync(kept_here(request).counts))


def kept_here(request: Request) -> GroupReviews:
    """Return where groups are reviewed. Raises Problem 404 where none are."""
    service: Service = request.app.state.service
    if service.grouping is None:
        raise Problem(
            404, "no groups are here for review", "start it with --catalogue, the folder of `skumatch dedupe`"
        )
    return service.grouping
