"""Every picture of an evaluation embedded once, in chunks that an interrupted run does not lose.

    FOLDER/<the encoder's digest>/<digest of its list>.safetensors

A chunk lists its pictures' paths, sizes and times, so that a picture that changed is embedded again and any later
evaluation with the same encoder, of whichever pictures, takes what is there.
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
from skumatch.encoder import Encoder, asking
from skumatch.errors import DataError
from skumatch.eval.views import Views
from skumatch.spec import Ids, Vectors
from skumatch.testviews import ViewSetting, with_views

CHUNK = 1024


class Pool:
    """The vectors of a set of pictures by path; ``problems``: a message per unreadable one.

    ``asked``: the same pictures as queries, where these are embedded in another way (test-time views). ``encoder``:
    what embedded them, where it asks with other rows than it stores (a guarded one).
    """

    def __init__(
        self,
        vectors: Vectors,
        place: dict[Path, int],
        problems: tuple[str, ...],
        asked: Pool | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.vectors = vectors
        self.place = place
        self.problems = problems
        self.asked = asked
        self.encoder = encoder

    def queries(self, rows: Sequence[Row]) -> Views:
        """Return the readable ones of ``rows`` with the rows to ask with. Raises DataError when there is none."""
        if self.asked is not None:
            return self.asked.queries(rows)
        found = self.views(rows)
        return found if self.encoder is None else Views(found.rows, asking(self.encoder, found.vectors))

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

    An unreadable picture is tried again each time. Chunks of the same encoder in which no picture is what it was are
    removed. Raises ArtefactError when the disk refuses.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    store = _store(folder, encoder)
    vectors = np.empty((len(paths), encoder.spec.dim), np.float32)
    place: dict[Path, int] = {}
    problems: list[str] = []
    if store is not None:
        _recall(store, paths, vectors, place)
    for chunk in _chunks([path for path in paths if path not in place]):
        states = [_state(path) for path in chunk]
        good, found, errors = _embed(chunk, encoder, pipeline, progress)
        start = len(place)
        vectors[start : start + len(good)] = found
        place.update((chunk[int(i)], start + line) for line, i in enumerate(good))
        problems += errors
        if store is not None and len(good):
            _save(store, [(str(chunk[int(i)]), states[int(i)]) for i in good], found)
    return Pool(vectors[: len(place)], place, tuple(problems), None, encoder)


def asked_pool(pool: Pool, rows: Iterable[Row], encoder: Encoder, views: ViewSetting, pipeline: Pipeline) -> Pool:
    """Return ``pool`` with ``rows`` embedded as queries in test-time ``views``; itself where these are "none"."""
    if views == "none":
        return pool
    asked = embed_pool(rows, with_views(encoder, views), pipeline, None)
    return Pool(pool.vectors, pool.place, pool.problems, asked, encoder)


def missing(rows: Iterable[Row], encoder: Encoder, folder: Path | None) -> int:
    """Return how many pictures ``embed_pool`` would have to embed."""
    wanted = {str(row.path): row.path for row in rows}
    store = _store(folder, encoder)
    there: set[str] = set()
    for file in _files(store) if store is not None else ():
        there.update(path for path, state in _listed(file) if path in wanted and state == _state(wanted[path]))
    return len(wanted) - len(there)


def _store(folder: Path | None, encoder: Encoder) -> Path | None:
    spec = encoder.spec
    name = spec.digest if spec.precision == "fp32" else f"{spec.digest}-{spec.precision}"
    return folder / name if folder is not None else None


def _files(store: Path) -> list[Path]:
    return sorted(store.glob("*.safetensors"))


def _chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), CHUNK):
        yield paths[start : start + CHUNK]


def _state(path: Path) -> str:
    """Return what changes when a picture does."""
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _recall(store: Path, paths: Sequence[Path], vectors: Vectors, place: dict[Path, int]) -> None:
    """Fill ``vectors`` and ``place`` from the chunks; remove those without a picture that is what it was."""
    wanted = {str(path): path for path in paths}
    for file in _files(store):
        listed = _listed(file)
        valid = [line for line, (path, state) in enumerate(listed) if state == _state(Path(path))]
        found = _vectors(file, (len(listed), vectors.shape[1])) if valid else None
        if found is None:  # stale, or damaged
            with artefact.disk_errors(file):
                file.unlink(missing_ok=True)
            continue
        for line in valid:
            path = wanted.get(listed[line][0])
            if path is not None and path not in place:
                vectors[len(place)] = found[line]
                place[path] = len(place)


def _embed(
    paths: Sequence[Path], encoder: Encoder, pipeline: Pipeline, progress: Progress
) -> tuple[Ids, Vectors, list[str]]:
    """Return the places of the readable pictures, their vectors, and a message per unreadable one."""
    good: list[Ids] = [np.empty(0, np.int64)]
    vectors: list[Vectors] = [np.empty((0, encoder.spec.dim), np.float32)]
    errors: list[str] = []
    start = 0
    for batch in pipeline.embed(paths, encoder, progress):
        good.append(batch.good + start)
        vectors.append(batch.vectors)
        errors += [str(error) for error in batch.errors if error is not None]
        start += len(batch.sources)
    return np.concatenate(good), np.concatenate(vectors), errors


def _save(store: Path, listed: Sequence[tuple[str, str]], vectors: Vectors) -> None:
    from safetensors.numpy import save

    pictures = json.dumps(listed)
    file = store / f"{hashlib.sha256(pictures.encode()).hexdigest()[:32]}.safetensors"
    with artefact.disk_errors(file):
        store.mkdir(parents=True, exist_ok=True)
    artefact.write_file(file, save({"vectors": vectors}, {"pictures": pictures, "digest": _digest(vectors)}))


def _digest(vectors: Vectors) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()


def _listed(file: Path) -> list[tuple[str, str]]:
    """Return the (path, state) of each line of a chunk; of a damaged one, none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as chunk:
            return [(str(path), str(state)) for path, state in json.loads(chunk.metadata()["pictures"])]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return []


def _vectors(file: Path, shape: tuple[int, int]) -> Vectors | None:
    """Return the vectors of a chunk, None where they are not of ``shape`` or not as they were written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as chunk:
            found: Vectors = chunk.get_tensor("vectors")
            whole = chunk.metadata().get("digest") == _digest(found)
    except (SafetensorError, OSError):
        return None
    return found if whole and found.shape == shape and found.dtype == np.float32 else None
