"""The match page: one HTML file that shows each crop beside its best reference views.

The file stands alone: inline style, pictures as data: URIs, no scripts, no requests; it opens from disk. Rows are
streamed to a temporary sibling that replaces the page on success, so memory stays flat and a failed run leaves the
older page as it was. It knows nothing about encoders or galleries, and it decodes no picture: callers hand in JPEGs.
"""

from __future__ import annotations

import base64
import contextlib
import html
import os
import secrets
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import BinaryIO

from skumatch.errors import ArtefactError

DECISIONS = ("accept", "review", "unknown", "error")
RESERVED = 1024  # bytes kept free near the top for the counts, which are known last


@dataclass(frozen=True)
class PageView:
    """One answer: ``score`` is a cosine similarity, ``thumb`` the winning view as JPEG bytes, ``source`` its path."""

    sku: str
    score: float
    thumb: bytes | None
    source: str


@dataclass(frozen=True)
class PageRow:
    """One crop with its answers, best first.

    ``crop`` is a path as text (surrogates allowed), ``picture`` a JPEG thumbnail, ``error`` what went wrong where the
    crop could not be read. Raises ValueError for a ``decision`` other than accept, review, unknown or error.
    """

    crop: str
    picture: bytes | None
    decision: str
    views: Sequence[PageView]
    error: str = ""

    def __post_init__(self) -> None:
        if self.decision not in DECISIONS:
            raise ValueError(f"decision '{self.decision}' is none of {', '.join(DECISIONS)}")


class PageWriter:
    """Context manager that writes the page ``path``, published when the block ends without an exception.

    ``facts`` (model, gallery, ...) stand in the head. Rows beyond ``limit`` are counted, not shown.
    Raises ArtefactError when the page cannot be written; a page that was there before then stays.
    """

    def __init__(self, path: Path, title: str, facts: Mapping[str, str], limit: int = 500) -> None:
        self.path = path
        self.title = title
        self.facts = facts
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self._temporary = path.parent / f".page-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._file: BinaryIO | None = None
        self._counts_at = 0

    def __enter__(self) -> PageWriter:
        if self.path.is_dir():  # found now, not after an hour of matching
            raise ArtefactError(f"{printable(str(self.path))} is a folder", "name a file for the page")
        try:
            self._file = self._temporary.open("xb")
            self._start(self._file)
        except OSError as error:
            self._discard()
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        file = self._file
        if file is None:
            return
        if kind is not None:
            self._discard()
            return
        try:
            self._finish(file)
            self._temporary.replace(self.path)
        except OSError as error:
            self._discard()
            raise self._cannot_write(error) from error

    def add(self, row: PageRow) -> None:
        """Append one row, or only count it beyond the limit. Raises ArtefactError when the disk refuses."""
        if self._file is None:
            raise ValueError("PageWriter.add outside its with block")
        self.counts[row.decision] += 1
        if self.counts.total() > self.limit:
            return
        try:
            self._file.write(_row(row).encode())
        except OSError as error:
            raise self._cannot_write(error) from error

    def _start(self, file: BinaryIO) -> None:
        """Write everything above the rows, with a blank where the counts will stand."""
        pairs = ((escaped(key), escaped(value)) for key, value in self.facts.items())
        facts = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>\n" for key, value in pairs)
        file.write(HEAD.replace("{style}", COLOURS + STYLE).replace("{title}", escaped(self.title)).encode())
        self._counts_at = file.tell()
        file.write(b" " * RESERVED + f"\n<dl>\n{facts}</dl>\n</header>\n<main>\n".encode())

    def _finish(self, file: BinaryIO) -> None:
        """Write what follows the rows, fill in the counts and make the bytes durable."""
        hidden = self.counts.total() - self.limit
        more = f'<p class="more">and {hidden:,} more: see the CSV</p>\n' if hidden > 0 else ""
        empty = "" if self.counts else '<p class="more">no crops</p>\n'
        file.write(f"{more}{empty}</main>\n</body>\n</html>\n".encode())
        file.seek(self._counts_at)
        file.write(_counts(self.counts).encode())
        file.flush()
        os.fsync(file.fileno())
        file.close()

    def _discard(self) -> None:
        """Remove the temporary file; the page itself is not touched."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk again, on flushing what is thrown away anyway
                self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> ArtefactError:
        what = f"cannot write {printable(str(self.path))}: {error.strerror or error}"
        return ArtefactError(what, "check the folder and its free space")


def printable(text: str) -> str:
    r"""Return ``text`` with lone surrogates and control characters spelled out (``\udcff``, ``\x1b``)."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in text)


def escaped(text: str) -> str:
    """Return ``text`` printable, and safe inside HTML elements and double-quoted attributes."""
    return html.escape(printable(text))


def _counts(counts: Counter[str]) -> str:
    """Return the list of crops per decision; far shorter than RESERVED for any count."""
    items = "".join(f'<li class="badge {d}"><b>{counts[d]:,}</b> {d}</li>\n' for d in DECISIONS if counts[d])
    total = f"<li><b>{counts.total():,}</b> {'crop' if counts.total() == 1 else 'crops'}</li>\n"
    return f'<ul class="counts" aria-label="crops per decision">\n{total}{items}</ul>\n'


def _picture(jpeg: bytes | None, alt: str) -> str:
    """Return an img element with the JPEG inside, or a box that says there is no picture."""
    if jpeg is None:
        return '<div class="pic none">no picture</div>'
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<div class="pic"><img decoding="async" alt="{escaped(alt)}" src="data:image/jpeg;base64,{data}"></div>'


def _row(row: PageRow) -> str:
    """Return one article: the crop, its decision and its views in rank order."""
    name = PurePath(row.crop).name or row.crop
    views = "\n".join(_view(rank, view) for rank, view in enumerate(row.views, start=1))
    error = f'<p class="why">{escaped(row.error)}</p>\n' if row.error else ""
    listed = f'<ol class="views">\n{views}\n</ol>\n' if row.views else ""
    nothing = "" if row.views or row.error else '<p class="why">no reference views</p>\n'
    return (
        f'<article class="row">\n<div class="crop">{_picture(row.picture, f"crop {name}")}\n<div class="head">\n'
        f'<h2 dir="auto">{escaped(name)}</h2>\n<p class="badge {row.decision}">{row.decision}</p>\n'
        f'<p class="path">{escaped(row.crop)}</p>\n</div>\n</div>\n{error}{nothing}{listed}</article>\n'
    )


def _view(rank: int, view: PageView) -> str:
    """Return one list item: thumbnail, rank, SKU, score (three decimals) with its bar, source."""
    width = 100 * min(max(view.score, 0.0), 1.0) if view.score == view.score else 0.0  # a NaN has no bar
    bar = f'<div class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'
    sku, source, file = escaped(view.sku), escaped(view.source), escaped(PurePath(view.source).name)
    return (
        f"<li>{_picture(view.thumb, f'reference view of {view.sku}')}\n"
        f'<div class="about"><h3 title="{sku}"><span class="rank">{rank}</span> <bdi>{sku}</bdi></h3>\n'
        f'<p class="score">{view.score:.3f}</p>{bar}\n<p class="path" title="{source}">{file}</p></div></li>'
    )


HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
"""

# Shared with the other pages that skumatch writes (eval/html.py).
COLOURS = """
:root { --page: #f6f6f4; --card: #fff; --ink: #1d1f21; --soft: #61666c; --line: #e2e2de; --bar: #33658a;
  --accept: #14532d; --accept-bg: #dcf2e2; --review: #664300; --review-bg: #fcedc9;
  --unknown: #3b424b; --unknown-bg: #e5e8ec; --error: #86190f; --error-bg: #fbdfdb; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161819; --card: #1f2224; --ink: #e7e8e8; --soft: #a0a6ac; --line: #34383b; --bar: #7fb2d6;
    --accept: #a9e5bc; --accept-bg: #173a24; --review: #f6d58a; --review-bg: #45340c;
    --unknown: #ccd3da; --unknown-bg: #343a41; --error: #fbb8af; --error-bg: #511b15; } }
* { box-sizing: border-box; margin: 0; }
"""

STYLE = """
body { background: var(--page); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; padding: 24px 16px 48px; }
header, main { max-width: 1240px; margin: 0 auto; overflow-wrap: anywhere; }
h1 { font-size: 24px; line-height: 1.25; }
ul, ol { list-style: none; padding: 0; }
.counts { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 12px 0; }
dl { display: flex; flex-wrap: wrap; gap: 8px 32px; margin-bottom: 20px; font-size: 13px; }
dt { color: var(--soft); }
.badge { border-radius: 99px; padding: 2px 10px; font-size: 13px; font-weight: 600; width: max-content; }
.accept { color: var(--accept); background: var(--accept-bg); }
.review { color: var(--review); background: var(--review-bg); }
.unknown { color: var(--unknown); background: var(--unknown-bg); }
.error { color: var(--error); background: var(--error-bg); }
.row { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin-bottom: 12px;
  display: grid; grid-template-columns: 200px minmax(0, 1fr); gap: 12px 24px; break-inside: avoid; }
.crop { min-width: 0; }
.head { display: grid; gap: 6px; margin-top: 10px; }
h2, h3 { font-size: 15px; line-height: 1.3; }
h2, h3 bdi, .head .path { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
h3 { display: flex; gap: 6px; font-weight: 500; font-size: 14px; }
h3 bdi { min-width: 0; }
.views > li:first-child h3 { font-weight: 700; }
.rank { color: var(--soft); font-variant-numeric: tabular-nums; }
.views { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 16px; align-items: start; }
.views > li, .about { min-width: 0; }
.pic { height: 150px; display: flex; align-items: center; justify-content: center; border-radius: 6px;
  background: var(--page); overflow: hidden; color: var(--soft); font-size: 12px; }
.pic img { max-width: 100%; max-height: 100%; object-fit: contain; }
.crop .pic { height: 200px; }
.crop .pic.none { height: 112px; }
.about { padding-top: 8px; }
.score { font-variant-numeric: tabular-nums; font-size: 13px; margin-top: 2px; }
.bar { height: 3px; border-radius: 2px; background: var(--line); margin: 4px 0 6px; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.path { color: var(--soft); font-size: 12px; }
.views .path { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.why { align-self: center; color: var(--soft); min-width: 0; }
.more { text-align: center; color: var(--soft); padding: 16px; }
@media (max-width: 760px) {
  body { padding: 16px 12px 32px; }
  .row { grid-template-columns: minmax(0, 1fr); padding: 12px; }
  .crop { display: grid; grid-template-columns: 112px minmax(0, 1fr); gap: 12px; }
  .crop .pic { height: 112px; }
  .head { margin: 0; align-content: start; }
  .views { grid-template-columns: minmax(0, 1fr); gap: 10px; }
  .views > li { display: grid; grid-template-columns: 64px minmax(0, 1fr); gap: 12px; padding-top: 10px;
    border-top: 1px solid var(--line); }
  .views .pic { height: 64px; }
  .about { padding: 0; } }
"""
