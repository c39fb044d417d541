"""A page that shows every leak: the query beside the view that gives it away, and what speaks for it.

Shows what ``leaks`` found and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from skumatch.eval.html import picture, section, strip, table, text, write_page
from skumatch.eval.leaks import Kind, Leak

SHOWN: Final = 200  # of a kind; a page with more opens on no phone
_KINDS: Final[Mapping[Kind, tuple[str, str]]] = {
    "bytes": ("Byte-identical", "The query is a copy of the view's file. Such queries are never counted."),
    "near": (
        "Near-duplicates",
        "Laid over each other, both pictures agree in all their patches: one is the other, encoded, resized, cut or "
        "brightened anew, or both were shot from one spot.",
    ),
    "frame": ("Neighbouring video frames", "The names make both frames of one video, and they show the same scene."),
}


def write_leaks_page(path: Path, leaks: Sequence[Leak], facts: Mapping[str, str]) -> None:
    """Write the page ``path``: counts per kind, then query beside view, the least sure of a kind first.

    ``facts`` (model, data, ...) stand in the head. Of a kind with more than 200 leaks the least sure are shown, which a
    person should judge, and all are counted. Pictures are read while the page is written; one that cannot be read
    becomes a box that says why. Raises ArtefactError when the disk refuses.
    """
    write_page(path, "Leaks between gallery and queries", facts, _sections(leaks))


def _sections(leaks: Sequence[Leak]) -> Iterator[str]:
    by_kind = {kind: [leak for leak in leaks if leak.kind == kind] for kind in _KINDS}
    yield section("Found", table(("kind", "queries"), [(_KINDS[kind][0], len(of)) for kind, of in by_kind.items()]))
    for kind, found in by_kind.items():
        if found:
            title, intro = _KINDS[kind]
            shown = sorted(found, key=lambda leak: leak.score)[:SHOWN]
            rest = f" Shown are the {len(shown)} least sure of {len(found)}." if len(shown) < len(found) else ""
            yield section(title, "".join(_pair(leak) for leak in shown), intro + rest)


def _pair(leak: Leak) -> str:
    """Return both pictures side by side under the evidence."""
    pictures = [
        picture(row.path, f"{role}: {row.sku}, {row.path.parent.name}/{row.path.name}")
        for role, row in (("query", leak.query), ("view", leak.view))
    ]
    return f"<p>{text(leak.evidence)}</p>\n{strip(pictures)}"
