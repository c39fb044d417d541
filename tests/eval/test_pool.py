"""Vectors that are kept: what is embedded again and what is not, counted by the encoder's pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, DataError
from skumatch.eval import pool as pools
from skumatch.eval.pool import Pool, asked_pool, embed_pool, missing
from skumatch.readers import open_dataset
from skumatch.spec import Pixels, Vectors
from skumatch.testviews import with_views

PIPELINE = Pipeline(batch=2, workers=2)


class Counting:
    """An encoder that counts its pictures and gives up after ``most``."""

    def __init__(self, real: Encoder, most: int = 10_000) -> None:
        self.spec = real.spec
        self.real = real
        self.most = most
        self.count = 0

    def encode(self, pixels: Pixels) -> Vectors:
        self.count += len(pixels)
        if self.count > self.most:
            raise KeyboardInterrupt
        return self.real.encode(pixels)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHUNK", 4)


@pytest.fixture
def rows(store: Path) -> tuple[Row, ...]:
    """Return 36 rows: nine chunks."""
    return open_dataset(store).rows


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "out" / "vectors"


def embedded(rows: tuple[Row, ...], encoder: Encoder, kept: Path | None) -> tuple[Pool, int]:
    """Return the pool and how many pictures were encoded for it."""
    counting = Counting(encoder)
    return embed_pool(rows, counting, PIPELINE, kept), counting.count


def same(one: Pool, other: Pool, rows: tuple[Row, ...]) -> bool:
    views = one.views(rows), other.views(rows)
    return views[0].rows == views[1].rows and bool(np.allclose(views[0].vectors, views[1].vectors, atol=1e-6))


def files(kept: Path) -> list[Path]:
    return sorted(kept.rglob("*.safetensors"))


def test_a_second_run_embeds_nothing_and_has_the_same_vectors(
    rows: tuple[Row, ...], encoder: Encoder, kept: Path
) -> None:
    nowhere, count = embedded(rows, encoder, None)
    assert count == 36
    first, count = embedded(rows, encoder, kept)
    assert count == 36 and len(files(kept)) == 9
    again, count = embedded(rows, encoder, kept)
    assert count == 0 and len(files(kept)) == 9
    assert same(nowhere, first, rows) and same(first, again, rows)
    assert np.array_equal(first.views(rows).vectors, again.views(rows).vectors)


def test_each_picture_is_embedded_once_and_rows_keep_their_order(rows: tuple[Row, ...], encoder: Encoder) -> None:
    asked = (*rows[5:0:-1], *rows[3:8])
    pool, count = embedded(asked, encoder, None)
    assert count == 7
    views = pool.views(asked)
    assert views.rows == asked
    assert np.array_equal(views.vectors[2], views.vectors[5]) and not np.array_equal(views.vectors[0], views.vectors[5])
    assert pool.views(rows).rows == rows[1:8]


def test_other_pictures_take_what_is_there(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    """A run on a part of the data, then on all of it, then on the part: each picture is embedded once."""
    part = rows[3:30:2]
    assert missing(part, encoder, kept) == 14
    assert embedded(part, encoder, kept)[1] == 14
    assert missing(rows, encoder, kept) == 22
    everything, count = embedded(rows, encoder, kept)
    assert count == 22 and missing(rows, encoder, kept) == 0
    assert same(everything, embedded(rows, encoder, None)[0], rows)
    assert embedded(part, encoder, kept)[1] == embedded(rows[::-1], encoder, kept)[1] == 0


def test_a_changed_picture_is_embedded_again(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    before, _ = embedded(rows, encoder, kept)
    rows[7].path.write_bytes(rows[20].path.read_bytes())
    facts = rows[9].path.stat()
    os.utime(rows[9].path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert missing(rows, encoder, kept) == 2
    after, count = embedded(rows, encoder, kept)
    assert count == 2 and same(after, embedded(rows, encoder, None)[0], rows)
    assert np.allclose(after.views(rows[7:8]).vectors, before.views(rows[20:21]).vectors)
    assert embedded(rows, encoder, kept)[1] == 0


def test_an_interrupted_run_goes_on(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed_pool(rows, Counting(encoder, most=22), PIPELINE, kept)
    assert len(files(kept)) == 5 and missing(rows, encoder, kept) == 16
    done: list[int] = []
    counting = Counting(encoder)
    pool = embed_pool(rows, counting, PIPELINE, kept, done.append)
    assert counting.count == sum(done) == 16
    assert same(pool, embedded(rows, encoder, None)[0], rows)


@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish", "empty"])
def test_a_damaged_chunk_is_made_anew(rows: tuple[Row, ...], encoder: Encoder, kept: Path, damage: str) -> None:
    embedded(rows, encoder, kept)
    data = bytearray(files(kept)[2].read_bytes())
    data[-1] ^= 64
    kinds = {"cut": bytes(data[:-9]), "flipped": bytes(data), "rubbish": b"rubbish" * 50, "empty": b""}
    files(kept)[2].write_bytes(kinds[damage])
    pool, count = embedded(rows, encoder, kept)
    assert count == 4 and len(files(kept)) == 9
    assert same(pool, embedded(rows, encoder, None)[0], rows)
    assert embedded(rows, encoder, kept)[1] == 0


def test_chunks_without_a_picture_that_is_what_it_was_are_removed(
    rows: tuple[Row, ...], encoder: Encoder, make_encoder: Callable[[int], Encoder], kept: Path
) -> None:
    embedded(rows, encoder, kept)
    embedded(rows, make_encoder(1), kept)
    assert len(files(kept)) == 18
    for row in rows[4:10]:
        row.path.unlink()
    embedded(rows[20:], encoder, kept)  # a part of the data: the other chunks stay, but one
    assert len(files(kept)) == 17
    assert embedded((*rows[:4], *rows[10:]), encoder, kept)[1] == 0


def test_encoders_do_not_share_vectors(
    rows: tuple[Row, ...], encoder: Encoder, make_encoder: Callable[[int], Encoder], kept: Path
) -> None:
    first, _ = embedded(rows, encoder, kept)
    other, count = embedded(rows, make_encoder(1), kept)
    assert count == 36 and not same(first, other, rows)


def test_unreadable_pictures_are_listed_and_tried_again(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    picture = rows[2].path.read_bytes()
    for number in (2, 3, 17):
        rows[number].path.write_bytes(b"broken")
    for _ in range(2):  # embedded, then from the folder
        pool, _ = embedded(rows, encoder, kept)
        assert [str(rows[n].path) in text for n, text in zip((2, 3, 17), pool.problems, strict=True)] == [True] * 3
        assert [row for row in rows if row not in pool.views(rows).rows] == [rows[2], rows[3], rows[17]]
        assert missing(rows, encoder, kept) == 3
    rows[2].path.write_bytes(picture)
    pool, count = embedded(rows, encoder, kept)
    assert count == 1 and len(pool.problems) == 2 and len(pool.views(rows)) == 34
    with pytest.raises(DataError, match=rf"no readable picture on one side .*first: {rows[3].path}"):
        pool.views([rows[3], rows[17]])


def test_a_picture_too_large_today_may_be_read_tomorrow(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    assert len(embed_pool(rows, encoder, Pipeline(max_pixels=10), kept).problems) == 36
    assert embed_pool(rows, encoder, PIPELINE, kept).problems == ()


def test_a_folder_that_refuses_is_one_clear_error(rows: tuple[Row, ...], encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write"):
        embed_pool(rows, encoder, PIPELINE, tmp_path / "file")


def test_names_that_are_no_text_are_kept_too(rows: tuple[Row, ...], encoder: Encoder, kept: Path) -> None:
    odd = Row(rows[0].path.rename(rows[0].path.with_name(os.fsdecode(b"caf\xe9.png"))), "a", "test")
    assert embedded((odd, *rows[1:]), encoder, kept)[1] == 36
    pool, count = embedded((odd, *rows[1:]), encoder, kept)
    assert count == 0 and len(pool.views([odd])) == 1


def test_queries_may_be_embedded_in_test_time_views(rows: tuple[Row, ...], encoder: Encoder) -> None:
    pool, _ = embedded(rows, encoder, None)
    assert asked_pool(pool, rows, encoder, "none", PIPELINE) is pool
    flipped = asked_pool(pool, rows, encoder, "flip", PIPELINE)
    expected, _ = embedded(rows, with_views(encoder, "flip"), None)
    assert np.array_equal(flipped.views(rows).vectors, pool.views(rows).vectors)
    assert same(
        Pool(expected.vectors, expected.place, ()), Pool(flipped.queries(rows).vectors, expected.place, ()), rows
    )
    assert not np.allclose(flipped.queries(rows).vectors, pool.queries(rows).vectors)
