"""The report's headline sections: the answer, what to do next, and accuracy.

From the figures of eval.json to HTML; a section whose figures are missing is the empty string. It reads no pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from skumatch.eval import report_words as words
from skumatch.eval.advice import Advice, advise
from skumatch.eval.canvas import Axis
from skumatch.eval.html import folded, section, table, text
from skumatch.eval.report_words import Figures, interval, percent, points, real
from skumatch.eval.svg import Interval, intervals
from skumatch.words import counted

COMPARED = 3  # baselines that stand under the headline figure
OPEN = 6  # pieces of advice that are open at first
_CODE = re.compile("`([^`]+)`")


def answer(document: Figures) -> str:
    """Return the first screen: top-1 with its interval, against the baselines, and how far it carries."""
    versus = "".join(_versus(document, name, held) for name, held in list(words.baselines(document).items())[:COMPARED])
    gallery = f"{counted(int(document.get('gallery_views') or 0), 'view')} of {counted(_skus(document), 'SKU')}"
    queries = counted(int(document.get("queries") or 0), "query")
    ends = words.bounds(document)
    return (
        '<section id="answer">\n<h2 class="unseen">The answer</h2>\n'
        f'<div class="hero"><p class="big">{text(percent(words.top(document)))}</p>\n'
        f"<p><b>top-1</b>: how often the nearest SKU is the right one.<br>"
        f'<span class="soft">95 % interval {text(interval(ends))}; {queries} against {gallery}</span></p></div>\n'
        + (f'<ul class="versus">{versus}</ul>\n' if versus else "")
        + f'<p class="honest">{_honest(document)}</p>\n{_tiles(document)}</section>\n'
    )


def _skus(document: Figures) -> int:
    return int(document.get("skus") or 0)


def _versus(document: Figures, name: str, held: Figures) -> str:
    mine, other = words.top(document), words.top(held)
    if mine is None or other is None:
        return ""
    css = "up" if mine > other else "down" if mine < other else "same"
    return (
        f'<li><span class="change {css}">{points(mine - other)}</span> against the '
        f"{text(name)}: {text(words.with_interval(held))}</li>\n"
    )


def _honest(document: Figures) -> str:
    """Return the one sentence that says which products the figure is about."""
    held = words.protocol(document, "held-out")
    if held is not None and words.top(held) is not None:
        untouched = words.untouched(document, held)
        beside = f", untouched encoder {words.with_interval(untouched)}" if untouched else ""
        return (
            f"On the SKUs of the gallery, those it was trained on among them: {percent(words.top(document))}. "
            f"On SKUs never trained on: <b>{text(words.with_interval(held))}</b>{text(beside)}."
        )
    if words.baselines(document):
        return "SKUs that it was never trained on are not measured here: expect less on those."
    return "How products outside the gallery fare, and SKUs that no training has seen, is not part of this figure."


def _tiles(document: Figures) -> str:
    """Return the other headline figures, each with its name."""
    found = document.get("open_set") or {}
    shown: list[tuple[str, str]] = [
        (f"top-{k}", percent(v)) for k, v in (document.get("topk") or {}).items() if k != "1"
    ]
    shown += [("top-1, mean over SKUs", percent(words.macro(document))), ("mAP@R", percent(document.get("map_at_r")))]
    shown += [("mean reciprocal rank", f"{mrr:.3f}")] if (mrr := real(document.get("mrr"))) is not None else []
    if found:
        shown.append(
            (f"known products accepted at {percent(found.get('far'))} false accepts", percent(found.get("accepted")))
        )
    if calibration := found.get("reliability") or document.get("calibration"):
        shown.append(("calibration error (ECE)", percent(calibration.get("ece"))))
    kept = [(name, value) for name, value in shown if value != "-"]
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>\n" for name, value in kept)
    return f'<dl class="tiles">\n{items}</dl>\n' if items else ""


def charts(drawn: Sequence[str]) -> str:
    """Return charts side by side where there is room; empty ones are left out."""
    shown = [chart for chart in drawn if chart]
    return f'<div class="charts">\n{"".join(shown)}</div>\n' if shown else ""


def next_steps(document: Figures) -> str:
    """Return what to do next, each step with the figure behind it."""
    found = advise(document)
    if not found:
        return section("What to do next", '<p class="soft">No figure here asks for anything.</p>\n')
    rest = folded(f"{len(found) - OPEN} more", _steps(found[OPEN:], OPEN + 1)) if len(found) > OPEN else ""
    return section("What to do next", _steps(found[:OPEN], 1) + rest)


def _steps(found: Sequence[Advice], start: int) -> str:
    actions = [_CODE.sub(r"<code>\1</code>", text(one.action)) for one in found]
    figures = [f'<p class="soft">{text(one.figure)}</p>' for one in found]
    items = "".join(f"<li><p>{act}</p>\n{said}</li>\n" for act, said in zip(actions, figures, strict=True))
    return f'<ol class="steps" start="{start}">\n{items}</ol>\n'


def accuracy(document: Figures) -> str:
    """Return top-k against the baselines: dots with whiskers, and the table."""
    models = {"this model": document, **words.baselines(document)}
    ks = list(document.get("topk") or {})
    if not ks:
        return ""
    rows = [
        Interval(f"top-{k}", value, *(words.bounds(held, k=k) or (value, value)), kind)
        for k in ks
        for kind, held in enumerate(models.values())
        if (value := words.top(held, int(k))) is not None
    ]
    kinds = list(models) if len(models) > 1 else []
    chart = intervals(rows, Axis("right answers, 95 % interval by SKU", percent=True), "Top-k accuracy", kinds)
    lines_ = [
        [
            name,
            *(words.with_interval(held, int(k)) for k in ks),
            percent(words.macro(held)),
            percent(held.get("map_at_r")),
        ]
        for name, held in models.items()
    ]
    head = ["", *(f"top-{k}" for k in ks), "top-1, mean over SKUs", "mAP@R"]
    intro = "k counts distinct SKUs. Intervals resample whole SKUs, because crops of one SKU resemble each other."
    return section("Accuracy", charts([chart, _compared(document)]) + table(head, lines_), intro)


def _compared(document: Figures) -> str:
    found = document.get("compare")
    if not found:
        return ""
    first, second = str(found["a"]), str(found["b"])
    verdict = {"A is better": f"{first} is better", "B is better": f"{second} is better"}
    ends = words.bounds(found, k=None)
    between = f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else ""
    said = (
        f"On the same queries: {points(found.get('difference'))}{between}; "
        f"{found.get('gained', 0):,} gained, {found.get('lost', 0):,} lost"
    )
    p = real(found.get("p"))
    said += "" if p is None else f"; p = {p:.3f}" if p >= 0.001 else "; p < 0.001"
    judged = str(found.get("verdict") or "")
    title = f"<h3>{text(second)} against {text(first)}</h3>"
    return f"<div>{title}\n<p>{text(said)}.</p>\n<p><b>{text(verdict.get(judged, judged))}</b></p></div>\n"
