"""Pictures in a tar archive laid out as WebDataset has it: the files of a sample share the name up to the first dot.

Every picture in it is a row, whatever else its sample holds. It reads from front to end and keeps one sample in memory.
(WebDataset: https://github.com/webdataset/webdataset, "The WebDataset Format".)
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator

from skumatch.bulk import places
from skumatch.bulk.parts import Picture
from skumatch.errors import ImageError
from skumatch.readers_common import safe_text

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")  # a bmp is no format that is read: its row says so
LABELS = ("json", "cls", "txt")
LARGEST_LABEL = 1 << 20  # bytes
LARGEST = 1 << 30  # bytes of one picture
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
Pictures = list[tuple[str, bytes | ImageError]]


def tar_pictures(path: str) -> Iterator[Picture]:
    """Yield the pictures of the archive at ``path`` in order; each is called ``ARCHIVE#MEMBER``.

    The SKU is ``sku`` or ``label`` of the sample's .json, or what its .cls or .txt says. Where the archive is broken,
    the last picture says so. Raises DataError when it cannot be opened or a network fails.
    """
    shown = safe_text(path)
    with places.opened(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                yield from _samples(archive, shown)
        except _BROKEN as error:
            why = ImageError(f"the archive breaks off ({type(error).__name__}: {error})", "write it anew")
            yield Picture(shown, None, why)


def _samples(archive: tarfile.TarFile, shown: str) -> Iterator[Picture]:
    key: str | None = None
    pictures: Pictures = []
    labels: dict[str, bytes] = {}
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it remembers every one of a million
            if not member.isfile():
                continue
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if folder + slash + stem != key:
                yield from _rows(pictures, labels, shown)
                key, pictures, labels = folder + slash + stem, [], {}
            kind = ending.rpartition(".")[2].lower()
            if stem and kind in PICTURES:
                pictures.append((member.name, _content(archive, member)))
            elif ending.lower() in LABELS and member.size <= LARGEST_LABEL:
                labels[ending.lower()] = _read(archive, member)
    except _BROKEN:
        yield from _rows(pictures, labels, shown)
        raise
    yield from _rows(pictures, labels, shown)


def _rows(pictures: Pictures, labels: dict[str, bytes], shown: str) -> Iterator[Picture]:
    sku = _sku(labels)
    for name, data in pictures:
        yield Picture(f"{shown}#{safe_text(name)}", sku, data)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | ImageError:
    if member.size > LARGEST:
        return ImageError(f"a picture of {member.size:,} bytes", "leave it out")
    return _read(archive, member)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _sku(labels: dict[str, bytes]) -> str | None:
    """Return the SKU that a sample's labels tell, None where they tell none."""
    for kind in LABELS:
        if kind not in labels:
            continue
        text = labels[kind].decode("utf-8", "surrogateescape").strip()
        found = _sku_in_json(text) if kind == "json" else text
        if found:
            return safe_text(found)
    return None


def _sku_in_json(text: str) -> str:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if isinstance(said, (str, int)):
        return str(said).strip()
    found = [said.get(name) for name in ("sku", "label")] if isinstance(said, dict) else []
    return next((str(one).strip() for one in found if isinstance(one, (str, int)) and str(one).strip()), "")
