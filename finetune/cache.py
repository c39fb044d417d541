"""Pictures of a fine-tune, shrunk once, in a memory map: later epochs read no picture file.

FOLDER/pixels.u8      the pictures, uint8 (N, S, S, 3)
FOLDER/aspects.f64    width / height of each file's picture, 0 where it has not been read yet
FOLDER/started.json   what the pictures are, and the start of the machine that wrote them
FOLDER/complete       written when all of it is safe on the disk

A picture is there once its aspect is. Whoever is killed leaves what was written; after a crash of the machine, which
may have lost pixels and kept aspects, a cache that is not complete is made anew. Knows nothing about training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.errors import ConfigError
from skumatch.spec import Ids, Image

PIXELS, ASPECTS, STARTED, COMPLETE = "pixels.u8", "aspects.f64", "started.json", "complete"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class PictureCache:
    """Squares of ``side`` pixels for ``rows``, in ``folder``. Several threads and processes may read and write it."""

    def __init__(self, folder: Path, count: int, side: int) -> None:
        self.folder = folder
        shape = (count, side, side, 3)
        self.pixels = np.memmap(folder / PIXELS, np.uint8, "r+", shape=shape)
        self.aspects = np.memmap(folder / ASPECTS, np.float64, "r+", shape=(count,))
        self.complete = (folder / COMPLETE).exists()

    @property
    def side(self) -> int:
        """The side of its squares in pixels."""
        return int(self.pixels.shape[1])

    def get(self, place: int) -> tuple[Image, float] | None:
        """Return the square uint8 (S, S, 3) and the aspect of the picture at ``place``; None: not read yet."""
        aspect = float(self.aspects[place])
        return (np.asarray(self.pixels[place]), aspect) if aspect > 0 else None

    def missing(self, places: Ids) -> Ids:
        """Return those of ``places``, int64 (N,), whose pictures have not been read yet."""
        found: Ids = places[self.aspects[places] == 0]
        return found

    def put(self, place: int, square: Image, aspect: float) -> None:
        """Keep the picture at ``place``; ``aspect`` is greater than 0."""
        self.pixels[place] = square
        self.aspects[place] = aspect

    def settle(self) -> None:
        """Make it safe against a crash of the machine, once every picture is there."""
        if not self.complete and bool((self.aspects > 0).all()):
            self.pixels.flush()
            self.aspects.flush()
            artefact.write_file(self.folder / COMPLETE, b"")
            self.complete = True


def open_cache(store: Path, rows: Sequence[Row], side: int, make: bool, how: str = "squash") -> PictureCache:
    """Return the cache of ``rows`` at ``side`` pixels in ``store``, what is there already included.

    ``how``: in words, how pictures become squares. ``make``: make it where it is missing, and remove those of other
    pictures and sizes; of several processes on one machine the first does so. Raises ConfigError when the disk has no
    room for it, ArtefactError when it refuses.
    """
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    facts: dict[str, str | int] = {"rows": digest_of(rows, how), "side": side, "boot": boot}
    folder = store / f"{str(facts['rows'])[:16]}-{side}"
    if make:
        with artefact.disk_errors(folder):
            _make(folder, facts, len(rows))
    return PictureCache(folder, len(rows), side)


def _make(folder: Path, facts: dict[str, str | int], count: int) -> None:
    for other in folder.parent.glob("*-*") if folder.parent.is_dir() else ():
        if other != folder and (other / STARTED).exists():
            shutil.rmtree(other)
    if _usable(folder, facts):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    side = int(facts["side"])
    sizes = {PIXELS: count * side * side * 3, ASPECTS: count * 8}
    free = shutil.disk_usage(folder).free
    if free < sum(sizes.values()):
        shutil.rmtree(folder)
        raise ConfigError(
            f"a cache of {count:,} pictures of {side} px takes {sum(sizes.values()) / 1e9:.1f} GB; {free / 1e9:.1f} GB"
            f" are free in {folder.parent}",
            "free some space, or leave out --cache",
        )
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)  # takes room only where something is written
    artefact.write_file(folder / STARTED, json.dumps(facts).encode())


def _usable(folder: Path, facts: dict[str, str | int]) -> bool:
    try:
        before = json.loads((folder / STARTED).read_text())
    except (OSError, ValueError):
        return False
    if (folder / COMPLETE).exists():
        before["boot"] = facts["boot"]
    return bool(before == facts)


def digest_of(rows: Sequence[Row], how: str) -> str:
    """Return the SHA-256 over ``how`` and the rows' pictures' paths, sizes and times of change, or their absence."""
    total = hashlib.sha256(f"{how}\n".encode())
    for row in rows:
        try:
            found = row.path.stat()
            said = f"{row.path}|{found.st_size}|{found.st_mtime_ns}\n"
        except OSError:
            said = f"{row.path}|missing\n"
        total.update(said.encode("utf-8", "surrogateescape"))
    return total.hexdigest()
