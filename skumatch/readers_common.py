"""What every data reader shares: safe SKU names, folder listings, the seeded split and readable messages.

It lists names and never opens a picture; it knows nothing about a particular format.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skumatch.errors import DataError

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SPLITS = ("train", "val", "test", "gallery")
NO_EXTRA: Mapping[str, str] = {}  # shared: one dict per row would cost 64 MB per million rows
TEST_SHARE = 0.2
_JUNK = ("__MACOSX", "Thumbs.db")
_SUFFIXES = frozenset(PICTURE_SUFFIXES)


def safe_text(name: str) -> str:
    """Return ``name`` as text that every file format and terminal takes.

    Bytes of a file name that are not UTF-8 reach Python as lone surrogates; here they become ``\\xNN``. Valid text,
    in NFC or NFD, comes back unchanged.
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte: only Windows file names hold such
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(path: Path) -> str:
    """Return ``path`` as it may stand in a message."""
    return safe_text(str(path))


class SkuNames:
    """Turns folder and label names into SKUs, and refuses two names that would become one SKU."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._names: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the SKU for ``name``, the same string object each time. Raises DataError for a collision."""
        sku = safe_text(name)
        if self._names.setdefault(sku, name) != name:
            raise DataError(
                f"two SKU names in {shown(self._source)} are both written '{sku}'",
                "rename one of them: one holds bytes that are not UTF-8",
            )
        return sku


def is_picture(name: str) -> bool:
    """Return whether a file name ends like a picture and is not hidden."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and stem[0] != "." and suffix.lower() in _SUFFIXES


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the sub-folders and of the pictures in ``folder``, each sorted by their bytes.

    Hidden names and ``__MACOSX`` are left out. A broken link counts as a picture: the data check reports it as missing.
    Raises DataError when the folder cannot be listed.
    """
    folders: list[str] = []
    pictures: list[str] = []
    for entry in _scan(folder):
        if is_picture(entry.name) and not _is_folder(entry):
            pictures.append(entry.name)
        elif not _is_junk(entry.name) and _is_folder(entry):
            folders.append(entry.name)
    return sorted(folders, key=os.fsencode), sorted(pictures, key=os.fsencode)


def holds_pictures(folder: Path) -> bool:
    """Return whether a picture lies directly in ``folder``, looking no further than the first."""
    try:
        with os.scandir(folder) as entries:
            return any(is_picture(entry.name) and not _is_folder(entry) for entry in entries)
    except OSError:
        return False


def holds_sku_folders(folder: Path) -> bool:
    """Return whether ``folder`` has a sub-folder with a picture directly in it."""
    return folder.is_dir() and any(holds_pictures(folder / name) for name in list_folder(folder)[0])


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line) of a text file without its empty lines.

    Text is UTF-8 with or without a byte order mark; other bytes survive as surrogates. Raises DataError when the file
    cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}", "check its permissions") from error


def contents(folder: Path) -> str:
    """Describe what lies directly in ``folder`` for a message, such as ``2 folders, 3 files (.pdf 1, .txt 2)``."""
    folders = 0
    suffixes: Counter[str] = Counter()
    for entry in _scan(folder):
        if _is_folder(entry):
            folders += 1
        else:
            suffixes[safe_text(Path(entry.name).suffix.lower()) or "no suffix"] += 1
    if not folders and not suffixes:
        return "nothing"
    kinds = ", ".join(f"{suffix} {n}" for suffix, n in sorted(suffixes.most_common(5)))
    files = f"{suffixes.total()} files ({kinds})" if suffixes else "no files"
    return f"{folders} folders, {files}"


def seeded_splits(pictures: Sequence[tuple[str, str]], seed: int) -> list[str]:
    """Return "train" or "test" for every (SKU, picture name): 80/20 within each SKU, at least one each from two on.

    A SKU with one picture goes to train. Pictures are ranked by a hash of seed, SKU and name, so a SKU's split depends
    neither on other SKUs nor on the order of the list, and adding a picture moves few others.
    """
    ranked: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for i, (sku, name) in enumerate(pictures):
        ranked[sku].append((_rank(seed, sku, name), i))
    splits = ["train"] * len(pictures)
    for members in ranked.values():
        if len(members) < 2:
            continue
        for _, i in sorted(members)[: max(1, round(len(members) * TEST_SHARE))]:
            splits[i] = "test"
    return splits


def _rank(seed: int, sku: str, name: str) -> bytes:
    text = f"{seed}\0{sku}\0{name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"cannot list the folder {shown(folder)}: {error.strerror}", "check the path and its permissions"
        ) from error


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
