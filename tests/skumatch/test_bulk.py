"""A big job that is interrupted, changed or damaged: every picture once, in bounded memory, or one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import RecordBatch, parquet

from skumatch import lock
from skumatch.bulk.parts import Picture, Piece
from skumatch.bulk.run import BulkReport, Plain, embed_source
from skumatch.bulk.shards import DONE, JOB
from skumatch.bulk.sources import BulkOptions
from skumatch.bulk.views import LeftOut, embedded_spec, embedded_views, is_embedded, left_out
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, DataError, GalleryError, LockedError
from skumatch.spec import Pixels, Spec, Vectors

SHARD = 5
SMALL = Pipeline(4, 2)


class Counting:
    """An encoder that counts pictures and may break down after so many."""

    def __init__(self, inner: Encoder, most: int = 10**9) -> None:
        self.inner, self.spec, self.most, self.seen = inner, inner.spec, most, 0

    def encode(self, pixels: Pixels) -> Vectors:
        if self.seen + len(pixels) > self.most:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return self.inner.encode(pixels)


@pytest.fixture
def run(encoder: Encoder, store: Path, tmp_path: Path) -> Callable[..., BulkReport]:
    """Return a function that embeds ``store`` (36 pictures) into ``tmp_path / "out"`` in shards of 5."""

    def embed(by: Encoder = encoder, restart: bool = False, **options: Any) -> BulkReport:
        how = BulkOptions(**{"shard_rows": SHARD, "sku_from": "folder", "restart": restart, **options})
        return embed_source(str(store), tmp_path / "out", Plain(by, SMALL), how)

    return embed


Run = Callable[..., BulkReport]


def content(out: Path) -> list[dict[str, Any]]:
    return [row for shard in sorted(out.glob("shard-*")) for row in parquet.read_table(shard).to_pylist()]


def shards(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("shard-*"))


@pytest.mark.parametrize("most", [0, 3, 4, 13, 35])
def test_an_interrupted_job_goes_on(most: int, run: Run, encoder: Encoder, tmp_path: Path) -> None:
    """Wherever it breaks: finished shards stay, nothing is embedded twice, the result is that of one run."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Counting(encoder, most))
    before = {name: (out / name).stat().st_mtime_ns for name in shards(out)}
    assert not (out / DONE).exists() and len(before) <= most // SHARD
    assert not list(out.glob(".*tmp"))
    second = Counting(encoder)
    report = run(second)
    assert report == BulkReport(36, 0, 0, 8, len(before) * SHARD)
    assert second.seen == 36 - len(before) * SHARD
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    broken = content(out)
    run(restart=True)
    assert content(out) == broken and [row["row"] for row in broken] == list(range(36))


def test_a_finished_job_is_only_looked_at(run: Run, encoder: Encoder, tmp_path: Path) -> None:
    run()
    done = (tmp_path / "out" / DONE).stat().st_mtime_ns
    told: list[int] = []
    again = Counting(encoder, 0)
    options = BulkOptions(SHARD, sku_from="folder")
    source = json.loads((tmp_path / "out" / JOB).read_text())["source"]
    assert embed_source(source, tmp_path / "out", Plain(again, SMALL), options, told.append).resumed == 36
    assert sum(told) == 36 and (tmp_path / "out" / DONE).stat().st_mtime_ns == done


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards(run: Run, store: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of the third shard, in a process of its own."""
    script = f"""
import os, signal
from pathlib import Path
from skumatch.bulk.run import Plain, embed_source
from skumatch.bulk.sources import BulkOptions
from skumatch.embed import Pipeline
from tests.conftest import FakeEncoder
class Killed(FakeEncoder):
    seen = 0
    def encode(self, pixels):
        self.seen += len(pixels)
        if self.seen > 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels)
options = BulkOptions({SHARD}, sku_from="folder")
embed_source({str(store)!r}, Path({str(tmp_path / "out")!r}), Plain(Killed(), Pipeline(4, 2)), options)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -9, done.stderr
    out = tmp_path / "out"
    assert shards(out) and any(out.glob(".shard-*.tmp"))
    resumed = run().resumed
    assert resumed == SHARD * 2 and len(content(out)) == 36 and not list(out.glob(".shard-*.tmp"))


def test_a_source_that_changed(run: Run, encoder: Encoder, store: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Counting(encoder, 12))
    first = sorted(store.rglob("*.png"))[0]
    os.utime(first, (1, 1))
    with pytest.raises(GalleryError, match=r"the source has changed since .*shard-000000.parquet .*--restart"):
        run()
    run(restart=True)
    (store / "train" / "sku-0" / "9.png").write_bytes(first.read_bytes())
    with pytest.raises(GalleryError, match="the source has changed"):
        run()
    (store / "train" / "sku-0" / "9.png").unlink()
    assert run().resumed == 36
    for number in range(4):
        (store / "train" / "sku-5" / f"{number}.png").unlink()
    with pytest.raises(GalleryError, match="the source has"):
        run()


def test_a_source_that_is_shorter_by_whole_shards(encoder: Encoder, store: Path, tmp_path: Path) -> None:
    for number in (36, 10):
        table = tmp_path / "list.csv"
        table.write_text("path\n" + "".join(f"{path}\n" for path in sorted(store.rglob("*.png"))[:number]))
        if number == 36:
            embed_source(str(table), tmp_path / "out", Plain(encoder, SMALL), BulkOptions(SHARD))
    with pytest.raises(GalleryError, match="fewer pictures than when"):
        embed_source(str(table), tmp_path / "out", Plain(encoder, SMALL), BulkOptions(SHARD))


def test_another_job_in_the_same_folder(
    run: Run, make_encoder: Callable[[int], Encoder], patterns: Path, tmp_path: Path
) -> None:
    run()
    with pytest.raises(GalleryError, match=r"another model - embed into another --out, or with --restart"):
        run(make_encoder(1))
    with pytest.raises(GalleryError, match="another options"):
        run(thumbs=True)
    with pytest.raises(GalleryError, match="another source"):
        embed_source(str(patterns), tmp_path / "out", Plain(make_encoder(0)), BulkOptions(SHARD, sku_from="folder"))
    run(make_encoder(1), restart=True)
    assert embedded_spec(tmp_path / "out").digest == make_encoder(1).spec.digest


def test_a_folder_with_other_things_is_left_alone(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    for restart in (False, True):
        with pytest.raises(GalleryError, match="holds other things"):
            run(restart=restart)
    assert (out / "letter.txt").read_text() == "dear"
    (out / "letter.txt").unlink()
    run()
    (out / "letter.txt").write_text("dear")
    (out / JOB).unlink()
    with pytest.raises(GalleryError, match=r"holds shards but no embed.json"):
        run()
    run(restart=True)
    assert (out / "letter.txt").read_text() == "dear"
    (out / JOB).write_text("{")
    with pytest.raises(GalleryError, match=r"embed.json is corrupt"):
        run()
    assert run(restart=True).pictures == 36


def test_two_writers(run: Run, tmp_path: Path) -> None:
    with lock.writing(tmp_path / "out", "embedding something"), pytest.raises(LockedError, match="is being written by"):
        run()


def test_shards_that_went_missing_are_made_again(run: Run, encoder: Encoder, tmp_path: Path) -> None:
    run()
    out = tmp_path / "out"
    before = content(out)
    (out / "shard-000001.parquet").unlink()
    (out / "shard-000004.parquet").write_bytes(b"PAR1 torn")
    (out / "shard-000007.parquet").unlink()
    second = Counting(encoder)
    assert run(second).resumed == 36 - second.seen == 25
    assert content(out) == before and len(list(embedded_views(out))) == 8


def test_views_for_a_gallery(run: Run, encoder: Encoder, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (store / "train" / "sku-0" / "bad.jpg").write_bytes(b"\xff\xd8\xffx")
    run(thumbs=True)
    assert is_embedded(out) and not is_embedded(store)
    assert embedded_spec(out) == encoder.spec and left_out(out) == LeftOut(1, 0)
    views = list(embedded_views(out))
    rows = [row for row in content(out) if row["error"] is None]
    assert sum(map(len, views)) == 36 == len(rows)
    assert [sku for some in views for sku in some.skus] == [row["sku"] for row in rows]
    assert [name for some in views for name in some.sources] == [row["source"] for row in rows]
    assert [text for some in views for text in some.sha256] == [row["sha256"] for row in rows]
    assert [thumb for some in views for thumb in some.thumbs] == [row["thumb"] for row in rows]
    assert np.array_equal(np.concatenate([some.vectors for some in views]), np.array([row["vector"] for row in rows]))
    run(sku_from="", restart=True)
    assert left_out(out) == LeftOut(1, 36) and list(embedded_views(out)) == []


def test_views_of_what_is_not_whole(run: Run, encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(GalleryError, match="was not written by `skumatch embed`"):
        embedded_spec(out)
    with pytest.raises(KeyboardInterrupt):
        run(Counting(encoder, 12))
    for ask in (embedded_spec, left_out, lambda folder: next(embedded_views(folder))):
        with pytest.raises(GalleryError, match=r"out is not finished - run the same `skumatch embed` again"):
            ask(out)
    run()
    shard = out / "shard-000003.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(GalleryError, match=r"shard-000003.parquet is corrupt \(its digest differs\)"):
        embedded_spec(out)
    shard.unlink()
    with pytest.raises(GalleryError, match=r"shard-000003.parquet is missing"):
        list(embedded_views(out))
    shard.write_bytes(whole)
    for text in ("{", "[]", '{"format": 1, "shards": 9, "files": {}}', '{"format": 2, "shards": 0, "files": {}}'):
        (out / DONE).write_text(text)
        with pytest.raises(GalleryError, match=r"done.json (is|was)"):
            embedded_spec(out)


@dataclass(frozen=True)
class Endless:
    """A part that counts how many of its pictures were asked for."""

    data: bytes
    many: int
    asked: list[int]

    def pictures(self) -> Iterator[Picture]:
        for number in range(self.many):
            self.asked[0] += 1
            yield Picture(str(number), None, self.data)


def test_memory_is_bounded_and_the_pipeline_does_not_run_dry(patterns: Path, encoder: Encoder) -> None:
    """Pictures read and not yet handed over: of reading 48, of decoding and encoding five batches."""
    data = next(patterns.rglob("*.png")).read_bytes()
    asked, taken, most, ahead = [0], 0, 0, 0
    part: Any = Endless(data, 30, asked)
    pieces = (Piece(number, "", 30, (part,), (0,)) for number in range(12))
    for rows in Plain(encoder, SMALL).embed(pieces, thumbs=False):
        taken += len(rows)
        most = max(most, asked[0] - taken)
        ahead += asked[0] > taken and rows.column("piece")[-1].as_py() < asked[0] // 30
    assert taken == 360 and most <= 48 + 5 * SMALL.batch
    assert ahead > 20  # the next piece was being read while one was handed over


def test_an_archive_without_pictures_in_the_midst(encoder: Encoder, patterns: Path, tmp_path: Path) -> None:
    import io
    import tarfile

    data = next(patterns.rglob("*.png")).read_bytes()
    for number, pictures in enumerate((2, 0, 0, 3, 0)):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for at in range(pictures):
                info = tarfile.TarInfo(f"{at}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    report = embed_source(str(tmp_path / "*.tar"), tmp_path / "out", Plain(encoder, SMALL))
    assert (report.pictures, report.shards) == (5, 5)
    assert [row["row"] for row in content(tmp_path / "out")] == [0, 1, 2, 3, 4]
    assert embed_source(str(tmp_path / "*.tar"), tmp_path / "out", Plain(encoder, SMALL)).resumed == 5
    with pytest.raises(DataError, match="no picture in"):
        embed_source(str(tmp_path / "[12].tar"), tmp_path / "none", Plain(encoder, SMALL))


@dataclass(frozen=True)
class Wrong:
    """An engine that hands over other rows than it should."""

    inner: Plain
    change: Callable[[list[RecordBatch]], list[RecordBatch]]

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    def embed(self, pieces: Iterator[Piece], thumbs: bool) -> Generator[RecordBatch, None, None]:
        yield from self.change(list(self.inner.embed(pieces, thumbs)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:3] + rows[4:], "missing or came twice|of 5 rows"),
        (lambda rows: [*rows[:3], rows[2], *rows[3:]], "missing or came twice|out of turn"),
        (lambda rows: [rows[0], *rows], "missing or came twice|out of turn"),
        (lambda rows: rows[:-1], "2 of 5 rows of shard-000006"),
        (lambda rows: rows[::-1], "0 of 5 rows"),
    ],
    ids=["lost", "twice", "first twice", "last lost", "backwards"],
)
def test_an_engine_that_loses_or_repeats_rows_is_found_out(
    change: Callable[[list[RecordBatch]], list[RecordBatch]], said: str, encoder: Encoder, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(GalleryError, match=said):
        embed_source(str(store), out, Wrong(Plain(encoder, SMALL), change), BulkOptions(SHARD))
    assert not (out / DONE).exists() and not list(out.glob(".shard-*.tmp"))
    embed_source(str(store), out, Plain(encoder, SMALL), BulkOptions(SHARD))
    assert [row["row"] for row in content(out)] == list(range(36))


def test_a_full_disk(encoder: Encoder, patterns: Path, tiny_disk: Path) -> None:
    wide = replace(encoder.spec, dim=2048)

    class Wide:
        spec = wide

        def encode(self, pixels: Pixels) -> Vectors:
            rng = np.random.default_rng(len(pixels))
            rows = rng.normal(size=(len(pixels), 2048))
            unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
            return unit

    table = tiny_disk.parent / "list.csv"
    names = [str(path) for path in sorted(patterns.rglob("*.png"))] * 10
    table.write_text("path\n" + "\n".join(names) + "\n")
    with pytest.raises(ArtefactError, match=r"no space left while writing .*shard-"):
        embed_source(str(table), tiny_disk / "out", Plain(Wide(), SMALL), BulkOptions(30))
    assert shards(tiny_disk / "out") and not list((tiny_disk / "out").glob(".shard-*"))


def test_no_thread_is_left_behind(run: Run, encoder: Encoder) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(Counting(encoder, 12))
    run()
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        deadline.wait(0.05)
    assert threading.active_count() <= before
