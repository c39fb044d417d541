"""Every picture of an evaluation embedded once, in chunks that an interrupted run does not lose.

    FOLDER/<start of the encoder's digest>/<key of a chunk>.safetensors

A chunk's key covers its files' paths, sizes and times, so that a changed picture is embedded again. A later evaluation
with the same encoder takes the vectors from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.embed import Pipeline, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import DataError
from skumatch.eval.views import Views
from skumatch.spec import Ids, Vectors
from skumatch.testviews import ViewSetting, with_views

CHUNK = 1024


class Pool:
    """The vectors of a set of pictures by path; ``problems``: a message per unreadable one.

    ``asked``: the same pictures as queries, where these are embedded in another way (test-time views).
    """

    def __init__(
        self, vectors: Vectors, place: dict[Path, int], problems: tuple[str, ...], asked: Pool | None = None
    ) -> None:
        self.vectors = vectors
        self.place = place
        self.problems = problems
        self.asked = asked

    def queries(self, rows: Sequence[Row]) -> Views:
        """Return the readable ones of ``rows`` with their vectors as queries. Raises DataError when there is none."""
        return (self.asked or self).views(rows)

    def views(self, rows: Sequence[Row]) -> Views:
        """Return the readable ones of ``rows`` with their vectors. Raises DataError when there is none."""
        kept = [row for row in rows if row.path in self.place]
        if not kept:
            first = f", first: {self.problems[0]}" if self.problems else ""
            raise DataError(f"no readable picture on one side of the evaluation{first}", "see `skumatch data check`")
        return Views(tuple(kept), self.vectors[[self.place[row.path] for row in kept]])


def embed_pool(
    rows: Iterable[Row], encoder: Encoder, pipeline: Pipeline, folder: Path | None, progress: Progress = no_progress
) -> Pool:
    """Embed each picture of ``rows`` once, keeping finished chunks in ``folder`` (None: nowhere).

    Chunks of the same encoder that this call did not need are removed. Raises ArtefactError when the disk refuses.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    store = folder / encoder.spec.digest[:16] if folder is not None else None
    vectors: list[Vectors] = [np.empty((0, encoder.spec.dim), np.float32)]
    place: dict[Path, int] = {}
    problems: list[str] = []
    used = set()
    for chunk in _chunks(paths):
        file = store / f"{_key(chunk)}.safetensors" if store is not None else None
        good, found, errors = _load(file, encoder.spec.dim) or _embed(chunk, encoder, pipeline, progress, file)
        if file is not None:
            used.add(file)
        start = len(place)
        place.update((chunk[int(i)], start + line) for line, i in enumerate(good))
        vectors.append(found)
        problems += errors
    for file in store.glob("*.safetensors") if store is not None and store.is_dir() else ():
        if file not in used:
            file.unlink(missing_ok=True)
    return Pool(np.concatenate(vectors), place, tuple(problems))


def asked_pool(pool: Pool, rows: Iterable[Row], encoder: Encoder, views: ViewSetting, pipeline: Pipeline) -> Pool:
    """Return ``pool`` with ``rows`` embedded as queries in test-time ``views``; itself where these are "none"."""
    if views == "none":
        return pool
    asked = embed_pool(rows, with_views(encoder, views), pipeline, None)
    return Pool(pool.vectors, pool.place, pool.problems, asked)


def missing(rows: Iterable[Row], encoder: Encoder, folder: Path | None) -> int:
    """Return how many pictures ``embed_pool`` would have to embed."""
    paths = list(dict.fromkeys(row.path for row in rows))
    if folder is None:
        return len(paths)
    store = folder / encoder.spec.digest[:16]
    return sum(len(chunk) for chunk in _chunks(paths) if not (store / f"{_key(chunk)}.safetensors").exists())


def _chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), CHUNK):
        yield paths[start : start + CHUNK]


def _key(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
            state = f"{facts.st_size}|{facts.st_mtime_ns}"
        except OSError:
            state = "missing"
        found.update(f"{path}|{state}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:32]


def _embed(
    paths: Sequence[Path], encoder: Encoder, pipeline: Pipeline, progress: Progress, file: Path | None
) -> tuple[Ids, Vectors, list[str]]:
    good: list[Ids] = [np.empty(0, np.int64)]
    vectors: list[Vectors] = [np.empty((0, encoder.spec.dim), np.float32)]
    errors: list[str] = []
    start = 0
    for batch in pipeline.embed(paths, encoder, progress):
        good.append(batch.good + start)
        vectors.append(batch.vectors)
        errors += [str(error) for error in batch.errors if error is not None]
        start += len(batch.sources)
    found = np.concatenate(good), np.concatenate(vectors), errors
    if file is not None:
        _save(file, *found)
    return found


def _save(file: Path, good: Ids, vectors: Vectors, errors: list[str]) -> None:
    from safetensors.numpy import save

    with artefact.disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    artefact.write_file(file, save({"good": good, "vectors": vectors}, {"errors": json.dumps(errors)}))


def _load(file: Path | None, dim: int) -> tuple[Ids, Vectors, list[str]] | None:
    """Return a finished chunk; None where there is none, or a damaged one, which is made anew."""
    from safetensors import SafetensorError, safe_open

    if file is None or not file.exists():
        return None
    try:
        with safe_open(file, "np") as chunk:
            good, vectors = chunk.get_tensor("good"), chunk.get_tensor("vectors")
            errors = json.loads(chunk.metadata()["errors"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    return (good, vectors, errors) if vectors.shape == (len(good), dim) else None
