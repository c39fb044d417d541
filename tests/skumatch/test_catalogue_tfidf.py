"""Weighted terms against scikit-learn's own, cosines and neighbours against the dense product of everything."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer

from skumatch.catalogue import tfidf as module
from skumatch.catalogue.neighbours import Neighbours
from skumatch.catalogue.tfidf import (
    CHARS,
    PRESENCE,
    WORDS,
    TextKind,
    Tfidf,
    inverse_frequency,
    nearest_texts,
    similar,
    tfidf,
)

KINDS = (WORDS, CHARS, PRESENCE)


def titles(count: int, seed: int = 0, words: int = 120) -> list[str]:
    """Make up titles of Zipf-like words, a third of them another's with words dropped; some empty."""
    rng = np.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("abdegiklmnorstu"), rng.integers(2, 8))) for _ in range(words)]
    chances = 1 / np.arange(1, words + 1)
    found: list[str] = []
    for place in range(count):
        chosen = list(rng.choice(vocabulary, rng.integers(1, 9), p=chances / chances.sum()))
        if place % 3 == 2:
            chosen = [word for word in found[place - 1].split() if rng.random() < 0.8]
        found.append("" if place % 17 == 5 else " ".join(chosen))
    return found


def dense(made: Tfidf) -> NDArray[np.float64]:
    rows = made.matrix.astype(np.float64)
    product: NDArray[np.float64] = (rows @ rows.T).toarray()
    np.fill_diagonal(product, -1)
    return product


def check(found: Neighbours, product: NDArray[np.float64], k: int, floor: float) -> None:
    """Compare with the best of every row of the whole ``product``; of equal scores any may come."""
    for row, (places, scores) in enumerate(zip(found.places, found.scores, strict=True)):
        best = np.sort(product[row][product[row] >= floor])[::-1][:k]
        there = places >= 0
        assert there.sum() == len(best), row
        assert np.allclose(scores[there], best, atol=1e-5) and not scores[~there].any()
        assert np.allclose(product[row, places[there]], scores[there], atol=1e-5)
        assert row not in places and len(set(places[there].tolist())) == there.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_scikit_learn(kind: TextKind) -> None:
    texts = titles(200)
    counts = CountVectorizer(
        analyzer=kind.analyzer,
        ngram_range=kind.ngrams,
        binary=kind.binary,
        token_pattern=r"\S+" if kind.analyzer == "word" else None,
        lowercase=False,
    ).fit_transform(texts)
    expected = TfidfTransformer(sublinear_tf=not kind.binary).fit_transform(counts)
    made = tfidf(texts, kind)
    assert np.allclose(dense(made), _without_own((expected @ expected.T).toarray()), atol=1e-5)
    assert made.matrix.dtype == np.float32 and made.matrix.indices.dtype == np.int32
    assert sorted(made.frequencies[made.frequencies > 0]) == sorted(np.diff(counts.tocsc().indptr))


def _without_own(product: NDArray[np.float64]) -> NDArray[np.float64]:
    np.fill_diagonal(product, -1)
    return product


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = titles(300)
    whole, near = tfidf(texts), nearest_texts(tfidf(texts), 5, 0.1, budget=40)
    for name, size in {"TEXTS": 7, "ENTRIES": 50, "QUERIES": 11, "TERMS": 60}.items():
        monkeypatch.setattr(module, name, size)
    parts = tfidf(texts)
    assert (whole.matrix != parts.matrix).nnz == 0 and np.array_equal(whole.frequencies, parts.frequencies)
    again = nearest_texts(parts, 5, 0.1, budget=40)
    assert np.array_equal(near.places, again.places) and np.array_equal(near.scores, again.scores)


def test_rows_are_of_unit_length_or_empty() -> None:
    texts = [*titles(40), "", "   "]
    norms = np.sqrt(tfidf(texts).matrix.multiply(tfidf(texts).matrix).sum(1)).A1
    assert np.allclose(norms[[bool(text.strip()) for text in texts]], 1, atol=1e-6) and not norms[-2:].any()


def test_cosines_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TERMS", 200)
    made = tfidf(titles(150), CHARS)
    left, right = np.random.default_rng(1).integers(0, 150, (2, 4000))
    apart = left != right
    found = similar(made, left, right)
    assert found.dtype == np.float32 and np.allclose(found[apart], dense(made)[left, right][apart], atol=1e-5)
    assert len(similar(made, left[:0], right[:0])) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_are_exact_where_the_budget_covers_all(kind: TextKind, threads: int) -> None:
    made = tfidf(titles(400), kind)
    check(nearest_texts(made, 10, 0.2, budget=10**9, threads=threads), dense(made), 10, 0.2)


def test_a_small_budget_bounds_the_work_and_scores_are_still_whole() -> None:
    made = tfidf(titles(3000, words=3000))
    budget = 30
    asking, whole = module._rarest(made, budget)
    spent = asking.copy()
    spent.data = made.frequencies[asking.indices].astype(np.float32)
    terms, work = np.diff(asking.indptr), spent.sum(axis=1).A1
    assert (work[terms > 1] <= budget).all() and (work[terms == 1] <= 20 * budget).all() and not whole.all()
    product = dense(made)
    found = nearest_texts(made, 3, 0.1, budget=budget)
    rows, columns = np.nonzero(found.places >= 0)
    assert np.allclose(found.scores[rows, columns], product[rows, found.places[rows, columns]], atol=1e-5)
    strong = product.max(axis=1) > 0.7
    assert (found.scores[strong, 0] >= product.max(axis=1)[strong] - 1e-5).mean() > 0.9


def test_a_term_that_is_everywhere_finds_nobody_and_the_rarest_are_kept() -> None:
    texts = ["gratis " + ("susu" if place < 2 else f"x{place}") for place in range(200)]
    found = nearest_texts(tfidf(texts), 5, 0.01, budget=5)
    assert found.places[0, 0] == 1 and found.places[1, 0] == 0 and (found.places[2:] == -1).all()


def test_small_and_empty_catalogues() -> None:
    for texts in ([], [""], ["susu"], ["", ""], ["susu", "teh"]):
        found = nearest_texts(tfidf(texts), 3, 0.1)
        assert found.places.shape == (len(texts), 3) and (found.places == -1).all()
    assert nearest_texts(tfidf(["susu", "susu"]), 3, 0.1).places[:, 0].tolist() == [1, 0]


def test_progress_counts_titles() -> None:
    weighed: list[int] = []
    asked: list[int] = []
    texts = titles(100)
    nearest_texts(tfidf(texts, WORDS, weighed.append), 3, 0.1, progress=asked.append)
    assert sum(weighed) == 100 and sum(asked) == sum(map(bool, texts))


def test_presence_ignores_repetition() -> None:
    made = tfidf(["susu susu susu teh", "susu teh", "kopi"], PRESENCE)
    assert similar(made, np.array([0]), np.array([1]))[0] == pytest.approx(1, abs=1e-6)
    counted = similar(tfidf(["susu susu susu teh", "susu teh", "kopi"]), np.array([0]), np.array([1]))
    assert counted[0] < 0.99


def test_inverse_frequency() -> None:
    texts = titles(80)
    found = inverse_frequency(texts)
    vectorizer = TfidfVectorizer(token_pattern=r"\S+", lowercase=False).fit(texts)
    expected = dict(zip(vectorizer.get_feature_names_out(), vectorizer.idf_, strict=True))
    assert found == pytest.approx(expected) and inverse_frequency([]) == {}
    assert inverse_frequency(["a", "a b"])["b"] == pytest.approx(log(3 / 2) + 1)


def test_lone_surrogates_and_bad_kinds() -> None:
    assert tfidf(["\ud800 susu"]).matrix.nnz == 2
    with pytest.raises(ValueError, match="out of range"):
        TextKind("odd", ngrams=(3, 2))
