"""How good the model is during training: nearest neighbour of validation queries, for every layer in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skumatch import images
from skumatch.dataset import Row
from skumatch.embed import Pipeline, cores, ordered_batches
from skumatch.errors import ImageError
from skumatch.eval.intervals import SIGNIFICANT, mcnemar
from skumatch.finetune import parts
from skumatch.finetune.cache import PictureCache
from skumatch.finetune.data import Split
from skumatch.runtime.served import BOTH, FEATURES, HEAD, Layer, Served
from skumatch.runtime.torch import Network, lean
from skumatch.spec import Pixels, Spec, Vectors

LAYERS: tuple[Layer, ...] = (FEATURES, HEAD, BOTH)
BLOCK = 256  # queries scored at once


@dataclass(frozen=True)
class Validation:
    """Whether each query's nearest view shows its SKU, bool (Q,), per layer; queries that were readable only."""

    right: dict[str, NDArray[np.bool_]]

    @property
    def top1(self) -> dict[str, float | None]:
        """Top-1 accuracy per layer, 0..1; None without queries."""
        return {layer: float(hits.mean()) if len(hits) else None for layer, hits in self.right.items()}


class Probe:
    """An Encoder that answers unit features and unit head vectors side by side: (N, D + E)."""

    def __init__(self, image: nn.Module, head: nn.Linear, spec: Spec, device: torch.device) -> None:
        network = Network(image, spec, Served(BOTH, head, 0.5)).to(device).eval()
        self.network = lean(network, spec.size)
        self.spec = spec
        self.device = device

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D + E)."""
        with torch.inference_mode():
            both: Vectors = self.network(torch.from_numpy(pixels).to(self.device)).cpu().numpy()
        return both * np.float32(2**0.5)  # side by side each has half of the length's square


def validated(split: Split) -> tuple[Row, ...]:
    """Return the pictures that every epoch validates with, each once."""
    return tuple({row.path: row for row in (*split.gallery, *split.queries)}.values())


class Pictures:
    """Pictures as the encoder ``spec`` takes them, read with the threads of ``pipeline``; those of ``rows`` are read
    from their files once where there is a ``cache``, which has a place for each."""

    def __init__(self, spec: Spec, pipeline: Pipeline, rows: Sequence[Row], cache: PictureCache | None) -> None:
        self.spec, self.pipeline, self.rows, self.cache = spec, pipeline, rows, cache
        self.places = {row.path: place for place, row in enumerate(rows)} if cache is not None else {}

    def fill(self) -> None:
        """Read into the cache what it lacks."""
        if self.cache is not None:
            lacking = self.cache.missing(np.arange(len(self.rows)))
            for _ in self.batches([self.rows[place] for place in lacking]):
                pass

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[Row], Pixels]]:
        """Yield the readable ones of ``rows``, in order, with their pixels uint8 (N, 3, S, S)."""
        for group, found in ordered_batches(rows, self._read, self.pipeline.batch, self.pipeline.workers or cores()):
            good = [(row, pixels) for row, pixels in zip(group, found, strict=True) if pixels is not None]
            if good:
                yield [row for row, _ in good], np.stack([pixels for _, pixels in good])

    def _read(self, row: Row) -> Pixels | None:
        place = self.places.get(row.path)
        kept = None if self.cache is None or place is None else self.cache.get(place)
        if kept is not None:
            return kept[0].transpose(2, 0, 1)
        try:
            image = images.read_image(row.path, self.pipeline.max_pixels)
        except ImageError:
            return None
        pixels = images.to_pixels(image, self.spec)
        if self.cache is not None and place is not None:
            self.cache.put(place, pixels.transpose(1, 2, 0), image.shape[1] / image.shape[0])
        return pixels


def validate(
    probe: Probe, gallery: Sequence[Row], queries: Sequence[Row], pictures: Pictures, weight: float
) -> Validation:
    """Embed ``gallery`` and ``queries`` and look up each query's nearest view by cosine, in every layer.

    ``weight`` 0..1: share of the head in the cosine of layer "both".
    """
    if not queries:
        return Validation({layer: np.zeros(0, bool) for layer in LAYERS})
    views, view_skus = _embed(probe, gallery, pictures)
    found, skus = _embed(probe, queries, pictures)
    if not len(views) or not len(found):
        return Validation({layer: np.zeros(len(found), bool) for layer in LAYERS})
    return Validation({layer: np.array(view_skus[best] == skus) for layer, best in _best(views, found, probe, weight)})


def _best(views: Vectors, queries: Vectors, probe: Probe, weight: float) -> list[tuple[Layer, NDArray[np.int64]]]:
    """Return the place of each query's nearest view per layer; scores are held for a block of queries at a time."""
    split = probe.spec.dim
    best: dict[Layer, list[NDArray[np.int64]]] = {layer: [] for layer in LAYERS}
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        features, head = block[:, :split] @ views[:, :split].T, block[:, split:] @ views[:, split:].T
        scores = {FEATURES: features, HEAD: head, BOTH: (1 - weight) * features + weight * head}
        for layer in LAYERS:
            best[layer].append(scores[layer].argmax(1))
    return [(layer, np.concatenate(places)) for layer, places in best.items()]


def _embed(encoder: Probe, rows: Sequence[Row], pictures: Pictures) -> tuple[Vectors, NDArray[np.str_]]:
    vectors, skus = [], []
    for group, pixels in pictures.batches(rows):
        vectors.append(encoder.encode(pixels))
        skus += [row.sku for row in group]
    found = np.concatenate(vectors) if vectors else np.empty((0, encoder.spec.dim), np.float32)
    return found, np.array(skus, np.str_)


def choose_layer(how: parts.Served, validation: Validation) -> Layer:
    """Return which layer to serve. "measure" takes the features unless head or both is better beyond chance.

    Features forget less about SKUs that were not trained on, so another layer must win by an exact McNemar test
    (two-sided, 5 %; McNemar 1947) on the paired validation answers; of two that do, the one with more right answers,
    "both" where they are level.
    """
    if how.layer != "measure":
        return how.layer
    others: tuple[Layer, ...] = (BOTH, HEAD)
    winners = [layer for layer in others if better(validation.right[layer], validation.right[FEATURES])]
    return max(winners, key=lambda layer: int(validation.right[layer].sum()), default=FEATURES)


def better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Return whether ``one``, right or wrong per query, bool (Q,), is better than ``other`` beyond chance (McNemar)."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained > lost and mcnemar(gained, lost) < SIGNIFICANT
