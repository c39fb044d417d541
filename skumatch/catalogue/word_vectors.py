"""Titles as averaged word vectors, out of a file of vectors that the user supplies (GloVe's or word2vec's text format).

It knows nothing about where such files come from; titles come as ``skumatch.catalogue.titles`` normalises them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import DataError
from skumatch.readers_common import shown
from skumatch.spec import Vectors

TEXTS: Final = 65_536  # titles averaged at a time
LAYOUT: Final = "give one word and its numbers per line, separated by blanks, as GloVe has it"

Row = NDArray[np.float32]


@dataclass(frozen=True)
class WordVectors:
    """``rows`` float32 (W, D), not of unit length; ``places``: the row of each word. Raises ValueError where they do
    not fit each other."""

    places: Mapping[str, int]
    rows: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or len(self.rows) != len(self.places):
            raise ValueError(f"{len(self.places)} words but rows {self.rows.shape}")

    @property
    def dim(self) -> int:
        """D."""
        return int(self.rows.shape[1])


def read_glove(path: Path, vocabulary: Collection[str]) -> WordVectors:
    """Read the vectors of the words of ``vocabulary`` from a text file, or from one packed by gzip (``.gz``).

    One word per line with its numbers (Pennington et al. 2014); word2vec's first line of two counts is passed over. Of
    a word that comes twice the first counts. The file is streamed; only words of the vocabulary are read as numbers,
    and titles are in lower case. Raises DataError for a file that cannot be read, a line of another length, one that
    holds no finite numbers, or no word in common.
    """
    wanted = frozenset(vocabulary)
    places: dict[str, int] = {}
    rows: list[Row] = []
    dim = 0
    for number, line in _lines(path):
        parts = line.split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
            continue
        dim = dim or len(parts) - 1
        if len(parts) != dim + 1 or not dim:
            _check_blanks(path, number, parts, dim)
        elif parts[0] in wanted and parts[0] not in places:
            places[parts[0]] = len(rows)
            rows.append(_row(path, number, parts[1:]))
    if not rows:
        raise DataError(
            f"{shown(path)} has no word of the titles", "give vectors of the titles' language, in lower case"
        )
    return WordVectors(places, np.stack(rows))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of those that are not empty."""
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                if text := line.rstrip():
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {shown(path)}: {why}", "check the path, or fetch the file again") from error


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="\n")
    return path.open(encoding="utf-8", errors="replace", newline="\n")  # some words hold other line separators


def _check_blanks(path: Path, number: int, parts: list[str], dim: int) -> None:
    """Raise DataError unless the line is of a word with blanks in it (". . ." in GloVe of Common Crawl)."""
    extra = len(parts) - 1 - dim
    if dim < 1 or extra < 1 or _is_number(parts[extra]):
        raise DataError(f"{shown(path)}, line {number}, has {len(parts) - 1} numbers, not {dim or 'some'}", LAYOUT)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return any(map(str.isdigit, text))


def _row(path: Path, number: int, cells: Sequence[str]) -> Row:
    try:
        row = np.array(cells, np.float64).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{shown(path)}, line {number}, holds more than numbers behind its word", LAYOUT) from error
    if not np.isfinite(row).all():
        raise DataError(f"{shown(path)}, line {number}, holds a number that is not finite", LAYOUT)
    return row


def averaged(texts: Sequence[str], vectors: WordVectors, idf: Mapping[str, float] | None = None) -> Vectors:
    """Return the mean of the word vectors of each title, float32 (N, D) of unit length; zeros where none is known.

    ``idf``: weights of words, such as ``tfidf.inverse_frequency`` gives; None: all alike. A word that comes twice
    counts twice (Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings", has such means).
    """
    found = np.empty((len(texts), vectors.dim), np.float32)
    for start in range(0, len(texts), TEXTS):
        block = texts[start : start + TEXTS]
        found[start : start + len(block)] = _sums(block, vectors, idf)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(norms > 0, norms, 1)
    return found


def _sums(texts: Sequence[str], vectors: WordVectors, idf: Mapping[str, float] | None) -> NDArray[np.float32]:
    """Return the weighted sums of the word vectors, float32 (M, D); after scaling they are as good as means."""
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    weights: list[float] = []
    ends = [0]
    for text in texts:
        known = [word for word in text.split() if word in vectors.places]
        columns += [vectors.places[word] for word in known]
        weights += [1.0 if idf is None else idf.get(word, 1.0) for word in known]
        ends.append(len(columns))
    shape = (len(texts), len(vectors.rows))
    matrix = csr_matrix((np.array(weights, np.float32), np.array(columns, np.int64), np.array(ends)), shape=shape)
    sums: NDArray[np.float32] = (matrix @ vectors.rows).astype(np.float32)
    return sums
