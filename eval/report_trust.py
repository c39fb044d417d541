"""The report's section on trust: open set, coverage and calibration, from the figures of eval.json to HTML."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from skumatch.eval import report_words as words
from skumatch.eval.canvas import Axis
from skumatch.eval.html import section, table, text
from skumatch.eval.report_sections import charts
from skumatch.eval.report_words import Figures, interval, percent, real
from skumatch.eval.svg import Bin, Group, Series, histogram, lines, reliability
from skumatch.words import counted


def decisions(document: Figures) -> str:
    """Return coverage against accuracy, the open set and the calibration: can an answer be trusted on its own?"""
    found, coverage = document.get("open_set") or {}, document.get("coverage") or {}
    calibration = document.get("calibration") or {}
    if not (found or coverage or calibration):
        return ""
    drawn = [
        _scores_chart(found),
        _oscr_chart(found),
        _reliability_chart(found.get("reliability") or {}, "Stated probability, known and unknown products"),
        _reliability_chart(calibration, "Stated probability, this model's calibration"),
        _coverage_chart(coverage),
    ]
    body = charts([_open_set(found), _calibration(calibration)]) + charts(drawn)
    intro = "When to accept an answer, when to ask a person, and how products outside the gallery fare."
    return section("Trusting an answer", body, intro)


def _open_set(found: Figures) -> str:
    """Return the table of the open set under its own heading, a reservation first."""
    if not found:
        return ""
    far, ends = percent(found.get("far")), words.bounds(found, "far_ci95", None)
    asked = f", asked for {percent(found['target_far'])}" if real(found.get("target_far")) is not None else ""
    draws = f", mean of {found['draws']} draws of SKUs" if found.get("draws") else ""
    rows = [
        [f"unknown products accepted{asked}", far + (f" ({interval(ends)})" if ends else "")],
        ["crops of known products accepted", percent(found.get("accepted"))],
        ["right among the accepted known", percent(found.get("accuracy_accepted"))],
        ["known products called unknown", percent(found.get("known_said_unknown"))],
        ["known against unknown, AUROC", _plain(found.get("auroc"))],
        ["right and accepted over false accepts, area (OSCR)", _plain(found.get("oscr"))],
        ["unknown accepted where 95 % of the known are", percent(found.get("fpr95"))],
        *_reliability_rows(found.get("reliability") or {}),
    ]
    crops = counted(int(found.get("known") or 0), "crop")
    said = f"{crops} of known products, {found.get('unknown') or 0:,} of unknown ones{draws}."
    return _block("Products outside the gallery", said, found.get("note"), rows)


def _calibration(found: Figures) -> str:
    if not found:
        return ""
    rows = [
        *([f"answers: {name}", percent(found.get(name))] for name in ("accept", "review", "unknown")),
        ["right among the accepted", percent(found.get("accuracy_accepted"))],
        *_reliability_rows(found),
    ]
    return _block("This model's calibration", "", found.get("note"), rows)


def _reliability_rows(found: Figures) -> list[list[str]]:
    return [
        ["expected calibration error (ECE)", percent(found.get("ece"))],
        ["Brier score (0 is best)", _plain(found.get("brier"))],
    ]


def _block(title: str, said: str, note: object, rows: Sequence[Sequence[str]]) -> str:
    """Return a titled table of the rows that have a figure."""
    lines = [text(line) for line in (said, note) if line]
    under = f'<p class="soft">{"<br>".join(lines)}</p>\n' if lines else ""
    return f"<div><h3>{text(title)}</h3>\n{under}{table(['', ''], [row for row in rows if row[1] != '-'])}</div>\n"


def _plain(value: object) -> str:
    found = real(value)
    return "-" if found is None else f"{found:.3f}"


def _oscr_chart(found: Figures) -> str:
    curve = found.get("oscr_curve") or {}
    target = real(found.get("target_far"))
    marks = [(target, f"asked for {percent(target)}")] if target is not None else []
    x, y = Axis("unknown products accepted", 0, 1, percent=True), Axis("known, right and accepted", 0, 1, percent=True)
    return lines([_series("this model", curve, "fpr", "ccr")], x, y, "Known found against unknown let through", marks)


def _coverage_chart(coverage: Figures) -> str:
    x, y = Axis("answers accepted, surest first", 0, 1, percent=True), Axis("right among them", percent=True)
    return lines([_series("this model", coverage, "coverage", "accuracy")], x, y, "Accuracy by coverage")


def _series(name: str, held: Figures, x: str, y: str) -> Series:
    """Return a curve of eval.json; a null becomes a point that is not drawn."""
    across, up = ([nan if (found := real(v)) is None else found for v in held.get(key) or []] for key in (x, y))
    return Series(name, across, up)


def _scores_chart(found: Figures) -> str:
    held = found.get("histogram") or {}
    if not held:
        return ""
    groups = [Group("known products", held["known"]), Group("unknown products", held["unknown"])]
    limit = real(found.get("threshold"))
    marks = [(limit, "accepted from here")] if limit is not None else []
    return histogram(held["edges"], groups, Axis(str(held.get("label", "score"))), "Scores, known and unknown", marks)


def _reliability_chart(found: Figures, title: str) -> str:
    bins = [
        Bin(probability, right, int(one.get("count") or 0))
        for one in found.get("bins") or []
        if (probability := real(one.get("probability"))) is not None
        and (right := real(one.get("accuracy"))) is not None
    ]
    return reliability(bins, title)
