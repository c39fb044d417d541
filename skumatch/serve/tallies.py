"""What was answered and what people said of it, day by day: counts for the figures over time.

Counts of answers are gathered in memory and written every few seconds: a kill loses those of the last ones. Counts of
verdicts are written with the verdicts.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from skumatch.errors import SkumatchError
from skumatch.serve.review_tables import Database, add, answered, judged
from skumatch.serve.reviews import DAY, day_of

BUCKETS = 100  # of scores from -1 to 1
KEPT = 400  # days
Decision = Literal["accept", "review", "unknown"]
DECISIONS: tuple[Decision, ...] = ("accept", "review", "unknown")
Key = tuple[str, str, str, int]  # day, digest of the model, decision, bucket of the best score


@dataclass(frozen=True)
class Share:
    """A share of ``count`` with its 95 % interval (Wilson 1927)."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """Return the share, None of nothing."""
        return self.hits / self.count if self.count else None

    def interval(self) -> tuple[float, float]:
        """Return the interval; 0 to 1 of nothing."""
        n, z = self.count, 1.959964
        if n == 0:
            return 0.0, 1.0
        p = self.hits / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Day:
    """One UTC day. ``scores``: how many best scores fell into each of ``BUCKETS`` equal parts of -1 to 1.
    ``verdicts``: (decision, verdict) -> how often, of the crops that came on this day."""

    day: str
    decisions: Mapping[str, int]
    scores: Mapping[int, int]
    verdicts: Mapping[tuple[str, str], int]

    @property
    def answered(self) -> int:
        """How many crops were answered."""
        return sum(self.decisions.values())


class Tallies:
    """The counts in ``database``; any number of threads may add."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now
        self._lock = threading.Lock()
        self._held: Counter[Key] = Counter()

    def add(self, model: str, answers: Iterable[tuple[str, float]]) -> None:
        """Count answers: (decision, best score) of each crop."""
        day = day_of(self._now())
        with self._lock:
            self._held.update((day, model, decision, bucket_of(score)) for decision, score in answers)

    def write(self) -> None:
        """Write what was counted, and forget days that are too old. Raises as ``Database``: it is kept for the next."""
        with self._lock:
            held, self._held = self._held, Counter()
        if not held:
            return
        names = ("day", "model", "decision", "bucket", "count")
        rows = [dict(zip(names, (*key, count), strict=True)) for key, count in held.items()]
        oldest = day_of(self._now() - KEPT * DAY)
        try:
            with self.database.writing() as connection:
                add(connection, answered, rows)
                for table in (answered, judged):
                    connection.execute(sa.delete(table).where(table.c.day < oldest))
        except SkumatchError:
            with self._lock:
                self._held.update(held)
            raise

    def days(self, count: int) -> list[Day]:
        """Return the last ``count`` days, today last; those of which nothing is known are there with nothing."""
        self.write()
        names = [day_of(self._now() - back * DAY) for back in reversed(range(count))]
        with self.database.reading() as connection:
            told = connection.execute(sa.select(answered).where(answered.c.day >= names[0])).mappings().all()
            said = connection.execute(sa.select(judged).where(judged.c.day >= names[0])).mappings().all()
        decisions = {name: Counter[str]() for name in names}
        scores = {name: Counter[int]() for name in names}
        verdicts = {name: Counter[tuple[str, str]]() for name in names}
        for row in told:
            if row["day"] in decisions:  # a clock that went back wrote days to come
                decisions[row["day"]][row["decision"]] += row["count"]
                scores[row["day"]][row["bucket"]] += row["count"]
        for row in said:
            if row["day"] in verdicts:
                verdicts[row["day"]][row["decision"], row["verdict"]] += row["count"]
        return [Day(name, decisions[name], scores[name], verdicts[name]) for name in names]


def bucket_of(score: float) -> int:
    """Return the part of -1 to 1 that a score falls into."""
    return min(BUCKETS - 1, max(0, int((score + 1) / 2 * BUCKETS)))


def quantile(scores: Mapping[int, int], share: float) -> float | None:
    """Return the score below which ``share`` of all are, to half a bucket; None of nothing."""
    left = share * sum(scores.values())
    if not scores:
        return None
    for bucket in sorted(scores):
        left -= scores[bucket]
        if left <= 0:
            break
    return (bucket + 0.5) / BUCKETS * 2 - 1


def drift(before: Mapping[int, int], after: Mapping[int, int]) -> float | None:
    """Return the population stability index of two sets of scores, in ten parts of equal count of ``before``; None
    where one is empty. Under 0.1 is little, over 0.25 much (Siddiqi 2006, Credit Risk Scorecards)."""
    if not before or not after:
        return None
    edges = [quantile(before, part / 10) for part in range(1, 10)]

    def shares(scores: Mapping[int, int]) -> list[float]:
        parts = [0.5] * 10  # of nothing there is no logarithm
        for bucket, count in scores.items():
            at = (bucket + 0.5) / BUCKETS * 2 - 1
            parts[sum(edge is not None and at > edge for edge in edges)] += count
        return [part / sum(parts) for part in parts]

    return sum((b - a) * math.log(b / a) for a, b in zip(shares(before), shares(after), strict=True))


def agreement(days: Iterable[Day]) -> dict[Decision, Share]:
    """Return, for each decision, how often the best candidate was right among the crops that were judged."""
    found: dict[Decision, Share] = {}
    said: Counter[tuple[str, str]] = Counter()
    for day in days:
        said.update(day.verdicts)
    for decision in DECISIONS:
        count = sum(number for (of, _), number in said.items() if of == decision)
        found[decision] = Share(said[decision, "accept"], count)
    return found


def accuracy(days: list[Day]) -> tuple[float, float, float] | None:
    """Return the share of answered crops whose best candidate was right, and its 95 % interval: the shares among those
    that were judged, weighted by how many answers each decision had. None where a decision had answers and no verdicts.

    Stratified estimate (Cochran 1977, Sampling Techniques, 5.3), with the shares of Agresti and Coull (1998) in its
    variance, so that it is not 0 where few were judged.
    """
    counts: Counter[str] = Counter()
    for day in days:
        counts.update(day.decisions)
    total = sum(counts.values())
    value = variance = 0.0
    for decision, share in agreement(days).items():
        weight = counts[decision] / total if total else 0.0
        if not weight:
            continue
        if share.value is None:
            return None
        near = (share.hits + 2) / (share.count + 4)
        value += weight * share.value
        variance += weight**2 * near * (1 - near) / (share.count + 4)
    if not total:
        return None
    half = 1.959964 * math.sqrt(variance)
    return value, max(0.0, value - half), min(1.0, value + half)
