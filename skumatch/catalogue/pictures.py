"""The pictures of a catalogue as vectors and hashes, kept on disk so that an interrupted run goes on where it was.

WORK/vectors.npy, hashes.npy, state.npy    one row per posting
WORK/errors.jsonl                          pictures that could not be read; the last line about each counts
WORK/done.json                             what it was made of, and how many pictures are done

It knows nothing about titles or pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.catalogue.postings import Catalogue
from skumatch.embed import Pipeline, Progress, no_extra, no_progress, ordered_batches
from skumatch.encoder import Encoder
from skumatch.errors import DataError, ImageError
from skumatch.phash import Hashes, fingerprint
from skumatch.spec import Ids, Vectors

EVERY: Final = 1024  # pictures between two notes of how far it is
DONE, ERRORS = "done.json", "errors.jsonl"
READ = 1
ROWS: Final = 65_536  # whose lengths are taken at a time


@dataclass(frozen=True)
class Failure:
    """A posting whose picture could not be read: its place, the path as written, and why."""

    place: int
    picture: str
    why: str


@dataclass(frozen=True)
class Pictures:
    """``vectors`` float32 (N, D) unit rows, None without an encoder; ``present`` bool (N,): whose picture was read;
    ``hashes`` uint64 (N,) with ``hashed`` bool (N,); ``failures``."""

    vectors: Vectors | None
    present: NDArray[np.bool_]
    hashes: Hashes
    hashed: NDArray[np.bool_]
    failures: tuple[Failure, ...]


def look(
    catalogue: Catalogue,
    encoder: Encoder | None,
    pipeline: Pipeline,
    work: Path,
    progress: Progress = no_progress,
) -> Pictures:
    """Embed and hash the pictures; with no ``encoder`` only hash them. Hashes that the catalogue brings are kept as
    they are, and then none is computed: those of other programs differ in detail.

    What is in ``work`` and of the same catalogue, folder and encoder is not done again, except pictures that could not
    be read then. Raises ArtefactError when the disk refuses.
    """
    with artefact.disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    given = bool(catalogue.hashed.any())
    shelf = _Shelf(work, catalogue, encoder, hashing=not given)
    places = np.array([place for place, name in enumerate(catalogue.pictures) if name], np.int64)
    with artefact.disk_errors(work), shelf:
        known = places[: shelf.done]
        again = known[shelf.state[known] != READ]
        progress(len(known) - len(again))
        left = np.concatenate([again, places[shelf.done :]])
        for start, batch in _looked(catalogue, left, encoder, pipeline, hashing=not given):
            rows = left[start : start + len(batch.errors)]
            shelf.keep(rows, batch, new=int((np.arange(start, start + len(rows)) >= len(again)).sum()))
            progress(len(rows))
    hashes, hashed = (catalogue.hashes, catalogue.hashed) if given else (shelf.hashes, shelf.state == READ)
    return Pictures(shelf.vectors, np.asarray(shelf.state == READ), hashes, np.asarray(hashed), shelf.failures())


def with_vectors(catalogue: Catalogue, path: Path) -> Pictures:
    """Return pictures whose vectors were made before: ``path``, a .npy file of float32 (N, D), one row per posting in
    their order; rows of zeros where there is no picture. They are brought to unit length, and not read at once.

    Raises DataError for another file, another number of rows, or numbers that are not finite.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error})", "give a .npy file as numpy.save writes it") from error
    if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) != len(catalogue):
        what = f"{path} holds {rows.dtype} {rows.shape}, but there are {len(catalogue)} postings"
        raise DataError(what, "give float32, one row per posting in the order of the catalogue")
    lengths = np.concatenate(
        [np.linalg.norm(rows[start : start + ROWS], axis=1) for start in range(0, len(rows), ROWS)]
    )
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise DataError(f"{path} has numbers in row {row} that are not finite", "make the vectors anew")
    present = lengths > 0
    if np.abs(lengths[present] - 1).max(initial=0) > 1e-3:
        rows = rows / np.maximum(lengths, 1e-12)[:, None]
    return Pictures(rows, present, catalogue.hashes, catalogue.hashed, ())


@dataclass(frozen=True)
class _Batch:
    """``rows`` float32 (M, D) and ``bits`` of the readable ones at positions ``good``, and one error or None each."""

    good: Ids
    rows: Vectors | None
    bits: list[int]
    errors: list[ImageError | None]


def _looked(
    catalogue: Catalogue, places: Ids, encoder: Encoder | None, pipeline: Pipeline, hashing: bool
) -> Iterator[tuple[int, _Batch]]:
    """Yield where each batch begins and what it shows, in the order of ``places``."""
    paths = (catalogue.folder / catalogue.pictures[place] for place in places)
    bits_of = partial(_bits, max_pixels=pipeline.max_pixels)
    start = 0
    if encoder is not None:
        for found in pipeline.embed(paths, encoder, also=bits_of if hashing else no_extra):
            yield start, _Batch(found.good, found.vectors, found.extras if hashing else [], found.errors)
            start += len(found.errors)
        return
    work = bits_of if hashing else partial(_readable, max_pixels=pipeline.max_pixels)
    for _, answers in ordered_batches(paths, partial(_tried, work), pipeline.batch, pipeline.workers or 2):
        errors = [one if isinstance(one, ImageError) else None for one in answers]
        good = np.array([place for place, error in enumerate(errors) if error is None], np.int64)
        yield start, _Batch(good, None, [one for one in answers if not isinstance(one, ImageError)], errors)
        start += len(errors)


def _bits(source: Any, max_pixels: int) -> int:
    return fingerprint(source, max_pixels).bits


def _readable(source: Path, max_pixels: int) -> int:
    """Return 0 for a picture that can be read: its hash is known already."""
    if not source.is_file():
        raise ImageError(f"{source} does not exist", "check the folder of the pictures")
    return 0


def _tried(work: Any, source: Path) -> int | ImageError:
    try:
        bits: int = work(source)
        return bits
    except ImageError as error:
        return ImageError(error.what, error.todo)


class _Shelf:
    """The arrays on disk, and how far they are filled."""

    def __init__(self, folder: Path, catalogue: Catalogue, encoder: Encoder | None, hashing: bool) -> None:
        self.folder = folder
        self.count = len(catalogue)
        self.dim = 0 if encoder is None else encoder.spec.dim
        self.identity = {
            "catalogue": artefact.file_digest(catalogue.source),
            "folder": str(catalogue.folder.absolute()),
            "encoder": "" if encoder is None else encoder.spec.digest,
            "hashing": hashing,
        }
        self.done = self._noted = 0
        self.names = catalogue.pictures
        self.vectors: Vectors | None = None

    def __enter__(self) -> _Shelf:
        """Take up what fits, else begin anew."""
        marks: dict[str, Any] = {}
        try:
            marks = json.loads((self.folder / DONE).read_bytes())
            self.done = int(marks["done"]) if marks["identity"] == self.identity else 0
        except (OSError, ValueError, KeyError, TypeError):
            pass
        mode = "r+" if self.done else "w+"
        self.state = self._array("state.npy", mode, np.uint8, (self.count,))
        self.hashes = self._array("hashes.npy", mode, np.uint64, (self.count,))
        if self.dim:
            self.vectors = self._array("vectors.npy", mode, np.float32, (self.count, self.dim))
        self._errors = (self.folder / ERRORS).open("r+b" if self.done else "w+b")
        self._errors.truncate(int(marks["errors"]) if self.done else 0)
        self._errors.seek(0)
        self._told = {one.place: one for one in (Failure(**json.loads(line)) for line in self._errors)}
        self._noted = self.done
        if not self.done:
            self.note()
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors:
            self.note()

    def _array(self, name: str, mode: str, kind: Any, shape: tuple[int, ...]) -> Any:
        return np.lib.format.open_memmap(self.folder / name, mode=mode, dtype=kind, shape=shape)

    def keep(self, rows: Ids, batch: _Batch, new: int) -> None:
        """Write one batch, about the postings ``rows``; ``new`` of them were not looked at before."""
        good = rows[batch.good]
        self.state[rows] = 0
        self.state[good] = READ
        if self.vectors is not None and batch.rows is not None:
            self.vectors[good] = batch.rows
        if batch.bits:
            self.hashes[good] = batch.bits
        for place, error in zip(rows.tolist(), batch.errors, strict=True):
            if error is not None:
                self._tell(Failure(place, self.names[place], error.what))
        self.done += new
        if self.done - self._noted >= EVERY:
            self.note()

    def _tell(self, failure: Failure) -> None:
        if self._told.get(failure.place) != failure:
            self._errors.write(json.dumps(vars(failure)).encode() + b"\n")
            self._told[failure.place] = failure

    def note(self) -> None:
        """Make durable what is there, then say so."""
        for array in (self.state, self.hashes, self.vectors):
            if isinstance(array, np.memmap):
                array.flush()
        self._errors.flush()
        facts = {"identity": self.identity, "done": self.done, "errors": self._errors.tell()}
        artefact.write_file(self.folder / DONE, json.dumps(facts).encode())
        self._noted = self.done

    def failures(self) -> tuple[Failure, ...]:
        """Return the pictures that could not be read, by their places."""
        return tuple(one for place, one in sorted(self._told.items()) if self.state[place] != READ)
