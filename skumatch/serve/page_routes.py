"""``/``: the page for people who look at crops. Its files lie beside this module and are read once.

It holds nothing that is secret: what it shows it asks the API for, with a key where one is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Header, Response

from skumatch.serve.problems import Problem

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PREFIX = "/page/"
START = "index.html"
Seen = Annotated[str | None, Header(alias="If-None-Match", max_length=1000)]
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """A file of the page, with its content type and ETag."""

    data: bytes
    kind: str
    mark: str


@cache
def files() -> dict[str, File]:
    """Return the files of the page by name."""
    found = {}
    for one in (resources.files("skumatch.serve") / "page").iterdir():
        kind = KINDS.get(one.name.rpartition(".")[2])
        if kind is not None:
            data = one.read_bytes()
            found[one.name] = File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


@router.get("/")
async def start(if_none_match: Seen = None) -> Response:
    """Return the page."""
    return answer(START, if_none_match)


@router.get(PREFIX + "{name}")
async def file(name: str, if_none_match: Seen = None) -> Response:
    """Return a file of the page."""
    return answer(name, if_none_match)


def answer(name: str, seen: str | None) -> Response:
    """Return a file; a browser asks each time whether it is still the same. Raises Problem 404."""
    found = files().get(name)
    if found is None:
        raise Problem(404, "the page has no such file", "see /")
    headers = {"ETag": found.mark, "Cache-Control": "no-cache"}
    if found.mark in (seen or ""):
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type=found.kind, headers=headers)


def is_page(path: str) -> bool:
    """Return whether ``path`` belongs to the page, which anybody may have."""
    return path == "/" or path.startswith(PREFIX)
