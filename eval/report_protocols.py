"""The report's section on protocols: the same crops asked in harder ways, from the figures of eval.json to HTML."""

from __future__ import annotations

from collections.abc import Sequence

from skumatch.eval import report_words as words
from skumatch.eval.canvas import Axis
from skumatch.eval.html import Markup, section, table, text
from skumatch.eval.report_sections import charts
from skumatch.eval.report_words import Figures, percent
from skumatch.eval.svg import Interval, Series, intervals, lines

INTRO = "The same crops asked in harder ways: fewer views, catalogue pictures only, SKUs that were not trained on."
NAMES = ("this model", "untouched encoder")
Pairs = Sequence[tuple[Figures, Figures]]  # a protocol's figures and those of the untouched encoder, empty without


def protocols(document: Figures) -> str:
    """Return one line per protocol, the curve over the number of reference views, and what was not measured."""
    pairs = [(one, words.untouched(document, one)) for one in document.get("protocols") or []]
    skipped = "".join(f"<li>{text(line)}</li>\n" for line in document.get("skipped") or [])
    missing = f'<p class="soft">Not measured:</p>\n<ul class="soft">{skipped}</ul>\n' if skipped else ""
    if not pairs:
        return section("Protocols", missing) if missing else ""
    curve = _shot_chart(document)
    apart = [pair for pair in pairs if not (curve and str(pair[0].get("name")).startswith("k-shot"))]
    drawn = [_chart(apart) if len(apart) > 1 else "", curve]
    return section("Protocols", charts(drawn) + _table(pairs) + missing, INTRO)


def _table(pairs: Pairs) -> str:
    against = any(untouched for _, untouched in pairs)
    head = ["", "top-1", "top-3", "top-5", *(["untouched, top-1"] if against else [])]
    return table([*head, "mAP@R", "queries", "SKUs", "gallery views"], [_row(*pair, against) for pair in pairs])


def _row(one: Figures, untouched: Figures, against: bool) -> list[object]:
    note = f"<br><small>{text(one['note'])}</small>" if one.get("note") else ""
    return [
        Markup(text(_title(one)) + note),
        words.with_interval(one),
        *(percent(words.top(one, k)) for k in (3, 5)),
        *([words.with_interval(untouched)] if against else []),
        percent(one.get("map_at_r")),
        *(one.get(key) for key in ("queries", "skus", "gallery_views")),
    ]


def _title(one: Figures) -> str:
    return str(one.get("title") or one.get("name") or "protocol")


def _chart(pairs: Pairs) -> str:
    rows = [
        Interval(_title(pair[0]), value, *(words.bounds(figures) or (value, value)), kind)
        for pair in pairs
        for kind, figures in enumerate(pair)
        if (value := words.top(figures)) is not None
    ]
    kinds = NAMES if any(untouched for _, untouched in pairs) else ()
    return intervals(rows, Axis("top-1, 95 % interval by SKU", percent=True), "Top-1 by protocol", kinds)


def _shot_chart(document: Figures) -> str:
    """Return top-1 over reference views per SKU, the last point being all views; nothing below two points."""
    steps = [(str(views), one) for views, one in words.shots(document)]
    closed = words.protocol(document, "closed")
    steps += [("all", closed)] if closed and words.top(closed) is not None else []
    if len(steps) < 2 or not words.shots(document):
        return ""
    series = [
        _series(NAMES[0], [one for _, one in steps]),
        _series(NAMES[1], [words.untouched(document, one) for _, one in steps]),
    ]
    x = Axis("reference views per SKU", ticks=tuple((float(at), name) for at, (name, _) in enumerate(steps)))
    drawn = [one for one in series if one.x]
    return lines(drawn, x, Axis("top-1, 95 % interval", percent=True), "Top-1 by reference views per SKU")


def _series(name: str, steps: Sequence[Figures]) -> Series:
    held = [
        (float(at), value, words.bounds(one) or (value, value))
        for at, one in enumerate(steps)
        if (value := words.top(one)) is not None
    ]
    low, high = [ends[0] for _, _, ends in held], [ends[1] for _, _, ends in held]
    return Series(name, [at for at, _, _ in held], [value for _, value, _ in held], low, high)
