"""``POST /v1/match`` and ``POST /v1/embed``: pictures in, answers out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from skumatch.dataset import parse_filters
from skumatch.errors import ImageError, SkumatchError
from skumatch.match import Match
from skumatch.serve import bodies
from skumatch.serve.engine import Found, Picture
from skumatch.serve.guard import require
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import (
    VIEW_URL,
    CropSaid,
    GallerySaid,
    MatchesSaid,
    MatchSaid,
    ModelSaid,
    VectorSaid,
    VectorsSaid,
    failures,
)

if TYPE_CHECKING:
    from skumatch.serve.loaded import Loaded
    from skumatch.serve.metrics import Metrics
    from skumatch.serve.service import Reviewing, Service

LOG = logging.getLogger("skumatch.serve")
JSON = "application/json"
DOUBTFUL = ("review", "unknown")


async def may_match(request: Request) -> None:
    """Raise Problem unless the request's key may match."""
    require(request, "match")


router = APIRouter(prefix="/v1", tags=["match"], dependencies=[Depends(may_match)])
Deadline = Annotated[
    float | None, Query(gt=0, allow_inf_nan=False, description="Seconds until an answer is worth nothing.")
]
Where = Annotated[
    list[str],
    Query(
        default_factory=list,
        max_length=16,
        description="COLUMN=TEXT: only SKUs with this fact; may be given several times.",
    ),
]


@router.post(
    "/match",
    response_model=MatchesSaid,
    responses=failures(408, 413, 415, 504),
    openapi_extra=bodies.SCHEMA,
    operation_id="match",
    summary="Which SKU does each picture show",
)
async def match(request: Request, where: Where, k: int = 5, deadline: Deadline = None) -> Response:
    """Answer each picture with its ``k`` nearest SKUs, best first, and a decision.

    A picture among several that cannot be read has the decision "error"; where none can be read the status is 422.
    """
    service: Service = request.app.state.service
    if not 1 <= k <= service.settings.max_k:
        raise Problem(422, f"k is {k}", f"ask for 1 to {service.settings.max_k} SKUs")
    filters = parse_filters(where)
    async with within(service, deadline):
        sent = await received(request, service)
        loaded = service.loaded
        found = await service.engine.match(loaded, sent, k, filters)
        refuse_unreadable(found)
        results = [crop_said(picture.name, one) for picture, one in zip(sent, found, strict=True)]
        for result in results:
            service.metrics.decisions.labels(result.decision).inc()
        if service.reviewing is not None:
            work = partial(kept, service.reviewing, service.metrics, loaded, sent, results)
            results = await asyncio.get_running_loop().run_in_executor(None, work)
    said = MatchesSaid(
        results=results, model=ModelSaid(**loaded.model), gallery=gallery_said(loaded), request=id_of(request)
    )
    return Response(said.model_dump_json(), media_type=JSON, headers={"ETag": etag(loaded)})


@router.post(
    "/embed",
    response_model=VectorsSaid,
    responses=failures(408, 413, 415, 504),
    openapi_extra=bodies.SCHEMA,
    operation_id="embed",
    summary="The embedding of each picture",
)
async def embed(request: Request, deadline: Deadline = None) -> Response:
    """Return each picture's vector of unit length, as the gallery's views have it."""
    service: Service = request.app.state.service
    async with within(service, deadline):
        sent = await received(request, service)
        loaded = service.loaded
        found = await service.engine.embed(loaded, sent)
        refuse_unreadable(found)
    results = [vector_said(picture.name, one) for picture, one in zip(sent, found, strict=True)]
    dim = loaded.matcher.encoder.spec.dim
    said = VectorsSaid(results=results, model=ModelSaid(**loaded.model), dim=dim, request=id_of(request))
    return Response(said.model_dump_json(), media_type=JSON)


async def received(request: Request, service: Service) -> list[Picture]:
    """Return the request's pictures. Raises Problem as ``bodies.pictures`` does."""
    begun = time.perf_counter()
    sent = await bodies.pictures(request, service)
    service.metrics.stages.labels("read").observe(time.perf_counter() - begun)
    return sent


@asynccontextmanager
async def within(service: Service, deadline: float | None) -> AsyncIterator[None]:
    """Raise Problem 504 when the block takes longer than the deadline, the service's where that is less."""
    seconds = min(deadline or service.settings.deadline, service.settings.deadline)
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        service.metrics.refused.labels("deadline").inc()
        raise Problem(504, f"no answer within {seconds:g} s", "allow more time, or send less at once") from error


def refuse_unreadable(found: Sequence[Found | ImageError]) -> None:
    """Raise the first picture's ImageError where none could be read."""
    errors = [one for one in found if isinstance(one, ImageError)]
    if errors and len(errors) == len(found):
        raise errors[0]


def crop_said(name: str, found: Found | ImageError) -> CropSaid:
    """Return what is answered of one crop."""
    if isinstance(found, ImageError):
        return CropSaid(name=name, decision="error", probability=None, matches=[], error=str(found))
    best, said = found.matches[0], [match_said(one) for one in found.matches]  # no gallery is without SKUs
    return CropSaid(name=name, decision=best.decision, probability=best.probability, matches=said, error=None)


def match_said(one: Match) -> MatchSaid:
    """Return what is answered of one SKU."""
    url = VIEW_URL.format(view=one.view)
    return MatchSaid(rank=one.rank, sku=one.sku, title=one.title, score=one.score, view=one.view, view_url=url)


def vector_said(name: str, found: Found | ImageError) -> VectorSaid:
    """Return what is answered of one picture's vector."""
    if isinstance(found, ImageError):
        return VectorSaid(name=name, vector=None, error=str(found))
    return VectorSaid(name=name, vector=found.vector.tolist(), error=None)


def kept(
    reviewing: Reviewing, metrics: Metrics, loaded: Loaded, sent: Sequence[Picture], results: list[CropSaid]
) -> list[CropSaid]:
    """Count the answers, keep the doubtful crops and a sample of the accepted ones for review, and return the results
    with the ids under which they are kept. Writes to the disk; where that fails, the answers are given all the same."""
    answers = [(result.decision, result.matches[0].score) for result in results if result.matches]
    reviewing.tallies.add(loaded.model["digest"], answers)
    named, reviews = [], reviewing.reviews
    for picture, result in zip(sent, results, strict=True):
        sampled = result.decision == "accept" and in_sample(picture.data, reviews.settings.review_sample)
        if sampled or result.decision in DOUBTFUL:
            try:
                made = reviews.keep(picture.data, result.decision, facts_of(picture, result, loaded))
                result = result.model_copy(update={"review": made})
            except SkumatchError as error:
                metrics.lost.inc()
                LOG.error("a crop was not kept for review: %s", error)
        named.append(result)
    return named


def facts_of(picture: Picture, result: CropSaid, loaded: Loaded) -> dict[str, Any]:
    """Return what is kept beside a crop."""
    return {
        "name": picture.name,
        "probability": result.probability,
        "candidates": [one.model_dump(include={"sku", "title", "score", "view"}) for one in result.matches],
        "model": loaded.model["digest"],
        "gallery": loaded.gallery.version,
    }


def in_sample(data: bytes, share: float) -> bool:
    """Return whether a picture is in a sample of ``share`` of all: always the same one for the same picture."""
    if not share:
        return False
    return int.from_bytes(hashlib.sha256(b"sample" + data).digest()[:8]) < share * 2**64


def gallery_said(loaded: Loaded) -> GallerySaid:
    """Return which version answered."""
    return GallerySaid(version=loaded.gallery.version)


def etag(loaded: Loaded) -> str:
    """Return the ETag of what a version answers."""
    return f'"{loaded.gallery.version}"'


def id_of(request: Request) -> str:
    """Return the request's id, which the guard gave it."""
    return str(request.state.request_id)
