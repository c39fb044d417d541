"""From answers to ``eval.json`` and ``predictions.csv``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.eval.metrics import Accuracy, accuracy, confusions, hit_ranks, per_sku, top_k
from skumatch.eval.protocol import KS, Answers, Closed

CONFUSED = 20
LISTED = 100


def figures(protocol: Closed, answers: Answers, k: int) -> dict[str, Any]:
    """Return all figures of one encoder as JSON-ready values; fractions are between 0 and 1.

    ``topk`` counts distinct SKUs, ``topk_views`` nearest views; ``ci95`` and ``ci95_views`` are [low, high] per k.
    """
    ks = sorted({*KS, k})
    by_sku, by_view = _accuracies(answers, answers.nearest.skus, ks), _accuracies(answers, answers.views, ks)
    ranks = hit_ranks(answers.nearest.skus, answers.truth)
    names = [row.sku for row in answers.queries]
    found = per_sku(top_k(ranks, 1), names)
    best = [answers.skus[int(code)] for code in answers.nearest.skus[:, 0]]
    return {
        "model": answers.spec.name,
        "layer": answers.spec.layer,
        "spec": answers.spec.to_json(),
        "spec_digest": answers.spec.digest,
        "queries": len(answers.queries),
        "gallery_views": len(answers.gallery),
        "skus": len(answers.skus),
        "topk": {str(n): a.value for n, a in by_sku.items()},
        "ci95": {str(n): [a.low, a.high] for n, a in by_sku.items()},
        "topk_views": {str(n): a.value for n, a in by_view.items()},
        "ci95_views": {str(n): [a.low, a.high] for n, a in by_view.items()},
        "top1_macro": sum(value for _, value in found.values()) / len(found),
        "leaks": len(protocol.leaks),
        "leaked_queries": [[str(row.path), view] for row, view in protocol.leaks[:LISTED]],
        "queries_without_gallery_view": int((answers.truth < 0).sum()),
        "unreadable": len(answers.unreadable),
        "unreadable_files": list(answers.unreadable[:LISTED]),
        "per_sku": {sku: {"queries": count, "top1": value} for sku, (count, value) in found.items()},
        "confused": [
            {"shown": shown, "answered": said, "queries": count}
            for shown, said, count in confusions(names, best, CONFUSED)
        ],
        "seconds": answers.seconds,
    }


def _accuracies(answers: Answers, codes: Any, ks: list[int]) -> dict[int, Accuracy]:
    names = sorted({row.sku for row in answers.queries})
    unit = {sku: number for number, sku in enumerate(names)}
    skus = [unit[row.sku] for row in answers.queries]
    ranks = hit_ranks(codes, answers.truth)
    return {k: accuracy(top_k(ranks, k), skus) for k in ks}  # type: ignore[arg-type]


def write(out: Path, document: dict[str, Any], answers: Answers) -> None:
    """Write ``eval.json`` and ``predictions.csv`` into ``out``. Raises ArtefactError when the disk refuses."""
    with artefact.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    artefact.write_file(out / "predictions.csv", predictions(answers).encode("utf-8", "surrogateescape"))
    artefact.write_file(out / "eval.json", (json.dumps(document, indent=1) + "\n").encode())


def predictions(answers: Answers) -> str:
    """Return one CSV line per query: its SKU, the rank of the right SKU (empty: not among k), and k answers."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    k = answers.nearest.skus.shape[1]
    table.writerow(
        ["query", "sku", "rank", *(f"{name}_{n}" for n in range(1, k + 1) for name in ("sku", "score", "view"))]
    )
    ranks = hit_ranks(answers.nearest.skus, answers.truth)
    for line, row in enumerate(answers.queries):
        cells: list[object] = []
        for code, score, view in zip(
            answers.nearest.skus[line], answers.nearest.scores[line], answers.nearest.views[line], strict=True
        ):
            known = code >= 0
            cells += [answers.skus[code], f"{score:.6f}", answers.gallery[view].path] if known else ["", "", ""]
        table.writerow([row.path, row.sku, int(ranks[line]) or "", *cells])
    return stream.getvalue()
