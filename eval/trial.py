"""A trial: which labelled pictures are reference views and which are queries.

It says what is compared with what. It knows nothing about data sets, encoders or measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from skumatch.dataset import Row
from skumatch.errors import DataError


@dataclass(frozen=True)
class Trial:
    """Reference views (``gallery``) and ``queries`` under a ``name``; ``note``: what a reader of the result must know.

    ``leave_one_out``: queries and gallery are the same rows, and a query's own row never counts as its answer. Raises
    DataError when a side is empty, or when ``leave_one_out`` is set and the sides differ.
    """

    name: str
    gallery: tuple[Row, ...]
    queries: tuple[Row, ...]
    leave_one_out: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        for side, rows in (("gallery", self.gallery), ("queries", self.queries)):
            if not rows:
                raise DataError(f"the trial '{self.name}' has no pictures on the side '{side}'", "check the data set")
        if self.leave_one_out and self.gallery != self.queries:
            raise DataError(
                f"the trial '{self.name}' leaves each query out of a gallery that is not its queries",
                "give the same rows on both sides",
            )
