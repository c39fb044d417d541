"""Pictures that were uploaded as reference views, kept as they came, so that another model can embed them later.

    uploads/ab/cdef....jpg      named by the SHA-256 of the file; the ending by what its first bytes announce

A path is made of the digest alone, never of what a request says. It knows nothing about SKUs or galleries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from skumatch import artefact
from skumatch.errors import ImageError
from skumatch.images import DEFAULT_MAX_PIXELS, Format, read_image, sniff

ENDINGS: dict[Format, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
NAMED = 10  # unreadable pictures that a message names


class Uploads:
    """The files in ``folder``, which is made when the first one comes. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, data: bytes) -> Path:
        """Keep a picture's file and return where, as an absolute path; on return it is durable. Mode 0600.

        A file that is there already stays as it is. Raises ImageError for what announces itself as no JPEG, PNG or
        WebP, ArtefactError when the disk refuses.
        """
        name = hashlib.sha256(data).hexdigest()
        path = self.folder.absolute() / name[:2] / f"{name[2:]}{ENDINGS[sniff(data)]}"
        with artefact.disk_errors(path):
            _folder(path.parent)
            if not (path.is_file() and artefact.file_digest(path) == name):
                _write(path, data)
            artefact.fsync_dir(path.parent)
        return path


def require_readable(pictures: Sequence[tuple[str, bytes]], max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Decode (name, file) pairs. Raises ImageError naming those that cannot be or have more than ``max_pixels``."""
    broken = [f"{name}: {error}" for name, data in pictures if (error := _trouble(data, max_pixels))]
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ImageError(f"nothing was kept: {'; '.join(broken[:NAMED])}{more}", "send pictures that can be read")


def _trouble(data: bytes, max_pixels: int) -> str:
    """Return why a file cannot be decoded, "" where it can."""
    try:
        read_image(data, max_pixels)
    except ImageError as error:
        return error.what
    return ""


def _folder(folder: Path) -> None:
    """Make ``folder`` and the one above it, for this user alone, durably."""
    for one in (folder.parent, folder):
        if not one.is_dir():
            with contextlib.suppress(FileExistsError):  # another thread made it
                one.mkdir(mode=0o700, parents=True)
            artefact.fsync_dir(one.parent)


def _write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process of this number that died
    with _cleared(temporary):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            artefact.take_lock(handle, temporary)  # as long as it is held, nobody takes it for abandoned
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    artefact.remove_abandoned(path.parent)


@contextlib.contextmanager
def _cleared(temporary: Path) -> Iterator[None]:
    """Remove ``temporary`` where something fails."""
    try:
        yield
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
