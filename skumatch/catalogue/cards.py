"""The page of groups as HTML: postings of one product side by side, and what speaks for and against it.

One file that stands alone: inline style, pictures as data: URIs, no scripts, no requests; it opens from disk. Cards are
streamed, so memory stays flat, and a failed run leaves an older page as it was. It knows nothing about catalogues or
what ``skumatch dedupe`` writes, and decodes no picture: callers hand in JPEGs.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from skumatch.catalogue.output import renamed
from skumatch.errors import ArtefactError
from skumatch.page import COLOURS, HEAD, escaped
from skumatch.readers_common import shown
from skumatch.words import counted

LIMIT: Final = 300  # groups on a page
SAME_BITS: Final = 0.92  # equal bits of two hashes from which on they are of one picture: 59 of 64
ALIKE: Final = 0.5  # a score of words or character n-grams from which on titles are alike
TITLES: Final = ("words", "chars")
SURE: Final = 0.8  # a group or posting above this is shown as accepted


@dataclass(frozen=True)
class Member:
    """A posting of a group: ``picture`` a JPEG thumbnail, None where there is none; ``confidence`` in 0..1."""

    posting: str
    title: str
    picture: bytes | None
    confidence: float


@dataclass(frozen=True)
class Reason:
    """A pair within a group: ``probability`` in 0..1, the ``scores`` by signal (NaN where one does not know both
    postings), and whether amounts in the titles ``contradict`` or ``agree``."""

    left: str
    right: str
    probability: float
    scores: Mapping[str, float] = field(default_factory=dict)
    contradict: bool = False
    agree: bool = False

    def said(self) -> list[tuple[str, bool]]:
        """Return what the scores say in words, each with whether it speaks for the pair."""
        words = [
            ("same picture", True, self.scores.get("hash", 0.0) >= SAME_BITS),
            ("titles alike", True, any(self.scores.get(name, 0.0) >= ALIKE for name in TITLES)),
            ("amounts agree", True, self.agree),
            ("no word in common", False, self.scores.get("words") == 0),
            ("amounts contradict", False, self.contradict),
        ]
        return [(text, speaks_for) for text, speaks_for, true in words if true]


@dataclass(frozen=True)
class GroupCard:
    """A group of ``size`` postings: those ``members`` that are shown, and the ``reasons``, pairs of its postings."""

    name: str
    members: Sequence[Member]
    reasons: Sequence[Reason]
    size: int
    confidence: float  # of the posting that is least sure to belong to it


class GroupPage:
    """Cards on a page that is being written; groups beyond ``limit`` are counted, not shown."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.limit = limit
        self.shown = 0
        self.hidden = 0
        self._file = file

    def add(self, card: GroupCard) -> None:
        """Append one group, or only count it."""
        if self.shown == self.limit:
            self.hidden += 1
            return
        self.shown += 1
        self._file.write(_card(card).encode())

    def leave_out(self, number: int) -> None:
        """Count groups that are not shown."""
        self.hidden += number


@contextmanager
def group_page(path: Path, title: str, facts: Mapping[str, str], limit: int = LIMIT) -> Iterator[GroupPage]:
    """Give a page to add cards to, which becomes ``path`` when the block ends without an error.

    ``facts`` (catalogue, rule, ...) stand in the head. Raises ArtefactError when the page cannot be written; a page
    that was there before then stays.
    """
    if path.is_dir():
        raise ArtefactError(f"{shown(path)} is a folder", "name a file for the page")
    with renamed(path) as part, part.open("wb") as file:
        file.write(_head(title, facts).encode())
        page = GroupPage(file, limit)
        yield page
        file.write(_tail(page).encode())
        file.flush()
        os.fsync(file.fileno())


def _head(title: str, facts: Mapping[str, str]) -> str:
    pairs = "".join(f"<div><dt>{escaped(key)}</dt><dd>{escaped(value)}</dd></div>\n" for key, value in facts.items())
    head = HEAD.replace("{style}", COLOURS + STYLE).replace("{title}", escaped(title))
    return f"{head}<dl>\n{pairs}</dl>\n</header>\n<main>\n"


def _tail(page: GroupPage) -> str:
    more = f'<p class="more">and {page.hidden:,} more: see groups.csv</p>\n' if page.hidden else ""
    empty = "" if page.shown or page.hidden else '<p class="more">no groups</p>\n'
    return f"{more}{empty}</main>\n</body>\n</html>\n"


def _card(card: GroupCard) -> str:
    """Return one article: the group, its postings with numbers, and the pairs that say why."""
    numbers = {member.posting: number for number, member in enumerate(card.members, start=1)}
    tiles = "\n".join(_tile(number, member) for number, member in enumerate(card.members, start=1))
    more = card.size - len(card.members)
    rest = f'\n<li class="rest">and {more:,} more</li>' if more > 0 else ""
    return (
        f'<article class="group">\n<div class="head"><h2>{escaped(card.name)}</h2>'
        f'<p class="soft">{counted(card.size, "posting")}</p>{_badge(card.confidence)}</div>\n'
        f'<ol class="members">\n{tiles}{rest}\n</ol>\n{_why(card.reasons, numbers)}</article>\n'
    )


def _badge(confidence: float) -> str:
    kind = "accept" if confidence >= SURE else "review"
    return f'<p class="badge {kind}" title="of the posting least sure to belong here">{confidence:.2f}</p>'


def _tile(number: int, member: Member) -> str:
    """Return one list item: the picture, its number, title, posting and confidence with a bar."""
    picture = '<div class="pic none">no picture</div>'
    if member.picture is not None:
        data = base64.b64encode(member.picture).decode("ascii")
        alt = escaped(f"{number}: {member.title}" if member.title else f"picture {number}")
        picture = f'<div class="pic"><img decoding="async" alt="{alt}" src="data:image/jpeg;base64,{data}"></div>'
    title = escaped(member.title) or '<span class="soft">no title</span>'
    width = 100 * min(max(member.confidence, 0.0), 1.0)
    return (
        f'<li>{picture}\n<h3 title="{escaped(member.title)}"><span class="number">{number}</span> '
        f'<bdi class="title">{title}</bdi></h3>\n'
        f'<p class="soft id" title="{escaped(member.posting)}">{escaped(member.posting)}</p>\n'
        f'<p class="score">{member.confidence:.2f}</p>'
        f'<div class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></div></li>'
    )


def _why(reasons: Sequence[Reason], numbers: Mapping[str, int]) -> str:
    """Return the table of pairs, in a box of its own that scrolls sideways."""
    if not reasons:
        return ""
    names = dict.fromkeys(name for reason in reasons for name in reason.scores)
    signals = [name for name in names if any(_known(reason, name) for reason in reasons)]
    named = "".join(f'<th scope="col" class="figure">{escaped(name)}</th>' for name in signals)
    first = '<th scope="col">pair</th><th scope="col" class="figure">overall</th><th scope="col">why</th>'
    lines = "".join(_line(reason, signals, numbers) for reason in reasons)
    # A box that scrolls must be reachable without a mouse, hence the tabindex.
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="why"><table>\n'
        f"<thead><tr>{first}{named}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n"
    )


def _line(reason: Reason, signals: Sequence[str], numbers: Mapping[str, int]) -> str:
    ends = sorted((reason.left, reason.right), key=lambda posting: numbers.get(posting, len(numbers) + 1))
    named = " and ".join(escaped(str(numbers.get(posting, posting))) for posting in ends)
    figures = [f"{reason.probability:.2f}", *(_score(reason, name) for name in signals)]
    overall, *scores = (f'<td class="figure">{figure}</td>' for figure in figures)
    said = "".join(f'<span class="{"for" if good else "against"}">{text}</span> ' for text, good in reason.said())
    return (
        f'<tr><th scope="row" title="{escaped(" and ".join(ends))}">{named}</th>'
        f'{overall}<td class="said">{said}</td>{"".join(scores)}</tr>\n'
    )


def _known(reason: Reason, name: str) -> bool:
    return not math.isnan(reason.scores.get(name, math.nan))


def _score(reason: Reason, name: str) -> str:
    return f"{reason.scores[name]:.2f}" if _known(reason, name) else "-"


STYLE = """
body { background: var(--page); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; padding: 24px 16px 48px; }
header, main { max-width: 1240px; margin: 0 auto; overflow-wrap: anywhere; }
h1 { font-size: 24px; line-height: 1.25; margin-bottom: 12px; }
h2 { font-size: 16px; }
ol { list-style: none; padding: 0; }
dl { display: flex; flex-wrap: wrap; gap: 8px 32px; margin-bottom: 20px; font-size: 13px; }
dt, .soft { color: var(--soft); }
.group { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin-bottom: 12px; break-inside: avoid; }
.head { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; margin-bottom: 12px; font-size: 13px; }
.badge { border-radius: 99px; padding: 2px 10px; font-weight: 600; font-variant-numeric: tabular-nums; }
.accept, .for { color: var(--accept); background: var(--accept-bg); }
.review { color: var(--review); background: var(--review-bg); }
.against { color: var(--error); background: var(--error-bg); }
.members { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 16px; }
.members > li { min-width: 0; }
.pic { height: 150px; display: flex; align-items: center; justify-content: center; border-radius: 6px;
  background: var(--page); overflow: hidden; color: var(--soft); font-size: 12px; }
.pic img { max-width: 100%; max-height: 100%; object-fit: contain; }
h3 { display: flex; gap: 6px; margin-top: 8px; font-weight: 500; font-size: 14px; line-height: 1.3; }
.number { flex: none; color: var(--soft); font-variant-numeric: tabular-nums; }
.title { min-width: 0; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.id { font-size: 12px; margin-top: 2px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.score { font-variant-numeric: tabular-nums; font-size: 13px; margin-top: 2px; }
.bar { height: 3px; border-radius: 2px; background: var(--line); margin-top: 4px; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.rest { display: flex; align-items: center; justify-content: center; min-height: 64px; color: var(--soft); }
.scroll { overflow-x: auto; margin-top: 16px; border-top: 1px solid var(--line); padding-top: 8px; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; padding: 4px 20px 4px 0; font-weight: 400; white-space: nowrap; }
thead th { color: var(--soft); }
.figure { text-align: right; font-variant-numeric: tabular-nums; }
.said { white-space: normal; min-width: 150px; }
.said span { display: inline-block; border-radius: 99px; padding: 1px 8px; font-size: 12px; white-space: nowrap; }
.more { text-align: center; color: var(--soft); padding: 16px; }
@media (max-width: 760px) {
  body { padding: 16px 12px 32px; }
  .group { padding: 12px; }
  .members { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
  .pic { height: 120px; } }
"""
