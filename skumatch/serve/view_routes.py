"""``/v1/views``: a SKU's reference views: listing and showing them, adding, replacing and removing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import numpy as np
from fastapi import APIRouter, Header, Path, Query, Request, Response

from skumatch.dataset import Row
from skumatch.embed import no_progress
from skumatch.enrol import Enrolled, Supply
from skumatch.errors import ArtefactError
from skumatch.gallery_seam import AnyGallery
from skumatch.serve import bodies
from skumatch.serve.match_routes import etag, gallery_said
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import VIEW_URL, GallerySaid, failures
from skumatch.serve.sku_routes import EMPTY, READS, Changer, aside, changed, instead, require_sku
from skumatch.serve.sku_schemas import (
    LAST,
    AfterNumber,
    ChangeSaid,
    EnrolledSaid,
    Expected,
    Limit,
    OneViewSaid,
    SkuQuery,
    Text,
    ViewSaid,
    ViewsSaid,
)
from skumatch.serve.uploads import Uploads, require_readable

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.segment import ViewRow
    from skumatch.serve.keys import Principal
    from skumatch.serve.service import Service, Writer

Enrol = Callable[[Supply], Enrolled[Any]]
OneView = Annotated[int, Path(ge=0, le=LAST, description="Id of the view.")]
Title = Annotated[Text, Query(description="Title of the SKU; empty: as it is.")]
Seen = Annotated[str | None, Header(alias="If-None-Match", max_length=1000, description="ETag of what is here.")]
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "It is what If-None-Match says."},
}
KEPT = "private, max-age=86400, immutable"
router = APIRouter(prefix="/v1/views", tags=["views"])


@router.get(
    "",
    response_model=ViewsSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="list_views",
    summary="The reference views of a SKU",
)
async def list_views(
    request: Request, response: Response, sku: SkuQuery, limit: Limit = 100, after: AfterNumber | None = None
) -> ViewsSaid:
    """List a SKU's reference views by id."""
    loaded = request.app.state.service.loaded
    rows, more = await aside(request, partial(page, loaded.gallery, sku, limit, after))
    response.headers["ETag"] = etag(loaded)
    following = rows[-1].id if more else None
    return ViewsSaid(views=[view_said(row) for row in rows], next=following, gallery=gallery_said(loaded))


@router.post(
    "",
    response_model=EnrolledSaid,
    responses=failures(408, 409, 412, 413, 415),
    openapi_extra=bodies.SCHEMA,
    operation_id="add_views",
    summary="Add reference views",
)
async def add_views(
    request: Request, response: Response, sku: SkuQuery, who: Changer, expect: Expected, title: Title = ""
) -> EnrolledSaid:
    """Add pictures to a SKU, which need not exist: all of them, or none where one cannot be read (422)."""
    sent = Sent(sku, title, await readable(request))
    return marked(response, await enrol(request, "views.add", sent, add, (who, expect)))


@router.put(
    "",
    response_model=EnrolledSaid,
    responses=failures(404, 408, 409, 412, 413, 415),
    openapi_extra=bodies.SCHEMA,
    operation_id="replace_views",
    summary="Replace the reference views of a SKU",
)
async def replace_views(
    request: Request, response: Response, sku: SkuQuery, who: Changer, expect: Expected, title: Title = ""
) -> EnrolledSaid:
    """Let pictures stand for all views that a SKU has: all of them, or none where one cannot be read (422)."""
    sent = Sent(sku, title, await readable(request))
    return marked(response, await enrol(request, "views.replace", sent, replace, (who, expect)))


@router.get(
    "/{view}",
    response_model=OneViewSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_view",
    summary="One reference view",
)
async def get_view(request: Request, response: Response, view: OneView) -> OneViewSaid:
    """Tell which SKU a view shows and what it was made of."""
    loaded = request.app.state.service.loaded
    row = await anyio.to_thread.run_sync(partial(one, loaded.gallery, view))
    response.headers["ETag"] = etag(loaded)
    return OneViewSaid(**dict(view_said(row)), gallery=gallery_said(loaded))


@router.get(
    "/{view}/image",
    response_class=Response,
    responses={**failures(404), **PICTURE},
    dependencies=READS,
    operation_id="get_view_picture",
    summary="The picture of a reference view",
)
async def picture(request: Request, view: OneView, if_none_match: Seen = None) -> Response:
    """Return a JPEG of at most 256 px."""
    loaded = request.app.state.service.loaded
    data = await anyio.to_thread.run_sync(partial(thumb, loaded.gallery, view))
    mark = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": mark, "Cache-Control": KEPT}
    if mark in (if_none_match or ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.delete(
    "/{view}",
    response_model=ChangeSaid,
    responses=failures(404, 409, 412),
    operation_id="remove_view",
    summary="Remove a reference view",
)
async def remove_view(
    request: Request, response: Response, view: OneView, who: Changer, expect: Expected
) -> ChangeSaid:
    """Remove a view; a SKU goes with its last one. Older versions of the gallery keep it until they are pruned."""
    service: Service = request.app.state.service

    def work(home: Backend, _: Writer) -> str:
        one(home.gallery(), view)
        with instead(*EMPTY):
            home.remove_views([view])
        return home.gallery().version

    return changed(response, await service.change(who, "view.remove", {"view": view}, work, expect))


@dataclass(frozen=True)
class Sent:
    """Pictures sent as views of a SKU: (name, file) pairs that can be decoded."""

    sku: str
    title: str
    pictures: list[tuple[str, bytes]]


async def readable(request: Request) -> list[tuple[str, bytes]]:
    """Return the request's pictures. Raises Problem as ``bodies.pictures``, ImageError naming those that are broken."""
    service: Service = request.app.state.service
    found = await bodies.pictures(request, service)
    for sent in found:
        if sent.error is not None:
            raise sent.error
    named = [(picture.name or f"picture {number}", picture.data) for number, picture in enumerate(found, 1)]
    await aside(request, partial(require_readable, named, service.settings.max_pixels))
    return named


async def enrol(
    request: Request, action: str, sent: Sent, work: Callable[..., EnrolledSaid], asked: tuple[Principal, str]
) -> EnrolledSaid:
    """Let ``work`` enrol what was sent, for ``asked``: who, and which version is to be the current one."""
    service: Service = request.app.state.service
    about = {"sku": sent.sku, "pictures": len(sent.pictures)}
    return await service.change(asked[0], action, about, partial(work, service.uploads, sent), asked[1])


def add(uploads: Uploads, sent: Sent, home: Backend, writer: Writer) -> EnrolledSaid:
    """Add the pictures to the gallery. Raises as ``Backend.extend``."""
    gallery = home.gallery()
    before = gallery.ids_of(sent.sku) if gallery.skus.code(sent.sku) >= 0 else []
    return enrolled(uploads, sent, before, lambda new: home.extend(new, writer.encoder(), writer.pipeline, no_progress))


def replace(uploads: Uploads, sent: Sent, home: Backend, writer: Writer) -> EnrolledSaid:
    """Let the pictures stand for the SKU's views. Raises Problem 404, and as ``Backend.replace``."""
    require_sku(home.gallery(), sent.sku)
    return enrolled(uploads, sent, [], lambda new: home.replace(new, writer.encoder(), writer.pipeline, no_progress))


def enrolled(uploads: Uploads, sent: Sent, before: list[int], work: Enrol) -> EnrolledSaid:
    """Keep the pictures, do ``work`` with them, and say what became of them; ``before``: the SKU's views until then."""
    paths = list(dict.fromkeys(uploads.keep(data) for _, data in sent.pictures))
    done = work(Supply.of([Row(path, sent.sku, "gallery", title=sent.title) for path in paths]))
    if done.unreadable:
        raise ArtefactError(f"what was just written cannot be read: {done.failures[0]}", "check the disk")
    new = sorted(set(done.gallery.ids_of(sent.sku)).difference(before))
    version = GallerySaid(version=done.gallery.version)
    return EnrolledSaid(sku=sent.sku, views=new, known=len(sent.pictures) - len(new), gallery=version)


def page(gallery: AnyGallery, sku: str, limit: int, after: int | None) -> tuple[list[ViewRow], bool]:
    """Return a page of a SKU's views and whether more follow. Raises Problem 404. Reads the disk or a server."""
    require_sku(gallery, sku)
    ids = np.array(gallery.ids_of(sku), np.int64)
    left = ids if after is None else ids[ids > after]
    return gallery.views_of(left[:limit]), len(left) > limit


def one(gallery: AnyGallery, view: int) -> ViewRow:
    """Return a view. Raises Problem 404. Reads the disk or a server."""
    with instead(404, f"there is no view {view}", "list them with GET /v1/views?sku="):
        return gallery.view(view)


def thumb(gallery: AnyGallery, view: int) -> bytes:
    """Return a view's JPEG. Raises Problem 404 where there is no view or it has none. Reads the disk or a server."""
    one(gallery, view)
    data = gallery.thumb(view)
    if not data:
        raise Problem(404, f"view {view} has no picture", "add it again from a picture")
    return data


def view_said(row: ViewRow) -> ViewSaid:
    """Return what is told of a view; where its file lies is nobody's business."""
    name = PurePosixPath(row.source.replace("\\", "/")).name
    return ViewSaid(view=row.id, sku=row.sku, file=name, sha256=row.sha256, url=VIEW_URL.format(view=row.id))


def marked(response: Response, answer: EnrolledSaid) -> EnrolledSaid:
    """Return ``answer`` with its version as the response's ETag."""
    response.headers["ETag"] = f'"{answer.gallery.version}"'
    return answer
