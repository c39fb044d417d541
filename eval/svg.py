"""Small charts as inline SVG: lines with bands, dots with intervals, score histograms, a reliability diagram.

Every chart is a figure that scales to the width of its column and stays readable at 360 px. Colours (Okabe & Ito's,
safe for colour-blind readers) are CSS variables with a light and a dark value; series also differ by dash and by
marker. What cannot be drawn (NaN, infinities) is left out. It knows nothing about evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skumatch.eval.canvas import WIDTH, Axis, Canvas, figure, key, nice, number, shortened
from skumatch.page import escaped

MARKED = 12  # a line with more points than this is drawn without markers
DRAWN = 200  # a line with more points than this is thinned evenly
HEAD, ROW = 24, 17  # units: the heading of a group of intervals, and each line under it


@dataclass(frozen=True)
class Series:
    """One line: ``x`` and ``y`` of equal length, and a band where ``low`` and ``high`` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.x, self.y, self.low, self.high) if part is not None}
        if len(lengths) > 1 or (self.low is None) != (self.high is None):
            raise ValueError(f"series '{self.name}': x, y, low and high differ in length")

    def points(self) -> list[tuple[float, float, float, float]]:
        """Return (x, y, low, high) of at most ``DRAWN`` points that can be drawn; without a band low = high = y."""
        low, high = (self.y if ends is None else ends for ends in (self.low, self.high))
        found = [p for p in zip(self.x, self.y, low, high, strict=True) if all(math.isfinite(v) for v in p)]
        if len(found) <= DRAWN:
            return found
        return [found[round(i * (len(found) - 1) / (DRAWN - 1))] for i in range(DRAWN)]


@dataclass(frozen=True)
class Interval:
    """One dot with its 95 % whisker; ``kind`` chooses colour and marker."""

    name: str
    value: float
    low: float
    high: float
    kind: int = 0


@dataclass(frozen=True)
class Group:
    """One histogram: ``counts`` per bin."""

    name: str
    counts: Sequence[float]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean predicted ``probability``, share right (``accuracy``), ``count``."""

    probability: float
    accuracy: float
    count: int


def lines(series: Sequence[Series], x: Axis, y: Axis, title: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Return a line chart. ``marks``: vertical dashed lines (x, label). Series without a point to draw are left out."""
    drawn = [(one, points) for one in series if (points := one.points())]
    every = [point for _, points in drawn for point in points]
    if not every:
        return ""
    canvas = Canvas(x.over([p[0] for p in every] + [at for at, _ in marks]), y.over([v for p in every for v in p[1:]]))
    parts = [canvas.frame(), *(canvas.mark(at, label) for at, label in marks)]
    parts += [_band(canvas, points, kind) for kind, (one, points) in enumerate(drawn) if one.low is not None]
    parts += [_line(canvas, points, kind) for kind, (_, points) in enumerate(drawn)]
    said = "; ".join(
        f"{one.name}: {y.say(points[0][1])} at {x.say(points[0][0])}, {y.say(points[-1][1])} at {x.say(points[-1][0])}"
        for one, points in drawn
    )
    legend = [key(kind, one.name) for kind, (one, _) in enumerate(drawn)] if len(drawn) > 1 else []
    return figure(title, said, canvas.height, parts, legend)


def _band(canvas: Canvas, points: Sequence[tuple[float, float, float, float]], kind: int) -> str:
    top = [canvas.at(x, high) for x, _, _, high in points]
    bottom = [canvas.at(x, low) for x, _, low, _ in reversed(points)]
    return f'<polygon class="s{kind % 6} band" points="{_joined(top + bottom)}"/>'


def _line(canvas: Canvas, points: Sequence[tuple[float, float, float, float]], kind: int) -> str:
    places = [canvas.at(x, y) for x, y, _, _ in points]
    line = f'<polyline class="s{kind % 6} line" points="{_joined(places)}"/>' if len(places) > 1 else ""
    if len(places) > MARKED:
        return line
    return line + "".join(
        canvas.marker(place, kind, _point_said(canvas, point)) for place, point in zip(places, points, strict=True)
    )


def _point_said(canvas: Canvas, point: tuple[float, float, float, float]) -> str:
    x, y, low, high = point
    interval = f" ({canvas.y.say(low)} to {canvas.y.say(high)})" if low != high else ""
    return f"{canvas.x.say(x)}: {canvas.y.say(y)}{interval}"


def _joined(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in places)


def intervals(rows: Sequence[Interval], axis: Axis, title: str, kinds: Sequence[str] = ()) -> str:
    """Return one line per row: a dot with its whisker on a shared scale, and its value at the right.

    Rows that follow each other under one name share it as a heading. ``kinds``: the legend, one name per kind.
    """
    drawn = [row for row in rows if all(math.isfinite(v) for v in (row.value, row.low, row.high))]
    if not drawn:
        return ""
    scale = axis.over([v for row in drawn for v in (row.low, row.high, row.value)])
    heads = [place == 0 or row.name != drawn[place - 1].name for place, row in enumerate(drawn)]
    canvas = Canvas(scale, Axis("", 0, 1), HEAD * sum(heads) + ROW * len(drawn) + 50, left=8, top=4, right=56)
    parts, down = [canvas.uprights()], canvas.top
    for row, headed in zip(drawn, heads, strict=True):
        if headed:
            name = escaped(shortened(row.name, WIDTH - canvas.left))
            said = f"<title>{escaped(row.name)}</title>"
            parts.append(f'<text class="name" x="{canvas.left}" y="{down + HEAD - 6}">{name}{said}</text>')
            down += HEAD
        parts += _whisker(canvas, down + ROW // 2, row)
        down += ROW
    said = "; ".join(f"{_named(row, kinds)}: {_interval_said(axis, row)}" for row in drawn)
    return figure(title, said, canvas.height, parts, [key(kind, name) for kind, name in enumerate(kinds)])


def _named(row: Interval, kinds: Sequence[str]) -> str:
    return f"{row.name}, {kinds[row.kind]}" if row.kind < len(kinds) else row.name


def _whisker(canvas: Canvas, middle: int, row: Interval) -> Iterator[str]:
    low, high, at = (canvas.across(v) for v in (row.low, row.high, row.value))
    start, end = number(low), number(high)
    caps = f"M{start} {middle - 4}v8M{end} {middle - 4}v8"
    yield f'<path class="s{row.kind % 6} whisker" d="M{start} {middle}H{end}{caps}"/>'
    yield canvas.marker((at, middle), row.kind, f"{row.name}: {_interval_said(canvas.x, row)}")
    said = escaped(canvas.x.say(row.value))
    yield f'<text class="value" x="{WIDTH}" y="{middle}" dy="0.35em">{said}</text>'


def _interval_said(axis: Axis, row: Interval) -> str:
    return f"{axis.say(row.value)} ({axis.say(row.low)} to {axis.say(row.high)})"


def histogram(
    edges: Sequence[float], groups: Sequence[Group], x: Axis, title: str, marks: Sequence[tuple[float, str]] = ()
) -> str:
    """Return histograms over shared ``edges`` (one more than counts), each as shares of its own total.

    Raises ValueError when a group's counts do not fit the edges.
    """
    for group in groups:
        if len(group.counts) != len(edges) - 1:
            raise ValueError(f"group '{group.name}': {len(group.counts)} counts for {len(edges)} edges")
    shares = [(g, [count / sum(g.counts) for count in g.counts]) for g in groups if sum(g.counts) > 0]
    if not shares:
        return ""
    most = max(share for _, values in shares for share in values)
    canvas = Canvas(x.over(edges), Axis("share of each", 0, nice(0, most)[-1], percent=True))
    parts = [canvas.frame()]
    for kind, (_, values) in enumerate(shares):
        corners = [(edges[0], 0.0)]
        for share, left, right in zip(values, edges, edges[1:], strict=False):
            corners += [(left, share), (right, share)]
        places = _joined([canvas.at(*corner) for corner in [*corners, (edges[-1], 0.0)]])
        parts.append(f'<polygon class="s{kind} bars" points="{places}"/>')
    parts += [canvas.mark(at, label) for at, label in marks]
    said = "; ".join(f"{g.name}: {sum(g.counts):,.0f} values" for g, _ in shares)
    return figure(
        title, said, canvas.height, parts, [key(kind, g.name, filled=True) for kind, (g, _) in enumerate(shares)]
    )


def reliability(bins: Sequence[Bin], title: str) -> str:
    """Return a reliability diagram: per bin a dot whose area is its share of the queries; on the diagonal is honest."""
    drawn = [b for b in bins if b.count > 0 and math.isfinite(b.probability) and math.isfinite(b.accuracy)]
    if not drawn:
        return ""
    x, y = Axis("stated probability", 0, 1, percent=True), Axis("share that is right", 0, 1, percent=True)
    canvas = Canvas(x, y, height=300)
    start, end = canvas.at(0, 0), canvas.at(1, 1)
    parts = [canvas.frame(), f'<path class="rule" d="M{_joined([start])}L{_joined([end])}"/>']
    if len(drawn) > 1:
        parts.append(
            f'<polyline class="s0 thin" points="{_joined([canvas.at(b.probability, b.accuracy) for b in drawn])}"/>'
        )
    most = max(b.count for b in drawn)
    for one in drawn:
        across, down = canvas.at(one.probability, one.accuracy)
        said = f"stated {x.say(one.probability)}, right {y.say(one.accuracy)}, {one.count:,} queries"
        radius = number(max(3.0, 11 * math.sqrt(one.count / most)))
        parts.append(
            f'<circle class="s0 blob" cx="{number(across)}" cy="{number(down)}" r="{radius}">'
            f"<title>{escaped(said)}</title></circle>"
        )
    said = "; ".join(f"stated {x.say(b.probability)}: {y.say(b.accuracy)} of {b.count:,}" for b in drawn)
    return figure(title, said, canvas.height, parts, [])
