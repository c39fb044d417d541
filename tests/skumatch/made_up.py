"""Made-up views for the gallery's tests: random vectors, everything else unique to the view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skumatch.segment import NewView
from skumatch.spec import Vectors


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, 32))
    result: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def views(rng: np.random.Generator, skus: Sequence[str]) -> list[NewView]:
    """Return a made-up view for each of ``skus``; source and thumbnail are unique to it."""
    vectors = unit(rng, len(skus))
    marks = rng.integers(0, 1 << 60, len(skus)).tolist()
    return [
        NewView(sku, f"shelf/{mark}.jpg", f"{mark:064x}", b"\xff\xd8" + str(mark).encode(), vector)
        for sku, mark, vector in zip(skus, marks, vectors, strict=True)
    ]
