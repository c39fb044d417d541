"""From what ``skumatch dedupe`` wrote to a page of its groups: which groups, postings and pairs are shown.

The tables may be of a million postings and their pairs: they are streamed, and only what is shown is kept. It knows
nothing about HTML, and decodes nothing but the pictures that it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue import output
from skumatch.catalogue.cards import LIMIT, GroupCard, Member, Reason, group_page
from skumatch.catalogue.output import Listed
from skumatch.catalogue.postings import Catalogue
from skumatch.errors import ArtefactError, ImageError
from skumatch.images import thumbnail
from skumatch.readers_common import shown

if TYPE_CHECKING:
    from pyarrow import Table

Order = Literal["unsure", "largest"]
MEMBERS: Final = 12  # of a group that are shown
STRONGEST: Final = 3  # pairs of a group that are shown, and the weakest
SIDE: Final = 240  # pixels of a thumbnail
BATCH: Final = 100_000  # pairs at a time
WORKERS: Final = 4  # threads that make thumbnails
ENDS: Final = ("left", "right")


def write_page(out: Path, html: Path, catalogue: Catalogue, order: Order = "unsure", limit: int = LIMIT) -> None:
    """Write the page ``html`` of the groups in ``out``, made of ``catalogue``.

    At most ``limit`` groups: those first whose least sure posting is the least sure ("unsure"), or the "largest". Of
    each at most twelve postings, those of the pairs that are shown and then the surest; the three strongest pairs and
    the weakest. Raises DataError for a folder that is none, ArtefactError for a table of pairs that cannot be read or
    when the disk refuses; a page that was there before then stays.
    """
    facts = output.read_facts(out)
    chosen, count = _chosen(out / output.GROUPS, order, limit)
    groups = _groups(out / output.GROUPS, chosen)
    reasons = _reasons(out / output.PAIRS, groups)
    rule = facts.get("rule", {})
    head = {
        "catalogue": shown(catalogue.source),
        "postings": f"{len(catalogue):,}",
        "groups": f"{count:,}" + (f", {limit:,} shown" if count > limit else ""),
        "order": "the least sure first" if order == "unsure" else "the largest first",
        "rule": f"{rule.get('kind', 'unknown')}, a match from {rule.get('threshold', 0):.2f} on",
    }
    with group_page(html, "Groups of duplicates", head, limit) as page, ThreadPoolExecutor(WORKERS) as pool:
        for name, members in groups.items():
            some = _some(members, reasons[name])
            pictures = pool.map(_thumbnail, [one.image for one in some])
            tiles = [
                Member(one.posting, one.title, jpeg, one.confidence) for one, jpeg in zip(some, pictures, strict=True)
            ]
            least = min(one.confidence for one in members)
            page.add(GroupCard(name, tiles, reasons[name], len(members), least))
        page.leave_out(count - len(groups))


def _chosen(path: Path, order: Order, limit: int) -> tuple[list[str], int]:
    """Return the names of the groups to show, in order, and how many groups there are."""
    least: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for one in output.read_groups(path):
        least[one.group] = min(one.confidence, least.get(one.group, 1.0))
        sizes[one.group] = sizes.get(one.group, 0) + 1
    ranks = {"unsure": lambda name: (least[name], name), "largest": lambda name: (-sizes[name], least[name], name)}
    return sorted(sizes, key=ranks[order])[:limit], len(sizes)


def _groups(path: Path, chosen: Sequence[str]) -> dict[str, list[Listed]]:
    """Return the postings of each group in ``chosen``, the surest first."""
    groups: dict[str, list[Listed]] = {name: [] for name in chosen}
    for one in output.read_groups(path):
        if one.group in groups:
            groups[one.group].append(one)
    for members in groups.values():
        members.sort(key=lambda one: -one.confidence)
    return groups


def _some(members: Sequence[Listed], reasons: Sequence[Reason]) -> list[Listed]:
    """Return at most twelve of ``members`` in their order: those that the reasons are about before others."""
    told = {posting for reason in reasons for posting in (reason.left, reason.right)}
    first = sorted(range(len(members)), key=lambda place: members[place].posting not in told)
    return [members[place] for place in sorted(first[:MEMBERS])]


def _thumbnail(image: str) -> bytes | None:
    """Return a picture made small; None for one that is not there or cannot be read."""
    try:
        return thumbnail(Path(image), SIDE) if image else None
    except ImageError:
        return None


def _reasons(path: Path, groups: Mapping[str, Sequence[Listed]]) -> dict[str, list[Reason]]:
    """Return the pairs of each group that are shown, the strongest first."""
    import pyarrow as pa

    reasons: dict[str, list[Reason]] = {name: [] for name in groups}
    names = list(groups)
    codes = [code for code, members in enumerate(groups.values()) for _ in members]
    postings = [one.posting for members in groups.values() for one in members]
    try:
        kept, of = _telling(_inside(path, postings, np.array(codes, np.int32)))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtefactError(f"{shown(path)} cannot be read", "write it anew with `skumatch dedupe`") from error
    for code, row in zip(of.tolist(), kept.to_pylist() if kept is not None else [], strict=True):
        reasons[names[code]].append(_reason(row))
    return reasons


def _inside(path: Path, postings: Sequence[str], codes: NDArray[np.int32]) -> Iterator[tuple[Table, NDArray[np.int32]]]:
    """Yield the pairs that lie within one of the groups, batch by batch, with the code of the group of each."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    known = pa.array(postings, pa.string())
    with path.open("rb") as stream, pq.ParquetFile(stream) as file:  # Arrow takes no name but in UTF-8
        for batch in file.iter_batches(BATCH):
            places = [pc.index_in(batch.column(end), value_set=known).fill_null(-1).to_numpy() for end in ENDS]
            of = [np.append(codes, -1)[place] for place in places]
            within = (of[0] == of[1]) & (of[0] >= 0)
            yield pa.Table.from_batches([batch]).filter(pa.array(within)), of[0][within]


def _telling(batches: Iterator[tuple[Table, NDArray[np.int32]]]) -> tuple[Table | None, NDArray[np.int32]]:
    """Return the strongest pairs of each group and its weakest, by group and the strongest first."""
    import pyarrow as pa

    table: Table | None = None
    of = np.empty(0, np.int32)
    for more, theirs in batches:
        table = more if table is None else pa.concat_tables([table, more])
        of = np.concatenate([of, theirs])
        order = np.lexsort((-table["probability"].to_numpy(), of))
        rank = np.arange(len(order)) - np.searchsorted(of[order], of[order])
        last = np.append(np.diff(of[order]) != 0, True)[: len(order)]
        kept = order[(rank < STRONGEST) | last]
        table, of = table.take(kept).combine_chunks(), of[kept]
    return table, of


def _reason(row: Mapping[str, Any]) -> Reason:
    known = {*ENDS, "probability", *output.AMOUNTS}
    scores = {name: np.nan if value is None else float(value) for name, value in row.items() if name not in known}
    contradict, agree = (bool(row.get(name)) for name in output.AMOUNTS)
    return Reason(row["left"], row["right"], float(row["probability"]), scores, contradict, agree)
