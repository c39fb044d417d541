"""Queries that a gallery view gives away: its very bytes, a near-duplicate of it, or its neighbour in a video.

Such queries say nothing about the shelf. Byte-identical ones are never counted; the others are reported, and whoever
evaluates decides. Finds them and knows nothing about accuracy; ``leaks_page`` shows them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.embed import Progress, no_progress, ordered_batches
from skumatch.errors import ImageError
from skumatch.eval.phash import Fingerprint, Hashes, fingerprint, nearest_hashes, overlay, plane
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.spec import Ids

Kind = Literal["bytes", "near", "frame"]
Key = tuple[str, ...]  # of one video: its folder's parts and its name

# A candidate is worth a look at its pixels: copies cut by 5 % on every side have a cosine of 0.92 and more to their
# original, those cut by 8 % and brightened 0.81 and more (MobileNetV2), uncut ones differ in up to 4 bits of the hash.
CANDIDATE_BITS: Final = 12
CANDIDATE_HASHES: Final = 8
CANDIDATE_COSINE: Final = 0.8
CANDIDATE_VIEWS: Final = 4
# The pixels decide. Chosen on the Grocery Store photos: of 11,500 pairs of nearest neighbours, none of them a copy, 4
# (shots of one shelf from one spot) reach both bars; 1 of 360 planted copies misses one.
SAME_AGREEMENT: Final = 0.96
SAME_WORST: Final = 0.87
# Frames: the name makes the case already, so they need only look alike.
FRAMES_APART: Final = 30
FRAME_COSINE: Final = 0.9
FRAME_BITS: Final = 16

_NUMBERED: Final = re.compile(r"(.*?)[^0-9A-Za-z]*(\d+)", re.DOTALL)
_GENERIC: Final = frozenset({"", "f", "frame", "frames", "img", "image"})
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Leak:
    """A query and the gallery view that gives it away.

    ``score`` in 0..1: 1 for the same bytes, the pixels' agreement for "near", the cosine for "frame". ``evidence``
    says in words what speaks for it.
    """

    query: Row
    view: Row
    kind: Kind
    score: float
    evidence: str


def find_leaks(
    gallery: Views, queries: Views, workers: int, max_pixels: int, progress: Progress = no_progress
) -> list[Leak]:
    """Return at most one leak per query, the strongest ("bytes", then "near", then "frame"), in order of queries.

    Reads every picture once more, with ``workers`` threads; ``progress`` counts them, gallery first. A picture that can
    no longer be read is nobody's near-duplicate.
    """
    copies = identical(gallery.rows, queries.rows)
    by_path = {row.path: row for row in gallery.rows}
    read = Reader(workers, max_pixels, progress)
    hashes = read.hashes(gallery.rows), read.hashes(queries.rows)
    found = {leak.query.path: leak for leak in frames(gallery, queries, *hashes)}
    found |= {leak.query.path: leak for leak in near_duplicates(gallery, queries, *hashes, read)}
    for query in queries.rows:
        if query.path in copies:
            found[query.path] = Leak(query, by_path[copies[query.path]], "bytes", 1.0, "the same bytes")
    return [found[row.path] for row in queries.rows if row.path in found]


@dataclass(frozen=True)
class Reader:
    """How pictures are read again: ``workers`` threads, the pixel limit, who is told."""

    workers: int
    max_pixels: int
    progress: Progress = no_progress

    def hashes(self, rows: Sequence[Row]) -> Hashed:
        """Return the perceptual hashes of the readable rows."""

        def work(row: Row) -> Fingerprint | None:
            try:
                return fingerprint(row.path, self.max_pixels)
            except ImageError:
                return None

        places, bits = [], []
        start = 0
        for group, prints in ordered_batches(rows, work, _BATCH, self.workers):
            for place, found in enumerate(prints, start):
                if found is not None:
                    places.append(place)
                    bits.append(found.bits)
            start += len(group)
            self.progress(len(group))
        return Hashed(np.array(places, np.int64), np.array(bits, np.uint64))


@dataclass(frozen=True)
class Hashed:
    """``bits`` uint64 (M,): hashes of the rows at ``places`` int64 (M,), ascending."""

    places: Ids
    bits: Hashes


def near_duplicates(gallery: Views, queries: Views, views: Hashed, asked: Hashed, read: Reader) -> list[Leak]:
    """Return, per query that shows the very photo of a gallery view, the view whose pixels agree best.

    ``views`` and ``asked`` are the hashes of the gallery and of the queries. Candidates are near by hash or by
    embedding; the pixel check alone decides, so that two photos of one product are not called duplicates.
    """
    candidates = _candidates(gallery, queries, views, asked)

    def work(place: int) -> Leak | None:
        return _same_photo(queries.rows[place], [gallery.rows[i] for i in candidates[place]], read.max_pixels)

    batches = ordered_batches(sorted(candidates), work, _BATCH, read.workers)
    return [leak for _, checked in batches for leak in checked if leak is not None]


def _candidates(gallery: Views, queries: Views, views: Hashed, asked: Hashed) -> Mapping[int, list[int]]:
    """Return, per place of a query, the places of the gallery views worth a look at the pixels."""
    found: dict[int, set[int]] = defaultdict(set)
    for query, view in zip(*nearest_hashes(asked.bits, views.bits, CANDIDATE_BITS, CANDIDATE_HASHES), strict=True):
        found[int(asked.places[query])].add(int(views.places[view]))
    if len(gallery):
        index = ExactIndex(gallery.vectors.shape[1])
        index.add(np.arange(len(gallery), dtype=np.int64), gallery.vectors)
        for start in range(0, len(queries), 1024):
            scores, ids = index.search(queries.vectors[start : start + 1024], min(CANDIDATE_VIEWS, len(gallery)))
            for row, rank in np.argwhere(scores >= CANDIDATE_COSINE):
                found[start + int(row)].add(int(ids[row, rank]))
    return {place: sorted(views) for place, views in found.items()}


def _same_photo(query: Row, candidates: Sequence[Row], max_pixels: int) -> Leak | None:
    """Return the candidate that passes the pixel check best, None where none does."""
    best: Leak | None = None
    try:
        asked = plane(query.path, max_pixels)
    except ImageError:
        return None
    for view in candidates:
        try:
            laid = overlay(plane(view.path, max_pixels), asked)
        except ImageError:
            continue
        same = laid.agreement >= SAME_AGREEMENT and laid.worst >= SAME_WORST
        if same and (best is None or laid.agreement > best.score):
            words = f"pixels agree {laid.agreement:.3f}, worst patches {laid.worst:.3f}, {laid.overlap:.0%} in common"
            best = Leak(query, view, "near", laid.agreement, words)
    return best


def video_of(path: Path) -> str | None:
    """Return the name of the video that a file's name says it is a frame of, None where it has no running number.

    That is the stem without its last number: "video3" for ``video3_0012.jpg``; and the folder's name where nothing
    telling is left: "video3" for ``video3/0012.jpg`` and ``video3/frame_0012.jpg``. A name is all it looks at: the
    numbered photos of a product have a "video" too.
    """
    found = _NUMBERED.fullmatch(path.stem)
    if found is None:
        return None
    return path.parent.name if found[1].lower() in _GENERIC else found[1]


def frame_of(path: Path) -> int:
    """Return the number that the stem ends in. Raises ValueError where ``video_of`` is None."""
    found = _NUMBERED.fullmatch(path.stem)
    if found is None:
        raise ValueError(f"{path.name} has no running number")
    return int(found[2])


def frames(gallery: Views, queries: Views, views: Hashed, asked: Hashed) -> list[Leak]:
    """Return, per query that is a frame next to a gallery frame, the most similar such frame.

    Two rows are frames of one video when ``video_of`` names the same one, in the same folder (a folder named like the
    split does not count) or with that name as their ``group``, and that name is not simply the SKU's. They leak when
    their numbers are at most 30 apart and they look alike: cosine from 0.9, or at most 16 bits between the hashes.
    """
    bits = _by_place(views), _by_place(asked)
    known: dict[Key, list[tuple[int, int]]] = defaultdict(list)
    for place, row in enumerate(gallery.rows):
        for key in _videos(row):
            known[key].append((frame_of(row.path), place))
    for numbered in known.values():
        numbered.sort()
    found = []
    for place, row in enumerate(queries.rows):
        near = {view for key in _videos(row) for view in _neighbours(known.get(key, []), frame_of(row.path))}
        if near:
            places = np.array(sorted(near), np.int64)
            cosines = gallery.vectors[places] @ queries.vectors[place]
            far = [_far(bits[0].get(int(view)), bits[1].get(place)) for view in places]
            leak = _like_frame(row, [gallery.rows[int(view)] for view in places], cosines.tolist(), far)
            found += [leak] if leak is not None else []
    return found


def _videos(row: Row) -> Iterable[Key]:
    """Yield the keys under which a row may be a frame: by folder and, where the group is the video, by group."""
    video = video_of(row.path)
    if video is None or video.casefold() == row.sku.casefold():
        return
    yield (*(part for part in row.path.parent.parts if part != row.split), "", video)
    if row.group == video:
        yield (video,)


def _neighbours(numbered: list[tuple[int, int]], frame: int) -> list[int]:
    """Return the places of frames at most ``FRAMES_APART`` away in a sorted list of (frame, place)."""
    low = bisect_left(numbered, frame - FRAMES_APART, key=lambda item: item[0])
    high = bisect_right(numbered, frame + FRAMES_APART, key=lambda item: item[0])
    return [place for _, place in numbered[low:high]]


def _like_frame(query: Row, views: Sequence[Row], cosines: Sequence[float], far: Sequence[int]) -> Leak | None:
    """Return the most similar of the neighbouring frames that look like the query."""
    best: Leak | None = None
    for view, cosine, bits in zip(views, cosines, far, strict=True):
        if (cosine >= FRAME_COSINE or bits <= FRAME_BITS) and (best is None or cosine > best.score):
            numbers = f"frames {frame_of(view.path)} and {frame_of(query.path)} of {video_of(query.path)}"
            best = Leak(query, view, "frame", cosine, f"{numbers}, cosine {cosine:.3f}, {bits} bits of 64 differ")
    return best


def _by_place(hashed: Hashed) -> dict[int, int]:
    return dict(zip(hashed.places.tolist(), hashed.bits.tolist(), strict=True))


def _far(left: int | None, right: int | None) -> int:
    return 64 if left is None or right is None else (left ^ right).bit_count()


def identical(gallery: Sequence[Row], queries: Sequence[Row]) -> dict[Path, Path]:
    """Return, per query path, a gallery path with the same bytes. Only files of equal size are read.

    Unreadable files are nobody's copy; the evaluation reports them itself.
    """
    sizes = {size for row in queries if (size := _size(row.path)) is not None}
    views: dict[tuple[int, str], Path] = {}
    shared: set[int] = set()
    for row in gallery:
        size = _size(row.path)
        if size is not None and size in sizes:
            shared.add(size)
            views.setdefault((size, _digest(row.path)), row.path)
    found = {}
    for row in queries:
        size = _size(row.path)
        if size is not None and size in shared:
            view = views.get((size, _digest(row.path)))
            if view is not None:
                found[row.path] = view
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> str:
    try:
        return artefact.file_digest(path)
    except OSError:
        return f"unreadable {path}"
