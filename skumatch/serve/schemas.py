"""What requests for answers get, as the OpenAPI document tells it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VIEW_URL = "/v1/views/{view}/image"


class Said(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(Said):
    """Every answer that is not the one asked for."""

    error: str = Field(description="What is wrong.", examples=["k is 0"])
    todo: str = Field(description="What to do about it.", examples=["ask for 1 to 100 SKUs"])
    request: str = Field(description="The id under which the logs have the request.")


class ModelSaid(Said):
    """The model that answered."""

    name: str = Field(examples=["open_clip:ViT-B-32"])
    digest: str = Field(description="Over architecture, weights and preprocessing.")
    precision: str = Field(examples=["int8"])


class GallerySaid(Said):
    """The version of the gallery that answered."""

    version: str = Field(examples=["v000012"])


class MatchSaid(Said):
    """One SKU that the crop may show."""

    rank: int = Field(ge=1)
    sku: str = Field(examples=["arla-milk-1l"])
    title: str = Field(examples=["Arla milk 1 l"])
    score: float = Field(description="Cosine, -1 to 1.", examples=[0.83])
    view: int = Field(description="The reference view that won.", examples=[12])
    view_url: str = Field(description="Its picture.", examples=["/v1/views/12/image"])


class CropSaid(Said):
    """What is known of one crop."""

    name: str = Field(description="The file name that was sent, or nothing.")
    decision: Literal["accept", "review", "unknown", "error"]
    probability: float | None = Field(description="That the best answer is right, 0 to 1; null if not calibrated.")
    matches: list[MatchSaid] = Field(description="Best first, each SKU once.")
    error: str | None = Field(description="Why the picture could not be read.")
    review: str | None = Field(default=None, description="Under which id the crop is kept for review.")


class MatchesSaid(Said):
    """Answers, in the order of the pictures, all from one version of the gallery."""

    results: list[CropSaid]
    model: ModelSaid
    gallery: GallerySaid
    request: str


class VectorSaid(Said):
    """The embedding of one picture."""

    name: str
    vector: list[float] | None = Field(description="Of unit length; null where the picture could not be read.")
    error: str | None


class VectorsSaid(Said):
    """Embeddings, in the order of the pictures."""

    results: list[VectorSaid]
    model: ModelSaid
    dim: int
    request: str


class Health(Said):
    """The service is well."""

    status: Literal["ok"]


class ReloadSaid(Said):
    """What a reload found."""

    changed: bool = Field(description="Whether another model or version answers now.")
    model: ModelSaid
    gallery: GallerySaid


MEANING = {
    400: "The request is malformed.",
    401: "An API key is needed.",
    403: "The key does not allow this, or a browser sent it from another site.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It does not fit what is there.",
    412: "The gallery has another version than If-Match says.",
    413: "The request is too large.",
    415: "Not a kind of body that is taken.",
    421: "Asked under a name that is not this service's.",
    422: "A value or a picture is unusable.",
    429: "Too many requests with this key.",
    431: "The head is too large.",
    500: "A fault of the service.",
    503: "Busy, or not ready yet.",
    504: "The deadline passed.",
}


def failures(*more: int) -> dict[int | str, dict[str, Any]]:
    """Return what any route may answer beside success, and ``more``, for its ``responses``."""
    statuses = sorted({400, 401, 403, 421, 422, 429, 431, 500, 503, *more})
    return {status: {"model": Failure, "description": MEANING[status]} for status in statuses}
