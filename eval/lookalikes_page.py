"""The look-alikes page: each group of confusable SKUs side by side, with the regions that tell them apart.

It knows nothing about encoders: pictures with their telling regions are handed in as JPEGs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skumatch.dataset import Row
from skumatch.eval import html
from skumatch.eval.lookalikes import Group, Pair, typical_views
from skumatch.eval.views import Views

SHOWN = 100  # groups on the page; the CSV has them all
LISTED = 12  # pairs in a group's table
SIDE = 320  # of telling regions, in pixels
INTRO = "SKUs that were taken for each other, or whose pictures lie close together, the most confused first."
REGIONS = "In colour and framed: what speaks for a SKU against the other, found by covering one region after the other."
# Both pictures of a pair stay together; pairs stand side by side where the page is wide.
PAIRS = "display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:14px 24px"


def write_lookalikes_page(
    path: Path,
    groups: Sequence[Group],
    gallery: Views,
    overlays: Mapping[tuple[str, str], bytes],
    facts: Mapping[str, str],
) -> None:
    """Write the page ``path`` atomically: one section per group with pictures, figures and telling regions.

    ``overlays``: JPEG per (SKU, other SKU), as ``skumatch.eval.regions.telling_overlays`` yields them; pairs without
    one are shown without. Raises ArtefactError when the disk refuses.
    """
    counted = {"groups": f"{len(groups):,}", "SKUs in groups": f"{sum(len(group.skus) for group in groups):,}"}
    html.write_page(path, "Look-alikes", {**facts, **counted}, _sections(groups, gallery, overlays))


def _sections(groups: Sequence[Group], gallery: Views, overlays: Mapping[tuple[str, str], bytes]) -> Iterator[str]:
    views = typical_views(gallery, [sku for group in groups[:SHOWN] for sku in group.skus])
    rows = {sku: gallery.rows[place] for sku, place in views.items()}
    if not groups:
        yield html.section("No look-alikes", "", "No two SKUs were confused or lie unusually close together.")
    for number, group in enumerate(groups[:SHOWN], start=1):
        yield _section(number, group, rows, overlays)
    if len(groups) > SHOWN:
        yield html.section(f"{len(groups) - SHOWN:,} more groups", "", "They stand in lookalikes.csv.")


def _section(number: int, group: Group, rows: Mapping[str, Row], overlays: Mapping[tuple[str, str], bytes]) -> str:
    """Return one group: its SKUs side by side, its pairs, and the telling regions of the pairs that have them."""
    pictures = html.strip([html.picture(rows[sku].path, _name(rows[sku])) for sku in group.skus])
    table = html.table(
        ["SKU", "other", "similarity", "wrong answers"],
        [[pair.a, pair.b, pair.similarity, pair.confusions] for pair in group.pairs[:LISTED]],
    )
    more = len(group.pairs) - LISTED
    rest = f'<p class="soft">and {more:,} more pairs: see lookalikes.csv</p>\n' if more > 0 else ""
    regions = "".join(_regions(pair, overlays) for pair in group.pairs)
    told = f'<p class="soft">{html.text(REGIONS)}</p>\n<div style="{PAIRS}">\n{regions}</div>\n' if regions else ""
    intro = INTRO if number == 1 else ""
    return html.section(f"Group {number}: {len(group.skus)} SKUs", pictures + table + rest + told, intro)


def _name(row: Row) -> str:
    """Return title and SKU, the SKU alone where the title says the same."""
    same = _letters(row.title) == _letters(row.sku)
    return row.sku if same or not row.title else f"{row.title} ({row.sku})"


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _regions(pair: Pair, overlays: Mapping[tuple[str, str], bytes]) -> str:
    """Return both SKUs of ``pair`` with what speaks for each against the other, "" where there is no overlay."""
    both = [(pair.a, pair.b), (pair.b, pair.a)]
    found = [html.picture(overlays[key], f"{key[0]}, not {key[1]}", SIDE) for key in both if key in overlays]
    return html.strip(found)
