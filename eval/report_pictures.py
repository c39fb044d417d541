"""The report's pictures: failures, confusions, the worst SKUs and leaks, each read from its file and shown small.

A picture that cannot be read becomes a box that says why. Sections are made one entry at a time, so that memory stays
flat however many pictures there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skumatch.eval.html import Markup, anchor, picture, section, strip, table, text
from skumatch.eval.report_words import Figures, percent, real
from skumatch.words import counted

SIDE = 224  # pixels: shown at a half to two thirds of that, sharp on a phone
EXAMPLES = 3  # pictures of a bad SKU
CONFUSED = "The SKUs most often taken for another."


@dataclass(frozen=True)
class Failure:
    """A query with a wrong answer: its own ``sku``, the one ``answered`` with its ``score`` and winning view, and the
    best view of the right SKU with its score where the gallery has one. Scores are cosine similarities."""

    query: Path
    sku: str
    answered: str
    score: float
    answered_view: Path
    right_view: Path | None
    right_score: float | None


@dataclass(frozen=True)
class Pictures:
    """What the report shows, the most telling first.

    ``confusions``: (shown SKU, answered SKU, count, a query, the view that won). ``worst``: (SKU, queries, top-1,
    queries answered wrongly). ``leaks``: (query, gallery view, kind of copy). ``corrupted``: per kind of corruption one
    picture (a file's bytes) per strength.
    """

    failures: Sequence[Failure] = ()
    confusions: Sequence[tuple[str, str, int, Path, Path]] = ()
    worst: Sequence[tuple[str, int, float, Sequence[Path]]] = ()
    leaks: Sequence[tuple[Path, Path, str]] = ()
    corrupted: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


def confusions(held: Pictures, document: Figures) -> Iterator[str]:
    """Yield the section of confused pairs, a query beside the view that won; without pictures, the table of them."""
    pairs = document.get("confused") or []
    if pairs and not held.confusions:
        rows = [[one["shown"], one["answered"], int(one["queries"])] for one in pairs]
        yield section("Confusions", table(["shown", "answered", "queries"], rows), CONFUSED)
    cards = (
        _card(
            Markup(f"<b>{text(shown)}</b> taken for <b>{text(answered)}</b>: {count:,} times"),
            [_shown(query, "query", shown), _shown(view, "answer", answered)],
        )
        for shown, answered, count, query, view in held.confusions
    )
    yield from _section("Confusions", CONFUSED, cards, bool(held.confusions))


def worst(held: Pictures) -> Iterator[str]:
    """Yield the section of the SKUs with the lowest top-1, with queries that went wrong."""
    cards = (
        _card(
            Markup(f"<b>{text(sku)}</b>: {percent(value)} of {counted(queries, 'query')}"),
            [picture(path, side=SIDE) for path in examples[:EXAMPLES]],
        )
        for sku, queries, value, examples in held.worst
    )
    yield from _section("Worst SKUs", "Lowest top-1, with queries that were answered wrongly.", cards, bool(held.worst))


def failures(held: Pictures) -> Iterator[str]:
    """Yield the section of single failures: the query, the answer, and the view that should have won."""
    intro = "Wrong answers: the query, the view that won, and the best view of the right SKU. Numbers are similarities."
    cards = (_card("", _failure(one)) for one in held.failures)
    yield from _section("Failures", intro, cards, bool(held.failures))


def leaks(held: Pictures) -> Iterator[str]:
    """Yield the section of queries that are copies of a gallery view."""
    cards = (
        _card(kind, [_shown(query, "query", query.name), _shown(view, "gallery view", view.name)])
        for query, view, kind in held.leaks
    )
    yield from _section("Leaks", "Queries that are a copy of a gallery view.", cards, bool(held.leaks))


def _failure(one: Failure) -> list[str]:
    shown = [_shown(one.query, "query", one.sku), _shown(one.answered_view, "answer", one.answered, one.score)]
    if one.right_view is None:
        missing = '<figure class="pic"><div class="frame none">no view of this SKU in the gallery</div></figure>'
        return [*shown, missing]
    return [*shown, _shown(one.right_view, "right", one.sku, one.right_score)]


def _shown(path: Path, role: str, name: str, score: float | None = None) -> str:
    found = real(score)
    said = f' <span class="soft">{found:.3f}</span>' if found is not None else ""
    return picture(path, Markup(f'<span class="soft">{role}</span>{said}<br>{text(name)}'), SIDE)


def _card(title: str, pictures: Sequence[str]) -> str:
    head = f'<p dir="auto">{text(title)}</p>\n' if title else ""
    return f'<article class="card">\n{head}{strip(pictures)}</article>\n'


def _section(title: str, intro: str, cards: Iterator[str], there: bool) -> Iterator[str]:
    """Yield a section piece by piece, nothing where it is not ``there``."""
    if not there:
        return
    yield f'<section id="{anchor(title)}">\n<h2>{text(title)}</h2>\n<p class="intro">{text(intro)}</p>\n'
    yield '<div class="cards">\n'
    yield from cards
    yield "</div>\n</section>\n"
