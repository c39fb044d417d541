"""Titles as weighted terms: words or character n-grams, their cosines, and the nearest titles without all pairs.

Terms are hashed into a fixed number of columns, so no vocabulary is kept. It knows nothing about what the terms mean;
titles come as ``skumatch.catalogue.titles`` normalises them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.catalogue.neighbours import Neighbours, Scores, empty
from skumatch.embed import Progress, no_progress
from skumatch.spec import Ids

Sparse = Any  # scipy.sparse.csr_matrix, float32: scipy has no types
Mask = NDArray[np.bool_]

TEXTS: Final = 16_384  # titles whose terms are counted at a time
ENTRIES: Final = 4_000_000  # of a matrix that are looked at at a time
QUERIES: Final = 4096  # titles asked at a time
TERMS: Final = 4_000_000  # of pairs that are multiplied at a time
COMMON: Final = 20  # budgets: a title whose rarest term is in more titles than that finds nobody
SPARE: Final = 8  # candidates beyond twice those wanted


@dataclass(frozen=True)
class TextKind:
    """What a term is and how it is weighted. ``analyzer``: "word" (between blanks) or "char_wb" (n-grams inside words).

    ``ngrams``: least and greatest n. ``buckets``: columns that terms are hashed into. ``binary``: a term counts once;
    else ``sublinear`` takes 1 + ln(count). Raises ValueError for values out of range.
    """

    name: str
    analyzer: Literal["word", "char_wb"] = "word"
    ngrams: tuple[int, int] = (1, 1)
    buckets: int = 1 << 20
    binary: bool = False
    sublinear: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.ngrams[0] <= self.ngrams[1] or not 1 <= self.buckets < 1 << 31:
            raise ValueError(f"n-grams {self.ngrams} or {self.buckets} buckets are out of range")


WORDS: Final = TextKind("words")
CHARS: Final = TextKind("chars", "char_wb", (3, 4))
PRESENCE: Final = TextKind("idf", binary=True)  # whether a word is there, weighted by how rare it is


@dataclass(frozen=True)
class Tfidf:
    """``matrix``: csr float32 (N, buckets), rows of unit length with sorted columns, empty where a title has no term;
    ``frequencies`` int64 (buckets,): the titles that have each term."""

    kind: TextKind
    matrix: Sparse
    frequencies: Ids

    def __len__(self) -> int:
        return int(self.matrix.shape[0])


def tfidf(texts: Sequence[str], kind: TextKind = WORDS, progress: Progress = no_progress) -> Tfidf:
    """Return N normalised titles as rows of weighted terms.

    Weights are term frequency times ln((1 + N) / (1 + df)) + 1, rows then scaled to unit length: the smooth inverse
    document frequency of scikit-learn (Manning, Raghavan & Schuetze 2008, section 6.2). Memory: the result twice.
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    matrix = csr_matrix((0, kind.buckets), dtype=np.float32)
    blocks = list(_counts(texts, kind, progress))
    if blocks:
        matrix = _stacked(blocks, kind.buckets)
    del blocks
    frequencies = np.zeros(kind.buckets, np.int64)
    for part in _parts(matrix.nnz):
        frequencies += np.bincount(matrix.indices[part], minlength=kind.buckets)
    inverse = (np.log((1 + len(texts)) / (1 + frequencies)) + 1).astype(np.float32)
    for part in _parts(matrix.nnz):
        if kind.sublinear and not kind.binary:
            matrix.data[part] = np.log(matrix.data[part]) + 1
        matrix.data[part] *= inverse[matrix.indices[part]]
    if matrix.shape[0]:
        normalize(matrix, copy=False)
    return Tfidf(kind, matrix, frequencies)


def _counts(texts: Sequence[str], kind: TextKind, progress: Progress) -> Iterator[Sparse]:
    """Yield the counts of the terms of ``texts``, csr float32, some rows at a time."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer=kind.analyzer,
        ngram_range=kind.ngrams,
        n_features=kind.buckets,
        binary=kind.binary,
        token_pattern=r"\S+" if kind.analyzer == "word" else None,
        alternate_sign=False,
        norm=None,
        lowercase=False,
        dtype=np.float32,
        decode_error="replace",
    )
    for start in range(0, len(texts), TEXTS):
        block = texts[start : start + TEXTS]
        yield vectorizer.transform(text.encode("utf-8", "replace").decode() for text in block)
        progress(len(block))


def _stacked(blocks: list[Sparse], buckets: int) -> Sparse:
    """Return the rows of ``blocks``, which are let go on the way, as one matrix, with 32-bit columns if that does."""
    from scipy.sparse import csr_matrix

    rows = sum(block.shape[0] for block in blocks)
    terms = sum(block.nnz for block in blocks)
    kind = np.int32 if terms < 1 << 31 else np.int64
    data, indices = np.empty(terms, np.float32), np.empty(terms, kind)
    ends = np.zeros(rows + 1, kind)
    row = at = 0
    for place, block in enumerate(blocks):
        data[at : at + block.nnz], indices[at : at + block.nnz] = block.data, block.indices
        ends[row + 1 : row + 1 + block.shape[0]] = block.indptr[1:] + kind(at)
        row, at = row + block.shape[0], at + block.nnz
        blocks[place] = None
    return csr_matrix((data, indices, ends), shape=(rows, buckets))


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + ENTRIES) for start in range(0, count, ENTRIES))


def similar(tfidf: Tfidf, left: Ids, right: Ids) -> Scores:
    """Return the cosines of the pairs of places ``left`` and ``right``, float32 (P,) in 0..1; 0 without a term."""
    matrix, found = tfidf.matrix, np.empty(len(left), np.float32)
    ones = np.ones(matrix.shape[1], np.float32)
    terms = max(1.0, matrix.nnz / max(1, matrix.shape[0]))
    size = max(1, int(TERMS / terms))
    for start in range(0, len(left), size):
        part = slice(start, start + size)
        found[part] = matrix[left[part]].multiply(matrix[right[part]]) @ ones
    return np.clip(found, 0, 1, out=found)


def nearest_texts(
    tfidf: Tfidf, k: int, floor: float, budget: int = 4000, threads: int = 1, progress: Progress = no_progress
) -> Neighbours:
    """Return the ``k`` most similar other titles of each, of cosine ``floor`` (above 0) or more.

    A title is compared with those that share one of its rarest terms: as many terms as are in ``budget`` titles
    together, at least one, unless that is in more than 20 budgets. The best 2 k + 8 by those terms are ranked by all
    terms. So the work per title is bounded; where the budget covers all terms the answer is exact. Ties: the smaller
    place first, but for those at the end of the candidates. ``progress`` is told of titles that have a term.
    """
    matrix = tfidf.matrix
    found = Neighbours(*empty(len(tfidf), k))
    asking, whole = _rarest(tfidf, budget)
    asked = _inverted(matrix, asking)
    for start in range(0, len(tfidf), QUERIES):
        block = asking[start : start + QUERIES]
        row, other, score = _candidates(block, asked, 2 * k + SPARE, threads, start)
        cut = ~whole[row]
        score[cut] = similar(tfidf, row[cut], other[cut])
        good = (score >= floor) & (score > 0)
        found.fill(row[good], other[good], score[good])
        progress(int((np.diff(matrix.indptr[start : start + QUERIES + 1]) > 0).sum()))
    return found


def _rarest(tfidf: Tfidf, budget: int) -> tuple[Sparse, Mask]:
    """Return the matrix with the terms to ask by alone, and which rows are whole: all lacks but terms of one title."""
    from scipy.sparse import csr_matrix

    matrix = tfidf.matrix
    whole = np.ones(len(tfidf), np.bool_)
    data, columns, lengths = [matrix.data[:0]], [matrix.indices[:0]], [np.zeros(1, np.int64)]
    for rows in _row_blocks(matrix.indptr):
        first, last = matrix.indptr[rows.start], matrix.indptr[rows.stop]
        row = np.repeat(np.arange(rows.stop - rows.start), np.diff(matrix.indptr[rows.start : rows.stop + 1]))
        frequency = tfidf.frequencies[matrix.indices[first:last]]
        shared = frequency > 1  # one that no other title has finds nobody
        kept = np.zeros(last - first, np.bool_)
        kept[shared] = _within(row[shared], frequency[shared], budget)
        data.append(matrix.data[first:last][kept])
        columns.append(matrix.indices[first:last][kept])
        lengths.append(np.bincount(row[kept], minlength=rows.stop - rows.start))
        whole[rows.start + np.unique(row[shared & ~kept])] = False
    ends = np.cumsum(np.concatenate(lengths)).astype(matrix.indptr.dtype)
    chosen = csr_matrix((np.concatenate(data), np.concatenate(columns), ends), shape=matrix.shape)
    return chosen, whole


def _row_blocks(ends: NDArray[np.signedinteger[Any]]) -> Iterator[slice]:
    """Yield rows of a matrix, as many at a time as have the entries to look at, at least one."""
    start = 0
    while start < len(ends) - 1:
        stop = int(np.searchsorted(ends, ends[start] + ENTRIES, side="right")) - 1
        stop = max(start + 1, stop)
        yield slice(start, stop)
        start = stop


def _within(row: Ids, frequency: Ids, budget: int) -> Mask:
    """Return which entries are the rarest of their row, up to ``budget`` titles together, or its only ones."""
    order = np.lexsort((frequency, row))
    ranked, titles = row[order], frequency[order]
    sums = np.cumsum(titles)
    first = np.searchsorted(ranked, ranked)
    spent = sums - (sums[first] - titles[first])
    rarest = first == np.arange(len(order))
    kept = np.empty(len(order), np.bool_)
    kept[order] = (spent <= budget) | (rarest & (titles <= COMMON * budget))
    return kept


def _inverted(matrix: Sparse, asking: Sparse) -> Sparse:
    """Return the titles by term, csr (buckets, N), of the terms that anyone asks by."""
    from scipy.sparse import csr_matrix

    used = np.zeros(matrix.shape[1], np.bool_)
    used[asking.indices] = True
    kept = used[matrix.indices]
    if not kept.all():
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[matrix.indptr].astype(matrix.indptr.dtype)
        matrix = csr_matrix((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)
    return matrix.T.tocsr()


def _candidates(block: Sparse, asked: Sparse, most: int, threads: int, start: int) -> tuple[Ids, Ids, Scores]:
    """Return rows (from ``start`` on), other titles and products, of the ``most`` best of each row of ``block``."""
    from sparse_dot_topn import sp_matmul_topn

    if not (block.nnz and asked.nnz):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    found = sp_matmul_topn(block, asked, most + 1, sort=True, n_threads=threads if threads > 1 else None)
    row = np.repeat(np.arange(start, start + found.shape[0]), np.diff(found.indptr))
    other = found.indices.astype(np.int64)
    apart = row != other
    return row[apart], other[apart], np.minimum(found.data[apart], 1)


def inverse_frequency(texts: Sequence[str]) -> dict[str, float]:
    """Return, per word of N normalised titles, ln((1 + N) / (1 + df)) + 1, as ``tfidf`` weights it."""
    having: Counter[str] = Counter()
    for text in texts:
        having.update(set(text.split()))
    return {word: log((1 + len(texts)) / (1 + df)) + 1 for word, df in having.items()}
