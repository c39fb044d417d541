"""Compaction: many small segments become few, and rows that were removed leave the disk.

The work is done beside the current version, without a lock; what was added or removed meanwhile stays so. Ids do not
change. It knows nothing about search indexes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from skumatch import lock
from skumatch.embed import Progress, no_progress
from skumatch.gallery import Gallery
from skumatch.gallery_changes import SMALL as TINY
from skumatch.gallery_changes import live_views, publish, write_segment
from skumatch.gallery_state import SEGMENTS, TABLES, Pieces, SegmentUse, State
from skumatch.segment import Segment, Views
from skumatch.sku_table import merge, read_layer, write_layer
from skumatch.spec import Ids
from skumatch.view_directory import member

SMALL = 65_536  # rows; segments below are merged with each other
LARGE = 524_288  # rows of a merged segment, at most
MANY = 16  # small segments that make a compaction due
DEAD = 0.25  # share of removed rows from which on a segment is written anew


class _Done(Exception):
    """None of the segments is in use any more."""


def due(gallery: Gallery) -> list[str]:
    """Return the reasons to compact, for a person; none when it is not worth while."""
    rows, alive = _sizes(gallery.pieces)
    small = int(np.count_nonzero(alive < SMALL))
    dead = int((rows - alive).sum())
    reasons = [f"{small} small segments"] if small > MANY else []
    return reasons + ([f"{dead:,} removed views on disk"] if dead > DEAD * rows.sum() else [])


def compact(gallery: Gallery, full: bool = False, progress: Progress = no_progress) -> Gallery:
    """Publish a version of the same views in fewer segments and return it; ``gallery`` itself when nothing is to do,
    the current version when another compaction or a rebuild has done it first.

    Merges segments of under 65,536 views and writes those anew of which a quarter was removed; ``full``: all that
    hold a removed row or are small. ``progress``: views done. Raises LockedError, ArtefactError.
    """
    pieces = gallery.pieces
    groups = _groups(pieces, full)
    layers = pieces.state.tables if len(pieces.state.tables) > 1 else ()
    if not groups and not layers:
        return gallery
    reason = f"compact {sum(map(len, groups))} segments to {len(groups)}" if groups else "compact the table of facts"
    with lock.preparing(gallery.store):
        change = _Compaction(pieces, [(group, _write(pieces, group, progress)) for group in groups], layers)
        try:
            return publish(gallery.store, reason, change, gallery)
        except _Done:
            return gallery.refreshed()


class _Compaction:
    """What a compaction has written, and how it changes the state that is current by then."""

    def __init__(
        self, pieces: Pieces, merged: Sequence[tuple[list[int], SegmentUse | None]], layers: tuple[str, ...]
    ) -> None:
        self.pieces = pieces
        self.merged = merged
        self.layers = layers
        home = pieces.store / TABLES
        self.layer = write_layer(home, merge([read_layer(home, name) for name in layers])) if layers else ""

    def __call__(self, before: State | None) -> State:
        """Return the state with the new pieces in the place of the old. Raises _Done where there is no place."""
        state = start = before or self.pieces.state
        for group, use in self.merged:
            old = [self.pieces.state.segments[number] for number in group]
            state = _swapped(Pieces(self.pieces.store, state, reuse=self.pieces), old, use)
        if self.layers and state.tables[: len(self.layers)] == self.layers:
            state = replace(state, tables=(self.layer, *state.tables[len(self.layers) :]))
        if state is start:
            raise _Done
        return state


def _sizes(pieces: Pieces) -> tuple[Ids, Ids]:
    """Return the rows of each segment, and how many of them are not removed."""
    rows = np.array([len(ids) for _, ids in pieces.segments])
    dead = [int(np.count_nonzero(member(ids, pieces.state.removed))) for _, ids in pieces.segments]
    return rows, rows - np.array(dead)


def _groups(pieces: Pieces, full: bool) -> list[list[int]]:
    """Return which segments are to be written together, by number."""
    rows, alive = _sizes(pieces)
    worn = (alive < rows) if full else (alive <= (1 - DEAD) * rows)
    small = alive < SMALL
    if np.count_nonzero(small) < 2:
        small &= worn
    groups: list[list[int]] = []
    total = 0
    for number in np.flatnonzero(worn | small).tolist():
        if not groups or total + alive[number] > LARGE:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += int(alive[number])
    return [group for group in groups if len(group) > 1 or worn[group[0]]]


def _write(pieces: Pieces, group: Sequence[int], progress: Progress) -> SegmentUse | None:
    """Write the live views of some segments as one; None where none of them has any."""
    if all(member(pieces.segments[number][1], pieces.state.removed).all() for number in group):
        return None

    def told() -> Iterator[Views]:
        for views in live_views(pieces, group):
            yield views
            progress(len(views))

    name, _ = write_segment(pieces.store, pieces.state.spec.dim, told(), with_ids=True)
    return SegmentUse(name, None)


def _swapped(now: Pieces, old: Sequence[SegmentUse], new: SegmentUse | None) -> State:
    """Return the state of ``now`` with ``new`` in the place of the segments ``old``; unchanged where that cannot be:
    all of them are gone, or a rollback brought back views that ``new`` lacks."""
    written = np.empty(0, np.int64)
    if new is not None:
        written = np.sort(np.asarray(Segment(now.store / SEGMENTS / new.name).own_ids))
    alive = now.directory.ids
    uses: list[SegmentUse] = []
    pending = [new] if new else []
    for use, (segment, ids) in zip(now.state.segments, now.segments, strict=True):
        lacking = member(ids, alive) & ~member(ids, written)
        if use in old:
            if lacking.any():
                return now.state
            uses += pending
            pending = []
        elif not member(ids, written).any():
            uses.append(use)
        elif np.count_nonzero(lacking) > TINY:  # not what an addition merges: another compaction was here
            return now.state
        elif lacking.any():  # an addition merged one of ``old`` with its own: its own stay
            rest = segment.read(np.flatnonzero(lacking), ids[lacking])
            uses.append(SegmentUse(write_segment(now.store, segment.dim, rest, with_ids=True)[0], None))
    if not any(use in old for use in now.state.segments):
        return now.state
    gone = written[~member(written, alive)]  # removed meanwhile, maybe with their rows
    return replace(now.state, segments=tuple(uses), removed=np.union1d(now.state.removed, gone))
