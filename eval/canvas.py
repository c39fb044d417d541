"""What the charts of eval/svg.py are drawn on: axes with round ticks, a scaled plane, markers, legend, the figure.

Lengths are units of a viewBox ``WIDTH`` wide. On a phone (360 px) a unit is about 0.97 px and text is 12 units high;
where the page is wider the style sets it to 10 units of up to 1.4 px. It knows nothing about what is plotted.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skumatch.page import escaped

WIDTH = 320
LETTER = 6.4  # units: a mean letter of 12 units


@dataclass(frozen=True)
class Axis:
    """One axis: its label, its range (found from the data where None), and how its values are said.

    ``ticks``: (value, label) pairs that replace the round numbers.
    """

    label: str
    low: float | None = None
    high: float | None = None
    percent: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def over(self, values: Sequence[float]) -> Axis:
        """Return this axis with a range that holds ``values`` and ends on ticks; shares stay within 0..1."""
        least, most = min(values), max(values)
        if self.ticks:
            low, high = min(at for at, _ in self.ticks), max(at for at, _ in self.ticks)
        else:
            steps = nice(least, most)
            low, high = steps[0], steps[-1]
            if self.percent and least >= 0 and most <= 1:
                low, high = max(low, 0.0), min(high, 1.0)
        low, high = low if self.low is None else self.low, high if self.high is None else self.high
        return replace(self, low=low, high=high if high > low else low + 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The range. Raises ValueError before ``over`` has found it."""
        if self.low is None or self.high is None:
            raise ValueError(f"axis '{self.label}' has no range yet")
        return self.low, self.high

    def marks(self) -> list[tuple[float, str]]:
        """Return the ticks with their labels."""
        if self.ticks:
            return list(self.ticks)
        low, high = self.ends
        room = (high - low) * 1e-9
        steps = [at for at in nice(low, high) if low - room <= at <= high + room]
        return [(at, self._short(at, steps[1] - steps[0] if len(steps) > 1 else 1.0)) for at in steps]

    def say(self, value: float) -> str:
        """Return ``value`` as text: a tick's own label, a percentage with one decimal, or up to three digits."""
        named = [label for at, label in self.ticks if at == value]
        if named:
            return named[0]
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"

    def _short(self, value: float, step: float) -> str:
        scaled, unit = (100 * step, " %") if self.percent else (step, "")
        digits = next((n for n in range(12) if abs(round(scaled, n) - scaled) <= 1e-9 * scaled), 12)
        return f"{value * (100 if self.percent else 1) + 0.0:.{digits}f}{unit}"


def nice(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most ``most`` round numbers, 1, 2, 2.5 or 5 times a power of ten apart, around low..high."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            return [round(place * step, 12) for place in range(first, last + 1)]
    return [low, high]


class Canvas:
    """A plane with two ranged axes; ``at`` turns values into units, clipped to the plane."""

    def __init__(self, x: Axis, y: Axis, height: int = 230, *, left: int = 44, top: int = 26, right: int = 16) -> None:
        self.x, self.y, self.height, self.left, self.top = x, y, height, left, top
        self.inner = WIDTH - left - right
        self.bottom = height - 42

    def across(self, value: float) -> float:
        """Return the horizontal place of ``value``."""
        low, high = self.x.ends
        return self.left + self.inner * min(max((value - low) / (high - low), 0.0), 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of the point (x, y)."""
        low, high = self.y.ends
        up = min(max((y - low) / (high - low), 0.0), 1.0)
        return self.across(x), self.bottom - (self.bottom - self.top) * up

    def frame(self) -> str:
        """Return both axes: level lines with labels, the uprights' labels and what each axis shows."""
        levels = []
        for value, label in self.y.marks():
            down = number(self.at(self.x.ends[0], value)[1])
            levels.append(f'<path class="grid" d="M{self.left} {down}H{self.left + self.inner}"/>')
            levels.append(f'<text class="tick end" x="{self.left - 6}" y="{down}" dy="0.35em">{escaped(label)}</text>')
        return "".join(levels) + f'<text class="axis" x="0" y="12">{escaped(self.y.label)}</text>' + self._below(False)

    def uprights(self) -> str:
        """Return the horizontal axis alone, with an upright line at each tick."""
        return self._below(True)

    def _below(self, ruled: bool) -> str:
        parts = []
        for value, label in self.x.marks():
            at, half = number(self.across(value)), len(label) * LETTER / 2
            parts.append(f'<path class="grid" d="M{at} {self.top}V{self.bottom}"/>' if ruled else "")
            side = "start" if self.across(value) < half else "end" if self.across(value) > WIDTH - half else "mid"
            parts.append(f'<text class="tick {side}" x="{at}" y="{self.bottom + 16}">{escaped(label)}</text>')
        middle = number(self.left + self.inner / 2)
        label = escaped(shortened(self.x.label, WIDTH))
        return "".join(parts) + f'<text class="axis mid" x="{middle}" y="{self.bottom + 35}">{label}</text>'

    def mark(self, value: float, label: str) -> str:
        """Return an upright dashed line at ``value`` with its label at the top, on the side with more room."""
        at = self.across(value)
        left = at > self.left + self.inner / 2
        side, x = ("end", at - 5) if left else ("start", at + 5)
        return (
            f'<path class="rule" d="M{number(at)} {self.top}V{self.bottom}"/>'
            f'<text class="tick {side}" x="{number(x)}" y="{self.top + 10}">{escaped(label)}</text>'
        )

    def marker(self, place: tuple[float, float], kind: int, said: str) -> str:
        """Return the marker of series ``kind`` at ``place``; ``said`` shows when it is pointed at."""
        x, y = place
        return f'<path class="s{kind % 6} dot" d="{_shape(x, y, kind)}"><title>{escaped(said)}</title></path>'


def _shape(x: float, y: float, kind: int) -> str:
    """Return a circle, square, diamond or triangle around (x, y), so that colour is not the only difference."""
    if kind % 4 == 0:
        return f"M{number(x - 4.5)} {number(y)}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
    if kind % 4 == 1:
        return f"M{number(x - 4)} {number(y - 4)}h8v8h-8z"
    if kind % 4 == 2:
        return f"M{number(x)} {number(y - 5.5)}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
    return f"M{number(x)} {number(y - 5)}l5.2 9h-10.4z"


def key(kind: int, name: str, filled: bool = False) -> str:
    """Return one entry of a legend: a line with its marker, or a filled box."""
    drawn = f'<path class="s{kind % 6} bars" d="M2 2H26V12H2z"/>' if filled else sample(kind)
    entry = f'<svg viewBox="0 0 28 14" aria-hidden="true">{drawn}</svg>'
    return f"<li>{entry}<span>{escaped(name)}</span></li>"


def sample(kind: int) -> str:
    """Return a piece of series ``kind``'s line with its marker, 28 x 14 units."""
    return f'<path class="s{kind % 6} line" d="M0 7H28"/><path class="s{kind % 6} dot" d="{_shape(14, 7, kind)}"/>'


def figure(title: str, said: str, height: int, parts: Sequence[str], legend: Sequence[str]) -> str:
    """Return the chart as a figure: title, legend, drawing. ``said`` is what a screen reader reads out."""
    keys = f'<ul class="legend">{"".join(legend)}</ul>' if legend else ""
    return (
        f'<figure class="chart">\n<figcaption>{escaped(title)}</figcaption>\n{keys}\n'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escaped(title)}. {escaped(said)}">\n'
        f"<desc>{escaped(said)}</desc>\n" + "\n".join(parts) + "\n</svg>\n</figure>\n"
    )


def number(value: float) -> str:
    """Return ``value`` for a drawing: one decimal at most. Raises ValueError for what is not finite."""
    if not math.isfinite(value):
        raise ValueError("a drawing has no place for a number that is not finite")
    return f"{value:.1f}".rstrip("0").rstrip(".")


def shortened(name: str, room: float) -> str:
    """Return ``name`` cut with three dots where it is likely wider than ``room`` units."""
    name = " ".join(name.split())
    used = 0.0
    for place, letter in enumerate(name):
        used += LETTER * (1.9 if unicodedata.east_asian_width(letter) in "WF" else 1.0)
        if used > room:
            return name[: max(1, place - 3)].rstrip() + "..."
    return name


STYLE = """
:root { --s0: #0065a3; --s1: #c04a00; --s2: #00795a; --s3: #a0447f; --s4: #7a5c00; --s5: #5b6168; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #62b6ee; --s1: #ff9e5e; --s2: #3fcf9f; --s3: #eaa0cd; --s4: #ead24e; --s5: #b6bcc3; } }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); --dash: 6 3; } .s2 { --c: var(--s2); --dash: 2 3; }
.s3 { --c: var(--s3); --dash: 9 3 2 3; } .s4 { --c: var(--s4); --dash: 12 4; } .s5 { --c: var(--s5); --dash: 4 4; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 24px 32px; }
.chart { max-width: 460px; min-width: 0; }
.chart figcaption { display: block; font-size: 14px; font-weight: 600; margin: 0 0 8px; }
.chart > svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { font: 12px system-ui, sans-serif; fill: currentColor; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 16px;
  margin-bottom: 8px; font-size: 13px; }
.legend li { display: flex; gap: 7px; align-items: center; min-width: 0; }
.legend svg { width: 28px; height: 14px; flex: none; }
.chart .tick, .chart .axis { fill: var(--soft); }
.mid { text-anchor: middle; } .end, .value { text-anchor: end; }
.chart .value { font-variant-numeric: tabular-nums; font-weight: 600; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.rule { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3; fill: none; }
.line { stroke: var(--c); stroke-width: 2; stroke-dasharray: var(--dash); fill: none; stroke-linejoin: round; }
.thin { stroke: var(--c); stroke-width: 1; fill: none; opacity: 0.6; }
.band { fill: var(--c); opacity: 0.16; }
.bars { fill: var(--c); fill-opacity: 0.22; stroke: var(--c); stroke-width: 1.5; stroke-linejoin: round; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.blob { fill: var(--c); fill-opacity: 0.75; }
.whisker { stroke: var(--c); stroke-width: 2; fill: none; }
@media (min-width: 641px) { .chart text { font-size: 10px; } }
"""
