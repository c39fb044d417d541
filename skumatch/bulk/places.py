"""Where pictures lie: local paths, and URLs (``s3://``, ``gs://``, ``memory://``) through fsspec.

A path is text: a local one absolute, anything with ``://`` a URL. What one file lacks is an ImageError and costs that
picture alone; a network or credentials that fail are a DataError and stop the job, which can then go on later.
It knows nothing about tables, archives or what is made of the pictures.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from skumatch.errors import DataError, ImageError, SkumatchError
from skumatch.readers_common import safe_text

UNREAD = "cannot be read"  # what is said of a picture whose bytes could not be had
_STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "last_modified", "created")


@dataclass(frozen=True)
class Found:
    """A file: its path, and a stamp that differs once it was changed; None where nobody has asked for it yet."""

    path: str
    stamp: str | None = None


def is_url(path: str) -> bool:
    """Return whether ``path`` is a URL."""
    return "://" in path


def absolute(source: str) -> str:
    """Return what a user wrote as a path: absolute, ``file://`` taken off."""
    source = source.removeprefix("file://")
    if is_url(source):
        return source.rstrip("/") or source
    if not source or "\0" in source:
        raise DataError(f"'{source}' is no path", "name a folder, file or URL")
    return str(Path(source).expanduser().absolute())


def base_name(path: str) -> str:
    """Return what stands behind the last slash."""
    return path.rpartition("/")[2]


def joined(base: str, name: str) -> str:
    """Return ``name`` as seen from the folder ``base``; a URL or an absolute path stays as it is."""
    if is_url(name) or name.startswith("/"):
        return name.removeprefix("file://")
    return f"{base.rstrip('/')}/{name}"


def exists(path: str) -> bool:
    """Return whether anything is at ``path``. Raises DataError where that cannot be said."""
    if not is_url(path):
        return Path(path).exists()
    with reaching(path):
        return bool(_system(path)[0].exists(path))


def is_folder(path: str) -> bool:
    """Return whether ``path`` is a folder, or the beginning of keys in an object store. Raises DataError."""
    if not is_url(path):
        return Path(path).is_dir()
    with reaching(path):
        return bool(_system(path)[0].isdir(path))


def listed(folder: str) -> tuple[list[str], list[Found]]:
    """Return the folders and the files directly in ``folder``, by the bytes of their names, without hidden ones.

    Raises DataError when it cannot be listed.
    """
    entries = _listed_far(folder) if is_url(folder) else _listed_here(folder)
    shown = [entry for entry in entries if not base_name(entry[0].path).startswith(".")]
    shown.sort(key=lambda entry: os.fsencode(entry[0].path))
    folders = [one.path for one, inner in shown if inner and base_name(one.path) != "__MACOSX"]
    return folders, [one for one, inner in shown if not inner]


def _listed_here(folder: str) -> list[tuple[Found, bool]]:
    try:
        with os.scandir(folder) as entries:
            return [(Found(entry.path), _is_folder(entry)) for entry in entries]
    except OSError as error:
        what = f"cannot list the folder {safe_text(folder)} ({error.strerror})"
        raise DataError(what, "check the path and its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _listed_far(folder: str) -> list[tuple[Found, bool]]:
    with reaching(folder):
        system, inner = _system(folder)
        own = str(system._strip_protocol(folder)).rstrip("/")
        found = [facts for facts in system.ls(inner, detail=True) if str(facts["name"]).rstrip("/") != own]
        return [
            (
                Found(str(system.unstrip_protocol(facts["name"].rstrip("/"))), _stamp(facts)),
                facts["type"] == "directory",
            )
            for facts in found
        ]


def matching(pattern: str) -> list[str]:
    """Return the paths that a glob pattern matches, sorted. Raises DataError."""
    if is_url(pattern):
        with reaching(pattern):
            system, inner = _system(pattern)
            return sorted(str(system.unstrip_protocol(path)) for path in system.glob(inner))
    found = Path("/").glob(pattern.lstrip("/"))
    return sorted(map(str, found), key=os.fsencode)


def stamp_of(path: str) -> str:
    """Return what differs once the file was changed: size and time, or a store's ETag. Raises DataError without one."""
    if is_url(path):
        with reaching(path):
            return _stamp(_system(path)[0].info(path))
    try:
        facts = Path(path).stat()
    except (OSError, ValueError) as error:
        raise DataError(f"{safe_text(path)} cannot be read ({error})", "check the path and its permissions") from error
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _stamp(facts: dict[str, Any]) -> str:
    changed = next((facts[name] for name in _STAMPS if facts.get(name)), "")
    return f"{facts.get('size')} {changed}"


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file for reading, seekable. Raises DataError when it cannot be, for a URL also while it is read."""
    if is_url(path):
        with reaching(path):
            stream = _system(path)[0].open(path, "rb")
        with stream:
            yield _Far(stream, path)  # type: ignore[misc]  # a stream of bytes in all that is asked of it
        return
    stamp_of(path)  # says what is wrong with it
    with Path(path).open("rb") as here:
        yield here


class _Far(io.RawIOBase):
    """A remote file whose failures are told from those of what is in it."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        super().__init__()
        self._stream, self._path = stream, path

    def read(self, size: int = -1) -> bytes:
        with reaching(self._path):
            return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def fetched(path: str) -> bytes:
    """Return the bytes of one picture. Raises ImageError for what it lacks, DataError when a network fails."""
    if is_url(path):
        try:
            with reaching(path):
                return bytes(_system(path)[0].cat_file(path))
        except _Lacking as error:
            raise ImageError(error.what, "replace the file or leave it out") from error
    name = safe_text(path)
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would block
            raise ImageError(f"{name}: not a file", "name an image file")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{name}: {UNREAD} ({reason})", "check the path and its permissions") from error


class _Lacking(DataError):
    """A file that a store does not have, or does not give to this user."""


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn whatever the driver of a URL raises into a DataError: each has errors of its own."""
    try:
        yield
    except SkumatchError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        what = f"{safe_text(url)}: {UNREAD} ({_first_line(error)})"
        raise _Lacking(what, "check the address and your credentials") from error
    except Exception as error:
        what = f"{safe_text(url)} cannot be reached ({_first_line(error)})"
        raise DataError(what, "check the network and your credentials, and run it again: it goes on") from error


def _system(url: str) -> tuple[Any, str]:
    """Return (file system, path in it). Raises DataError, naming the package, where a driver is missing."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        system, inner = fsspec.core.url_to_fs(url)
        return system, str(inner)
    except ImportError as error:
        package = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[0]
        hint = f"pip install {package}" if package not in ("", "fsspec") else _first_line(error)
        raise DataError(f"{protocol}:// needs a package that is not installed", hint) from error
    except ValueError as error:
        raise DataError(f"{safe_text(url)} cannot be opened ({_first_line(error)})", "check the address") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
