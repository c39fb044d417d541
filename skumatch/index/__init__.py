"""The seam for nearest-neighbour search over reference views: cosine, larger is better."""

from __future__ import annotations

from typing import Protocol

from skumatch.spec import Ids, Vectors


class Index(Protocol):
    """Holds unit vectors under int64 ids and answers the nearest ones."""

    def __len__(self) -> int:
        """Return the number of vectors."""
        ...

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 (N, D) unit rows under (N,) new ids."""
        ...

    def remove(self, ids: Ids) -> None:
        """Forget the vectors of ``ids``; ids that are not there are ignored."""
        ...

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Return cosine scores float32 (N, k), best first, and ids int64 (N, k); id -1 where there are no more.

        ``allowed`` restricts the answer to these ids.
        """
        ...
