"""The report's details: robustness, look-alikes, every SKU, and what was left out, from eval.json to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skumatch.eval import report_words as words
from skumatch.eval.canvas import Axis
from skumatch.eval.html import Markup, folded, picture, section, strip, table, text
from skumatch.eval.report_sections import charts
from skumatch.eval.report_words import Figures, percent, real
from skumatch.eval.svg import Series, lines
from skumatch.words import counted

ALL = 2000  # SKUs in the folded table
GROUPS = 30  # look-alike groups shown
PAIRS = 6  # pairs shown per group
FILES = 20  # unreadable files listed


def robustness(document: Figures, examples: Mapping[str, Sequence[bytes]]) -> str:
    """Return top-1 under each corruption; ``examples``: per kind one picture (a file's bytes) per strength."""
    found = document.get("robustness") or {}
    kinds = {kind: held for kind, held in (found.get("kinds") or {}).items() if held}
    if not kinds:
        return ""
    clean = found.get("clean") or {}
    strongest = max(len(held) for held in kinds.values())
    rows = [_robust_row(kind, held, strongest) for kind, held in kinds.items()]
    head = ["", *(f"strength {n}" for n in range(1, strongest + 1))]
    mean = f", {percent(found['mean_top1'])} on average over all kinds and strengths" if "mean_top1" in found else ""
    intro = f"Top-1 when the queries get worse: {percent(clean.get('top1'))} as they are{mean}."
    shown = "".join(f"<h3>{text(kind)}</h3>\n{strip([picture(p) for p in held])}" for kind, held in examples.items())
    pictured = folded("What the strengths look like", shown) if shown else ""
    return section("Robustness", charts([_robust_chart(kinds, clean)]) + table(head, rows) + pictured, intro)


def _robust_chart(kinds: Mapping[str, Sequence[Figures]], clean: Figures) -> str:
    """Return one line per kind; the intervals are in the table, since six bands hide each other."""
    series = []
    for kind, held in kinds.items():
        steps = [(0.0, real(clean.get("top1"))), *((float(one["strength"]), real(one.get("top1"))) for one in held)]
        kept = [(at, value) for at, value in steps if value is not None]
        series.append(Series(kind, [at for at, _ in kept], [value for _, value in kept]))
    strengths = sorted({at for one in series for at in one.x})
    ticks = tuple((at, "clean" if at == 0 else f"{at:.0f}") for at in strengths)
    return lines(series, Axis("strength", ticks=ticks), Axis("top-1", 0, percent=True), "Top-1 by corruption")


def _robust_row(kind: str, held: Sequence[Figures], length: int) -> list[object]:
    cells: list[object] = [
        Markup(
            f"{percent(one.get('top1'))}<br><small>{words.interval(words.bounds(one, k=None))}<br>"
            f"{text(one.get('value', ''))}</small>"
        )
        for one in held
    ]
    return [kind, *cells, *("" for _ in range(length - len(cells)))]


def lookalikes(document: Figures) -> str:
    """Return the groups of SKUs that the encoder takes for each other."""
    groups = document.get("lookalikes") or []
    if not groups:
        return ""
    items = []
    for group in groups[:GROUPS]:
        pairs = "".join(
            f"<li>{text(p['a'])} and {text(p['b'])}: {counted(int(p.get('confusions') or 0), 'wrong answer')}, "
            f"similarity {text(real(p.get('similarity')))}</li>\n"
            for p in group.get("pairs", [])[:PAIRS]
        )
        names = "".join(f'<span class="chip">{text(sku)}</span> ' for sku in group["skus"])
        items.append(f'<li><p class="chips">{names}</p>\n<ul class="soft">{pairs}</ul></li>\n')
    more = (
        f'<p class="soft">and {len(groups) - GROUPS:,} more groups: see eval.json</p>\n' if len(groups) > GROUPS else ""
    )
    intro = "Groups of SKUs that are confused, or whose views lie close together, the most confused first."
    return section("Look-alikes", f'<ol class="groups">\n{"".join(items)}</ol>\n{more}', intro)


def all_skus(document: Figures) -> str:
    """Return how many SKUs do how well, and the table of all, the worst first."""
    rows = words.per_sku(document)
    if not rows:
        return ""
    never, always = sum(value == 0 for _, _, value in rows), sum(value == 1 for _, _, value in rows)
    said = f"{counted(len(rows), 'SKU')} with queries: {always:,} always right, {never:,} never."
    body = table(["SKU", "queries", "top-1"], [[sku, queries, percent(value)] for sku, queries, value in rows[:ALL]])
    more = f'<p class="soft">and {len(rows) - ALL:,} more: see eval.json</p>\n' if len(rows) > ALL else ""
    return section("All SKUs", folded("Every SKU, the worst first", body + more), said)


def data(document: Figures) -> str:
    """Return what was left out of the figures."""
    leaks, unreadable = document.get("leaks") or 0, document.get("unreadable") or 0
    missing = document.get("queries_without_gallery_view") or 0
    if not (leaks or unreadable or missing):
        return ""
    rows: list[list[object]] = [
        ["queries that are a copy of a gallery view", leaks],
        ["queries that show a SKU without any gallery view (they count as wrong)", missing],
        ["pictures that could not be read", unreadable],
    ]
    files = "".join(f"<li>{text(one)}</li>\n" for one in (document.get("unreadable_files") or [])[:FILES])
    listed = folded("Pictures that could not be read", f'<ul class="soft">{files}</ul>\n') if files else ""
    return section("The data", table(["", "count"], rows) + listed)
