"""Queries that a gallery view gives away: its very bytes, a near-duplicate of it, or its neighbour in a video.

Such queries say nothing about the shelf. Byte-identical ones are never counted; the others are reported, and whoever
evaluates decides. Finds them and knows nothing about accuracy; ``leaks_page`` shows them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.embed import Progress, cores, no_progress, ordered_batches
from skumatch.errors import ImageError
from skumatch.eval.views import Views
from skumatch.index.exact import ExactIndex
from skumatch.phash import Hashes, fingerprint, nearest_hashes, overlay, plane
from skumatch.spec import Ids

Kind = Literal["bytes", "near", "frame"]
Key = tuple[str, ...]  # of one video: its folder's parts and its name

# A candidate is worth a look at its pixels: copies cut by 5 % on every side have a cosine of 0.92 and more to their
# original, those cut by 8 % and brightened 0.81 and more (MobileNetV2); uncut ones differ in up to 4 bits of the hash.
NEAR_BITS: Final = 12
NEAR_COSINE: Final = 0.8
NEIGHBOURS: Final = 4  # by cosine, and as many by hash
# The pixels decide. Chosen on the Grocery Store photos: of 11,481 pairs of nearest neighbours, none of them a copy, 4
# reach both bars (shots of one shelf from one spot); so did all of 360 planted copies. The nearest two of its 81
# catalogue pictures, two flavours of one design, have 0.90 and 0.57.
SAME_AGREEMENT: Final = 0.96
SAME_WORST: Final = 0.87
# Of a frame the name has said the most: the same scene from nearly the same spot is enough. 717 of 9,080 pairs of
# nearest neighbours from one visit to a shop agree that well, and 4 of 2,401 from two visits.
FRAMES_APART: Final = 30
FRAME_AGREEMENT: Final = 0.5

_NUMBERED: Final = re.compile(r"(.*?)[^0-9A-Za-z]*([0-9]+)", re.DOTALL)
_GENERIC: Final = frozenset({"", "f", "frame", "frames", "img", "image", "dsc", "dscn"})
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Leak:
    """A query and the gallery view that gives it away.

    ``score`` in 0..1: 1 for the same bytes, else how well the pixels agree. ``evidence`` says in words what speaks
    for it.
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

    Reads every picture once more with ``workers`` threads (0: one per core), the candidates twice; ``progress`` counts
    the pictures of the first reading. One that can no longer be read is nobody's near-duplicate.
    """
    copies = identical(gallery.rows, queries.rows)
    views = {row.path: row for row in reversed(gallery.rows)}
    fresh = queries.take(np.array([row.path not in copies for row in queries.rows], bool))
    near = {leak.query.path: leak for leak in near_duplicates(gallery, fresh, workers, max_pixels, progress)}
    leaks = []
    for row in queries.rows:
        if row.path in copies:
            leaks.append(Leak(row, views[copies[row.path]], "bytes", 1.0, "the same bytes"))
        elif row.path in near:
            leaks.append(near[row.path])
    return leaks


def near_duplicates(
    gallery: Views, queries: Views, workers: int, max_pixels: int, progress: Progress = no_progress
) -> list[Leak]:
    """Return, per query that shows the very photo of a gallery view or a frame next to one, the strongest leak.

    Candidates are near by hash or by embedding, or are neighbouring frames. Their pixels decide, so that two photos of
    one product are not called duplicates, and so that hardly anything depends on the encoder.
    """
    workers = workers or cores()
    hashes = [_hashes(side.rows, workers, max_pixels, progress) for side in (gallery, queries)]
    near, frames = _similar(gallery, queries, *hashes), _neighbours(gallery, queries)

    def check(place: int) -> Leak | None:
        following = frames.get(place, set())
        views = sorted(following | near.get(place, set()))
        candidates = [(gallery.rows[view], view in following) for view in views]
        return _strongest(queries.rows[place], candidates, max_pixels)

    batches = ordered_batches(sorted({*near, *frames}), check, _BATCH, workers)
    return [leak for _, checked in batches for leak in checked if leak is not None]


def _hashes(rows: Sequence[Row], workers: int, max_pixels: int, progress: Progress) -> tuple[Ids, Hashes]:
    """Return the places of the readable rows and their hashes."""

    def work(row: Row) -> int | None:
        try:
            return fingerprint(row.path, max_pixels).bits
        except ImageError:
            return None

    bits: list[int | None] = []
    for group, found in ordered_batches(rows, work, _BATCH, workers):
        bits += found
        progress(len(group))
    places = [place for place, found in enumerate(bits) if found is not None]
    return np.array(places, np.int64), np.array([bits[place] for place in places], np.uint64)


def _similar(
    gallery: Views, queries: Views, views: tuple[Ids, Hashes], asked: tuple[Ids, Hashes]
) -> dict[int, set[int]]:
    """Return, per place of a query, the places of the views that are near by hash or by embedding."""
    found: dict[int, set[int]] = defaultdict(set)
    for query, view in zip(*nearest_hashes(asked[1], views[1], NEAR_BITS, NEIGHBOURS), strict=True):
        found[int(asked[0][query])].add(int(views[0][view]))
    if not len(gallery):
        return found
    index = ExactIndex(gallery.vectors.shape[1])
    index.add(np.arange(len(gallery), dtype=np.int64), gallery.vectors)
    for start in range(0, len(queries), 1024):
        scores, ids = index.search(queries.vectors[start : start + 1024], min(NEIGHBOURS, len(gallery)))
        for row, rank in np.argwhere(scores >= NEAR_COSINE):
            found[start + int(row)].add(int(ids[row, rank]))
    return found


def _strongest(query: Row, candidates: Sequence[tuple[Row, bool]], max_pixels: int) -> Leak | None:
    """Return the strongest leak among ``candidates`` (views, and whether each is a neighbouring frame), or None."""
    found: list[Leak] = []
    try:
        asked = plane(query.path, max_pixels)
    except ImageError:
        return None
    for view, frame in candidates:
        try:
            seen = plane(view.path, max_pixels)
        except ImageError:
            continue
        laid, bits = overlay(seen, asked), (seen.bits ^ asked.bits).bit_count()
        words = f"pixels agree {laid.agreement:.3f} (worst patches {laid.worst:.3f}), {bits} of 64 hash bits differ"
        score = max(0.0, laid.agreement)
        if laid.agreement >= SAME_AGREEMENT and laid.worst >= SAME_WORST:
            found.append(Leak(query, view, "near", score, words))
        elif frame and (laid.agreement >= FRAME_AGREEMENT or bits <= NEAR_BITS):
            numbers = f"frames {frame_of(view.path)} and {frame_of(query.path)} of {video_of(query.path)}"
            found.append(Leak(query, view, "frame", score, f"{numbers}, {words}"))
    return max(found, key=lambda leak: (leak.kind == "near", leak.score), default=None)


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


def _neighbours(gallery: Views, queries: Views) -> dict[int, set[int]]:
    """Return, per place of a query that is a frame, the places of the gallery frames next to it.

    Two rows are frames of one video when ``video_of`` names the same one, in the same folder (a folder named like the
    split does not count) or with that name as their ``group``, and that name is not simply the SKU's. Next to each
    other: at most 30 numbers apart; of more, those with the highest cosines.
    """
    known: dict[Key, list[tuple[int, int]]] = defaultdict(list)
    for place, row in enumerate(gallery.rows):
        for key in _videos(row):
            known[key].append((frame_of(row.path), place))
    for numbered in known.values():
        numbered.sort()
    found = {}
    for place, row in enumerate(queries.rows):
        near = {view for key in _videos(row) for view in _around(known.get(key, []), frame_of(row.path))}
        if near:
            views = np.array(sorted(near), np.int64)
            order = np.argsort(-(gallery.vectors[views] @ queries.vectors[place]), kind="stable")
            found[place] = {int(view) for view in views[order[:NEIGHBOURS]]}
    return found


def _videos(row: Row) -> Iterator[Key]:
    """Yield the keys under which a row may be a frame: by folder and, where the group is the video, by group."""
    video = video_of(row.path)
    if video is None or video.casefold() == row.sku.casefold():
        return
    yield (*(part for part in row.path.parent.parts if part != row.split), "", video)
    if row.group == video:
        yield (video,)


def _around(numbered: list[tuple[int, int]], frame: int) -> list[int]:
    """Return the places of frames at most ``FRAMES_APART`` away in a sorted list of (frame, place)."""
    low = bisect_left(numbered, frame - FRAMES_APART, key=lambda item: item[0])
    high = bisect_right(numbered, frame + FRAMES_APART, key=lambda item: item[0])
    return [place for _, place in numbered[low:high]]


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
