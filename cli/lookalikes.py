"""Look-alikes of an evaluation: the CSV that fine-tuning reads, and the page with the regions that tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch.cli.common import progress_bar

if TYPE_CHECKING:
    from skumatch.encoder import Encoder
    from skumatch.eval.evaluate import Evaluation

TOLD_APART = 10  # groups whose telling regions are looked for
LISTED = 50  # groups in eval.json; the CSV has them all


def write_all(out: Path, found: Evaluation, encoder: Encoder, page: bool) -> list[dict[str, Any]]:
    """Write ``lookalikes.csv``, with ``page`` ``lookalikes.html`` too; return the first groups, JSON-ready."""
    from skumatch.eval.lookalikes import lookalikes, write_lookalikes
    from skumatch.eval.lookalikes_page import write_lookalikes_page
    from skumatch.eval.metrics import confusions
    from skumatch.eval.regions import telling_overlays
    from skumatch.eval.report import best_skus

    answers = found.answers
    names = [row.sku for row in answers.queries.rows]
    counts = {sku: int(facts["queries"]) for sku, facts in found.document["per_sku"].items()}
    groups = lookalikes(answers.gallery, confusions(names, best_skus(answers), len(names)), counts)
    out.mkdir(parents=True, exist_ok=True)
    write_lookalikes(out / "lookalikes.csv", groups)
    if page:
        with progress_bar("telling regions", None) as progress:
            overlays = dict(telling_overlays(encoder, answers.gallery, groups[:TOLD_APART], progress=progress))
        write_lookalikes_page(out / "lookalikes.html", groups, answers.gallery, overlays, {"model": encoder.spec.name})
    return [{"skus": list(group.skus), "pairs": [vars(pair) for pair in group.pairs]} for group in groups[:LISTED]]
