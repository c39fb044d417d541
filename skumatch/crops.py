"""From what a user names (files, folders, globs, a list on stdin) to a stream of crop paths."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from skumatch.errors import DataError
from skumatch.readers_common import is_picture, list_folder


def expand(names: Iterable[str]) -> Iterator[Path]:
    """Yield crops: a file as it is, a folder's pictures (recursively, sorted), a glob's matches (sorted).

    Raises DataError for a name that is nothing of these, and for a folder or glob without pictures.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            yield from _some(_walk(path), f"no .jpg, .jpeg, .png or .webp in {path}")
        elif path.exists() or not glob.has_magic(name):
            yield _existing(path)
        else:
            anchor = Path(Path(name).anchor or ".")
            found = sorted(anchor.glob(str(Path(name).relative_to(anchor))))
            yield from _some((p for p in found if is_picture(p.name)), f"no picture matches {name}")


def count(names: Iterable[str]) -> int:
    """Return how many crops ``expand`` will yield, by listing once."""
    return sum(1 for _ in expand(names))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} does not exist", "give pictures, folders or globs")
    return path


def _some(paths: Iterator[Path], otherwise: str) -> Iterator[Path]:
    first = next(paths, None)
    if first is None:
        raise DataError(otherwise, "give a folder or glob that holds pictures")
    yield first
    yield from paths


def _walk(folder: Path) -> Iterator[Path]:
    """Yield pictures below ``folder``: a directory's own in name order, then its folders' in name order."""
    folders, pictures = list_folder(folder)
    yield from (folder / name for name in pictures)
    for name in folders:
        yield from _walk(folder / name)
