"""What a big job is cut into: pieces, each of which becomes a shard, of parts, each of which a worker reads by itself.

A part is a few words that travel as JSON to another machine and yield its pictures there. It knows nothing about
vectors, nor about where the results go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from skumatch.bulk import places
from skumatch.embed import ordered_batches
from skumatch.errors import ImageError
from skumatch.images import DEFAULT_MAX_PIXELS
from skumatch.readers_common import safe_text
from skumatch.segment import describe

PART_ROWS = 256  # pictures of one part of a folder or manifest
FETCHERS = 8  # threads that read files: they wait for disk or network
READ_AHEAD = 16  # pictures of a batch of reading; three of them are in memory at most


@dataclass(frozen=True)
class Picture:
    """One picture: where it came from as text, its SKU, and its bytes, the path to read them from, or why there are
    none."""

    source: str
    sku: str | None
    data: bytes | str | ImageError


class Part(Protocol):
    """A part of a piece: a frozen dataclass of JSON values."""

    def pictures(self) -> Iterator[Picture]:
        """Yield its pictures, the same in the same order each time."""
        ...


@dataclass(frozen=True)
class Files:
    """Some files: (path, SKU) each."""

    items: tuple[tuple[str, str | None], ...]

    def pictures(self) -> Iterator[Picture]:
        """Yield them, still to be read."""
        for path, sku in self.items:
            yield Picture(safe_text(path), sku, path)


@dataclass(frozen=True)
class Tar:
    """A whole tar archive."""

    path: str

    def pictures(self) -> Iterator[Picture]:
        """Yield what ``tar`` finds in it."""
        from skumatch.bulk.tar import tar_pictures

        return tar_pictures(self.path)


@dataclass(frozen=True)
class Group:
    """One row group of a Parquet file, of ``rows`` rows from ``first`` on, with a column of image bytes."""

    path: str
    column: str
    sku: str | None
    group: int
    first: int
    rows: int

    def pictures(self) -> Iterator[Picture]:
        """Yield what ``parquet`` finds in it."""
        from skumatch.bulk.parquet import group_pictures

        return group_pictures(self)


_KINDS: dict[str, type[Files] | type[Tar] | type[Group]] = {"files": Files, "tar": Tar, "group": Group}


def to_text(part: Files | Tar | Group) -> str:
    """Return a part as ASCII JSON, whatever bytes its file names are made of."""
    name = next(name for name, kind in _KINDS.items() if isinstance(part, kind))
    return json.dumps({name: asdict(part)})


def from_text(text: str) -> Part:
    """Return the part that ``to_text`` wrote."""
    ((name, facts),) = json.loads(text).items()
    if name == "files":
        return Files(tuple((path, sku) for path, sku in facts["items"]))
    return _KINDS[name](**facts)


@dataclass(frozen=True)
class Piece:
    """What becomes one shard. ``digest``: over what it is made from; ``rows``: its pictures, None where only reading it
    tells; ``starts``: at which row of the piece each of ``parts`` begins."""

    number: int
    digest: str
    rows: int | None
    parts: tuple[Files | Tar | Group, ...]
    starts: tuple[int, ...]


def files_piece(number: int, items: Iterable[tuple[str, str | None]], stamps: Iterable[str]) -> Piece:
    """Return the piece of some files; ``stamps``: what differs once a file was changed, one each."""
    listed = tuple(items)
    starts = tuple(range(0, len(listed), PART_ROWS))
    digest = digest_of(*(text for item, stamp in zip(listed, stamps, strict=True) for text in (*item, stamp)))
    parts = tuple(Files(listed[start : start + PART_ROWS]) for start in starts)
    return Piece(number, digest, len(listed), parts, starts)


def digest_of(*words: str | int | None) -> str:
    """Return the SHA-256 of some words."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(json.dumps(word).encode() + b"\n")
    return digest.hexdigest()


def read_ahead(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes | ImageError]]:
    """Yield pictures with their bytes, or why there are none, read on threads: at most 48 are in memory.

    Raises DataError when a network fails.
    """
    for group, found in ordered_batches(pictures, _bytes_of, READ_AHEAD, FETCHERS):
        yield from zip(group, found, strict=True)


def _bytes_of(picture: Picture) -> bytes | ImageError:
    if not isinstance(picture.data, str):
        return picture.data
    try:
        return places.fetched(picture.data)
    except ImageError as error:
        return error


def described(data: bytes, thumbs: bool, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[str, bytes | None]:
    """Return (SHA-256 as hex, thumbnail where ``thumbs``). Raises ImageError as ``segment.describe``."""
    if thumbs:
        return describe(data, max_pixels)
    return hashlib.sha256(data).hexdigest(), None


def reason_of(error: ImageError, source: str) -> str:
    """Return why a picture cannot be read, without its name: its row has that."""
    what = error.what.removeprefix(f"{source}: ")
    if what.startswith("image of ") and " bytes: " in what:
        what = what.partition(" bytes: ")[2]
    return safe_text(f"{what} - {error.todo}" if error.todo else what)
