"""Pieces of a page that stands alone: text, pictures, tables, sections, and the file itself.

One HTML file, opened from disk: inline style, pictures as data: URIs, no scripts, no requests (the page's own policy
forbids them). It knows nothing about what is reported.
"""

from __future__ import annotations

import base64
import html
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from skumatch.artefact import disk_errors
from skumatch.errors import ArtefactError, ImageError
from skumatch.images import thumbnail
from skumatch.page import COLOURS, HEAD, escaped

_FIGURE = re.compile(r"[-+]?[\d.,]+(?: ?%)?(?: (?:-|to) [-+]?[\d.,]+(?: ?%)?)?|[-+]?[\d.,]+ ?%.*|-")
_TAG = re.compile(r"<[^>]*>")


class Markup(str):
    """HTML that is already safe: the functions below pass it on as it is."""

    __slots__ = ()


def text(value: object) -> str:
    """Return ``value`` as text that is safe inside elements and double-quoted attributes; Markup as it is.

    Integers get thousands separators, floats three decimals, None and NaN a dash.
    """
    if isinstance(value, Markup):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return escaped(f"{value:.3f}" if isinstance(value, float) else str(value))


def picture(path: Path | bytes, caption: str = "", side: int = 160) -> str:
    """Return a figure with ``path`` (or a file's bytes) as an inline JPEG, long side at most ``side`` pixels.

    A picture that cannot be read becomes a box that says why. ``caption`` may be Markup.
    """
    said = f'\n<figcaption dir="auto">{text(caption)}</figcaption>' if caption else ""
    try:
        data = base64.b64encode(thumbnail(path, side)).decode("ascii")
    except ImageError as error:
        return f'<figure class="pic"><div class="frame none">{text(error.what)}</div>{said}</figure>'
    alt = _TAG.sub(" ", caption) if isinstance(caption, Markup) else escaped(caption)
    shown = f'<img alt="{" ".join(alt.split())}" decoding="async" src="data:image/jpeg;base64,{data}">'
    return f'<figure class="pic"><div class="frame">{shown}</div>{said}</figure>'


def strip(pictures: Sequence[str]) -> str:
    """Return ``pictures`` (from ``picture``) side by side, wrapping where the page is narrow."""
    return '<div class="strip">\n' + "\n".join(pictures) + "\n</div>\n" if pictures else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in a box of its own that scrolls sideways. Raises ValueError for a row of another length.

    Columns that hold only numbers, percentages or intervals are right-aligned, cells are shown as ``text`` shows
    them, and headings that are all empty make no line.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{len(row)} cells under {len(head)} headings")
    right = [bool(rows) and all(_is_figure(row[column]) for row in rows) for column in range(len(head))]
    kinds = [' class="figure"' if flag else "" for flag in right]
    named = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    heads = f"<thead><tr>{named}</tr></thead>\n" if any(head) else ""
    lines = (
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    body = "".join(lines)
    # A box that scrolls must be reachable without a mouse, hence the tabindex.
    return (
        f'<div class="scroll" tabindex="0"><table{"" if any(head) else " class=facts"}>\n'
        f"{heads}<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def section(title: str, body: str, intro: str = "") -> str:
    """Return a section; ``body`` is HTML, ``title`` and ``intro`` are text or Markup. Its id is ``anchor(title)``."""
    lead = f'<p class="intro">{text(intro)}</p>\n' if intro else ""
    return f'<section id="{anchor(title)}">\n<h2>{text(title)}</h2>\n{lead}{body}</section>\n'


def anchor(title: str) -> str:
    """Return the id that ``section`` gives to ``title``: its ASCII letters and digits, lower case, with hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "section"


def folded(summary: str, body: str) -> str:
    """Return ``body`` (HTML) folded away under the line ``summary`` until a reader opens it."""
    return f"<details>\n<summary>{text(summary)}</summary>\n{body}</details>\n"


def write_page(path: Path, title: str, facts: Mapping[str, str], sections: Iterable[str], style: str = "") -> None:
    """Stream ``sections`` into the page ``path``, which appears whole or stays as it was.

    ``facts`` (model, data, ...) stand in the head, ``style`` is CSS added to the page's own. Raises ArtefactError when
    the disk refuses.
    """
    pairs = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>\n" for key, value in facts.items())
    with _published(path) as file:
        file.write(HEAD.replace("{style}", COLOURS + STYLE + style).replace("{title}", text(title)).encode())
        file.write(f"<dl>\n{pairs}</dl>\n</header>\n<main>\n".encode())
        for part in sections:
            file.write(part.encode())
        file.write(b"</main>\n</body>\n</html>\n")


@contextmanager
def _published(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary sibling of ``path`` that replaces it, made durable, when the block ends without an error."""
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder", "name a file for the page")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".page-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_figure(cell: object) -> bool:
    if isinstance(cell, (int, float)) or cell is None:
        return True
    said = html.unescape(_TAG.sub("", cell)).strip() if isinstance(cell, Markup) else cell
    if not isinstance(said, str) or (said.isdigit() and not isinstance(cell, Markup)):
        return False  # digits alone as text are a name: a bar code
    return not said or _FIGURE.fullmatch(said) is not None


STYLE = """
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; padding: 28px 20px 64px; }
header, main { max-width: 1040px; margin: 0 auto; overflow-wrap: anywhere; }
h1 { font-size: 24px; line-height: 1.25; letter-spacing: -0.01em; }
h2 { font-size: 19px; line-height: 1.3; letter-spacing: -0.005em; }
h3 { font-size: 15px; line-height: 1.35; }
ul, ol { padding-left: 1.2em; }
a { color: var(--bar); text-underline-offset: 2px; }
dl { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 8px 0 20px; font-size: 13px; }
dl > div { display: flex; gap: 6px; min-width: 0; }
dt { color: var(--soft); flex: none; }
dd { min-width: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px 24px;
  margin-bottom: 16px; display: grid; grid-template-columns: minmax(0, 1fr); gap: 14px; scroll-margin-top: 12px; }
.intro, .soft { color: var(--soft); font-size: 14px; }
.intro { max-width: 72ch; margin-top: -8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; min-width: 100%; }
th { color: var(--soft); font-weight: 500; text-align: left; vertical-align: bottom; font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
td { vertical-align: top; min-width: 64px; max-width: 340px; overflow-wrap: anywhere; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); min-width: 112px; }
.facts { min-width: 0; }
.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.strip { display: flex; flex-wrap: wrap; gap: 14px; }
.pic { width: 148px; min-width: 0; }
.frame { height: 148px; border-radius: 8px; background: var(--page); overflow: hidden; display: flex;
  align-items: center; justify-content: center; color: var(--soft); font-size: 12px; line-height: 1.35; }
.frame img { max-width: 100%; max-height: 100%; object-fit: contain; display: block; }
.frame.none { padding: 8px; border: 1px dashed var(--line); overflow-y: auto; overflow-wrap: anywhere; }
figcaption { font-size: 13px; line-height: 1.35; margin-top: 6px; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 6; overflow: hidden; }
figcaption .soft { font-size: inherit; }
details > :not(summary) { margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); font-size: 14px; }
@media (max-width: 640px) {
  body { padding: 18px 10px 40px; }
  h1, header dl { padding: 0 6px; }
  section { padding: 16px 14px 18px; border-radius: 10px; margin-bottom: 12px; }
  .strip { gap: 10px; }
  .pic { width: calc((100% - 20px) / 3); }
  .frame { height: 104px; } }
@media print {
  body { background: none; padding: 0; }
  section { border: 0; padding: 8px 0; }
  tr, figure { break-inside: avoid; } }
"""
