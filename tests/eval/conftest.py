"""Made-up labelled vectors: a data set whose pictures exist only as rows, and the pool that holds their vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch.dataset import Dataset, Row
from skumatch.eval.pool import Pool

Made = tuple[Dataset, Pool]


def make(
    skus: int = 10, splits: dict[str, int] | None = None, spread: float = 0.3, seed: int = 0, format: str = "csv"
) -> Made:
    """Draw clustered vectors for ``splits`` (views per SKU); a ``spread`` of 0.3 separates SKUs, 3 hardly."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(skus, 24))
    rows, vectors = [], []
    for split, views in (splits or {"train": 6, "test": 4}).items():
        for sku in range(skus):
            for view in range(views):
                rows.append(Row(Path(split) / f"s{sku:02}" / f"{view}.png", f"s{sku:02}", split))
                vectors.append(centres[sku] + spread * rng.normal(size=24))
    units = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    pool = Pool(units.astype(np.float32), {row.path: place for place, row in enumerate(rows)}, ())
    return Dataset(Path("made"), format, tuple(rows)), pool


@pytest.fixture
def make_data() -> Callable[..., Made]:
    """Return ``make``."""
    return make


@pytest.fixture
def strict() -> Callable[[Any], Any]:
    """Return a function that writes a value as JSON and reads it back, refusing NaN and infinities."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    def through(value: Any) -> Any:
        return json.loads(json.dumps(value), parse_constant=refuse)

    return through
