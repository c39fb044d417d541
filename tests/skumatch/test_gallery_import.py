"""Tables for a gallery: pictures to enrol, facts, and SKUs to remove, told line by line what is wrong with them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skumatch import enrol
from skumatch.catalogue.judged import Judged
from skumatch.catalogue.output import write_groups
from skumatch.catalogue.postings import read_catalogue
from skumatch.embed import Pipeline
from skumatch.enrol import Enrolled, build_gallery, extend_gallery, replace_in_gallery
from skumatch.errors import ConfigError, DataError, GalleryError
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import Change, add_views, apply, create_from
from skumatch.gallery_import import has_pictures, skus_in, table_layer, table_supply, without_picture
from skumatch.gallery_versions import prune
from skumatch.spec import Pixels, Vectors
from tests.skumatch.gallery_oracle import HashEncoder, embedded, picture, views_of

PIPELINE = Pipeline(batch=4, workers=1)
Row = Mapping[str, Any]
ROWS: list[Row] = [
    {"path": f"shelf/{n}.png", "sku": f"sku-{n % 3}", "Brand": "Nord" if n % 3 else "Arla", "size": "1 l" * (n == 4)}
    for n in range(7)
]


class Stopped(HashEncoder):
    """Counts the pictures that it is given, and is interrupted when the ``stop``-th comes."""

    def __init__(self, stop: int = 0) -> None:
        super().__init__()
        self.seen = 0
        self.stop = stop

    def encode(self, pixels: Pixels) -> Vectors:
        if self.seen < self.stop <= self.seen + len(pixels):
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return super().encode(pixels)


def written(path: Path, rows: Sequence[Row]) -> Path:
    """Write ``rows`` as the suffix of ``path`` says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with seven pictures below it."""
    (tmp_path / "shelf").mkdir()
    for number in range(7):
        (tmp_path / f"shelf/{number}.png").write_bytes(picture(number))
    return tmp_path


@pytest.fixture
def gallery(folder: Path) -> Gallery:
    """Return a gallery of made-up views of sku-0, which is known by its title and brand, and of another SKU."""
    said = {"sku-0": {"title": "Nought", "Brand": "Before"}, "other": {"Brand": "Nord"}}
    return create_from(folder / "g", HashEncoder().spec, views_of(["sku-0", "sku-0", "other"], 90), said)


def sources(gallery: Gallery, sku: str) -> list[str]:
    return [Path(gallery.view(view_id).source).name for view_id in gallery.ids_of(sku)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_pictures_and_facts_of_a_table(folder: Path, gallery: Gallery, suffix: str) -> None:
    table = written(folder / f"t{suffix}", ROWS)
    assert has_pictures(table)
    done = extend_gallery(gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert (len(done.gallery), done.unreadable, done.known) == (10, 0, 0)
    for opened in (done.gallery, open_gallery(gallery.store, full=True)):
        assert sources(opened, "sku-1") == ["1.png", "4.png"]
        assert opened.view(3).source == str((folder / "shelf/0.png").absolute())
        assert np.array_equal(opened.vectors_of(np.array([5])), embedded(picture(2), 0)[None])
        assert opened.facts.of("sku-0") == {"title": "Nought", "Brand": "Arla"}
        assert opened.facts.of("sku-1") == {"Brand": "Nord", "size": "1 l"}
        assert opened.facts.of("other") == {"Brand": "Nord"}
    again = extend_gallery(done.gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert (again.known, len(again.gallery)) == (7, 10)


def test_a_table_makes_a_gallery(folder: Path) -> None:
    rows = [{"label": row["sku"], "IMAGE": folder / row["path"], "split": "train", "": "x"} for row in ROWS]
    done = build_gallery(folder / "new", table_supply(written(folder / "t.csv", rows)), HashEncoder(), PIPELINE)
    assert done.gallery.counts() == {"sku-0": 3, "sku-1": 2, "sku-2": 2}
    assert done.gallery.facts.table.columns == ["sku"]  # absolute paths; split and a nameless column are no facts


def test_replacing_takes_the_place_of_all_views(folder: Path, gallery: Gallery) -> None:
    table = written(folder / "t.csv", ROWS[:3])
    done = replace_in_gallery(gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert sources(done.gallery, "sku-0") == ["0.png"] and len(done.gallery.ids_of("other")) == 1
    assert done.gallery.ids.tolist() == [2, 3, 4, 5]
    assert done.gallery.facts.of("sku-0") == {"title": "Nought", "Brand": "Arla"}
    (folder / "shelf/0.png").write_bytes(b"broken")
    (folder / "shelf/1.png").unlink()
    again = replace_in_gallery(done.gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert again.unreadable == 2 and again.gallery.ids.tolist() == [2, 3, 4, 6]  # sku-0 keeps the view that it has


def test_unreadable_pictures_are_named_and_counted(folder: Path, gallery: Gallery) -> None:
    (folder / "shelf/2.png").write_bytes(b"broken")
    (folder / "shelf/5.png").unlink()
    done = extend_gallery(gallery, table_supply(written(folder / "t.csv", ROWS)), HashEncoder(), PIPELINE)
    assert done.unreadable == 2 and len(done.gallery) == 8 and "sku-2" not in done.gallery.skus
    assert [name in failure for name, failure in zip(("2.png", "5.png"), done.failures, strict=True)] == [True, True]
    assert done.gallery.facts.of("sku-2") == {"Brand": "Nord"}  # known all the same, for views to come


def test_a_table_without_pictures_tells_facts(folder: Path, gallery: Gallery) -> None:
    rows: list[Row] = [{"sku": " sku-0 ", "Brand": "", "gtin": "007"}, {"sku": "sku-0", "Brand": "Late", "gtin": "008"}]
    table = written(folder / "facts.csv", rows)
    assert not has_pictures(table)
    layer = table_layer(table)
    told = apply(gallery, Change("import facts", layer=layer))
    assert told.facts.of("sku-0") == {"title": "Nought", "Brand": "Late", "gtin": "007"}  # the first word counts
    assert told.ids.tolist() == gallery.ids.tolist()
    numbers = written(
        folder / "facts.parquet", [{"sku": 7, "price": 1.5, "n": None}, {"sku": 8, "price": None, "n": 2}]
    )
    assert table_layer(numbers).to_pylist() == [
        {"sku": "7", "_forget": False, "price": "1.5", "n": None},
        {"sku": "8", "_forget": False, "price": None, "n": "2"},
    ]
    with pytest.raises(DataError, match="says nothing about its SKUs - add columns"):
        table_layer(written(folder / "bare.csv", [{"sku": "a", "split": "train"}]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,sku\na.png,x\n,y\n", r"t\.csv, line 3, has no usable path"),
        ("path,group\na.png,x\n,y\n", r"t\.csv, line 3, has no usable path"),
        ("path,sku\na.png,x\nb.png, \n", r"t\.csv, line 3, has an empty sku"),
        ("path,sku\na.png,x\nb.png,y,z\n", r"t\.csv, line 3, has 3 cells where the header has 2"),
        ("path,sku,sku\n", "names the column 'sku' twice"),
        ("path,name\na.png,x\n", "no column 'sku' or 'label'.*its columns are: path, name"),
        ("", r"t\.csv is empty"),
    ],
)
def test_a_bad_line_is_named(folder: Path, gallery: Gallery, text: str, said: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        extend_gallery(gallery, table_supply(folder / "t.csv"), HashEncoder(), PIPELINE)
    assert open_gallery(gallery.store, full=True).version == "v000001"


def test_other_things_than_tables(folder: Path, gallery: Gallery) -> None:
    (folder / "t.parquet").write_bytes(b"PAR1")
    for path in (folder / "t.parquet", folder / "none.csv", folder / "shelf"):
        calls: list[Callable[[Path], object]] = [has_pictures, table_supply, table_layer]
        for call in calls:
            with pytest.raises(DataError, match=path.name):
                call(path)
    reserved = written(folder / "r.csv", [{"path": "shelf/0.png", "sku": "a", "_forget": "true"}])
    with pytest.raises(ConfigError, match="cannot be called '_forget'"):
        extend_gallery(gallery, table_supply(reserved), HashEncoder(), PIPELINE)
    empty = written(folder / "e.csv", [{"path": "none.png", "sku": "a"}])
    with pytest.raises(GalleryError, match="no view could be read"):
        extend_gallery(gallery, table_supply(empty), HashEncoder(), PIPELINE)
    assert open_gallery(gallery.store).version == "v000001"


@pytest.mark.parametrize("replace", [False, True])
def test_an_interrupted_import_goes_on(
    folder: Path, gallery: Gallery, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol, "CHUNK", 3)
    table = written(folder / "t.csv", [*ROWS, ROWS[0]])
    (folder / "shelf/1.png").write_bytes(b"broken")

    def run(encoder: HashEncoder) -> Enrolled[Gallery]:
        work = replace_in_gallery if replace else extend_gallery
        return work(open_gallery(gallery.store), table_supply(table), encoder, PIPELINE)

    for stop in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            run(Stopped(stop))
    assert open_gallery(gallery.store, full=True).version == "v000001"
    prune(gallery.store, keep=1)  # leaves what was done
    meanwhile = add_views(gallery, views_of(["new"], 200))
    encoder = Stopped()
    done = run(encoder)
    assert (done.resumed, encoder.seen, done.unreadable) == (3, 5, 1)  # of 8, three are done, one of them unreadable
    assert done.gallery.published.facts["parent"] == meanwhile.version and not list(gallery.store.glob("pending/*"))
    pictures = sources(done.gallery, "sku-0")
    expected = ["0.png", "3.png", "6.png"]
    assert (pictures, done.known) == (([*expected, "0.png"], 0) if replace else (["90.png", "91.png", *expected], 1))
    assert done.gallery.facts.of("sku-0")["Brand"] == "Arla"  # a line that was done before says so
    assert len(done.gallery.ids_of("new")) == 1


def test_a_changed_table_is_another_import(folder: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrol, "CHUNK", 3)
    table = written(folder / "t.csv", ROWS)
    with pytest.raises(KeyboardInterrupt):
        extend_gallery(gallery, table_supply(table), Stopped(5), PIPELINE)
    encoder = Stopped()
    written(table, ROWS[:6])
    done = extend_gallery(gallery, table_supply(table), encoder, PIPELINE)
    assert (done.resumed, encoder.seen, len(done.gallery)) == (0, 6, 9)


def test_lists_of_skus(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfb\r\n\r\n a, b \nb\n")
    assert skus_in(folder / "list.txt") == ["b", "a, b"]
    for suffix in (".csv", ".tsv", ".parquet"):
        assert skus_in(written(folder / f"t{suffix}", ROWS)) == ["sku-0", "sku-1", "sku-2"]
    with pytest.raises(DataError, match="no column 'sku'"):
        skus_in(written(folder / "n.csv", [{"name": "a"}]))
    (folder / "bytes.txt").write_bytes(b"a\n\xff\xfe\n")
    for name in ("bytes.txt", "none.txt", "shelf"):
        with pytest.raises(DataError, match=f"{name}.*one SKU per line"):
            skus_in(folder / name)


def postings(*rows: tuple[str, str, str, str, float]) -> list[Row]:
    """Return lines as ``groups.csv`` has them."""
    return [dict(zip(("group", "posting_id", "image", "title", "confidence"), row, strict=True)) for row in rows]


GROUPS = postings(
    ("g1", "a", "shelf/0.png", "Oat drink", 0.7),
    ("g1", "b", "shelf/1.png", "OAT DRINK 1l", 0.9),
    ("g1", "c", "shelf/2.png", "Oat 1 l", 0.9),
    ("g2", "d", "", "Honey", 0.95),
    ("g2", "e", "shelf/3.png", "honey 500g", 0.8),
    ("g2", "f", "shelf/4.png", "", 1.0),
    ("g3", "g", "", "Tea", 0.8),
    ("g3", "h", " ", "Tea bags", 0.8),
    ("g4", "i", "shelf/5.png", "", 0.6),
)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_groups_of_duplicates_become_views_of_one_sku(folder: Path, gallery: Gallery, suffix: str) -> None:
    table = written(folder / f"groups{suffix}", GROUPS)
    assert has_pictures(table) and without_picture(table) == 3
    done = extend_gallery(gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert done.gallery.counts() == {"sku-0": 2, "other": 1, "g1": 3, "g2": 2, "g4": 1} and not done.unreadable
    assert sources(done.gallery, "g2") == ["3.png", "4.png"]
    assert done.gallery.facts.of("g1") == {"title": "OAT DRINK 1l"}  # the surest, of two the first
    assert done.gallery.facts.of("g2") == {"title": "Honey"}  # also of a posting without a picture, but no empty one
    assert done.gallery.facts.of("g3") == done.gallery.facts.of("g4") == {}
    assert not {"posting_id", "confidence", "group"} & set(done.gallery.facts.table.columns)
    again = extend_gallery(done.gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert (again.known, len(again.gallery)) == (6, 9)
    assert skus_in(table) == ["g1", "g2", "g3", "g4"]


def test_what_a_search_for_duplicates_wrote_is_taken_in(folder: Path) -> None:
    text = "posting_id,image,title\na,shelf/0.png,Oat drink\nb,shelf/1.png,=2 for 1\nc,,Honey\nd,shelf/2.png,Tea\n"
    (folder / "c.csv").write_text(text)
    catalogue = read_catalogue(folder / "c.csv")
    pair = Judged(np.array([0, 0], np.int32), np.array([1, 2], np.int32), np.array([0.9, 0.8], np.float32))
    table = folder / "out" / "groups.csv"
    write_groups(table, catalogue, np.array([0, 0, 0, 1]), pair)
    done = build_gallery(folder / "new", table_supply(table), HashEncoder(), PIPELINE)
    assert done.gallery.counts() == {"g000001": 2} and sources(done.gallery, "g000001") == ["0.png", "1.png"]
    assert done.gallery.facts.of("g000001") == {"title": "=2 for 1"}  # 0.9; the first posting has the mean of both


def test_a_column_group_beside_sku_is_a_fact(folder: Path, gallery: Gallery) -> None:
    rows: list[Row] = [{"path": "shelf/0.png", "sku": "a", "group": "tea", "posting_id": "7", "confidence": "high"}]
    table = written(folder / "t.csv", rows)
    done = extend_gallery(gallery, table_supply(table), HashEncoder(), PIPELINE)
    assert without_picture(table) == 0
    assert done.gallery.facts.of("a") == {"group": "tea", "posting_id": "7", "confidence": "high"}


def test_groups_without_pictures_tell_titles(folder: Path) -> None:
    table = written(folder / "t.csv", [{name: row[name] for name in row if name != "image"} for row in GROUPS])
    assert not has_pictures(table)
    assert table_layer(table).select(["sku", "title"]).to_pylist() == [
        {"sku": "g1", "title": "OAT DRINK 1l"},
        {"sku": "g2", "title": "Honey"},
        {"sku": "g3", "title": "Tea"},
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (" ,b,shelf/1.png,x,0.5", "line 3, has an empty sku"),
        ("g1,b,shelf/1.png,x,sure", "line 3, has no number as confidence"),
        ("g1,b,shelf/1.png,x", "line 3, has 4 cells where the header has 5"),
    ],
)
def test_a_bad_line_of_groups_is_named(folder: Path, gallery: Gallery, line: str, said: str) -> None:
    (folder / "t.csv").write_text(f"group,posting_id,image,title,confidence\ng1,a,shelf/0.png,x,0.5\n{line}\n")
    with pytest.raises(DataError, match=rf"t\.csv, {said}"):
        extend_gallery(gallery, table_supply(folder / "t.csv"), HashEncoder(), PIPELINE)
    assert open_gallery(gallery.store, full=True).version == "v000001"
