"""``/v1/skus``: finding SKUs, telling what is known of one, changing that, and removing one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from skumatch.errors import GalleryError
from skumatch.serve.find import Listed, known_names, names_of
from skumatch.serve.guard import require
from skumatch.serve.keys import Principal
from skumatch.serve.match_routes import etag, gallery_said
from skumatch.serve.problems import Problem
from skumatch.serve.schemas import GallerySaid, failures
from skumatch.serve.sku_schemas import (
    ChangeSaid,
    Expected,
    FactsAsked,
    Limit,
    OneSkuSaid,
    SkuName,
    SkuSaid,
    SkusSaid,
    said,
    takes,
)
from skumatch.sku_table import TITLE, layer_of

if TYPE_CHECKING:
    from skumatch.backend import Backend
    from skumatch.gallery_seam import AnyGallery
    from skumatch.serve.service import Service, Writer

T = TypeVar("T")


async def may_read(request: Request) -> Principal:
    """Return who asks. Raises Problem unless the request's key may read."""
    return require(request, "read")


async def may_write(request: Request) -> Principal:
    """Return who asks. Raises Problem unless the request's key may change things."""
    return require(request, "write")


FEW = 2  # threads that read or decode much
EMPTY = (409, "this would empty the gallery", "add something else first")
READS = [Depends(may_read)]
Changer = Annotated[Principal, Depends(may_write)]
OneSku = Annotated[SkuName, Path(description="Name of the SKU; it may hold slashes.")]
Words = Annotated[
    str, Query(max_length=200, description="Words that name, title or facts hold, whatever case and accents.")
]
After = Annotated[str, Query(max_length=8192, description="The `next` of the page before.")]
router = APIRouter(prefix="/v1/skus", tags=["skus"])


@router.get(
    "",
    response_model=SkusSaid,
    responses=failures(),
    dependencies=READS,
    operation_id="find_skus",
    summary="Find SKUs",
)
async def find_skus(
    request: Request, response: Response, query: Words = "", limit: Limit = 50, after: After = ""
) -> SkusSaid:
    """List the SKUs that hold all words of ``query``: first those called so, then those whose names begin so, then the
    others, each by name; all of them where it is empty."""
    loaded = request.app.state.service.loaded
    found, cursor = await aside(request, lambda: names_of(loaded.gallery).listed(query, limit, after))
    response.headers["ETag"] = etag(loaded)
    return SkusSaid(skus=[sku_said(one) for one in found], next=cursor or None, gallery=gallery_said(loaded))


@router.get(
    "/{sku:path}",
    response_model=OneSkuSaid,
    responses=failures(404),
    dependencies=READS,
    operation_id="get_sku",
    summary="What is known of a SKU",
)
async def get_sku(request: Request, response: Response, sku: OneSku) -> OneSkuSaid:
    """Tell what is known of a SKU and how many reference views it has."""
    loaded = request.app.state.service.loaded
    facts, views = await aside(request, partial(told, loaded.gallery, sku))
    response.headers["ETag"] = etag(loaded)
    known = {name: text for name, text in facts.items() if name != TITLE}
    title = facts.get(TITLE, "")
    return OneSkuSaid(sku=sku, title=title, views=views, facts=known, gallery=gallery_said(loaded))


@router.patch(
    "/{sku:path}",
    response_model=ChangeSaid,
    responses=failures(404, 408, 409, 412, 413, 415),
    openapi_extra=takes(FactsAsked),
    operation_id="set_facts",
    summary="Set facts of a SKU",
)
async def set_facts(request: Request, response: Response, sku: OneSku, who: Changer, expect: Expected) -> ChangeSaid:
    """Set facts of a SKU, its title among them; an empty text takes one back, others stay."""
    service: Service = request.app.state.service
    facts = (await said(request, FactsAsked)).facts
    layer = layer_of({sku: facts})  # refuses a reserved name before any work

    def work(home: Backend, _: Writer) -> str:
        require_sku(home.gallery(), sku)
        home.say(layer, "update facts of 1 SKU")
        return home.gallery().version

    made = await service.change(who, "sku.facts", {"sku": sku, "facts": facts}, work, expect)
    return changed(response, made)


@router.delete(
    "/{sku:path}",
    response_model=ChangeSaid,
    responses=failures(404, 409, 412),
    operation_id="remove_sku",
    summary="Remove a SKU",
)
async def remove_sku(request: Request, response: Response, sku: OneSku, who: Changer, expect: Expected) -> ChangeSaid:
    """Remove a SKU with its views and facts. Older versions of the gallery keep them until they are pruned."""
    service: Service = request.app.state.service

    def work(home: Backend, _: Writer) -> str:
        require_sku(home.gallery(), sku)
        with instead(*EMPTY):
            home.remove_skus([sku])
        return home.gallery().version

    return changed(response, await service.change(who, "sku.remove", {"sku": sku}, work, expect))


async def aside(request: Request, work: Callable[[], T]) -> T:
    """Return what ``work`` does on another thread: few at a time, as it may read or decode much."""
    state = request.app.state
    if not hasattr(state, "few"):
        state.few = anyio.CapacityLimiter(FEW)
    return await anyio.to_thread.run_sync(work, limiter=state.few)


@contextmanager
def instead(status: int, what: str, todo: str) -> Iterator[None]:
    """Raise this Problem where the block raises a plain GalleryError: something is not there, or cannot be."""
    try:
        yield
    except GalleryError as error:
        if type(error) is not GalleryError:
            raise
        raise Problem(status, what, todo) from error


def told(gallery: AnyGallery, sku: str) -> tuple[dict[str, str], int]:
    """Return what is known of a SKU and how many views it has. Raises Problem 404. Reads the disk or a server."""
    names = known_names(gallery)
    one = names.get(sku) if names is not None else None
    if one is not None:  # at once; asking the gallery takes a second where it has a million SKUs
        return one.facts, one.views
    require_sku(gallery, sku)
    return gallery.facts.of(sku), len(gallery.ids_of(sku))


def require_sku(gallery: AnyGallery, sku: str) -> None:
    """Raise Problem 404 unless ``sku`` has a view. Reads the disk or a server."""
    if gallery.skus.code(sku) < 0:
        raise Problem(404, f"no SKU is called '{sku}'", "find names with GET /v1/skus?query=")


def sku_said(one: Listed) -> SkuSaid:
    """Return what is told of a SKU in a list."""
    facts = {name: text for name, text in one.facts.items() if name != TITLE}
    return SkuSaid(sku=one.sku, title=one.facts.get(TITLE, ""), views=one.views, facts=facts)


def changed(response: Response, version: str) -> ChangeSaid:
    """Return what is answered to a change that made ``version``."""
    response.headers["ETag"] = f'"{version}"'
    return ChangeSaid(gallery=GallerySaid(version=version))
