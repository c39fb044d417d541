"""``/v1/gallery``: what it holds, its versions, how two differ, and going back to one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from skumatch.serve.match_routes import etag, gallery_said
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import failures
from skumatch.serve.sku_routes import READS, Changer, aside, changed, instead
from skumatch.serve.sku_schemas import (
    VERSION,
    ChangeSaid,
    CurrentSaid,
    DiffSaid,
    Expected,
    GalleryFactsSaid,
    Limit,
    LogSaid,
    RollbackAsked,
    SomeSaid,
    VersionSaid,
    said,
    takes,
)

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.serve.service import Service, Writer

Version = Annotated[str, Query(pattern=f"^{VERSION}$", examples=["v000012"])]
router = APIRouter(prefix="/v1/gallery", tags=["gallery"])


@router.get(
    "",
    response_model=GalleryFactsSaid,
    responses=failures(),
    dependencies=READS,
    operation_id="get_gallery",
    summary="What the gallery holds",
)
async def get_gallery(request: Request, response: Response) -> GalleryFactsSaid:
    """Tell what the gallery that answers holds, and which version is current where it lives."""
    service: Service = request.app.state.service
    loaded = service.loaded
    held = loaded.gallery
    response.headers["ETag"] = etag(loaded)
    return GalleryFactsSaid(
        gallery=gallery_said(loaded),
        model=held.spec.name,
        digest=held.spec.digest,
        dim=held.spec.dim,
        skus=len(held.skus),
        views=len(held),
        columns=await aside(request, lambda: held.facts.columns),
        current=await aside(request, partial(current, service.home)),
    )


@router.get(
    "/log",
    response_model=LogSaid,
    responses=failures(),
    dependencies=READS,
    operation_id="get_log",
    summary="The gallery's versions",
)
async def get_log(request: Request, response: Response, limit: Limit = 100) -> LogSaid:
    """List the versions and what made them, newest first."""
    service: Service = request.app.state.service
    loaded = service.loaded
    lines = await aside(request, service.home.log)
    response.headers["ETag"] = etag(loaded)
    return LogSaid(versions=[version_said(line) for line in lines[:limit]], gallery=gallery_said(loaded))


@router.get(
    "/diff",
    response_model=DiffSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_diff",
    summary="How two versions differ",
)
async def get_diff(request: Request, a: Version, b: Version, limit: Limit = 100) -> DiffSaid:
    """Tell what version ``b`` has that ``a`` has not, and the other way round; of each the first ``limit``."""
    service: Service = request.app.state.service
    return await aside(request, partial(difference, service.home, (a, b), limit))


@router.post(
    "/rollback",
    response_model=ChangeSaid,
    responses=failures(404, 408, 409, 412, 413, 415),
    openapi_extra=takes(RollbackAsked),
    operation_id="rollback",
    summary="Go back to an older version",
)
async def rollback(request: Request, response: Response, who: Changer, expect: Expected) -> ChangeSaid:
    """Make an older version the current one. Later ones stay until they are pruned."""
    service: Service = request.app.state.service
    to = (await said(request, RollbackAsked)).to

    def work(home: Backend, _: Writer) -> str:
        require_usable(home, to)
        with instead(409, "there is no version to go back to", "see GET /v1/gallery/log"):
            home.rollback(to)
        return home.gallery().version

    return changed(response, await service.change(who, "gallery.rollback", {"to": to}, work, expect))


def current(home: Backend) -> CurrentSaid:
    """Return what is told of the current version. Reads the disk or a server."""
    version, told = home.gallery().version, home.info()
    return CurrentSaid(version=version, **{name: told[name] for name in ("parent", "made", "reason", "index")})


def version_said(line: dict[str, Any]) -> VersionSaid:
    """Return what is told of a version; why one is damaged names files, and stays here."""
    if "error" in line:
        return VersionSaid(version=line["version"], current=line["current"], damaged=True)
    return VersionSaid(**line)


def difference(home: Backend, versions: tuple[str, str], limit: int) -> DiffSaid:
    """Return how two versions differ. Raises Problem 404. Reads both versions."""
    a, b = versions
    with instead(404, f"there is no version {a} or {b}", "see GET /v1/gallery/log"):
        found = home.diff(a, b)
    parts = {name: getattr(found, name) for name in ("skus_added", "skus_removed", "views_added", "views_removed")}
    some = {name: SomeSaid(count=len(part), first=list(part[:limit])) for name, part in parts.items()}
    facts = SomeSaid(count=len(found.facts), first=found.facts[:limit])
    return DiffSaid(a=a, b=b, model=found.model, facts=facts, **some)


def require_usable(home: Backend, to: str | None) -> None:
    """Raise Problem 404 for a version that is not there, 409 for one of another model than the current one's, which
    could not answer."""
    if to is None:
        to = home.info()["parent"]
        if to is None:
            return  # going back says so
    with instead(404, f"there is no version {to}", "see GET /v1/gallery/log"):
        other = home.diff(home.gallery().version, to).model
    if other:
        raise Problem(409, f"{to} was made with another model", "roll back where that model is in use")
