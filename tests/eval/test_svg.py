"""The charts: what stands on them is true to the numbers, and nothing that cannot be drawn is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from skumatch.eval.canvas import WIDTH, Axis, nice, shortened
from skumatch.eval.svg import Bin, Group, Interval, Series, histogram, intervals, lines, reliability

NASTY = "<b>\"x\" & 'y'</b> \u519c\u592b"
NAN = float("nan")
PERCENT = Axis("top-1", percent=True)


def drawn(chart: str) -> ElementTree.Element:
    """Return the figure, parsed as XML: every chart must be well formed."""
    return ElementTree.fromstring(chart)


def texts(chart: str) -> list[str]:
    return ["".join(node.itertext()) for node in drawn(chart).iter("text")]


def places(chart: str, tag: str = "polyline") -> list[tuple[float, float]]:
    found = next(drawn(chart).iter(tag)).attrib["points"]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.84, 0.91), (0.5, 0.5), (0, 0), (-3, 7), (1e-9, 3e-9), (12345, 99999), (-0.2, -0.1)]
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float) -> None:
    steps = nice(low, high)
    assert 2 <= len(steps) <= 5 and steps[0] <= low and steps[-1] >= high
    step = steps[1] - steps[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(math.isclose(mantissa, one, rel_tol=1e-6) for one in (1, 2, 2.5, 5, 10))


def test_tick_labels_tell_neighbours_apart() -> None:
    for low, high in ((0, 1), (0.84, 0.91), (0.991, 0.993), (0.5, 0.5)):
        labels = [label for _, label in Axis("x", percent=True).over([low, high]).marks()]
        assert len(set(labels)) == len(labels) >= 2, labels
    assert [label for _, label in Axis("x", 0, 1).over([0, 1]).marks()] == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_shares_stay_within_0_and_100_percent() -> None:
    axis = PERCENT.over([0.97, 1.0])
    assert axis.ends[1] == 1.0 and PERCENT.over([0.0, 0.02]).ends[0] == 0.0


def test_a_line_is_drawn_to_scale() -> None:
    chart = lines([Series("m", [1, 2, 4], [0.2, 0.6, 0.4])], Axis("k", 0, 5), Axis("top-1", 0, 1), "Curve")
    (x1, y1), (x2, y2), (x3, y3) = places(chart)
    assert (x3 - x2) / (x2 - x1) == pytest.approx(2, rel=0.01)
    assert (y3 - y2) / (y1 - y2) == pytest.approx(0.5, rel=0.01) and y2 < y3 < y1
    assert {"top-1", "k"} <= set(texts(chart))


def test_points_that_are_not_finite_are_left_out() -> None:
    bad = Series("m", [1, 2, NAN, 4], [0.1, NAN, 0.2, 0.3], [0.0, 0.0, 0.1, 0.2], [0.2, 0.3, 0.4, math.inf])
    chart = lines([bad, Series("n", [1.0, 2.0], [0.1, 0.2])], Axis("k"), PERCENT, "Curve")
    assert not re.search("nan|inf", chart.lower()) and chart.count("<title>") == 3
    assert lines([Series("m", [NAN], [NAN])], Axis("k"), PERCENT, "t") == ""
    assert intervals([Interval("a", NAN, 0, 1)], PERCENT, "t") == ""
    assert reliability([Bin(NAN, 0.5, 3), Bin(0.5, 0.5, 0)], "t") == ""
    assert histogram([0, 1], [Group("a", [0])], Axis("s"), "t") == ""


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    n = 5000
    found = places(lines([Series("m", range(n), [i / n for i in range(n)])], Axis("k", 0, n - 1), PERCENT, "t"))
    assert len(found) == 200 and found[0][0] == 44 and found[-1][0] == 304


def test_bands_and_lengths() -> None:
    chart = lines([Series("m", [1, 2], [0.4, 0.5], [0.3, 0.4], [0.5, 0.7])], Axis("k"), PERCENT, "t")
    assert len(places(chart, "polygon")) == 4 and "50.0 % (40.0 % to 70.0 %)" in chart
    with pytest.raises(ValueError, match="differ in length"):
        Series("m", [1, 2], [0.4])
    with pytest.raises(ValueError, match="differ in length"):
        Series("m", [1], [0.4], low=[0.1])


def test_intervals_share_headings_and_show_every_value() -> None:
    rows = [Interval("top-1", 0.8, 0.7, 0.9), Interval("top-1", 0.6, 0.5, 0.7, 1), Interval("top-5", 0.9, 0.8, 1.0)]
    chart = intervals(rows, PERCENT, "Accuracy", ["model", "untouched"])
    said = texts(chart)
    assert said.count("top-1top-1") == 1  # the heading with its own title
    assert [s for s in said if s in ("80.0 %", "60.0 %", "90.0 %")] == ["80.0 %", "60.0 %", "90.0 %"]
    label = (
        next(drawn(chart).iter("svg")) if not (found := re.search('role="img" aria-label="([^"]+)"', chart)) else found
    )
    assert not isinstance(label, ElementTree.Element) and "top-1, untouched: 60.0 % (50.0 % to 70.0 %)" in label[1]


def test_histograms_show_shares_of_their_own_total() -> None:
    chart = histogram([0, 0.5, 1], [Group("known", [0, 1000]), Group("unknown", [1, 1])], Axis("score"), "Scores")
    first, second = (node.attrib["points"] for node in drawn(chart).iter("polygon"))
    tops = [min(float(pair.split(",")[1]) for pair in points.split()) for points in (first, second)]
    floor = max(float(pair.split(",")[1]) for pair in first.split())
    assert floor - tops[0] == pytest.approx(2 * (floor - tops[1]), rel=0.01)
    with pytest.raises(ValueError, match="1 counts for 3 edges"):
        histogram([0, 0.5, 1], [Group("known", [1])], Axis("score"), "Scores")


def test_an_honest_probability_lies_on_the_diagonal() -> None:
    chart = reliability([Bin(0.25, 0.25, 10), Bin(0.75, 0.5, 40)], "Reliability")
    dots = [(float(n.attrib["cx"]), float(n.attrib["cy"]), float(n.attrib["r"])) for n in drawn(chart).iter("circle")]
    rule = next(n.attrib["d"] for n in drawn(chart).iter("path") if n.attrib["class"] == "rule")
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in rule[1:].split("L"))
    above = [(y0 + (cx - x0) / (x1 - x0) * (y1 - y0)) - cy for cx, cy, _ in dots]
    assert above[0] == pytest.approx(0, abs=0.2) and above[1] < -10
    assert dots[1][2] == pytest.approx(2 * dots[0][2], rel=0.02)  # areas as counts


CHARTS: list[Callable[[], str]] = [
    lambda: lines([Series(NASTY, [1], [0.5]), Series("n", [1], [1])], Axis(NASTY), PERCENT, NASTY, [(1, NASTY)]),
    lambda: intervals([Interval(NASTY * 9, 0.5, 0.5, 0.5)], Axis(NASTY, percent=True), NASTY, [NASTY]),
    lambda: histogram([0, 1], [Group(NASTY, [3])], Axis(NASTY), NASTY, [(0.5, NASTY)]),
    lambda: reliability([Bin(1.0, 1.0, 1)], NASTY),
]


@pytest.mark.parametrize("make", CHARTS)
def test_names_are_text_and_readers_hear_the_chart(make: Callable[[], str]) -> None:
    chart = make()
    figure = drawn(chart)
    assert not list(figure.iter("b"))
    image = next(node for node in figure.iter("svg") if node.attrib.get("role") == "img")
    assert image.attrib["aria-label"].startswith(NASTY) and next(image.iter("desc")).text
    assert image.attrib["viewBox"].startswith(f"0 0 {WIDTH} ")


@pytest.mark.parametrize("make", CHARTS)
def test_everything_stays_inside_the_drawing(make: Callable[[], str]) -> None:
    image = next(node for node in drawn(make()).iter("svg") if node.attrib.get("role") == "img")
    height = float(image.attrib["viewBox"].split()[3])
    for node in image.iter("text"):
        assert 0 <= float(node.attrib["x"]) <= WIDTH and 0 <= float(node.attrib["y"]) <= height


def test_long_names_are_cut_by_their_width() -> None:
    assert shortened("short", 100) == "short"
    wide, narrow = shortened("\u519c" * 50, 100), shortened("a" * 50, 100)
    assert wide.endswith("...") and narrow.endswith("...") and len(wide) < len(narrow) <= 17
