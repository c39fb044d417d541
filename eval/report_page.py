"""The evaluation report: one HTML file that gives the answer first, then what stands behind it, with pictures.

It reads the figures of eval.json and the pictures it is given; it computes no figure of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from skumatch.eval import canvas, report_detail, report_pictures, report_protocols, report_sections, report_trust
from skumatch.eval.html import anchor, text, write_page
from skumatch.eval.report_pictures import Failure, Pictures

__all__ = ["Failure", "Pictures", "write_report"]


def write_report(path: Path, document: dict[str, Any], pictures: Pictures) -> None:
    """Write the report of ``document`` (the content of eval.json) to ``path``, whole or not at all.

    A section whose figures or pictures are missing is absent. Raises ArtefactError when the disk refuses.
    """
    title = f"Evaluation of {document.get('model', 'a model')}"
    write_page(path, title, _facts(document), _body(document, pictures), canvas.STYLE + STYLE)


def _facts(document: dict[str, Any]) -> dict[str, str]:
    where = " ".join(f"{key}={value}" for key, value in (document.get("where") or {}).items())
    named = {
        "layer": document.get("layer"),
        "split": document.get("split"),
        "only": where,
    }
    return {key: str(value) for key, value in named.items() if value}


def _body(document: dict[str, Any], pictures: Pictures) -> Iterator[str]:
    """Yield the sections in reading order, with the list of what follows after the first."""
    parts = _parts(document, pictures)
    yield report_sections.answer(document)
    yield _contents([title for title, _ in parts])
    for _, pieces in parts:
        yield from pieces


def _parts(document: dict[str, Any], pictures: Pictures) -> list[tuple[str, Iterable[str]]]:
    """Return (title, pieces of HTML) of the sections that are there; pictures are read when their piece is due."""
    listed: list[tuple[str, Iterable[str], object]] = []

    def put(title: str, body: str) -> None:
        listed.append((title, [body], body))

    put("What to do next", report_sections.next_steps(document))
    put("Accuracy", report_sections.accuracy(document))
    put("Protocols", report_protocols.protocols(document))
    put("Trusting an answer", report_trust.decisions(document))
    put("Robustness", report_detail.robustness(document, pictures.corrupted))
    confused = pictures.confusions or document.get("confused")
    listed.append(("Confusions", report_pictures.confusions(pictures, document), confused))
    put("Look-alikes", report_detail.lookalikes(document))
    listed.append(("Worst SKUs", report_pictures.worst(pictures), pictures.worst))
    listed.append(("Failures", report_pictures.failures(pictures), pictures.failures))
    put("All SKUs", report_detail.all_skus(document))
    listed.append(("Leaks", report_pictures.leaks(pictures), pictures.leaks))
    put("The data", report_detail.data(document))
    return [(title, pieces) for title, pieces, there in listed if there]


def _contents(titles: Iterable[str]) -> str:
    links = "".join(f'<li><a href="#{anchor(title)}">{text(title)}</a></li>\n' for title in titles)
    return f'<nav aria-label="Sections"><ul>\n{links}</ul></nav>\n'


STYLE = """
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.hero { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center; }
.hero p { flex: 1 1 260px; }
.hero .big { flex: none; font-size: 56px; line-height: 1; font-weight: 700; letter-spacing: -0.03em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.versus { list-style: none; padding: 0; display: grid; gap: 6px; }
.change { font-weight: 700; border-radius: 99px; padding: 2px 10px; margin-right: 4px; white-space: nowrap; }
.up { color: var(--accept); background: var(--accept-bg); }
.down { color: var(--error); background: var(--error-bg); }
.same { color: var(--unknown); background: var(--unknown-bg); }
.honest { border-left: 3px solid var(--bar); padding-left: 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(116px, 1fr)); gap: 14px 18px; margin: 4px 0 0; }
.tiles > div { display: flex; flex-direction: column-reverse; justify-content: flex-end; gap: 0; }
.tiles dd { font-size: 19px; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles dt { font-size: 13px; line-height: 1.3; }
nav { margin: 0 0 16px; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 8px; }
nav a { display: block; padding: 6px 12px; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  color: var(--ink); font-size: 14px; text-decoration: none; }
.steps { display: grid; gap: 14px; padding-left: 1.4em; max-width: 76ch; }
code { font: 0.92em ui-monospace, monospace; background: var(--page); border-radius: 4px; padding: 1px 4px;
  white-space: nowrap; }
.steps li::marker { font-weight: 600; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 476px), 1fr)); gap: 22px 24px; }
.card { display: grid; gap: 8px; align-content: start; min-width: 0; break-inside: avoid; }
.groups { display: grid; gap: 14px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 4px; }
.chip { border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px; font-size: 14px; }
small { color: var(--soft); font-size: 12px; }
@media (max-width: 640px) {
  .hero .big { font-size: 48px; }
  nav a { padding: 7px 11px; }
  .card .strip:has(> :nth-child(2):last-child) .pic { width: calc((100% - 10px) / 2); }
  .card .strip:has(> :nth-child(2):last-child) .frame { height: 150px; } }
"""
