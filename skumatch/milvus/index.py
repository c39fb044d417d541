"""Search in Milvus behind the Index seam: the server's index, its filters, scores that are true inner products.

It knows nothing about SKUs; views are remembered by the gallery as they are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skumatch.errors import GalleryError
from skumatch.index.blocks import Best, ascending
from skumatch.index.choose import EXACT_NUMBERS
from skumatch.index.exact import nearest_rows
from skumatch.milvus.client import MOST
from skumatch.milvus.rows import TOLD, both, one_of
from skumatch.spec import Ids, Vectors

if TYPE_CHECKING:
    from skumatch.milvus.gallery import MilvusGallery

ALLOWED = 16_384  # ids named in a condition; beyond that the vectors are compared here
HITS = 500_000  # answers asked for in one call
ROUNDING: Final = 4 * 2.0**-23  # by which sums of the same products differ
KINDS: Final[dict[str, dict[str, Any]]] = {
    "exact": {"index_type": "FLAT", "params": {}},
    "hnsw": {"index_type": "HNSW", "params": {"M": 32, "efConstruction": 360}},
    "ivf-rabitq": {"index_type": "IVF_RABITQ", "params": {"refine": True, "refine_type": "SQ8"}},
}


def kind_of(wanted: str, rows: int, dim: int, here: bool) -> str:
    """Return the kind of index for ``wanted`` and so many rows; ``here``: on this machine, in Milvus Lite, which has no
    ivf-rabitq. Raises GalleryError for an unknown kind."""
    if wanted == "auto":
        return "exact" if rows * dim <= EXACT_NUMBERS else "hnsw" if here else "ivf-rabitq"
    if wanted not in KINDS:
        raise GalleryError(f"unknown kind of index '{wanted}'", f"choose auto, {', '.join(KINDS)}")
    return wanted


def index_of(kind: str, rows: int) -> dict[str, Any]:
    """Return the settings with which Milvus builds an index of ``kind`` over about so many rows."""
    made = {"metric_type": "IP", **KINDS[kind]}
    if kind == "ivf-rabitq":
        made["params"] = {**made["params"], "nlist": int(np.clip(2 * rows**0.5, 16, 65_536))}
    return made


def effort_of(kind: str, rows: int, k: int) -> dict[str, Any]:
    """Return the settings of a search for ``k`` rows."""
    if kind == "hnsw":
        return {"ef": min(32_768, max(128, 2 * k))}
    if kind == "ivf-rabitq":
        lists = int(index_of(kind, rows)["params"]["nlist"])
        return {"nprobe": min(lists, max(64, lists // 32)), "refine_k": 4}
    return {}


class MilvusIndex:
    """The views of a version of a gallery that meet ``condition``; the gallery changes it, not the index."""

    def __init__(self, gallery: MilvusGallery, condition: str) -> None:
        self._gallery = gallery
        self._condition = both(gallery.alive, condition)
        self._filtered = bool(condition)
        self._count: int | None = None

    def __len__(self) -> int:
        """Return the number of views."""
        if self._count is None:
            asked = self._gallery.place.connection
            self._count = (
                asked.count(self._gallery.collection, self._condition) if self._filtered else len(self._gallery)
            )
        return self._count

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Raise GalleryError."""
        raise GalleryError("an index in Milvus takes no views", "add them to the gallery itself")

    def remove(self, ids: Ids) -> None:
        """Raise GalleryError."""
        raise GalleryError("an index in Milvus loses no views", "remove them from the gallery itself")

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return cosine scores float32 (N, k), best first, equal ones by ascending id, and ids int64 (N, k); -inf and
        -1 beyond the end. ``allowed`` restricts the answer to these ids. Raises ServerError."""
        chosen = None if allowed is None else ascending(allowed)
        best = Best(len(queries), k)
        if not len(queries) or (chosen is not None and not len(chosen)):
            return best.result()
        if k > MOST or (chosen is not None and len(chosen) > ALLOWED):
            return self._compared(queries, k, chosen)
        condition = self._condition if chosen is None else both(self._condition, one_of("view", chosen.tolist()))
        step = max(1, HITS // k)
        parts = [self._asked(queries[i : i + step], k, condition) for i in range(0, len(queries), step)]
        best.add(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        return best.result()

    def _asked(self, queries: Vectors, k: int, condition: str) -> tuple[Vectors, Ids]:
        """Ask the server; score its answers again from their vectors where its index knows them in brief only."""
        gallery = self._gallery
        again = gallery.head.index == "ivf-rabitq"
        fields = [*TOLD, "vector"] if again else list(TOLD)
        settings = effort_of(gallery.head.index, len(gallery), k)
        found = gallery.place.connection.search(gallery.collection, queries, k, condition, fields, settings)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for line, hits in enumerate(found):
            for column, hit in enumerate(hits):
                row = hit["entity"]
                gallery.learn(row)
                ids[line, column] = row["view"]
                score = float(queries[line] @ np.asarray(row["vector"], np.float32)) if again else hit["distance"]
                scores[line, column] = score
        return (scores if again else levelled(scores)), ids

    def _compared(self, queries: Vectors, k: int, chosen: Ids | None) -> tuple[Vectors, Ids]:
        """Compare the queries here with all vectors, which are read block by block."""
        best = Best(len(queries), k)
        for rows in self._gallery.rows(self._condition, ["view", "vector"]):
            ids = np.array([int(row["view"]) for row in rows], np.int64)
            vectors = np.array([row["vector"] for row in rows], np.float32)
            if chosen is not None:
                kept = np.isin(ids, chosen)
                ids, vectors = ids[kept], vectors[kept]
            if len(ids):
                scores, places = nearest_rows(queries, vectors, min(k, len(ids)))
                best.add(scores, np.where(places < 0, -1, ids[places]))
        return best.result()


def levelled(scores: Vectors) -> Vectors:
    """Return ``scores`` float32 (N, K), descending, with runs that rounding alone parts made equal to their first.

    A server may add up the same products in another order, so that equal views differ in the last bit.
    """
    with np.errstate(invalid="ignore"):  # beyond the end: -inf less -inf
        apart = scores[:, :-1] - scores[:, 1:] > ROUNDING
    starts = np.pad(np.where(apart, np.arange(1, scores.shape[1]), 0), ((0, 0), (1, 0)))
    found: Vectors = np.take_along_axis(scores, np.maximum.accumulate(starts, axis=1), axis=1)
    return found
