"""Pictures out of a request: raw bytes, multipart, or URLs where those are allowed.

The guard has bounded the body before it comes here. Nothing is decoded here, and no name that was sent becomes a path.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import python_multipart  # noqa: F401  # starlette would miss it only when the first form comes
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from skumatch.errors import ImageError
from skumatch.serve.engine import Picture
from skumatch.serve.problems import Problem
from skumatch.serve.settings import Settings

if TYPE_CHECKING:
    from skumatch.serve.fetch import Fetcher
    from skumatch.serve.service import Service

RAW = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
MULTIPART = "multipart/form-data"
JSON = "application/json"
NAME = 256  # characters of a file name that are answered
FIELDS = 16  # parts of a form that are no files, at most
SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary", "minLength": 1}} for kind in RAW},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["urls"],
                    "additionalProperties": False,
                    "properties": {
                        "urls": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "uri"}}
                    },
                },
                "example": {"urls": ["https://example.com/crop.jpg"]},
            },
        },
    }
}


async def pictures(request: Request, service: Service) -> list[Picture]:
    """Return the pictures of a request, in order.

    One that could not be fetched carries its error. Raises Problem: 400 for a body that is none of what it says, 413
    for too many, 415 for another kind.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in RAW:
        data = await request.body()
        if not data:
            raise Problem(400, "the body is empty", "send a picture")
        return [Picture("", data)]
    if kind == MULTIPART:
        return await _parts(request, service.settings.max_images)
    if kind == JSON:
        if service.fetcher is None:
            raise Problem(415, "pictures by URL are switched off", f"send {', '.join(RAW)} or {MULTIPART}")
        return await _fetched(await request.body(), service.fetcher, service.settings)
    raise Problem(415, f"content type '{kind[:100]}'", f"send {', '.join(RAW)} or {MULTIPART}")


async def _parts(request: Request, most: int) -> list[Picture]:
    try:
        async with request.form(max_files=most, max_fields=FIELDS) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [Picture((file.filename or "")[:NAME], await file.read()) for file in files]
    except HTTPException as error:  # what starlette makes of a broken form inside an app
        if error.detail.startswith("Too many files"):
            raise too_many(most + 1, most) from error
        raise Problem(400, f"the form cannot be read ({error.detail})", "send multipart/form-data") from error
    if not found:
        raise Problem(400, "the form holds no file", "send each picture as a file part named images")
    return found


async def _fetched(body: bytes, fetcher: Fetcher, settings: Settings) -> list[Picture]:
    """Fetch the URLs one by one: together they may be as large as a body."""
    urls, found, room = _urls(body), [], settings.max_body
    if len(urls) > settings.max_images:
        raise too_many(len(urls), settings.max_images)
    for url in urls:
        name = url.partition("?")[0][:NAME]
        try:
            found.append(Picture(name, await fetcher.get(url, room)))
        except ImageError as error:
            found.append(Picture(name, b"", error))
        room -= len(found[-1].data)
    return found


def _urls(body: bytes) -> list[str]:
    try:
        said = json.loads(body)
        urls: list[str] = said["urls"]
        fits = set(said) == {"urls"} and isinstance(urls, list) and all(isinstance(url, str) for url in urls)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits or not urls:
        raise Problem(400, 'the body is not {"urls": ["https://..."]}', "send that, or a picture")
    return urls


def too_many(count: int, most: int) -> Problem:
    """Return what is said of more pictures than one request may have."""
    return Problem(413, f"{count} pictures or more in one request", f"send at most {most}")
