"""What a big job reads: every kind of source gives the same vectors, in order, and what is wrong is one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from skumatch.bulk import parts
from skumatch.bulk.parts import Files, Group, Tar, from_text, to_text
from skumatch.bulk.run import BulkReport, Plain, embed_source
from skumatch.bulk.sources import BulkOptions, plan_of
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.images import load_pixels

Rows = list[dict[str, Any]]
BROKEN = b"\xff\xd8\xff no picture"


def run(source: object, out: Path, encoder: Encoder, **options: Any) -> BulkReport:
    return embed_source(str(source), out, Plain(encoder, Pipeline(4, 2)), BulkOptions(**{"shard_rows": 10, **options}))


def rows(out: Path) -> Rows:
    """Return all rows of a finished folder, after checking that they are numbered through."""
    found: Rows = []
    for shard in sorted(out.glob("shard-*.parquet")):
        found += parquet.read_table(shard).to_pylist()
    assert [row["row"] for row in found] == list(range(len(found)))
    assert (out / "done.json").exists()
    return found


def check(found: Rows, pictures: list[bytes], encoder: Encoder) -> None:
    """Compare rows with the encoder's own answers for ``pictures``."""
    assert len(found) == len(pictures)
    for row, data in zip(found, pictures, strict=True):
        assert row["error"] is None and row["sha256"] == hashlib.sha256(data).hexdigest()
        expected = encoder.encode(load_pixels(data, encoder.spec)[None])[0]
        assert np.allclose(row["vector"], expected, atol=1e-6)


@pytest.fixture
def files(patterns: Path) -> list[Path]:
    return sorted((patterns / "train").rglob("*.png"))


@pytest.fixture
def bucket() -> Iterator[str]:
    """Return the address of an empty folder in memory."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def put(address: str, data: bytes) -> None:
    with fsspec.open(address, "wb") as stream:
        stream.write(data)


def tar_of(members: list[tuple[str, bytes]], mode: Any = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def table_of(columns: dict[str, Any], groups: int = 1000) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, row_group_size=groups)
    return buffer.getvalue()


def test_a_folder_is_read_in_order(patterns: Path, files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    report = run(patterns / "train", tmp_path / "out", encoder, sku_from="folder")
    assert report == BulkReport(24, 0, 0, 3, 0)
    found = rows(tmp_path / "out")
    check(found, [path.read_bytes() for path in files], encoder)
    assert [row["source"] for row in found] == [str(path) for path in files]
    assert [row["sku"] for row in found] == [path.parent.name for path in files]
    assert "thumb" not in found[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".parquet") == [
        f"shard-00000{number}.parquet" for number in range(3)
    ]


def test_thumbnails_and_no_sku(patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    assert run(patterns / "train" / "sku-0", tmp_path / "out", encoder, thumbs=True).without_sku == 4
    found = rows(tmp_path / "out")
    assert all(row["thumb"].startswith(b"\xff\xd8\xff") and row["sku"] is None for row in found)


def test_one_picture_a_glob_and_a_file_url(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    run(files[3], tmp_path / "one", encoder)
    check(rows(tmp_path / "one"), [files[3].read_bytes()], encoder)
    run(f"file://{files[0].parent}", tmp_path / "url", encoder)
    check(rows(tmp_path / "url"), [path.read_bytes() for path in files[:4]], encoder)
    pattern = files[0].parent.parent / "sku-{1,0}" / "[01].png"
    run(pattern, tmp_path / "glob", encoder)
    check(rows(tmp_path / "glob"), [files[at].read_bytes() for at in (4, 5, 0, 1)], encoder)


def test_names_of_any_bytes(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "wide")
    names = [b"a\nb.png", b"caf\xc3\xa9.png", b"caf\xe9.png", b"{0..9}.png", b"#*?.png"]
    for number, name in enumerate(names):
        Path(os.fsdecode(folder)).mkdir(exist_ok=True)
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(files[number].read_bytes())
    run(os.fsdecode(folder), tmp_path / "out", encoder)
    found = rows(tmp_path / "out")
    order = [sorted(names).index(name) for name in names]
    check([found[at] for at in order], [path.read_bytes() for path in files[:5]], encoder)
    assert found[order[2]]["source"].endswith("caf\\xe9.png") and "\n" in found[order[0]]["source"]
    strange = str(Path(os.fsdecode(folder + b"/" + names[2])))
    assert run(strange, tmp_path / "one", encoder).pictures == 1
    braced = Path(os.fsdecode(folder + b"/" + names[3]))
    assert run(braced, tmp_path / "braced", encoder).pictures == 1


def test_what_cannot_be_read_keeps_its_row(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(BROKEN)
    (folder / "b.png").write_bytes(files[0].read_bytes())
    (folder / "c.png").symlink_to("nowhere")
    (folder / "d.png").write_bytes(b"")
    report = run(folder, tmp_path / "out", encoder, sku_from="folder")
    assert (report.pictures, report.unreadable, report.without_sku) == (4, 3, 0)
    found = rows(tmp_path / "out")
    assert [row["vector"] is None for row in found] == [True, False, True, True]
    assert found[0]["error"].startswith("corrupt or truncated jpeg") and found[3]["error"].startswith("empty")
    assert (
        "cannot be read" in found[2]["error"] and [row["sha256"] is None for row in found] == [True, False] + [True] * 2
    )
    assert report.failures[0] == f"{folder / 'a.jpg'}: {found[0]['error']}"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest(suffix: str, files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    base = tmp_path / "list"
    base.mkdir()
    (base / "near.png").write_bytes(files[0].read_bytes())
    lines = [("near.png", "pear", "x"), (str(files[5]), "", "y"), ("gone.png", "plum", "z")]
    table = base / f"table{suffix}"
    if suffix == ".csv":
        table.write_text("image,label,note\n" + "".join(",".join(line) + "\n" for line in lines))
    else:
        names = zip(("image", "label", "note"), zip(*lines, strict=True), strict=True)
        table.write_bytes(table_of({**{name: list(column) for name, column in names}, "hash": [b"1", b"2", b"3"]}))
    report = run(table, tmp_path / "out", encoder)
    assert (report.pictures, report.unreadable, report.without_sku) == (3, 1, 1)
    found = rows(tmp_path / "out")
    check(found[:2], [files[0].read_bytes(), files[5].read_bytes()], encoder)
    assert [row["sku"] for row in found] == ["pear", None, "plum"]
    assert found[2]["source"] == str(base / "gone.png") and found[2]["error"]


def test_tar_archives(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in files]
    first = tar_of(
        [
            ("x/0001.png", pictures[0]),
            ("x/0001.json", json.dumps({"label": 7, "caption": "a"}).encode()),
            ("x/0002.txt", b"plum \n"),
            ("x/0002.cls", b"3"),
            ("x/0002.left.png", pictures[1]),
            ("x/0002.right.PNG", pictures[2]),
            ("y/0002.png", pictures[3]),
            ("y/0003.json", b"{not json"),
            ("y/0003.webp", BROKEN),
            ("y/._0004.png", b"a mac's"),
            ("y/0005.bmp", b"BM"),
        ]
    )
    (tmp_path / "part-000.tar").write_bytes(first)
    (tmp_path / "part-001.tar").write_bytes(tar_of([("only.txt", b"no picture")]))
    (tmp_path / "part-002.tar").write_bytes(gzip.compress(tar_of([("a.png", pictures[4]), ("a.json", b'"kiwi"')])))
    report = run(tmp_path / "part-{000..002}.tar", tmp_path / "out", encoder)
    assert (report.pictures, report.unreadable, report.shards) == (7, 2, 3)
    found = rows(tmp_path / "out")
    check([found[at] for at in (0, 1, 2, 3, 6)], pictures[:5], encoder)
    assert [row["sku"] for row in found] == ["7", "3", "3", None, None, None, "kiwi"]
    shown = [row["source"].removeprefix(str(tmp_path)) for row in found]
    assert shown[0] == "/part-000.tar#x/0001.png" and shown[6] == "/part-002.tar#a.png"
    assert found[4]["error"].startswith("corrupt or truncated jpeg") and found[5]["error"].startswith("not a JPEG")
    assert run(f"{tmp_path}/*.tar", tmp_path / "again", encoder).pictures == 7


def test_a_tar_that_breaks_off(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    whole = tar_of([(f"{number}.png", path.read_bytes()) for number, path in enumerate(files[:5])])
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.tar").write_bytes(whole)
    (tmp_path / "c.tar").write_bytes(b"this is no archive at all" * 100)
    run(tmp_path / "{a,b,c}.tar", tmp_path / "out", encoder)
    found = rows(tmp_path / "out")
    read = [row for row in found if row["source"].startswith(str(tmp_path / "a.tar"))]
    assert (
        1 <= len(read) - 1 < 5 and "breaks off" in read[-1]["error"] and read[-1]["source"] == str(tmp_path / "a.tar")
    )
    check(read[:-1], [path.read_bytes() for path in files[: len(read) - 1]], encoder)
    assert len(found) == len(read) + 6 and "breaks off" in found[-1]["error"]


def test_parquet_with_bytes(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    pictures: list[bytes | None] = [path.read_bytes() for path in files[:7]]
    pictures[2] = None
    names = [f"sku-{number}" for number in range(7)]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.parquet").write_bytes(table_of({"jpg": pictures, "other": [b"x"] * 7, "sku": names}, 3))
    hugging = [{"bytes": one, "path": f"{at}.png"} for at, one in enumerate(pictures)]
    (tmp_path / "plain" / "b.parquet").write_bytes(table_of({"image": hugging, "label": list(range(7))}, 2))
    report = run(tmp_path / "plain", tmp_path / "out", encoder, shard_rows=5)
    assert (report.pictures, report.unreadable, report.shards) == (14, 2, 4)  # row groups 3, 3 + 1; 2 + 2, 2 + 1
    found = rows(tmp_path / "out")
    for half, skus in ((found[:7], names), (found[7:], [str(number) for number in range(7)])):
        assert [row["sku"] for row in half] == skus and half[2]["error"].startswith("no image bytes")
        check([row for row in half if row["error"] is None], [one for one in pictures if one], encoder)
    assert found[8]["source"] == f"{tmp_path}/plain/b.parquet#1"


def test_which_column_holds_the_pictures(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in files[:3]]
    table = tmp_path / "a.parquet"
    table.write_bytes(table_of({"front": pictures, "back": pictures[::-1], "name": ["a", "b", "c"]}))
    with pytest.raises(DataError, match=r"several columns of bytes: front, back - name the one .* --column"):
        run(table, tmp_path / "out", encoder)
    run(table, tmp_path / "out", encoder, column="back")
    check(rows(tmp_path / "out"), pictures[::-1], encoder)
    for wrong in ("name", "nothing"):
        with pytest.raises(DataError, match=rf"column '{wrong}' holds no image bytes - those that do: front, back"):
            run(table, tmp_path / "wrong", encoder, column=wrong)
    table.write_bytes(table_of({"name": ["a"]}))
    with pytest.raises(DataError, match=r"has no column 'path' or 'image' - name one so; its columns are: name"):
        run(table, tmp_path / "wrong", encoder)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.parquet").write_bytes(table_of({"name": ["a"]}))
    with pytest.raises(DataError, match="no column of image bytes"):
        run(tmp_path / "folder", tmp_path / "wrong", encoder)
    (tmp_path / "folder" / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        run(tmp_path / "folder", tmp_path / "wrong", encoder)


def test_a_parquet_file_with_damaged_pages(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    """Rows are known from the footer: those that cannot be read any more say so."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 3000), np.uint8)
    data = bytearray(table_of({"image": [row.tobytes() for row in noise]}, 10))
    data[len(data) // 2 : len(data) // 2 + 40_000] = bytes(40_000)
    (tmp_path / "a.parquet").write_bytes(data)
    report = run(tmp_path / "a.parquet", tmp_path / "out", encoder)
    assert (report.pictures, report.unreadable) == (40, 40)
    assert any("broken here" in row["error"] for row in rows(tmp_path / "out"))


def test_everything_behind_urls(bucket: str, files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in files[:6]]
    for number, data in enumerate(pictures):
        put(f"{bucket}/photos/deep-{number % 2}/{number}.png", data)
    put(f"{bucket}/tars/a.tar", tar_of([("0.png", pictures[0])]))
    put(f"{bucket}/tars/b.tar", tar_of([("1.png", pictures[1]), ("1.txt", b"pear")]))
    put(f"{bucket}/t.parquet", table_of({"image": pictures}, 2))
    put(
        f"{bucket}/list.csv",
        b"path,sku\nphotos/deep-0/0.png,a\nmemory://bucket/photos/deep-1/1.png,b\nphotos/no.png,c\n",
    )
    assert run(f"{bucket}/photos", tmp_path / "photos", encoder, sku_from="folder").pictures == 6
    found = rows(tmp_path / "photos")
    check(found, [pictures[at] for at in (0, 2, 4, 1, 3, 5)], encoder)
    assert found[3]["sku"] == "deep-1" and found[3]["source"].startswith("memory://")
    for source in (f"{bucket}/tars", f"{bucket}/tars/*.tar", f"{bucket}/tars/{{a,b}}.tar"):
        out = tmp_path / hashlib.md5(source.encode()).hexdigest()
        run(source, out, encoder)
        check(rows(out), pictures[:2], encoder)
    run(f"{bucket}/t.parquet", tmp_path / "parquet", encoder)
    check(rows(tmp_path / "parquet"), pictures, encoder)
    assert run(f"{bucket}/list.csv", tmp_path / "list", encoder).unreadable == 1
    found = rows(tmp_path / "list")
    check(found[:2], pictures[:2], encoder)
    assert "FileNotFoundError" in found[2]["error"]
    again = embed_source(f"{bucket}/photos", tmp_path / "photos", Plain(encoder), BulkOptions(10, sku_from="folder"))
    assert again.resumed == 6


def test_what_is_not_there(bucket: str, patterns: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for source, said in (
        (tmp_path / "gone", r"gone does not exist - check the path"),
        (f"{bucket}/gone", r"gone does not exist"),
        (tmp_path / "gone.tar", "does not exist"),
        (tmp_path / "gone.csv", "cannot read .*gone.csv"),
        (f"{tmp_path}/*.tar", "nothing to embed in"),
        (tmp_path / "empty", r"nothing to embed in .* - give pictures"),
        (tmp_path / "notes.txt", "nothing that can be embedded"),
        ("", "'' is no path"),
        ("s3://bucket/photos", r"s3:// needs a package that is not installed - pip install s3fs"),
        ("nope://bucket/photos", r"Protocol not known: nope"),
        (tmp_path / "{0..99999999999}.tar", "stands for too many names"),
    ):
        with pytest.raises(DataError, match=said):
            run(source, tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()


def test_a_mixture_is_refused_before_any_work(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.png").write_bytes(files[0].read_bytes())
    (folder / "b.tar").write_bytes(tar_of([("0.png", files[0].read_bytes())]))
    with pytest.raises(DataError, match=r"holds both pictures and tar archives - name one of them"):
        run(folder, tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--column goes with Parquet"):
        run(files[0].parent, tmp_path / "out", encoder, column="image")
    (tmp_path / "a.tar").write_bytes(tar_of([("0.png", files[0].read_bytes())]))
    with pytest.raises(ConfigError, match="--sku-from folder goes with folders"):
        run(tmp_path / "a.tar", tmp_path / "out", encoder, sku_from="folder")
    with pytest.raises(ConfigError, match="unknown --sku-from"):
        BulkOptions(sku_from="name")
    with pytest.raises(ConfigError, match="0 rows per shard"):
        BulkOptions(shard_rows=0)


def test_a_job_does_not_read_what_it_writes(store: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"lies inside"):
        run(store, store / "vectors", encoder)


class Flaky(MemoryFileSystem):  # type: ignore[misc]  # untyped
    """A store in memory whose network fails now and then."""

    protocol = "flaky"
    left = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **how: Any) -> Any:
        type(self).left -= 1
        if self.left < 0:
            raise ConnectionResetError("the line is dead")
        return super().cat_file(path, start, end, **how)


def test_a_network_that_fails_costs_no_picture(files: list[Path], encoder: Encoder, tmp_path: Path) -> None:
    """It stops the job; nothing is written down as unreadable, and the same command goes on."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for number in range(20):
        put(f"flaky://bucket/{number:02d}.png", files[number].read_bytes())
    Flaky.left = 12
    with pytest.raises(DataError, match=r"cannot be reached \(ConnectionResetError: the line is dead\) - .*goes on"):
        run("flaky://bucket", tmp_path / "out", encoder, shard_rows=2)
    done = len(list((tmp_path / "out").glob("shard-*.parquet")))
    assert done < 10 and not (tmp_path / "out" / "done.json").exists()
    Flaky.left = 1000
    report = run("flaky://bucket", tmp_path / "out", encoder, shard_rows=2)
    assert (report.pictures, report.unreadable, report.resumed) == (20, 0, 2 * done)
    check(rows(tmp_path / "out"), [path.read_bytes() for path in files[:20]], encoder)


def test_parts_travel_as_ascii() -> None:
    wide = (("/a/caf\udce9\n.png", "sku"), ("s3://b/c.png", None))
    for part in (Files(wide), Tar("/a.tar"), Group("/a.parquet", "image", None, 3, 100, 50)):
        text = to_text(part)
        assert text.isascii() and from_text(text) == part


def test_what_can_be_counted_without_reading(patterns: Path, tmp_path: Path) -> None:
    options = BulkOptions()
    assert plan_of(str(patterns), options).count() == 36
    (tmp_path / "a.csv").write_text("path\nx.png\ny.png\n")
    assert plan_of(str(tmp_path / "a.csv"), options).count() == 2
    (tmp_path / "a.parquet").write_bytes(table_of({"image": [b"x"] * 5}))
    assert plan_of(str(tmp_path / "a.parquet"), options).count() == 5
    (tmp_path / "a.tar").write_bytes(tar_of([]))
    assert plan_of(str(tmp_path / "a.tar"), options).count() is None


def test_a_plan_holds_one_piece_at_a_time(patterns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 3)
    pieces = list(plan_of(str(patterns), BulkOptions(shard_rows=10)).pieces())
    assert [piece.rows for piece in pieces] == [10, 10, 10, 6]
    assert [piece.starts for piece in pieces] == [(0, 3, 6, 9)] * 3 + [(0, 3)]
    assert [[len(part.items) for part in piece.parts] for piece in pieces[2:]] == [  # type: ignore[union-attr]
        [3, 3, 3, 1],
        [3, 3],
    ]
    again = list(plan_of(str(patterns), BulkOptions(shard_rows=10)).pieces())
    assert [piece.digest for piece in again] == [piece.digest for piece in pieces]
    assert len({piece.digest for piece in pieces}) == 4
