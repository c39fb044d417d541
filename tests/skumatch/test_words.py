"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from skumatch.words import counted, were


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (0, "view", "0 views were"),
        (1, "view", "1 view was"),
        (2, "SKU", "2 SKUs were"),
        (1, "query", "1 query was"),
        (2000, "query", "2,000 queries were"),
    ],
)
def test_the_plural_is_used_where_it_is_not_one(number: int, noun: str, expected: str) -> None:
    assert f"{counted(number, noun)} {were(number)}" == expected
