"""What a service answers, as typed values with the names of its JSON. Fields that a newer service adds are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from skumatch.client_wire import ServiceError

if TYPE_CHECKING:
    import httpx2
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


@dataclass(frozen=True)
class Ranked:
    """One answer for a picture: ``rank`` from 1, ``score`` -1..1, ``view``: id of the reference view that won,
    ``view_url``: where its picture is, below the service's address."""

    rank: int
    sku: str
    title: str
    score: float
    view: int
    view_url: str


@dataclass(frozen=True)
class PictureAnswer:
    """All answers for one picture, best first.

    ``name``: as it was sent. ``decision``: accept, review, unknown, or error where the picture could not be read: then
    ``error`` says why. ``probability`` that the best answer is right, 0..1, None without a calibration. ``review``: id
    under which the picture waits for a person, None where it does not.
    """

    name: str
    decision: str
    probability: float | None
    matches: tuple[Ranked, ...]
    error: str | None
    review: str | None


@dataclass(frozen=True)
class ModelFacts:
    """The model that answered."""

    name: str
    digest: str
    precision: str


@dataclass(frozen=True)
class GalleryVersion:
    """The gallery's version that answered, or that a change made; goes into ``if_version``."""

    version: str


@dataclass(frozen=True)
class MatchAnswer:
    """Answers in the order of the pictures, all of one model and one gallery version; ``request``: its id in logs."""

    results: tuple[PictureAnswer, ...]
    model: ModelFacts
    gallery: GalleryVersion
    request: str


@dataclass(frozen=True)
class Sku:
    """A SKU: ``views``: how many reference views it has; ``facts``: what else is known of it, by column."""

    sku: str
    title: str
    views: int
    facts: dict[str, str]


@dataclass(frozen=True)
class View:
    """A reference view: its id, its SKU, the name and SHA-256 of the file that it was made of ("" where that is not
    known), and where its picture is, below the service's address."""

    view: int
    sku: str
    file: str
    sha256: str
    url: str


@dataclass(frozen=True)
class Enrolled:
    """What became of pictures that were sent as reference views: ids of the new ``views``, how many pictures were
    ``known`` already and not added again, and the gallery's version."""

    sku: str
    views: tuple[int, ...]
    known: int
    gallery: GalleryVersion


@dataclass(frozen=True)
class Current:
    """The version that is current where the gallery lives: when it was ``made`` and why, how views are searched."""

    version: str
    parent: str | None
    made: str
    reason: str
    index: str


@dataclass(frozen=True)
class GalleryFacts:
    """The gallery that answers: the ``model`` of its vectors, that model's ``digest``, their width, its size, the names
    of the facts; and the version that is ``current``, which the service may not have taken up yet."""

    gallery: GalleryVersion
    model: str
    digest: str
    dim: int
    skus: int
    views: int
    columns: tuple[str, ...]
    current: Current


@dataclass(frozen=True)
class VersionFacts:
    """A version of the gallery and the change that made it; of a ``damaged`` one only the name is known."""

    version: str
    current: bool
    parent: str | None
    time: str | None
    reason: str | None
    views: int | None
    skus: int | None
    added: int | None
    removed: int | None
    model: str | None
    damaged: bool


@dataclass(frozen=True)
class Reloaded:
    """Whether another model or version answers now, and which."""

    changed: bool
    model: ModelFacts
    gallery: GalleryVersion


def understood(answer: httpx2.Response, read: Callable[[Any], T]) -> T:
    """Return what ``read`` makes of an answer's JSON. Raises ServiceError where it is not what it should be."""
    try:
        return read(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{answer.url.host} gave an answer that is not understood ({type(error).__name__})"
        raise ServiceError(answer.status_code, what, "see that the address is that of a skumatch service") from error


def part(kind: type[D], data: Mapping[str, Any], **made: Any) -> D:
    """Build a dataclass from the entries of ``data`` that it has, with those ``made`` of others instead."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: data[name] for name in names - set(made)}, **made)


def match_answer(data: Any) -> MatchAnswer:
    """Read what /v1/match answers."""
    results = tuple(
        part(PictureAnswer, one, matches=tuple(part(Ranked, match) for match in one["matches"]))
        for one in data["results"]
    )
    return part(MatchAnswer, data, results=results, model=part(ModelFacts, data["model"]), gallery=changed(data))


def changed(data: Any) -> GalleryVersion:
    """Read the version in an answer."""
    return part(GalleryVersion, data["gallery"])


def enrolled(data: Any) -> Enrolled:
    """Read what adding and replacing views answers."""
    return part(Enrolled, data, views=tuple(data["views"]), gallery=changed(data))


def gallery_facts(data: Any) -> GalleryFacts:
    """Read what /v1/gallery answers."""
    return part(
        GalleryFacts,
        data,
        gallery=changed(data),
        columns=tuple(data["columns"]),
        current=part(Current, data["current"]),
    )


def reloaded(data: Any) -> Reloaded:
    """Read what /v1/reload answers."""
    return part(Reloaded, data, model=part(ModelFacts, data["model"]), gallery=changed(data))
