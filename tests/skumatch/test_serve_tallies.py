"""Counts day by day: written, kept, and what is made of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from skumatch.serve.reviews import DAY, Reviews
from skumatch.serve.settings import Settings
from skumatch.serve.tallies import Day, Share, Tallies, accuracy, agreement, bucket_of, drift, quantile
from tests.skumatch.serving import Clock

START = 1_772_366_400.0  # 2026-03-01 12:00 UTC


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def reviews(tmp_path: Path, clock: Clock) -> Iterator[Reviews]:
    found = Reviews(tmp_path / "reviews.db", Settings(), clock)
    yield found
    found.close()


def test_counts_are_kept_by_day_and_added_up(reviews: Reviews, clock: Clock) -> None:
    tallies = Tallies(reviews.database, clock)
    tallies.add("m", [("accept", 0.9), ("unknown", 0.1)])
    tallies.write()
    tallies.add("m", [("accept", 0.905)])
    clock.now += DAY
    tallies.add("m", [("review", 0.5)])
    again = Tallies(reviews.database, clock)
    tallies.write()
    first, second = again.days(2)
    assert (first.day, dict(first.decisions), first.answered) == ("2026-03-01", {"accept": 2, "unknown": 1}, 3)
    assert first.scores == {bucket_of(0.9): 2, bucket_of(0.1): 1} and second.decisions == {"review": 1}
    clock.now += 500 * DAY
    again.add("m", [("accept", 0.0)])
    assert sum(day.answered for day in again.days(400)) == 1


def test_verdicts_count_for_the_day_on_which_the_crop_came(reviews: Reviews, clock: Clock) -> None:
    facts = {"candidates": [{"sku": "a"}], "model": "m"}
    made = [str(reviews.keep(bytes([number]), "review", facts)) for number in range(3)]
    clock.now += DAY
    reviews.verdict(made[0], "accept", "", "eva")
    reviews.verdict(made[1], "correct", "b", "eva")
    reviews.verdict(made[2], "reject", "", "eva")
    reviews.reopen(made[2])
    first, second = Tallies(reviews.database, clock).days(2)
    assert {what: count for what, count in first.verdicts.items() if count} == {
        ("review", "accept"): 1,
        ("review", "correct"): 1,
    }
    assert not second.verdicts


def test_intervals_hold_what_they_promise() -> None:
    assert Share(0, 0).value is None and Share(0, 0).interval() == (0.0, 1.0)
    low, high = Share(81, 263).interval()  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    rng = random.Random(0)
    held = 0
    for _ in range(400):
        low, high = Share(sum(rng.random() < 0.9 for _ in range(60)), 60).interval()
        held += low <= 0.9 <= high
    assert held > 0.92 * 400


def test_the_accuracy_is_that_of_all_answers_not_of_those_that_were_judged() -> None:
    """Many doubtful crops are judged and few accepted ones; the plain share would be far too low."""
    rng = np.random.default_rng(0)
    right = {"accept": 0.98, "review": 0.6, "unknown": 0.1}
    answers = {"accept": 9000, "review": 700, "unknown": 300}
    judged = {"accept": 150, "review": 300, "unknown": 100}
    truth = sum(right[name] * count for name, count in answers.items()) / sum(answers.values())
    inside = []
    for _ in range(300):
        said: Counter[tuple[str, str]] = Counter()
        for name, count in judged.items():
            hits = int(rng.binomial(count, right[name]))
            said[name, "accept"], said[name, "correct"] = hits, count - hits
        found = accuracy([Day("", answers, {}, said)])
        assert found is not None
        inside.append(found[1] <= truth <= found[2])
        assert abs(found[0] - truth) < 0.05
    assert np.mean(inside) > 0.92


def test_no_accuracy_without_verdicts_on_each_kind_of_answer() -> None:
    day = Day("", {"accept": 5, "review": 5}, {}, {("review", "accept"): 1})
    assert accuracy([day]) is None and accuracy([]) is None
    assert agreement([day])["review"].value == 1.0 and agreement([day])["accept"].value is None


def test_scores_that_move_are_seen() -> None:
    rng = np.random.default_rng(0)

    def scores(mean: float, count: int = 2000) -> Counter[int]:
        return Counter(bucket_of(float(score)) for score in rng.normal(mean, 0.1, count))

    before = scores(0.7)
    still, moved = drift(before, scores(0.7)), drift(before, scores(0.55))
    assert still is not None and moved is not None and still < 0.05 and moved > 0.25
    assert drift({}, before) is None and drift(before, {}) is None
    middle = quantile(before, 0.5)
    assert middle is not None and abs(middle - 0.7) < 0.02 and quantile({}, 0.5) is None
    assert [bucket_of(score) for score in (-1.0, -2.0, 1.0, 2.0)] == [0, 0, 99, 99]
