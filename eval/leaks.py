"""Queries that are byte for byte a gallery view: they say nothing about the shelf and are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skumatch import artefact
from skumatch.dataset import Row


def identical(gallery: Sequence[Row], queries: Sequence[Row]) -> dict[Path, Path]:
    """Return, per query path, a gallery path with the same bytes. Only files of equal size are read.

    Unreadable files are nobody's copy; the evaluation reports them itself.
    """
    sizes = {size for row in queries if (size := _size(row.path)) is not None}
    views: dict[tuple[int, str], Path] = {}
    shared: set[int] = set()
    for row in gallery:
        size = _size(row.path)
        if size is not None and size in sizes:
            shared.add(size)
            views.setdefault((size, _digest(row.path)), row.path)
    found = {}
    for row in queries:
        size = _size(row.path)
        if size is not None and size in shared:
            view = views.get((size, _digest(row.path)))
            if view is not None:
                found[row.path] = view
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> str:
    try:
        return artefact.file_digest(path)
    except OSError:
        return f"unreadable {path}"
