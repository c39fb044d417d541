"""The versions of a gallery: what happened when, how two differ, going back, clearing away, and checking every byte."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact, lock
from skumatch.errors import ArtefactError, GalleryError
from skumatch.gallery import Gallery, open_version
from skumatch.gallery_state import INDEXES, PENDING, SEGMENTS, TABLES, read_version
from skumatch.jobs import pieces_of_jobs
from skumatch.sku_table import SKU
from skumatch.spec import Ids
from skumatch.view_directory import member

KEEP = 3  # versions kept by default
PIECES = (SEGMENTS, TABLES, INDEXES)
HOMES = (*PIECES, PENDING)


@dataclass(frozen=True)
class Difference:
    """What version ``b`` has and ``a`` has not. SKUs by name; ``views_added`` and ``views_removed`` by id;
    ``facts``: SKUs of both that are known by other facts; ``model``: whether they were made with different models."""

    skus_added: list[str]
    skus_removed: list[str]
    views_added: Ids
    views_removed: Ids
    facts: list[str]
    model: bool


def log(store: Path) -> list[dict[str, Any]]:
    """Return what is told of each version, newest first: version, current, parent, time, reason, views, skus, added
    and removed views, model. A version that cannot be read has "error" alone. Raises GalleryError."""
    current = _current(store).name
    found = []
    for name in reversed(artefact.versions(store)):
        facts: dict[str, Any] = {"version": name, "current": name == current}
        try:
            version = read_version(store / name)
            said = {key: version.facts[key] for key in ("parent", "time", "reason")}
            facts |= {**said, **version.facts["counts"], "model": version.state.spec.name}
        except (ArtefactError, GalleryError) as error:
            facts["error"] = str(error)
        found.append(facts)
    return found


def diff(store: Path, a: str, b: str) -> Difference:
    """Return how version ``b`` differs from ``a``. Raises GalleryError for an unknown one, ArtefactError."""
    one, other = (open_version(_folder(store, name)) for name in (a, b))
    skus, others = set(one.skus), set(other.skus)
    return Difference(
        sorted(others - skus),
        sorted(skus - others),
        other.ids[~member(other.ids, one.ids)],
        one.ids[~member(one.ids, other.ids)],
        _other_facts(one, other, sorted(skus & others)),
        one.spec.digest != other.spec.digest,
    )


def _other_facts(one: Gallery, other: Gallery, shared: Sequence[str]) -> list[str]:
    """Return those of the ``shared`` SKUs that are known by other facts."""
    import pyarrow as pa

    if one.published.state.tables == other.published.state.tables or not shared:
        return []
    names = pa.array(shared, pa.string())
    tables = [gallery.pieces.table for gallery in (one, other)]
    columns = sorted({name for table in tables for name in table.columns if name != SKU})
    changed = np.zeros(len(shared), bool)
    for column in columns:
        cells = []
        for table in tables:
            values = np.array([*(table.column(column) if column in table.columns else [""] * len(table)), ""], object)
            cells.append(values[table.places(names)])  # -1, where nothing is known, is the "" at the end
        changed |= cells[0] != cells[1]
    return [shared[place] for place in np.flatnonzero(changed).tolist()]


def rollback(store: Path, to: str | None = None) -> str:
    """Make version ``to`` (the current one's parent where it is None) current and return its name.

    The versions after it stay until they are pruned. Every byte of ``to`` is checked first. Raises GalleryError for an
    unknown version or one without a parent, ArtefactError when a byte differs.
    """
    _current(store)  # before the lock, which would make the folder
    with lock.writing(store, "rollback"):
        name = to or read_version(_current(store)).facts["parent"]
        if name is None:
            raise GalleryError(f"{_current(store).name} has no version before it", "name one of `skumatch gallery log`")
        folder = _folder(store, name)
        open_version(folder, full=True)
        artefact.set_current(store, folder.name)
    return folder.name


def verify(store: Path, everything: bool = False) -> list[Gallery]:
    """Hash every byte of the current version (``everything``: of all versions) and return those opened.

    Raises GalleryError when there is no gallery, ArtefactError naming the first file that differs.
    """
    current = _current(store)
    names = artefact.versions(store) if everything else [current.name]
    opened: list[Gallery] = []
    for name in names:
        opened.append(open_version(store / name, full=True))
        len(opened[-1].pieces.directory.ids)
    return opened


def prune(store: Path, keep: int = KEEP, unfinished: bool = False) -> tuple[list[str], int]:
    """Remove all but the newest ``keep`` versions and the current one, and the pieces that no version names.

    Pieces of interrupted imports and rebuilds stay unless ``unfinished``: then these begin anew. While anybody writes
    pieces that are to be published, all pieces stay until the next prune. Returns (removed versions, bytes freed). A
    reader that has an old version open keeps it. Raises GalleryError when ``keep`` is below
    1 or there is no gallery, LockedError, ArtefactError for a broken manifest: then nothing was removed.
    """
    if keep < 1:
        raise GalleryError(f"cannot keep {keep} versions", "keep at least 1")
    _current(store)  # before the lock, which would make the folder
    with lock.writing(store, "prune"), lock.idle(store) as idle, artefact.disk_errors(store):
        current = _current(store).name
        if unfinished and idle:
            shutil.rmtree(store / PENDING, ignore_errors=True)
        names = artefact.versions(store)
        kept = {*names[-keep:], current}
        needed = _needed(store, sorted(kept))
        gone = [name for name in names if name not in kept]
        freed = sum(_remove(store / name) for name in gone)
        for home in PIECES if idle else ():
            for piece in sorted((store / home).glob("[!.]*")):
                if f"{home}/{piece.name}" not in needed:
                    freed += _remove(piece)
        freed += sum(artefact.remove_abandoned(folder) for folder in (store, *map(store.joinpath, HOMES)))
        artefact.fsync_dir(store)
    return gone, freed


def _needed(store: Path, versions: Sequence[str]) -> set[str]:
    """Return the pieces that ``versions`` and unfinished jobs name."""
    needed = {f"{SEGMENTS}/{name}" for name in pieces_of_jobs(store / PENDING)}
    for name in versions:
        needed.update(read_version(store / name).state.pieces())
    return needed


def _remove(folder: Path) -> int:
    """Remove a folder; return the bytes in it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    hidden = folder.with_name(f".{folder.name}.0.0.tmp")  # at once, so that a kill leaves no half of it
    folder.rename(hidden)
    shutil.rmtree(hidden)
    return size


def _current(store: Path) -> Path:
    folder = artefact.current(store)
    if folder is None:
        raise GalleryError(f"there is no gallery in {store}", "make one with `skumatch gallery build`")
    return folder


def _folder(store: Path, name: str) -> Path:
    """Return a version's folder; "3" and "v3" stand for "v000003". Raises GalleryError, naming those there are."""
    digits = name.removeprefix("v")
    full = f"v{int(digits):06d}" if digits.isdecimal() else name
    there = artefact.versions(store)
    if full not in there:
        raise GalleryError(f"{store} has no version '{name}'", f"its versions are: {', '.join(there[-20:]) or 'none'}")
    return store / full
