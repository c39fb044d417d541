"""How training went, as one SVG file: the losses and the validation top-1 by epoch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from skumatch.eval.canvas import STYLE, WIDTH, Axis, sample
from skumatch.eval.svg import Series, lines
from skumatch.page import escaped

LEFT, TOP, GAP = 16, 34, 28  # units around and between the drawings
ROW, LETTER = 18, 7  # units of the legend: a row, and a letter at most
COLOURS = ":root { --soft: #5b6168; --line: #d9dde1; --card: #ffffff; --ink: #1d2126; }\n"
DARK = ":root { --soft: #a4abb3; --line: #3a4047; --card: #16191d; --ink: #e8eaed; }"
TEXT = "text { fill: var(--ink); font: 12px system-ui, sans-serif; } .title { font-weight: 600; }"
_DRAWING = re.compile(rf'<svg viewBox="0 0 {WIDTH} (\d+)".*</svg>', re.DOTALL)


def curves(history: Sequence[dict[str, Any]]) -> bytes:
    """Return an SVG document of a fine-tune's ``history``, one record per epoch; without points it is empty."""
    panels = [
        _panel("Loss", _losses(history), Axis("loss")),
        _panel("Validation top-1", _validation(history), Axis("top-1", percent=True)),
    ]
    shown = [panel for panel in panels if panel is not None]
    placed = [
        f'<g transform="translate({LEFT + place * (WIDTH + GAP)} 0)">{text}</g>'
        for place, (text, _) in enumerate(shown)
    ]
    width = 2 * LEFT + max(1, len(shown)) * (WIDTH + GAP) - GAP
    height = max((tall for _, tall in shown), default=0) + 10
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = f"<style>{COLOURS}@media (prefers-color-scheme: dark) {{ {DARK} }}{STYLE}\n{TEXT}</style>"
    ground = '<rect width="100%" height="100%" fill="var(--card)"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', style, ground, *placed, "</svg>\n"]).encode()


def _panel(title: str, series: Sequence[Series], y: Axis) -> tuple[str, int] | None:
    """Return a drawing of ``series`` under its title and legend, and its height; None where there is no point."""
    drawn = [one for one in series if one.points()]
    match = _DRAWING.search(lines(drawn, Axis("epoch"), y, title))
    if match is None:
        return None
    keys, top = _legend([one.name for one in drawn]) if len(drawn) > 1 else ("", TOP)
    place = f'class="chart" y="{top}" width="{WIDTH}" height="{match.group(1)}"'
    drawing = match.group(0).replace("<svg ", f"<svg {place} ", 1)
    return f'<text class="title" y="22">{escaped(title)}</text>{keys}{drawing}', top + int(match.group(1))


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Return a sample and a name per series in rows, and where the rows end."""
    parts, x, y = [], 0, TOP
    for kind, name in enumerate(names):
        wide = 50 + LETTER * len(name)
        if x and x + wide > WIDTH:
            x, y = 0, y + ROW
        parts.append(f'<g transform="translate({x} {y})">{sample(kind)}<text x="34" y="11">{escaped(name)}</text></g>')
        x += wide
    return "".join(parts), y + ROW + 4


def _losses(history: Sequence[dict[str, Any]]) -> list[Series]:
    """Return the sum that is minimised and, where it has several parts, each of them."""
    names = sorted({name for record in history for name in record["parts"]})
    found = [_series("all", history, lambda record: record["loss"])]
    if len(names) > 1:
        found += [_series(name, history, lambda record, name=name: record["parts"].get(name)) for name in names]
    return found


def _validation(history: Sequence[dict[str, Any]]) -> list[Series]:
    names = sorted({name for record in history for name in record["val_top1"]})
    return [_series(name, history, lambda record, name=name: record["val_top1"].get(name)) for name in names]


def _series(name: str, history: Sequence[dict[str, Any]], value: Any) -> Series:
    points = [(record["epoch"], found) for record in history if (found := value(record)) is not None]
    return Series(name, [x for x, _ in points], [y for _, y in points])
