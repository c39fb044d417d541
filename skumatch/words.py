"""Numbers with their nouns, for what people read."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return "1 view", "2 views", "1 query", "2,000 queries"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def were(number: int) -> str:
    """Return "was" for 1, else "were"."""
    return "was" if number == 1 else "were"
