"""The index of a gallery: it answers as comparing every view does, follows what comes and goes, and is guarded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skumatch import artefact, gallery_index
from skumatch.embed import Pipeline
from skumatch.errors import ArtefactError, ConfigError, GalleryError
from skumatch.gallery import Gallery, open_gallery
from skumatch.gallery_changes import add_views, create_from, remove_skus, remove_views
from skumatch.gallery_compact import compact
from skumatch.gallery_index import build_index, due, exact_over, figures_of, maintain
from skumatch.gallery_rebuild import rebuild
from skumatch.gallery_state import INDEXES
from skumatch.gallery_versions import prune, rollback, verify
from skumatch.index.exact import faiss_module
from skumatch.segment import NewView
from skumatch.spec import Vectors
from tests.skumatch.gallery_oracle import DIM, HashEncoder, views_of

KINDS = ["ivf-rabitq", "hnsw"]
COUNT = 2100


def unit(rng: np.random.Generator, count: int) -> Vectors:
    rows = rng.normal(size=(count, DIM))
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def made(seed: int, count: int, sku: str = "sku") -> list[NewView]:
    """Return views of ``count / 3`` SKUs."""
    vectors = unit(np.random.default_rng(seed), count)
    return [NewView(f"{sku}-{place // 3}", "", "", b"", vector) for place, vector in enumerate(vectors)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So little work is quicker on one thread, above all beside other work."""
    faiss = faiss_module()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return galleries without an index and with one of each kind, of seed 1 (do not write to them)."""
    root = tmp_path_factory.mktemp("galleries")
    create_from(root / "exact", HashEncoder().spec, made(0, COUNT))
    for kind in KINDS:
        shutil.copytree(root / "exact", root / kind)
        build_index(open_gallery(root / kind), kind, seed=1)
    return {name: root / name for name in ("exact", *KINDS)}


@pytest.fixture
def gallery(stores: dict[str, Path], tmp_path: Path) -> Gallery:
    return open_gallery(Path(shutil.copytree(stores["exact"], tmp_path / "g")))


@pytest.fixture(params=KINDS)
def indexed(stores: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Gallery:
    """Return the gallery with an index of each kind."""
    return open_gallery(Path(shutil.copytree(stores[request.param], tmp_path / "i")))


@pytest.fixture
def listed(stores: dict[str, Path], tmp_path: Path) -> Gallery:
    """Return the gallery with an index of lists."""
    return open_gallery(Path(shutil.copytree(stores["ivf-rabitq"], tmp_path / "l")))


def index_folder(gallery: Gallery) -> Path:
    return gallery.store / INDEXES / str(gallery.published.state.index)


def trained_on(gallery: Gallery) -> int:
    return int((gallery.pieces.index_facts or {})["trained"])


def big_of(gallery: Gallery) -> Any:
    return gallery.index.big  # type: ignore[attr-defined]


def missed(gallery: Gallery, queries: Vectors, k: int = 3) -> float:
    """Return the share of the nearest ``k`` SKUs that the gallery's search lacks; what it finds is scored right."""
    found = gallery.search(queries, k)
    views = found.views[found.views >= 0]
    assert np.isin(views, gallery.ids).all()
    lines = np.nonzero(found.views >= 0)[0]
    right = np.einsum("nd,nd->n", queries[lines], gallery.vectors_of(views))
    assert np.allclose(found.scores[found.views >= 0], right, atol=1e-5)
    scores = queries @ gallery.vectors_of(gallery.ids).T
    best = np.full((len(queries), len(gallery.skus)), -np.inf, np.float32)
    for line, row in enumerate(scores):
        np.maximum.at(best[line], gallery.codes(gallery.ids), row)
    nearest = -np.sort(-best, axis=1)[:, :k]
    return float(np.mean(found.scores < nearest - 1e-5))


def test_answers_are_those_of_comparing_every_view(gallery: Gallery, indexed: Gallery) -> None:
    assert indexed.version == "v000002" and len(big_of(indexed)) == COUNT and not len(indexed.index.tail)  # type: ignore[attr-defined]
    queries = np.concatenate([unit(np.random.default_rng(1), 100), gallery.vectors_of(gallery.ids[::30])])
    assert missed(gallery, queries) == 0  # compares every view
    assert missed(indexed, queries) < 0.03
    own = indexed.search(gallery.vectors_of(gallery.ids[::30]), 1)
    assert np.mean(own.views[:, 0] == gallery.ids[::30]) >= 0.99
    assert missed(open_gallery(gallery.store, full=True), queries) < 0.03


def test_views_that_come_are_found_and_views_that_go_are_not(indexed: Gallery) -> None:
    new = made(2, 60, "new")
    grown = add_views(indexed, new)
    assert len(big_of(grown)) == COUNT and len(grown.index.tail) == 60  # type: ignore[attr-defined]
    queries = np.stack([view.vector for view in new])
    assert grown.search(queries, 1).views[:, 0].tolist() == list(range(COUNT, COUNT + 60))
    gone = [*range(0, COUNT, 2), COUNT + 1]
    less = remove_views(grown, gone)
    asked = np.concatenate([indexed.vectors_of(np.array(gone[:100])), queries])
    for opened in (less, open_gallery(less.store), compact(less, full=True)):
        assert missed(opened, asked, 5) < 0.03  # which looks at the ids, too
        assert len(opened.index) == len(opened) == COUNT // 2 + 59
    assert not np.isin(less.search(asked, 1000).views, gone).any()  # longer than the index answers: exact
    assert missed(indexed, asked) < 0.03 and len(indexed.index) == COUNT  # the version before it


def test_an_index_is_extended_or_built_anew(indexed: Gallery) -> None:
    kind = big_of(indexed).kind
    grown = remove_views(add_views(indexed, made(3, 600, "new")), range(30))
    told: list[int] = []
    extended = build_index(grown, progress=told.append)
    assert (sum(told), extended.kind, trained_on(extended.gallery)) == (600, kind, COUNT)
    assert len(big_of(extended.gallery)) == COUNT + 570 and not len(extended.gallery.index.tail)  # type: ignore[attr-defined]
    assert missed(extended.gallery, unit(np.random.default_rng(4), 100)) < 0.03
    changes: list[Callable[[Gallery], Gallery]] = [
        lambda held: add_views(held, made(5, COUNT - 570, "more")),  # twice what it was trained on
        lambda held: add_views(held, made(5, COUNT - 569, "more")),  # more than that
        lambda held: remove_views(held, range(30, 30 + 670)),  # of its 2,700 a quarter is dead
        lambda held: held,  # nothing is lacking, yet it is asked for
    ]
    for number, change in enumerate(changes):
        told.clear()
        changed = change(open_gallery(indexed.store))
        now = build_index(changed, progress=told.append).gallery
        assert (sum(told), trained_on(now)) == ((COUNT - 570, COUNT) if number == 0 else (len(now), len(now)))
        assert missed(now, unit(np.random.default_rng(6), 50)) < 0.03
        rollback(now.store, extended.gallery.version)


def test_figures_stand_in_the_manifest(gallery: Gallery) -> None:
    assert figures_of(gallery) is None
    made_index = build_index(gallery, "ivf-rabitq", seed=5)
    assert made_index.figures is not None and made_index.figures.good
    for opened in (made_index.gallery, open_gallery(gallery.store)):
        assert figures_of(opened) == made_index.figures.to_json()
    document = json.loads((index_folder(made_index.gallery) / "index.json").read_text())
    assert document["figures"]["seed"] == document["index"]["seed"] == 5
    assert (document["figures"]["rows"], document["figures"]["sample"]) == (COUNT, 1000)
    assert document["index"]["effort"] == document["figures"]["effort"] == big_of(made_index.gallery).effort


def test_the_same_seed_makes_the_same_bytes(indexed: Gallery) -> None:
    names, kind = ["index.faiss", "ids.i64"], big_of(indexed).kind
    made_bytes = [[artefact.file_digest(index_folder(indexed) / name) for name in names]]
    for seed in (1, 2):
        rollback(indexed.store, "v1")
        held = build_index(open_gallery(indexed.store), kind, seed).gallery
        made_bytes.append([artefact.file_digest(index_folder(held) / name) for name in names])
    assert made_bytes[0] == made_bytes[1]
    if kind == "ivf-rabitq":  # another seed, other centres; a graph is of all rows, in their order
        assert made_bytes[0] != made_bytes[2]


def test_exact_drops_it_and_auto_decides_by_size(indexed: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = big_of(indexed).kind
    assert indexed.published.state.index_kind == kind and due(indexed) == ""
    exact = build_index(indexed, "exact")
    assert (exact.kind, exact.figures, exact.gallery.published.state.index) == ("exact", None, None)
    assert exact.gallery.published.facts["reason"] == "no index (exact)"
    assert build_index(exact.gallery).gallery is exact.gallery and due(exact.gallery) == ""
    rollback(indexed.store, indexed.version)
    again = open_gallery(indexed.store, full=True)
    assert big_of(again).kind == kind and missed(again, unit(np.random.default_rng(7), 50)) < 0.03
    automatic = build_index(again, "auto")
    assert (automatic.kind, automatic.gallery.published.state.index_kind) == ("exact", "auto")
    monkeypatch.setattr("skumatch.index.choose.EXACT_NUMBERS", COUNT * DIM - 1)
    assert due(automatic.gallery) == f"{COUNT:,} views are compared one by one"
    assert build_index(automatic.gallery).kind == "ivf-rabitq"


def test_unknown_kinds_and_too_few_views(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown index kind 'flat' - choose auto, exact, hnsw, ivf-rabitq"):
        build_index(gallery, "flat")
    single = create_from(tmp_path / "one", HashEncoder().spec, made(0, 1))
    with pytest.raises(GalleryError, match="fewer than two views"):
        build_index(single, "ivf-rabitq")
    assert (open_gallery(gallery.store).version, open_gallery(single.store).version) == ("v000001", "v000001")


@pytest.mark.parametrize("name", ["index.faiss", "ids.i64", "index.json"])
def test_a_flipped_byte_is_refused_by_name(listed: Gallery, name: str) -> None:
    path = index_folder(listed) / name
    data = bytearray(path.read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        for call in (lambda: open_gallery(listed.store), lambda: verify(listed.store)):
            with pytest.raises(ArtefactError, match=name):
                call()
    path.unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        open_gallery(listed.store)
    assert rollback(listed.store) == "v000001" and len(open_gallery(listed.store, full=True)) == COUNT


def test_due_says_why(listed: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_index, "TAIL", 50)
    assert due(add_views(listed, made(8, 105, "new"))) == ""  # a twentieth
    grown = add_views(open_gallery(listed.store), made(9, 30, "more"))
    assert due(grown) == "135 views are not in the index"
    assert len(big_of(maintain(grown))) == COUNT + 135
    worn = remove_skus(open_gallery(listed.store), [f"sku-{number}" for number in range(200)])
    assert due(worn) == "600 views of the index were removed"
    kept = maintain(worn)
    assert due(kept) == "" and len(big_of(kept)) == len(kept) == COUNT - 465
    state = kept.published.state
    assert not len(state.removed) and len(state.segments) == 1  # compacted, too
    assert maintain(kept) is kept


def test_another_model_drops_the_index_and_keeps_the_kind(tmp_path: Path) -> None:
    gallery = create_from(tmp_path / "g", HashEncoder().spec, views_of([f"s-{n % 20}" for n in range(100)], 0))
    indexed = build_index(gallery, "hnsw").gallery
    made_again = rebuild(gallery.store, HashEncoder(1), Pipeline(workers=1)).gallery
    assert (made_again.published.state.index, made_again.published.state.index_kind) == (None, "hnsw")
    assert figures_of(made_again) is None and due(made_again) == "100 views are compared one by one"
    assert build_index(made_again).kind == "hnsw"
    with pytest.raises(GalleryError, match="rebuilt by another process meanwhile"):
        build_index(indexed)  # for the model before
    assert open_gallery(gallery.store).spec.name == "hash-1"


def test_a_pruned_version_goes_on_answering(indexed: Gallery) -> None:
    fresh, used = open_gallery(indexed.store), open_gallery(indexed.store)
    queries = unit(np.random.default_rng(10), 20)
    assert missed(used, queries) < 0.03
    build_index(indexed, "exact")
    prune(indexed.store, keep=1)
    assert not index_folder(indexed).exists()
    assert missed(used, queries) < 0.03 and missed(fresh, queries) == 0  # without the index: every view
    assert len(exact_over(fresh)) == COUNT
