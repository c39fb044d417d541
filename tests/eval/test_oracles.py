"""The measures against independent implementations: scikit-learn, torchmetrics, pytorch-metric-learning.

All oracles in one file: importing torchmetrics takes seconds. pytorch-metric-learning runs in a Python of its own,
because its import replaces methods of faiss's indexes (faiss.contrib.torch_utils) for the whole process. Vectors are
random, so that views do not tie where the oracles would break ties in their own way; scalar scores are rounded, so
that they do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error
from torchmetrics.functional.retrieval import retrieval_average_precision
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

from skumatch.eval.metrics import (
    average_precision_at_r,
    hit_ranks,
    macro,
    reciprocal_ranks,
    sku_means,
    top_k,
)
from skumatch.eval.openset import auroc, coverage_accuracy, fpr_at_tpr, oscr
from skumatch.eval.reliability import brier, ece, reliability
from skumatch.index.exact import ExactIndex
from skumatch.nearest import nearest_skus
from skumatch.spec import Ids, Vectors

SEEDS = range(6)
SKUS = 12


METRIC_LEARNING = """
import json, sys
import numpy as np, torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

names = ("precision_at_1", "mean_average_precision_at_r", "mean_reciprocal_rank")
options = dict(include=names, device=torch.device("cpu"), knn_func=CustomKNN(CosineSimilarity()))
answers = []
for path in sys.argv[1:]:
    case = np.load(path)
    asked = (case["queries"], case["query_skus"], case["views"], case["view_skus"])
    answers.append([AccuracyCalculator(avg_of_avgs=mean, **options).get_accuracy(*asked) for mean in (False, True)])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Search:
    """A searched gallery: every view ranked for every query, and what is true."""

    views: Vectors
    view_skus: Ids
    queries: Vectors
    query_skus: Ids
    ranked: Ids  # (N, all views): SKU codes, nearest first
    nearest: Ids  # (N, all SKUs): distinct SKU codes, nearest first

    @property
    def relevant(self) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self.ranked == self.query_skus[:, None]
        return same

    @property
    def totals(self) -> Ids:
        return np.bincount(self.view_skus, minlength=SKUS + 3)[self.query_skus]


def searched(seed: int, lone: bool = True, most: int = 9) -> Search:
    """Search SKUs of 1 to ``most`` views; with ``lone``, some queries show a SKU without any view."""
    rng = np.random.default_rng(seed)
    view_skus = np.repeat(np.arange(SKUS), rng.integers(1, most + 1, SKUS)).astype(np.int64)
    query_skus = rng.integers(0, SKUS + 3 * lone, 80).astype(np.int64)
    centres = rng.normal(size=(SKUS + 3, 16))
    views, queries = (unit(centres[s] + rng.normal(size=(len(s), 16))) for s in (view_skus, query_skus))
    index = ExactIndex(16)
    index.add(np.arange(len(views), dtype=np.int64), views)
    ranked = view_skus[index.search(queries, len(views))[1]]
    nearest = nearest_skus(index, lambda ids: view_skus[ids], queries, SKUS).skus
    return Search(views, view_skus, queries, query_skus, ranked, nearest)


def unit(vectors: NDArray[np.float64]) -> Vectors:
    rows: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def test_retrieval_agrees_with_pytorch_metric_learning(tmp_path: Path) -> None:
    """The oracle searches by itself, and leaves out queries whose SKU has no view."""
    cases = [searched(seed, lone, most) for seed in SEEDS for lone in (False, True) for most in (1, 9)]
    paths = [tmp_path / f"{number}.npz" for number in range(len(cases))]
    for path, found in zip(paths, cases, strict=True):
        arrays = ("views", "view_skus", "queries", "query_skus")
        np.savez(path, **{name: getattr(found, name) for name in arrays})
    command = [sys.executable, "-c", METRIC_LEARNING, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for found, (micro, by_sku) in zip(cases, json.loads(done.stdout), strict=True):
        there = found.totals > 0
        ranks = hit_ranks(found.ranked, found.query_skus)[there]
        precision = average_precision_at_r(found.relevant, found.totals)
        assert (np.isnan(precision) == ~there).all()
        measured = {
            "precision_at_1": top_k(ranks, 1),
            "mean_average_precision_at_r": precision[there],
            "mean_reciprocal_rank": reciprocal_ranks(ranks),
        }
        for name, values in measured.items():
            assert values.mean() == pytest.approx(micro[name], abs=1e-6)
            assert macro(values, found.query_skus[there]) == pytest.approx(by_sku[name], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_retrieval_agrees_with_torchmetrics(seed: int) -> None:
    found = searched(seed)
    lines, depth = found.ranked.shape
    scores = torch.linspace(1, 0.1, depth).repeat(lines)
    target = torch.from_numpy(found.relevant).flatten()
    query = torch.arange(lines).repeat_interleave(depth)
    ranks = hit_ranks(found.ranked, found.query_skus)
    mrr: Any = RetrievalMRR(empty_target_action="neg")
    assert reciprocal_ranks(ranks).mean() == pytest.approx(float(mrr(scores, target, indexes=query)), abs=1e-6)
    for k in (1, 3, 5):
        rate: Any = RetrievalHitRate(empty_target_action="neg", top_k=k)
        assert top_k(ranks, k).mean() == pytest.approx(float(rate(scores, target, indexes=query)), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_at_r_agrees_with_torchmetrics(seed: int) -> None:
    """The oracle divides by the hits among the first R where mAP@R divides by R."""
    found = searched(seed, lone=False)
    scores = torch.linspace(1, 0.1, found.ranked.shape[1])
    precision = average_precision_at_r(found.relevant, found.totals)
    for line, total, value in zip(found.relevant, found.totals.tolist(), precision, strict=True):
        oracle = float(retrieval_average_precision(scores, torch.from_numpy(line), top_k=total))
        assert value == pytest.approx(oracle * line[:total].sum() / total, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_top_k_over_distinct_skus_agrees_with_scikit_learn(seed: int) -> None:
    found = searched(seed, lone=False)
    similar = found.queries @ found.views.T
    best = np.stack([similar[:, found.view_skus == sku].max(axis=1) for sku in range(SKUS)], axis=1)
    ranks = hit_ranks(found.nearest, found.query_skus)
    for k in (1, 3, 5):
        oracle = sk.top_k_accuracy_score(found.query_skus, best, k=k, labels=np.arange(SKUS))
        assert top_k(ranks, k).mean() == pytest.approx(oracle)


@pytest.mark.parametrize("seed", SEEDS)
def test_macro_top_1_agrees_with_scikit_learn(seed: int) -> None:
    found = searched(seed)
    hits = top_k(hit_ranks(found.nearest, found.query_skus), 1)
    shown = np.unique(found.query_skus)
    recall = {"average": None, "labels": shown, "zero_division": 0}
    assert sku_means(hits, found.query_skus) == pytest.approx(
        sk.recall_score(found.query_skus, found.nearest[:, 0], **recall)
    )
    oracle = sk.recall_score(found.query_skus, found.nearest[:, 0], **{**recall, "average": "macro"})
    assert macro(hits, found.query_skus) == pytest.approx(oracle)


def scored(seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Draw known scores, whether right, and unknown scores in 0..1, with ties for odd seeds."""
    rng = np.random.default_rng(seed)
    known, unknown = rng.beta(4, 2, 137), rng.beta(2, 3, 91)
    if seed % 2:
        known, unknown = np.round(known, 1), np.round(unknown, 1)
    return known, rng.random(137) < known, unknown


@pytest.mark.parametrize("seed", SEEDS)
def test_open_set_measures_agree_with_scikit_learn_and_torchmetrics(seed: int) -> None:
    known, _, unknown = scored(seed)
    both = np.concatenate([known, unknown])
    truth = np.arange(len(both)) < len(known)
    assert auroc(known, unknown) == pytest.approx(sk.roc_auc_score(truth, both), abs=1e-12)
    curve = binary_auroc(torch.from_numpy(both), torch.from_numpy(truth).long())
    assert auroc(known, unknown) == pytest.approx(float(curve), abs=1e-6)
    false_positive, true_positive, _ = sk.roc_curve(truth, both, drop_intermediate=False)
    for tpr in (0.5, 0.9, 0.95, 1.0):
        oracle = false_positive[(true_positive >= tpr).argmax()]
        assert fpr_at_tpr(known, unknown, tpr) == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_oscr_agrees_with_scikit_learn(seed: int) -> None:
    """Correct rate against false positives: the ROC of right knowns, scaled by how many are right."""
    known, right, unknown = scored(seed)
    found = oscr(known, right, unknown)
    both = np.concatenate([known[right], unknown])
    truth = np.arange(len(both)) < right.sum()
    assert found.area == pytest.approx(sk.roc_auc_score(truth, both) * right.mean(), abs=1e-12)
    x, y = np.append(0, found.false_positive), np.append(0, found.correct)
    assert found.area == pytest.approx(sk.auc(x, y), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_at_coverage_agrees_with_scikit_learn(seed: int) -> None:
    """Accuracy among the accepted is the precision of "this answer is right"."""
    known, right, _ = scored(seed)
    found = coverage_accuracy(known, right)
    precision, _, thresholds = sk.precision_recall_curve(right, known)
    assert found.threshold[::-1].tolist() == thresholds.tolist()
    assert found.accuracy[::-1] == pytest.approx(precision[:-1], abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_agrees_with_torchmetrics_and_scikit_learn(seed: int) -> None:
    known, right, _ = scored(seed * 2)  # a tie on the edge of a bin is a matter of rounding
    for bins in (5, 10, 15):
        error = binary_calibration_error(torch.from_numpy(known), torch.from_numpy(right).long(), n_bins=bins)
        assert ece(known, right, bins, "width") == pytest.approx(float(error), abs=1e-6)
        widths = calibration_curve(right, known, n_bins=bins, strategy="uniform")
        masses = calibration_curve(right[:120], known[:120], n_bins=bins, strategy="quantile")
        for found, oracle in (
            (reliability(known, right, bins, "width"), widths),
            (reliability(known[:120], right[:120], bins), masses),
        ):
            assert [b.accuracy for b in found] == pytest.approx(oracle[0])
            assert [b.probability for b in found] == pytest.approx(oracle[1])
    assert brier(known, right) == pytest.approx(sk.brier_score_loss(right, known))
