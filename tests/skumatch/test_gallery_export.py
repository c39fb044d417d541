"""What ``gallery export`` writes: read as any language would read it, and imported again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from skumatch.errors import ArtefactError, GalleryError, SpecMismatch
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_skus, remove_views
from skumatch.gallery_export import FACTS, ROWS, VECTORS, VIEWS, export_gallery
from skumatch.gallery_import import import_embedded, read_exported
from tests.skumatch.gallery_oracle import DIM, HashEncoder, view_of, views_of

FACTS_SAID = {"a": {"title": "Apple \N{SNOWMAN}", "brand": "Nord"}, "c": {"gtin": "0012"}, "nowhere": {"brand": "None"}}


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Return a gallery of two segments from which views and a SKU were removed."""
    made = create_from(tmp_path / "g", HashEncoder().spec, views_of(list("abcabcabd"), 0), FACTS_SAID)
    return remove_skus(remove_views(add_views(made, views_of(list("aee"), 40)), [1, 9]), ["d"])


@pytest.fixture
def exported(gallery: Gallery, tmp_path: Path) -> Path:
    export_gallery(gallery, tmp_path / "deep" / "export")
    return tmp_path / "deep" / "export"


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / VIEWS).read_text(encoding="utf-8"))
    return found


def test_the_files_say_what_the_gallery_holds(gallery: Gallery, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted([VECTORS, VIEWS, ROWS, FACTS])
    rows = np.frombuffer((exported / VECTORS).read_bytes(), "<f4").reshape(-1, DIM)
    assert np.array_equal(rows, gallery.vectors_of(gallery.ids))
    facts = document(exported)
    assert (facts["views"], facts["dim"], facts["model"]["digest"]) == (len(gallery), DIM, gallery.spec.digest)
    assert facts["sha256"] == hashlib.sha256((exported / VECTORS).read_bytes()).hexdigest()
    shown = [facts["skus"][place]["sku"] for place in facts["rows"]]
    assert shown == [view.sku for view in gallery.views()]
    assert {entry["sku"]: entry["title"] for entry in facts["skus"]} == {
        **dict.fromkeys("abce", ""),
        "a": "Apple \N{SNOWMAN}",
    }
    lines = pq.read_table(exported / ROWS).to_pylist()
    assert lines == [{"id": v.id, "sku": v.sku, "source": v.source, "sha256": v.sha256} for v in gallery.views()]
    said = {row.pop("sku"): row for row in pq.read_table(exported / FACTS).to_pylist()}
    assert list(said) == list("abce")
    assert said["c"] == {"title": None, "brand": None, "gtin": "0012"}


def test_an_export_is_replaced_and_is_the_same_each_time(gallery: Gallery, exported: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    export_gallery(gallery, exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    export_gallery(add_views(gallery, [view_of("f", 90)]), exported)
    assert document(exported)["views"] == len(gallery) + 1
    assert all((exported / name).read_bytes() != data for name, data in before.items())


def test_a_gallery_without_facts(tmp_path: Path) -> None:
    plain = create_from(tmp_path / "g", HashEncoder().spec, views_of(list("ba"), 0))
    export_gallery(plain, tmp_path / "e")
    assert pq.read_table(tmp_path / "e" / FACTS).to_pylist() == [{"sku": "a"}, {"sku": "b"}]
    assert import_embedded(read_exported(tmp_path / "e"), tmp_path / "again", None).facts.table.columns == ["sku"]


def test_a_folder_that_cannot_be_written(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ArtefactError, match="cannot write"):
            export_gallery(gallery, folder)


def test_what_is_there_already_is_not_imported_again(gallery: Gallery, exported: Path, tmp_path: Path) -> None:
    again = import_embedded(read_exported(exported), tmp_path / "again", None)
    assert import_embedded(read_exported(exported), again.store, again) is again
    assert import_embedded(read_exported(exported), gallery.store, gallery) is gallery
    less = remove_views(again, [3, 5])
    more = import_embedded(read_exported(exported), less.store, less)
    assert len(more) == len(gallery) and more.published.facts["reason"] == "import 2 views"
    assert more.ids[-2:].tolist() == [len(gallery), len(gallery) + 1]
    assert {more.view(int(i)).sha256 for i in more.ids[-2:]} == {again.view(i).sha256 for i in (3, 5)}


def test_a_gallery_is_made_of_it_again(gallery: Gallery, exported: Path, tmp_path: Path) -> None:
    again = import_embedded(read_exported(exported), tmp_path / "again", None)
    for opened in (again, open_gallery(tmp_path / "again", full=True)):
        assert opened.spec == gallery.spec and len(opened) == len(gallery)
        assert opened.ids.tolist() == list(range(len(gallery)))  # numbered anew
        assert np.array_equal(opened.vectors_of(opened.ids), gallery.vectors_of(gallery.ids))
        for new, old in zip(opened.views(), gallery.views(), strict=True):
            assert (new.sku, new.source, new.sha256) == (old.sku, old.source, old.sha256)
        assert {sku: opened.facts.of(sku) for sku in "abce"} == {sku: gallery.facts.of(sku) for sku in "abce"}
        assert opened.thumb(0) == b""
        queries = gallery.vectors_of(gallery.ids)
        assert np.array_equal(opened.search(queries, 3).scores, gallery.search(queries, 3).scores)
    assert again.published.facts["reason"] == "import 9 views"


def test_it_is_added_to_a_gallery_that_is_there(exported: Path, tmp_path: Path) -> None:
    said = {"a": {"title": "Before", "size": "1 l"}}
    there = create_from(tmp_path / "there", HashEncoder().spec, views_of(list("ay"), 70), said)
    both = import_embedded(read_exported(exported), tmp_path / "there", there)
    assert (both.store, len(both), both.ids.tolist()) == (there.store, 11, list(range(11)))
    assert both.facts.of("a") == {"title": "Apple \N{SNOWMAN}", "brand": "Nord", "size": "1 l"}
    assert both.published.facts["parent"] == there.version and len(both.ids_of("a")) == 4


def test_another_model_is_refused(exported: Path, tmp_path: Path) -> None:
    there = create_from(tmp_path / "there", HashEncoder(1).spec, views_of(["a"], 0, seed=1))
    with pytest.raises(SpecMismatch, match="made with another model"):
        import_embedded(read_exported(exported), tmp_path / "there", there)
    assert open_gallery(there.store).version == "v000001"


@pytest.mark.parametrize("name", [VECTORS, ROWS, FACTS])
def test_a_damaged_file_is_refused_by_name(exported: Path, tmp_path: Path, name: str) -> None:
    path = exported / name
    data = path.read_bytes()
    damaged = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in (0, len(data) // 2)]
    for wrong in (*damaged, data[:-1], b"", data + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(GalleryError, match=f"{name} is not the file that views.json tells of"):
            import_embedded(read_exported(exported), tmp_path / "new", None)
    path.unlink()
    with pytest.raises(GalleryError, match=f"{name} is not the file"):
        import_embedded(read_exported(exported), tmp_path / "new", None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "spec": 3}', "\udcff"])
def test_a_folder_of_something_else_is_refused(exported: Path, tmp_path: Path, text: str | None) -> None:
    (exported / VIEWS).unlink()
    if text is not None:
        (exported / VIEWS).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(GalleryError, match="was not written by `skumatch gallery export`"):
        import_embedded(read_exported(exported), tmp_path / "new", None)
