"""Folders on disk that are published whole or not at all, and checked before anything parses them.

A store is a folder of versions (``v000001``, ``v000002``, ...) and a one-line ``CURRENT`` pointer. A version is
written to a temporary sibling, its files are fsynced, a manifest with the SHA-256 of each file is written last, the
folder is renamed, the parent fsynced and then the pointer replaced: a reader sees the old version or the new one.
This module knows nothing about models or galleries.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skumatch.errors import ArtefactError

CURRENT = "CURRENT"
_VERSION = re.compile(r"v\d{6,}")
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_YOUNG = 5.0  # seconds between making a file or folder and claiming it, at the very most


def cache_dir() -> Path:
    """Return the folder for things that can be made again (``$SKUMATCH_CACHE``, else the XDG cache folder)."""
    named = os.environ.get("SKUMATCH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skumatch"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at ``path`` into an ArtefactError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ArtefactError(f"no space left while writing {path}", "free some space and run it again") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            what = f"too many files are open to write {path}"
            raise ArtefactError(what, "raise the limit (`ulimit -n`) and run it again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EEXIST):
            raise ArtefactError(f"cannot write {path} ({error.strerror})", "check the folder's permissions") from error
        raise


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read at or below ``path`` into an ArtefactError that names the file."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path} cannot be read ({error.strerror})"
        raise ArtefactError(what, "check the disk, or restore it from a copy") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def take_lock(handle: int, path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
    """Take the kernel's lock (flock) on ``handle``, which is open on ``path``; return whether nobody else held it.

    Raises ArtefactError where the file system has no locks.
    """
    try:
        fcntl.flock(handle, how)
    except (BlockingIOError, PermissionError):  # the second on some network file systems
        return False
    except OSError as error:
        what = f"{path} cannot be locked ({error.strerror})"
        raise ArtefactError(what, "use a file system with locks, such as a local disk") from error
    return True


def fsync_dir(folder: Path) -> None:
    """Make the entries of ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data`` atomically and durably. Raises ArtefactError when the disk refuses.

    ``mode``: who may read and write it, less the process's umask. ``path`` is then as it was, or, where the disk failed
    after the replacement, whole with ``data`` but not durable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with disk_errors(path):
        try:
            with os.fdopen(os.open(temporary, how, mode), "wb") as stream:
                take_lock(stream.fileno(), temporary)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                temporary.replace(path)
        except (OSError, ArtefactError):
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


@dataclass
class Stage:
    """A folder being written; ``name`` is what it will be called, and may be set until it is published."""

    folder: Path
    name: str


@contextmanager
def staged(parent: Path, name: str, by_content: bool = False) -> Iterator[Stage]:
    """Yield an empty temporary folder in ``parent``; on success fsync its files and rename it to the stage's name.

    On any error the temporary folder is removed and nothing else has changed. ``by_content``: the name is a digest of
    the content, so an existing folder of that name is the same and stays, unless it was damaged. Raises ArtefactError
    when the disk refuses or the name is taken.
    """
    stage = Stage(parent / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp", name)
    with disk_errors(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(parent)
        shutil.rmtree(stage.folder, ignore_errors=True)
        stage.folder.mkdir()
        with _claimed(stage.folder):
            try:
                yield stage
                _settle(stage, parent / stage.name, by_content)
            except BaseException:
                shutil.rmtree(stage.folder, ignore_errors=True)
                raise
        fsync_dir(parent)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Hold the kernel's lock on ``folder`` and yield True, or False where somebody holds it: it tells a writer at work
    from one that died, in any container."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield take_lock(handle, folder)
    finally:
        os.close(handle)


def _settle(stage: Stage, final: Path, by_content: bool) -> None:
    """Make the staged files durable and give the folder its final name."""
    for path in sorted(stage.folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
    fsync_dir(stage.folder)
    if final.exists() and by_content and not _equal(stage.folder, final):
        damaged = final.with_name(f".{final.name}.0.0.tmp")
        final.rename(damaged)
        stage.folder.rename(final)
        shutil.rmtree(damaged)
    elif final.exists() and by_content:
        shutil.rmtree(stage.folder)
    elif final.exists():
        raise ArtefactError(f"{final} was written by someone else meanwhile", "run the command again")
    else:
        stage.folder.rename(final)


def _equal(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same bytes."""
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    return names[0] == names[1] and all(file_digest(one / name) == file_digest(other / name) for name in names[0])


def remove_abandoned(parent: Path) -> int:
    """Remove temporary files and folders in ``parent`` whose writer is dead, and return the bytes in them.

    Nobody holds their lock, and they are not just being made.
    """
    freed = 0
    for path in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > _YOUNG:
                with _claimed(path) as abandoned:
                    freed += _discard(path) if abandoned else 0
    return freed


def _discard(path: Path) -> int:
    """Remove a file or folder; return the bytes in it."""
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
    return size


def seal(folder: Path, manifest: str, payload: dict[str, Any]) -> None:
    """Write ``payload`` plus the digests of all files in ``folder`` as its manifest (call it last)."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    document = {**payload, "files": files}
    (folder / manifest).write_bytes(_canonical({**document, "manifest_digest": _document_digest(document)}))


def read_manifest(folder: Path, manifest: str, full: bool = False) -> dict[str, Any]:
    """Return the manifest of a published folder after checking it and every file that it names.

    A file verified once is trusted while its size, times and inode stay the same; ``full`` hashes all again.
    Raises ArtefactError naming the file that is missing or differs.
    """
    path = folder / manifest
    remedy = "restore it from a copy or an older version"
    try:
        raw = path.read_bytes()
        document = json.loads(raw)
        claimed = document.pop("manifest_digest")
        files: dict[str, dict[str, Any]] = document["files"]
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing", remedy) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{path} is corrupt", remedy) from error
    if _document_digest(document) != claimed or raw != _canonical({**document, "manifest_digest": claimed}):
        raise ArtefactError(f"{path} is corrupt (its digest differs)", remedy)
    for name, facts in files.items():
        verify_file(folder / name, int(facts["bytes"]), str(facts["sha256"]), full)
    return dict(document)


def verify_file(path: Path, size: int, sha256: str, full: bool = False) -> None:
    """Check one file against its recorded size and digest. Raises ArtefactError naming it."""
    try:
        facts = path.stat()
    except OSError:
        raise ArtefactError(f"{path} is missing", "restore it from a copy or an older version") from None
    mark = f"{path.resolve()}|{facts.st_ino}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}|{sha256}"
    note = cache_dir() / "verified" / hashlib.sha256(os.fsencode(mark)).hexdigest()
    if facts.st_size == size and not full and note.exists():
        return
    if facts.st_size != size or file_digest(path) != sha256:
        raise ArtefactError(f"{path} is corrupt (its digest differs)", "restore it from a copy or an older version")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError:
        return  # no writable cache: the file is simply hashed again next time


def next_version(store: Path) -> str:
    """Return the name after the newest version in ``store``."""
    return f"v{max((int(name[1:]) for name in versions(store)), default=0) + 1:06d}"


def versions(store: Path) -> list[str]:
    """Return the names of the versions in ``store``, oldest first."""
    if not store.is_dir():
        return []
    return sorted((p.name for p in store.iterdir() if _VERSION.fullmatch(p.name)), key=lambda name: int(name[1:]))


def set_current(store: Path, version: str) -> None:
    """Point ``store`` at ``version``."""
    write_file(store / CURRENT, f"{version}\n".encode())


def current(store: Path) -> Path | None:
    """Return the folder that ``CURRENT`` points at, None where there is no pointer.

    Raises ArtefactError when the pointer names no version that is there.
    """
    pointer = store / CURRENT
    seen = None
    while True:
        try:
            name = pointer.read_bytes().decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArtefactError(f"{pointer} cannot be read ({error.strerror})", "check the disk") from error
        folder = store / name.strip()
        if _VERSION.fullmatch(name.strip()) and name == name.strip() + "\n" and folder.is_dir():
            return folder
        if name == seen:  # else the version may have been pruned after the pointer moved on
            raise ArtefactError(f"{pointer} is corrupt", f"write one of these into it: {', '.join(versions(store))}")
        seen = name


def _canonical(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _document_digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(document)).hexdigest()
