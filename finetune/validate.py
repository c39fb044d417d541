"""How good the model is during training: nearest neighbour of validation queries, for both layers in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.eval.intervals import SIGNIFICANT, mcnemar
from skumatch.runtime.torch import FEATURES, HEAD, Network
from skumatch.spec import Pixels, Spec, Vectors

LAYERS = (FEATURES, HEAD)


@dataclass(frozen=True)
class Validation:
    """Whether each query's nearest view shows its SKU, bool (Q,), per layer; queries that were readable only."""

    right: dict[str, NDArray[np.bool_]]

    @property
    def top1(self) -> dict[str, float | None]:
        """Top-1 accuracy per layer, 0..1; None without queries."""
        return {layer: float(hits.mean()) if len(hits) else None for layer, hits in self.right.items()}


class BothLayers:
    """An Encoder that answers features and head vectors side by side, each of unit length."""

    def __init__(self, network: Network, head: nn.Linear, spec: Spec, device: torch.device) -> None:
        self.network = network
        self.head = head
        self.spec = spec
        self.device = device

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D + E)."""
        with torch.inference_mode():
            features = self.network.features(torch.from_numpy(pixels).to(self.device)).float()
            parts = [nn.functional.normalize(part, dim=1) for part in (features, self.head(features))]
            both: Vectors = torch.cat(parts, 1).cpu().numpy()
        return both


def validate(encoder: BothLayers, gallery: Sequence[Row], queries: Sequence[Row], pipeline: Pipeline) -> Validation:
    """Embed ``gallery`` and ``queries`` and look up each query's nearest view by cosine."""
    if not queries:
        return Validation({layer: np.zeros(0, bool) for layer in LAYERS})
    views, view_skus = _embed(encoder, gallery, pipeline)
    found, skus = _embed(encoder, queries, pipeline)
    split = encoder.spec.dim
    parts = {FEATURES: slice(0, split), HEAD: slice(split, None)}
    return Validation({layer: _hits(views[:, p], view_skus, found[:, p], skus) for layer, p in parts.items()})


def _embed(encoder: BothLayers, rows: Sequence[Row], pipeline: Pipeline) -> tuple[Vectors, NDArray[np.str_]]:
    paths: list[Path] = [row.path for row in rows]
    vectors, skus, start = [], [], 0
    for batch in pipeline.embed(paths, encoder):
        if len(batch.good):  # an empty batch has the width of one layer only
            vectors.append(batch.vectors)
        skus += [rows[start + int(i)].sku for i in batch.good]
        start += len(batch.sources)
    found = np.concatenate(vectors) if vectors else np.empty((0, encoder.spec.dim), np.float32)
    return found, np.array(skus, np.str_)


def _hits(views: Vectors, view_skus: NDArray[np.str_], queries: Vectors, skus: NDArray[np.str_]) -> NDArray[np.bool_]:
    if not len(views):
        return np.zeros(len(queries), bool)
    nearest = [(queries[i : i + 256] @ views.T).argmax(1) for i in range(0, len(queries), 256)]
    right: NDArray[np.bool_] = view_skus[np.concatenate(nearest)] == skus if len(queries) else np.zeros(0, bool)
    return right


def choose_layer(serve: str, validation: Validation) -> str:
    """Return which layer to serve. "measure" takes the features unless the head is better beyond chance.

    Features forget less about SKUs that were not trained on, so the head must win by an exact McNemar test
    (two-sided, 5 %; McNemar 1947) on the paired validation answers.
    """
    if serve != "measure":
        return serve
    features, head = validation.right[FEATURES], validation.right[HEAD]
    gained, lost = int((head & ~features).sum()), int((features & ~head).sum())
    return HEAD if gained > lost and mcnemar(gained, lost) < SIGNIFICANT else FEATURES
