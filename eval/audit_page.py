"""What the audit found, as a page with pictures, a CSV of fixes and JSON.

Takes the audit's nouns as they are; ranking and thresholds are settled in ``audit`` and ``audit_folders``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skumatch import artefact
from skumatch.dataset import Row
from skumatch.embed import Progress, no_progress
from skumatch.errors import DataError
from skumatch.eval import html
from skumatch.eval.audit import CERTAIN, LabelScores, Near, Suspect, label_scores, suspects, typical
from skumatch.eval.audit_folders import Pair, Split, same_product, two_products
from skumatch.eval.fixes import proposals, second_name, write_fixes
from skumatch.eval.views import Views

EVIDENCE, TYPICAL, SHOWN = 4, 2, 4  # pictures: a suspect's neighbours, typical views of a SKU, a folder or group
SIDE = 184  # pixels of a picture, twice its size on the page
CROPS, PAIRS, SPLITS = "Labels that look wrong", "SKUs that look like one product", "SKUs that look like two products"
MARK = "<!-- articles -->"


@dataclass(frozen=True)
class Audit:
    """All findings on ``views``.

    ``suspected``: crops that fit another SKU better, of which ``suspects`` lists the first; crops between the SKUs of
    one of the ``pairs`` are not among them. ``alone``: crops whose SKU has no other picture, so that nothing can be
    said.
    """

    views: Views
    suspects: tuple[Suspect, ...]
    suspected: int
    alone: int
    pairs: tuple[Pair, ...]
    splits: tuple[Split, ...]


def examine(views: Views, most: int = 200) -> Audit:
    """Audit ``views``, listing at most ``most`` crops. Raises DataError where there is nothing to compare."""
    if len(views.skus) < 2:
        raise DataError(
            f"{len(views)} readable pictures of {len(views.skus)} SKUs", "an audit compares two SKUs or more"
        )
    scores = label_scores(views)
    # A folder with three wrong crops is not a folder of two products: the certain ones are set aside for folders.
    folders = views.take(np.flatnonzero(scores.score < CERTAIN))
    pairs = same_product(folders)
    apart = _without(scores, views, pairs)
    return Audit(
        views,
        tuple(suspects(views, most, apart)),
        int((apart.score > 0).sum()),
        int((np.bincount(views.codes) == 1).sum()),
        tuple(pairs),
        tuple(two_products(folders)),
    )


def _without(scores: LabelScores, views: Views, pairs: Sequence[Pair]) -> LabelScores:
    """Return the scores without crops that only a pair of SKUs of one product confuses: merging settles those."""
    ways = {(pair.a, pair.b) for pair in pairs} | {(pair.b, pair.a) for pair in pairs}
    settled = [(row.sku, views.skus[code]) in ways for row, code in zip(views.rows, scores.proposed, strict=True)]
    return replace(scores, score=np.where(settled, -np.inf, scores.score))


def document(audit: Audit) -> dict[str, Any]:
    """Return the findings as JSON-ready values: paths, scores, evidence."""
    return {
        "crops": len(audit.views),
        "skus": len(audit.views.skus),
        "suspected": audit.suspected,
        "only_picture": audit.alone,
        "suspects": [_suspect(suspect) for suspect in audit.suspects],
        "same_product": [
            {"sku": p.b, "proposed_sku": p.a, "mixing": p.mixing, "similarity": p.similarity} for p in audit.pairs
        ],
        "two_products": [
            {
                "sku": s.sku,
                "distance": s.distance,
                "deviations": s.deviations,
                "explained": s.explained,
                "larger": [str(row.path) for row in s.larger],
                "smaller": [str(row.path) for row in s.smaller],
            }
            for s in audit.splits
        ],
    }


def _suspect(suspect: Suspect) -> dict[str, Any]:
    return {
        "path": str(suspect.row.path),
        "sku": suspect.row.sku,
        "proposed_sku": suspect.proposed,
        "kind": suspect.kind,
        "score": suspect.score,
        "agreement": suspect.agreement,
        "support": suspect.support,
        "neighbours": [{"path": str(row.path), "sku": row.sku, "similarity": near} for row, near in suspect.neighbours],
    }


def write(out: Path, audit: Audit, told: dict[str, Any], progress: Progress = no_progress) -> None:
    """Write ``index.html``, ``fixes.csv`` and ``audit.json`` (``told``) into ``out``.

    ``progress`` counts suspects as their pictures are drawn. Raises ArtefactError when the disk refuses.
    """
    with artefact.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_fixes(out / "fixes.csv", proposals(audit.suspects, audit.pairs, audit.splits))
    artefact.write_file(out / "audit.json", (json.dumps(told, indent=1) + "\n").encode())
    facts = {
        "model": str(told["model"]),
        "split": str(told["split"]),
        "crops": f"{len(audit.views):,} of {len(audit.views.skus):,} SKUs",
    }
    html.write_page(out / "index.html", "Label audit", facts, _sections(audit, progress), STYLE)


def _sections(audit: Audit, progress: Progress) -> Iterator[str]:
    """Yield the page in pieces: what was found, crops, pairs, splits. A list without findings says so."""
    yield _summary(audit)
    views = typical(audit.views, TYPICAL)
    crops = (_crop(number, suspect, views, progress) for number, suspect in enumerate(audit.suspects, start=1))
    yield from _listed(CROPS, "The crop, its nearest pictures, and typical pictures of both SKUs.", crops)
    yield from _listed(PAIRS, "The pictures of the two SKUs lie among each other.", map(_pair, audit.pairs))
    yield from _listed(SPLITS, "The pictures of the SKU fall into two groups far apart.", map(_split, audit.splits))


def _listed(title: str, intro: str, articles: Iterable[str]) -> Iterator[str]:
    """Yield a section whose articles are streamed: a page of hundreds of crops never stands in memory."""
    start, mark, end = html.section(title, MARK, intro).partition(MARK)
    yield start
    found = False
    for article in articles:
        found = True
        yield article
    yield (end if found else f'<p class="soft">None found.</p>{end}').replace(mark, "")


def _summary(audit: Audit) -> str:
    relabel = sum(suspect.kind == "relabel" for suspect in audit.suspects)
    shown = len(audit.suspects)
    rows = [
        (_link(CROPS), audit.suspected, f"{shown:,} shown: {relabel:,} to relabel, {shown - relabel:,} to look at"),
        (_link(PAIRS), len(audit.pairs), "to merge"),
        (_link(SPLITS), len(audit.splits), "to split"),
    ]
    alone = f" {audit.alone:,} crops are the only one of their SKU and could not be checked." if audit.alone else ""
    intro = (
        "Each list begins with what is most likely wrong. Delete the wrong lines of fixes.csv; what is left is applied "
        "to a new manifest, and no picture is touched." + alone
    )
    return html.section("Found", html.table(("", "found", ""), rows), intro)


def _link(title: str) -> html.Markup:
    return html.Markup(f'<a href="#{html.anchor(title)}">{html.text(title)}</a>')


def _crop(number: int, suspect: Suspect, views: Mapping[str, Sequence[Row]], progress: Progress) -> str:
    """Return one suspect: the crop beside its neighbours and typical views of the proposed and its own SKU."""
    own, near = suspect.row.sku, len(suspect.neighbours)
    said = (
        f"score {suspect.score:.2f}; of {near} neighbours {round(suspect.support * near)} are "
        f"{suspect.proposed}, {round(suspect.agreement * near)} {own}"
    )
    groups = [
        _group("This crop", [html.picture(suspect.row.path, suspect.row.path.name, SIDE)]),
        _group("Nearest pictures", [_near(item) for item in suspect.neighbours[:EVIDENCE]]),
        _group(f"Typical: {suspect.proposed}", _pictures(views[suspect.proposed])),
        _group(f"Typical: {own}", _pictures([row for row in views[own] if row.path != suspect.row.path])),
    ]
    progress(1)
    return _article(f"{number}", own, suspect.proposed, suspect.kind, said, groups)


def _near(item: Near) -> str:
    row, similarity = item
    return html.picture(row.path, html.Markup(f"{html.text(row.sku)}<br>{similarity:.3f}"), SIDE)


def _pair(pair: Pair) -> str:
    said = f"mixing {pair.mixing:.2f} of chance, cosine of the mean vectors {pair.similarity:.3f}"
    groups = [
        _group(f"{sku} ({len(rows):,} pictures)", _pictures(_some(rows)))
        for sku, rows in ((pair.b, pair.b_rows), (pair.a, pair.a_rows))
    ]
    return _article("", pair.b, pair.a, "merge", said, groups)


def _split(split: Split) -> str:
    said = (
        f"groups {split.distance:.3f} apart, {split.deviations:.1f} deviations above the typical SKU; "
        f"{split.explained:.0%} of the variance lies between them"
    )
    groups = [
        _group(f"{name} group ({len(rows):,} pictures)", _pictures(_some(rows)))
        for name, rows in (("Larger", split.larger), ("Smaller", split.smaller))
    ]
    return _article("", split.sku, second_name(split.sku), "split", said, groups)


def _some(rows: Sequence[Row]) -> list[Row]:
    """Return up to ``SHOWN`` rows, evenly spaced: neighbours in the list are often one burst of photos."""
    places = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(np.int64)
    return [rows[int(place)] for place in places]


def _pictures(rows: Sequence[Row]) -> list[str]:
    return [html.picture(row.path, row.path.name, SIDE) for row in rows]


def _group(title: str, pictures: Sequence[str]) -> str:
    body = html.strip(pictures) or '<p class="soft">no other picture</p>'
    width = {1: " one", TYPICAL: " two"}.get(len(pictures), "")
    return f'<div class="group{width}"><h4 dir="auto">{html.text(title)}</h4>\n{body}</div>\n'


def _article(number: str, sku: str, proposed: str, kind: str, said: str, groups: Sequence[str]) -> str:
    rank = f'<span class="soft">{number}</span> ' if number else ""
    names = f"<bdi>{html.text(sku)}</bdi> &rarr; <bdi>{html.text(proposed)}</bdi>"
    return (
        f'<article class="case">\n<h3>{rank}{names} <span class="kind {kind}">{kind}</span></h3>\n'
        f'<p class="soft">{html.text(said)}</p>\n<div class="groups">\n{"".join(groups)}</div>\n</article>\n'
    )


STYLE = """
.case { border-top: 1px solid var(--line); padding-top: 14px; display: grid; grid-template-columns: minmax(0, 1fr);
  gap: 6px; break-inside: avoid; content-visibility: auto; contain-intrinsic-size: auto 260px; }
h4 { font-size: 12px; font-weight: 500; color: var(--soft); margin-bottom: 4px; overflow-wrap: anywhere; }
.kind { font-size: 12px; font-weight: 600; border-radius: 99px; padding: 1px 9px; white-space: nowrap;
  color: var(--unknown); background: var(--unknown-bg); }
.kind.relabel { color: var(--error); background: var(--error-bg); }
.kind.look, .kind.merge, .kind.split { color: var(--review); background: var(--review-bg); }
.groups { display: flex; flex-wrap: wrap; gap: 12px 20px; margin-top: 4px; }
.group { min-width: 0; }
.groups .strip { gap: 8px; }
.groups .pic { width: 92px; }
.groups .frame { height: 92px; }
.groups figcaption { font-size: 11px; -webkit-line-clamp: 3; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .groups { gap: 12px 8px; }
  .group { width: 100%; }
  .group.one, .group.two { width: calc(50% - 4px); }
  .groups .strip { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .groups .two .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .groups .one .strip { grid-template-columns: minmax(0, 1fr); }
  .groups .pic { width: auto; }
  .groups .frame { height: 20vw; }
  .groups .one .frame { height: 40vw; } }
"""
