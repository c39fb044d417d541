"""A client for the service, for programs on other machines; it needs neither a model nor a gallery.

Every call raises ServiceError where the service refuses or cannot be reached, and ImageError for a picture that cannot
be read here. ``docs/service.md`` has examples.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

from skumatch.client_answers import (
    Enrolled,
    GalleryFacts,
    GalleryVersion,
    MatchAnswer,
    Reloaded,
    Sku,
    VersionFacts,
    View,
    changed,
    enrolled,
    gallery_facts,
    match_answer,
    part,
    reloaded,
    understood,
)
from skumatch.client_wire import Ask, File, ServiceError, Wire
from skumatch.errors import GalleryError, ImageError

if TYPE_CHECKING:
    import httpx2
    from _typeshed import DataclassInstance

    from skumatch.spec import Vectors

Picture = Path | str | bytes | BinaryIO  # a path, a file's content, or an open file
T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")
Pictures = Picture | Iterable[Picture]


class Client:
    """A service under ``url``, asked with an API ``key``. Any number of threads may use one.

    ``timeout``: seconds that the service may be silent, and after which nothing is tried again; ``retries``: how often
    at most, see ``Wire.send``. All pictures of a call go in one request, and are read into memory before: split what is
    larger than the service's ``max_images`` and ``max_body``. ``if_version``: the gallery's version that a change is
    meant for; where it is another by now, nothing is changed and the ServiceError has ``status`` 412.
    Raises ConfigError for an address, key, timeout or number of retries that cannot be used.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30.0, retries: int = 2) -> None:
        self._wire = Wire(url, key, timeout, retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._wire.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def match(
        self, images: Pictures, k: int = 5, where: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> MatchAnswer:
        """Match pictures to their ``k`` nearest SKUs, in order.

        ``where``: only SKUs whose facts (column -> text) are these. ``deadline``: seconds that the service may take.
        A picture among several that cannot be read has decision "error"; if none can, there is a ServiceError (422).
        """
        files = _files(images)
        params = [("k", str(k)), *(("where", f"{column}={value}") for column, value in (where or {}).items())]
        if deadline is not None:
            params.append(("deadline", str(deadline)))
        answer = understood(self._wire.send(Ask("POST", "v1/match", True, params, files)), match_answer)
        _require_all(len(answer.results), len(files))
        return answer

    def embed(self, images: Pictures) -> Vectors:
        """Return float32 (N, D) unit rows of N pictures, in order. Raises ImageError if one of them cannot be read."""
        import numpy as np

        files = _files(images)
        told = understood(self._wire.send(Ask("POST", "v1/embed", True, (), files)), lambda data: list(data["results"]))
        _require_all(len(told), len(files))
        for one in told:
            if one["vector"] is None:
                raise ImageError(f"{one['name']}: {one['error']}", "embed the others without it")
        return np.array([one["vector"] for one in told], np.float32)

    def skus(self, query: str = "", limit: int = 50) -> Iterator[Sku]:
        """Yield the SKUs whose name, title or facts hold every word of ``query``; ``limit`` of them per request."""
        return self._pages(Sku, "skus", [("query", query), ("limit", str(limit))])

    def sku(self, name: str) -> Sku:
        """Return what is known of a SKU. Raises ServiceError (404)."""
        return understood(self._get(_sku_path(name)), lambda data: part(Sku, data))

    def views(self, sku: str, limit: int = 100) -> Iterator[View]:
        """Yield the reference views of a SKU, ``limit`` of them per request. Raises ServiceError (404)."""
        return self._pages(View, "views", [("sku", sku), ("limit", str(limit))])

    def set_facts(self, sku: str, facts: Mapping[str, str], if_version: str | None = None) -> GalleryVersion:
        """Set facts of a SKU, column -> text; "" takes one back. The others stay."""
        return self._change(Ask("PATCH", _sku_path(sku), False, body={"facts": dict(facts)}), changed, if_version)

    def add_views(self, sku: str, images: Pictures, title: str = "", if_version: str | None = None) -> Enrolled:
        """Add reference views to a SKU, which need not exist. All or none: one that cannot be read is refused (422).

        ``title``: of the SKU; "" leaves it as it is.
        """
        ask = Ask("POST", "v1/views", False, _sku_params(sku, title), _files(images))
        return self._change(ask, enrolled, if_version)

    def replace_views(self, sku: str, images: Pictures, title: str = "", if_version: str | None = None) -> Enrolled:
        """Let these views stand for all that the SKU had. Raises ServiceError (404)."""
        ask = Ask("PUT", "v1/views", False, _sku_params(sku, title), _files(images))
        return self._change(ask, enrolled, if_version)

    def remove_sku(self, sku: str, if_version: str | None = None) -> GalleryVersion:
        """Remove a SKU, its views and its facts. Raises ServiceError (404)."""
        return self._change(Ask("DELETE", _sku_path(sku), False), changed, if_version)

    def remove_view(self, view: int, if_version: str | None = None) -> GalleryVersion:
        """Remove a reference view. Raises ServiceError (404)."""
        return self._change(Ask("DELETE", f"v1/views/{int(view)}", False), changed, if_version)

    def view_picture(self, view: int) -> bytes:
        """Return a reference view's picture, JPEG. Raises ServiceError (404)."""
        return bytes(self._get(f"v1/views/{int(view)}/image").content)

    def gallery(self) -> GalleryFacts:
        """Return what the gallery that answers holds, and which version is current where it lives."""
        return understood(self._get("v1/gallery"), gallery_facts)

    def log(self, limit: int = 100) -> tuple[VersionFacts, ...]:
        """Return the gallery's newest versions and what made them, newest first."""
        found = self._get("v1/gallery/log", [("limit", str(limit))])
        return understood(found, lambda data: tuple(part(VersionFacts, one) for one in data["versions"]))

    def rollback(self, to: str | None = None, if_version: str | None = None) -> GalleryVersion:
        """Make an older version the current one: ``to``, or the one before."""
        return self._change(Ask("POST", "v1/gallery/rollback", False, body={"to": to}), changed, if_version)

    def reload(self) -> Reloaded:
        """Let the service take up the model and the gallery that are current now."""
        return understood(self._wire.send(Ask("POST", "v1/reload", True)), reloaded)

    def ready(self) -> bool:
        """Return whether the service can be reached and answers requests."""
        try:
            self._get("readyz")
        except ServiceError:
            return False
        return True

    def _get(self, path: str, params: Sequence[tuple[str, str]] = ()) -> httpx2.Response:
        return self._wire.send(Ask("GET", path, True, params))

    def _pages(self, kind: type[D], name: str, params: list[tuple[str, str]]) -> Iterator[D]:
        """Yield the entries of a list that comes in pages, at ``v1/{name}``."""
        after: str | None = None
        while True:
            answer = self._get(f"v1/{name}", params if after is None else [*params, ("after", after)])
            yield from understood(answer, lambda data: [part(kind, one) for one in data[name]])
            following = understood(answer, lambda data: data["next"])
            if following is None:
                return
            after = str(following)

    def _change(self, ask: Ask, read: Callable[[Any], T], if_version: str | None) -> T:
        headers = {} if if_version is None else {"If-Match": f'"{if_version}"'}
        return understood(self._wire.send(replace(ask, headers=headers)), read)


def _sku_path(sku: str) -> str:
    """Return where a SKU is. Raises GalleryError for a name that no SKU can have."""
    try:
        if sku not in ("", ".", ".."):
            return f"v1/skus/{quote(sku, safe='')}"
    except UnicodeEncodeError:
        pass
    raise GalleryError(f"{sku!r} is not the name of a SKU", "give one that `skus` yields")


def _sku_params(sku: str, title: str) -> list[tuple[str, str]]:
    return [("sku", sku), *([("title", title)] if title else [])]


def _files(images: Pictures) -> list[File]:
    """Read the pictures as parts of a form. Raises ImageError where there are none or one cannot be read."""
    single = isinstance(images, (str, bytes, Path)) or hasattr(images, "read")
    listed: Any = [images] if single else images
    files = [("images", _file(number, one)) for number, one in enumerate(listed)]
    if not files:
        raise ImageError("there are no pictures to send", "give at least one")
    return files


def _file(number: int, picture: Any) -> tuple[str, bytes, str]:
    """Return name, content and type of the picture in place ``number``."""
    name, data = f"picture-{number}", picture
    try:
        if isinstance(picture, (str, Path)):
            name, data = Path(picture).name, Path(picture).read_bytes()
        elif hasattr(picture, "read"):
            name, data = Path(str(getattr(picture, "name", name))).name, picture.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{picture} cannot be read ({reason})", "give a picture that can") from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"a picture is given as {type(picture).__name__}", "give a path, bytes or a file open in binary"
        )
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return os.fsencode(name).decode("utf-8", "replace"), data, kind


def _require_all(found: int, sent: int) -> None:
    if found != sent:
        raise ServiceError(200, f"{sent} pictures were sent and {found} answered", "report this as a bug")
