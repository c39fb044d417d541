"""What goes wrong while a request is answered, as status, words and when to come again.

Knows nothing about frameworks. A SkumatchError keeps its words; what is no fault of the request is 5xx.
"""

from __future__ import annotations

import math

from skumatch.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    GalleryError,
    ImageError,
    LockedError,
    ServerError,
    SkumatchError,
    SpecMismatch,
)

STATUS: dict[type[SkumatchError], int] = {
    LockedError: 503,
    ServerError: 503,
    SpecMismatch: 409,
    GalleryError: 422,
    ImageError: 422,
    DataError: 422,
    ConfigError: 422,
    ArtefactError: 500,
}
LATER = 1.0  # seconds after which a request may be tried again where nothing better is known


class Problem(Exception):
    """An answer other than the one asked for: ``status``, ``what`` is wrong and ``todo``, and ``retry_after`` seconds
    where the same request may succeed later."""

    def __init__(self, status: int, what: str, todo: str = "", retry_after: float | None = None) -> None:
        self.status = status
        self.what = what
        self.todo = todo
        self.retry_after = retry_after
        super().__init__(f"{status}: {what}")


def problem_of(error: SkumatchError) -> Problem:
    """Return ``error`` as a Problem with the same words; one that is not the request's fault is a 500 or 503."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    return Problem(status, error.what, error.todo, LATER if status == 503 else None)


def body(problem: Problem, request: str) -> dict[str, str]:
    """Return what is answered, JSON-ready; ``request``: the id under which the logs have it."""
    return {"error": problem.what, "todo": problem.todo, "request": request}


def headers(problem: Problem) -> dict[str, str]:
    """Return Retry-After, in whole seconds, where the request may succeed later."""
    return {} if problem.retry_after is None else {"Retry-After": str(max(1, math.ceil(problem.retry_after)))}
