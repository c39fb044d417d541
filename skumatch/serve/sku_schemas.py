"""What requests about SKUs, views and versions take and get, and how a body of JSON is read.

A body is read by the route, after it was seen that the key may do this: FastAPI would read it before.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skumatch.serve.problems import Problem
from skumatch.serve.schemas import GallerySaid, Said

JSON = "application/json"
PLAIN = r"[^\x00-\x1f\x7f-\x9f]"  # no control character
NAMED = rf"^(\.{{0,2}}[^\x00-\x1f\x7f-\x9f.]|\.{{3}}){PLAIN}*$"  # neither "." nor ".."
VERSION = r"v[0-9]{6,12}"
LAST = 2**63 - 1
SkuName = Annotated[str, Field(min_length=1, max_length=256, pattern=NAMED, examples=["arla-milk-1l"])]
Column = Annotated[str, Field(min_length=1, max_length=64, pattern=rf"^{PLAIN}+$")]
Text = Annotated[str, Field(max_length=4000)]
M = TypeVar("M", bound=BaseModel)


class Asked(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SkuSaid(Said):
    """A SKU."""

    sku: SkuName
    title: str = Field(examples=["Arla milk 1 l"])
    views: int = Field(description="How many reference views it has.", examples=[3])
    facts: dict[str, str] = Field(description="What else is known of it.", examples=[{"brand": "arla"}])


class SkusSaid(Said):
    """A page of SKUs."""

    skus: list[SkuSaid]
    next: str | None = Field(description="What `after` takes for the next page; null at the end.")
    gallery: GallerySaid


class OneSkuSaid(SkuSaid):
    """A SKU, and the version that knows it."""

    gallery: GallerySaid


class FactsAsked(Asked):
    """Facts to set. A fact is taken back by an empty text; others stay."""

    facts: dict[Column, Text] = Field(
        min_length=1, max_length=50, examples=[{"title": "Arla milk 1 l", "brand": "arla"}]
    )


class ChangeSaid(Said):
    """The version that a change made."""

    gallery: GallerySaid


class ViewSaid(Said):
    """A reference view. Of the place that it came from only the file's name is told."""

    view: int = Field(examples=[12])
    sku: str = Field(examples=["arla-milk-1l"])
    file: str = Field(examples=["milk.jpg"])
    sha256: str = Field(description="Of the file; empty where it is not known.")
    url: str = Field(description="Its picture.", examples=["/v1/views/12/image"])


class ViewsSaid(Said):
    """A page of a SKU's reference views."""

    views: list[ViewSaid]
    next: int | None = Field(description="What `after` takes for the next page; null at the end.")
    gallery: GallerySaid


class OneViewSaid(ViewSaid):
    """A reference view, and the version that has it."""

    gallery: GallerySaid


class EnrolledSaid(Said):
    """What became of pictures that were sent as reference views."""

    sku: str = Field(examples=["arla-milk-1l"])
    views: list[int] = Field(description="Ids of the new views.", examples=[[12, 13]])
    known: int = Field(description="How many pictures the SKU had already; they are not added again.")
    gallery: GallerySaid


class CurrentSaid(Said):
    """The version that is current where the gallery lives; another one than answers until the service takes it up."""

    version: str = Field(examples=["v000012"])
    parent: str | None = Field(examples=["v000011"])
    made: str = Field(examples=["2026-03-01T12:00:00Z"])
    reason: str = Field(examples=["add 3 views"])
    index: str = Field(description="How views are searched.", examples=["exact"])


class GalleryFactsSaid(Said):
    """The gallery that answers."""

    gallery: GallerySaid
    model: str = Field(description="Name of the model that made the vectors.")
    digest: str = Field(description="Its digest.")
    dim: int
    skus: int
    views: int
    columns: list[str] = Field(description="Names of the facts.")
    current: CurrentSaid


class VersionSaid(Said):
    """One version. Of a damaged one only the name is told."""

    version: str = Field(examples=["v000012"])
    current: bool
    parent: str | None = None
    time: str | None = None
    reason: str | None = None
    views: int | None = None
    skus: int | None = None
    added: int | None = None
    removed: int | None = None
    model: str | None = None
    damaged: bool = False


class LogSaid(Said):
    """Versions, newest first."""

    versions: list[VersionSaid]
    gallery: GallerySaid


class SomeSaid(Said):
    """How many, and the first of them."""

    count: int
    first: list[str] | list[int]


class DiffSaid(Said):
    """What version b has that a has not, and the other way round."""

    a: str
    b: str
    model: bool = Field(description="Whether another model made the vectors, so that all differ.")
    skus_added: SomeSaid
    skus_removed: SomeSaid
    views_added: SomeSaid
    views_removed: SomeSaid
    facts: SomeSaid = Field(description="SKUs of both versions with other facts.")


class RollbackAsked(Asked):
    """Where to go back to; null: to the version before the current one."""

    to: Annotated[str, Field(pattern=f"^{VERSION}$", examples=["v000003"])] | None = None


async def said(request: Request, kind: type[M]) -> M:
    """Return the request's body of JSON as a ``kind``. Raises Problem 400, 415 or 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Problem(415, "the body is not JSON", f"send it with Content-Type: {JSON}")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise Problem(status, f"{where}: {first['msg']}", "see /openapi.json") from error


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body of JSON."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": kind.model_json_schema()}}}}


async def _expected(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            pattern=rf'^(\*|"{VERSION}")$',
            description='`"v000012"`: only if this is the current version, else 412.',
        ),
    ] = None,
) -> str:
    return "" if if_match in (None, "*") else str(if_match).strip('"')


Expected = Annotated[str, Depends(_expected)]  # the version that must be the current one, "" for any
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]
AfterNumber = Annotated[int, Query(ge=0, le=LAST, description="The `next` of the page before.")]
SkuQuery = Annotated[SkuName, Query(description="Name of the SKU.")]
