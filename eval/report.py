"""From answers to figures: what ``eval.json``, ``predictions.csv`` and the report's pictures are made of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skumatch import artefact
from skumatch.csv_cells import safe_cell
from skumatch.eval.intervals import Paired, bootstrap, paired
from skumatch.eval.metrics import Accuracy, confusions, hit_ranks, macro, per_sku, reciprocal_ranks, top_k
from skumatch.eval.openset import coverage_accuracy, thin
from skumatch.eval.protocol import KS
from skumatch.eval.report_pictures import Failure, Pictures
from skumatch.eval.retrieval import Answers
from skumatch.spec import Ids

Floats = NDArray[np.float64]

CONFUSED = 20
PICTURED = 12  # confusions, worst SKUs and failures shown with pictures
FAILURES = 24


def units(answers: Answers) -> Ids:
    """Return the code of each query's SKU among the queries' SKUs, int64 (N,): what intervals resample."""
    return answers.queries.codes


def summary(draws: Sequence[Answers], k: int) -> dict[str, Any]:
    """Return the figures of one protocol, the mean over ``draws`` of the same queries; fractions are in 0..1.

    ``topk`` counts distinct SKUs, ``topk_views`` nearest views; ``ci95`` are [low, high] per k, over SKUs. ``mrr``:
    mean reciprocal rank of the right SKU among the answers, 0 beyond them. ``map_at_r``: over queries whose SKU has a
    view.
    """
    first = draws[0]
    ks = sorted({*KS, k})
    ranks = [hit_ranks(one.nearest.skus, one.truth) for one in draws]
    view_ranks = [hit_ranks(one.views, one.truth) for one in draws]
    hits = {n: _mean([top_k(r, n) for r in ranks]) for n in ks}
    view_hits = {n: _mean([top_k(r, n) for r in view_ranks]) for n in ks}
    by_sku = {str(n): bootstrap(values, units(first)) for n, values in hits.items()}
    by_view = {str(n): bootstrap(values, units(first)) for n, values in view_hits.items()}
    precision = np.concatenate([one.precision for one in draws])
    return {
        "queries": len(first.queries),
        "gallery_views": len(first.gallery),
        "skus": len(first.skus),
        "topk": {n: found.value for n, found in by_sku.items()},
        "ci95": {n: _ends(found) for n, found in by_sku.items()},
        "topk_views": {n: found.value for n, found in by_view.items()},
        "ci95_views": {n: _ends(found) for n, found in by_view.items()},
        "topk_macro": {str(n): macro(values, units(first)) for n, values in hits.items()},
        "ci95_macro": {str(n): _ends(bootstrap(values, units(first), macro=True)) for n, values in hits.items()},
        "mrr": float(_mean([reciprocal_ranks(r) for r in ranks]).mean()),
        "mrr_depth": first.nearest.skus.shape[1],
        "map_at_r": None if np.isnan(precision).all() else float(np.nanmean(precision)),
    }


def _mean(values: Sequence[Floats]) -> Floats:
    found: Floats = np.mean(values, axis=0)
    return found


def _ends(found: Accuracy) -> list[float]:
    return [min(found.low, found.value), max(found.high, found.value)]  # of one SKU they differ by rounding


def detail(answers: Answers) -> dict[str, Any]:
    """Return what stands beside the headline: per SKU, confusions, coverage against accuracy by the best score."""
    ranks = hit_ranks(answers.nearest.skus, answers.truth)
    right = ranks == 1
    names = [row.sku for row in answers.queries.rows]
    found = per_sku(top_k(ranks, 1), names)
    curve = thin(coverage_accuracy(answers.nearest.scores[:, 0].astype(np.float64), right))
    return {
        "queries_without_gallery_view": int(np.isnan(answers.precision).sum()),
        "per_sku": {sku: {"queries": count, "top1": value} for sku, (count, value) in found.items()},
        "confused": [
            {"shown": shown, "answered": said, "queries": count}
            for shown, said, count in confusions(names, best_skus(answers), CONFUSED)
        ],
        "coverage": {"coverage": curve.coverage.tolist(), "accuracy": curve.accuracy.tolist(), "aurc": curve.area},
        "seconds": answers.seconds,
    }


def best_skus(answers: Answers) -> list[str]:
    """Return the name of the SKU that each query was answered with."""
    return [answers.skus[int(code)] for code in answers.nearest.skus[:, 0]]


def compare(a: Answers, b: Answers) -> Paired:
    """Compare two encoders' top-1 on the queries that both could read."""
    hits = [dict(zip(_paths(one), top_k(hit_ranks(one.nearest.skus, one.truth), 1), strict=True)) for one in (a, b)]
    shared = [path for path in _paths(a) if path in hits[1]]
    sku = {row.path: row.sku for row in a.queries.rows}
    codes = np.unique(np.array([sku[path] for path in shared]), return_inverse=True)[1].astype(np.int64)
    first, second = (np.array([one[path] for path in shared]) for one in hits)
    return paired(first, second, codes)


def _paths(answers: Answers) -> list[Path]:
    return [row.path for row in answers.queries.rows]


def pictures_of(answers: Answers, leaks: Sequence[tuple[Path, Path, str]] = ()) -> Pictures:
    """Return the pictures worth showing: most confused pairs, worst SKUs, the surest wrong answers."""
    said = best_skus(answers)
    wrong = [i for i, row in enumerate(answers.queries.rows) if said[i] != row.sku]
    wrong.sort(key=lambda i: -float(answers.nearest.scores[i, 0]))
    return Pictures(
        failures=[_failure(answers, i) for i in wrong[:FAILURES]],
        confusions=list(_confused(answers, wrong, said)),
        worst=list(_worst(answers, wrong)),
        leaks=list(leaks),
    )


def _failure(answers: Answers, i: int) -> Failure:
    query, gallery = answers.queries.rows[i], answers.gallery
    view = gallery.rows[int(answers.nearest.views[i, 0])]
    sisters = np.flatnonzero((gallery.codes == answers.truth[i]) & (answers.truth[i] >= 0))
    mine = np.array([place for place in sisters if gallery.rows[int(place)].path != query.path], np.int64)
    scores = gallery.vectors[mine] @ answers.queries.vectors[i]
    best = int(scores.argmax()) if len(mine) else -1
    right = gallery.rows[int(mine[best])].path if best >= 0 else None
    score = float(scores[best]) if best >= 0 else None
    return Failure(query.path, query.sku, view.sku, float(answers.nearest.scores[i, 0]), view.path, right, score)


def _confused(
    answers: Answers, wrong: Sequence[int], said: Sequence[str]
) -> Iterator[tuple[str, str, int, Path, Path]]:
    example: dict[tuple[str, str], int] = {}
    for i in wrong:
        example.setdefault((answers.queries.rows[i].sku, said[i]), i)
    names = [row.sku for row in answers.queries.rows]
    for shown, answered, count in confusions(names, said, PICTURED):
        i = example[shown, answered]
        view = answers.gallery.rows[int(answers.nearest.views[i, 0])]
        yield shown, answered, count, answers.queries.rows[i].path, view.path


def _worst(answers: Answers, wrong: Sequence[int]) -> Iterator[tuple[str, int, float, Sequence[Path]]]:
    hits = top_k(hit_ranks(answers.nearest.skus, answers.truth), 1)
    found = per_sku(hits, [row.sku for row in answers.queries.rows])
    examples: dict[str, list[Path]] = {}
    for i in wrong:
        examples.setdefault(answers.queries.rows[i].sku, []).append(answers.queries.rows[i].path)
    ranked = sorted((value, -count, sku) for sku, (count, value) in found.items() if value < 1)
    for value, count, sku in ranked[:PICTURED]:
        yield sku, -count, value, examples[sku][:4]


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
    best = answers.nearest
    k = best.skus.shape[1]
    table.writerow(
        ["query", "sku", "rank", *(f"{name}_{n}" for n in range(1, k + 1) for name in ("sku", "score", "view"))]
    )
    ranks = hit_ranks(best.skus, answers.truth)
    for line, row in enumerate(answers.queries.rows):
        cells: list[object] = []
        for code, score, view in zip(best.skus[line], best.scores[line], best.views[line], strict=True):
            known = code >= 0
            sku, path = (answers.skus[code], str(answers.gallery.rows[view].path)) if known else ("", "")
            cells += [safe_cell(sku), f"{score:.6f}" if known else "", safe_cell(path)]
        table.writerow([safe_cell(str(row.path)), safe_cell(row.sku), int(ranks[line]) or "", *cells])
    return stream.getvalue()
