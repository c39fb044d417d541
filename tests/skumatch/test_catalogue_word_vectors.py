"""Averaged word vectors: reading GloVe's and word2vec's text, what is refused, and the means themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from skumatch.catalogue.word_vectors import WordVectors, averaged, read_glove
from skumatch.errors import DataError

LINES = "the 1 0 0\nsusu 0 2 0\nkopi 0 0 -3.5e0\nteh 1 1 0\n"


def written(folder: Path, text: str, name: str = "glove.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_words_of_the_titles_are_kept(tmp_path: Path) -> None:
    found = read_glove(written(tmp_path, LINES), {"kopi", "susu", "unheard"})
    assert set(found.places) == {"kopi", "susu"} and found.dim == 3 and found.rows.dtype == np.float32
    assert found.rows[found.places["kopi"]].tolist() == [0, 0, -3.5]


def test_packed_and_headed_files_read_alike(tmp_path: Path) -> None:
    packed = tmp_path / "glove.txt.gz"
    packed.write_bytes(gzip.compress(LINES.encode()))
    headed = written(tmp_path, "4 3\n" + LINES.replace("\n", " \r\n"), "w2v.txt")
    for path in (packed, headed):
        found = read_glove(path, ["susu", "teh"])
        assert np.array_equal(found.rows, [[0, 2, 0], [1, 1, 0]])


def test_words_with_blanks_or_odd_separators_are_passed_over(tmp_path: Path) -> None:
    text = LINES + ". . . 0 0 1\nat me@x.com 0 0 1\n\u2028 0 1 0\n\x85 0 1 0\nsusu 9 9 9\n\n"
    found = read_glove(written(tmp_path, text), ["susu", "."])
    assert found.rows.tolist() == [[0, 2, 0]]  # of a word that comes twice the first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("susu 1 2\nkopi 1\n", r"glove.txt, line 2, has 1 numbers, not 2"),
        ("susu 1 2\nkopi 1 2 3\n", r"line 2, has 3 numbers, not 2"),
        ("kopi 1 2\nsusu 1 two\n", r"line 2, holds more than numbers"),
        ("susu 1 nan\n", r"line 1, holds a number that is not finite"),
        ("susu\n", r"line 1, has 0 numbers"),
        ("teh 1 2\n", "no word of the titles"),
        ("", "no word of the titles"),
        ("1 300\n", "no word of the titles"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_glove(written(tmp_path, text), ["susu"])


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_glove(tmp_path / "none.txt", ["susu"])
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(LINES.encode() * 50)[:-20])
    other = tmp_path / "other.gz"
    other.write_bytes(b"susu 1 2")
    for path in (cut, other):
        with pytest.raises(DataError, match="cannot read"):
            read_glove(path, ["susu"])


def test_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skumatch.catalogue.word_vectors.TEXTS", 3)
    rng = np.random.default_rng(5)
    words = [f"w{n}" for n in range(30)]
    vectors = WordVectors({word: n for n, word in enumerate(words)}, rng.normal(size=(30, 8)).astype(np.float32))
    texts = [" ".join(rng.choice([*words, "unknown"], rng.integers(0, 7))) for _ in range(50)] + ["", "unknown"]
    idf = {word: float(rng.uniform(1, 5)) for word in words}
    for weights in (None, idf):
        found = averaged(texts, vectors, weights)
        assert found.dtype == np.float32 and found.shape == (52, 8) and not found[-2:].any()
        for row, text in zip(found, texts, strict=True):
            known = [word for word in text.split() if word in vectors.places]
            mean = sum(((weights or {}).get(w, 1.0) * vectors.rows[vectors.places[w]] for w in known), np.zeros(8))
            assert np.allclose(row, mean / (np.linalg.norm(mean) or 1), atol=1e-6)
    assert averaged([], vectors).shape == (0, 8)


def test_vectors_and_words_must_fit() -> None:
    with pytest.raises(ValueError, match="2 words"):
        WordVectors({"a": 0, "b": 1}, np.zeros((3, 2), np.float32))
