"""A matcher that runs on while its gallery changes, and one that looks only at SKUs of one kind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skumatch.embed import Pipeline, Source
from skumatch.encoder import Encoder
from skumatch.enrol import Supply, build_gallery
from skumatch.errors import ArtefactError, DataError, GalleryError, SpecMismatch
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import create_from, remove_skus, set_facts
from skumatch.gallery_versions import prune
from skumatch.match import Matcher
from skumatch.readers import open_dataset
from skumatch.search import Search
from skumatch.segment import NewView
from skumatch.techniques import Technique


@pytest.fixture
def gallery_path(patterns: Path, encoder: Encoder, tmp_path: Path) -> Path:
    """Return a gallery of 6 SKUs, those of an odd number of brand-1, the others of brand-0."""
    rows = open_dataset(patterns).split("train").rows
    told = [replace(row, extra={"brand": f"brand-{int(row.sku[-1]) % 2}"}) for row in rows]
    build_gallery(tmp_path / "gallery", Supply.of(told), encoder, Pipeline())
    return tmp_path / "gallery"


@pytest.fixture
def matcher(encoder: Encoder, gallery_path: Path) -> Matcher:
    return Matcher(encoder, open_gallery(gallery_path), Pipeline(batch=4, workers=2))


def crops(patterns: Path) -> list[Source]:
    return [*sorted((patterns / "test").rglob("*.png"))]


def test_only_skus_like_that_can_be_answers(encoder: Encoder, gallery_path: Path, patterns: Path) -> None:
    gallery = open_gallery(gallery_path)
    plain = Matcher(encoder, gallery).match(crops(patterns), 6)
    for technique in (None, Search(Technique("augment", neighbours=3))):
        found = Matcher(encoder, gallery, search=technique, where={"brand": "brand-1"}).match(crops(patterns), 6)
        assert {match.sku for crop in found for match in crop.matches} == {"sku-1", "sku-3", "sku-5"}
        assert all(len(crop.matches) == 3 for crop in found)
        for crop, whole in zip(found, plain, strict=True):
            if technique is None:
                kept = [(m.sku, m.view, m.score) for m in whole.matches if m.sku in ("sku-1", "sku-3", "sku-5")]
                assert [(m.sku, m.view) for m in crop.matches] == [entry[:2] for entry in kept]
                assert [m.score for m in crop.matches] == pytest.approx([entry[2] for entry in kept], abs=1e-5)
    (own,) = Matcher(encoder, gallery, where={"brand": "brand-1", "sku": "sku-3"}).match(crops(patterns)[:1], 6)
    assert [match.sku for match in own.matches] == ["sku-3"]
    for where, words in (({"brand": "x"}, "no SKU has brand=x"), ({"colour": "red"}, "no column 'colour'")):
        with pytest.raises(GalleryError, match=words):
            Matcher(encoder, gallery, where=where)


def test_a_matcher_answers_from_the_new_version_once_it_is_refreshed(
    matcher: Matcher, encoder: Encoder, gallery_path: Path, patterns: Path
) -> None:
    before = matcher.gallery
    asked = [path for path in crops(patterns) if "sku-0" in str(path)]
    narrow = Matcher(encoder, before, matcher.pipeline, where={"brand": "brand-0"})
    assert not matcher.refresh() and matcher.gallery is before
    remove_skus(open_gallery(gallery_path), ["sku-0"])
    assert {crop.matches[0].sku for crop in matcher.match(asked)} == {"sku-0"}
    prune(gallery_path, 1)
    assert {crop.matches[0].sku for crop in matcher.match(asked)} == {"sku-0"}  # its version is gone, not what it knows
    for one in (matcher, narrow):
        assert one.refresh() and not one.refresh()
        found = one.match(asked, 6)
        assert "sku-0" not in {match.sku for crop in found for match in crop.matches}
        assert matcher.gallery.version == "v000002"
    assert [len(crop.matches) for crop in narrow.match(asked, 6)] == [2, 2]


def test_a_stream_goes_over_to_the_new_version_between_batches(
    matcher: Matcher, gallery_path: Path, patterns: Path
) -> None:
    path = patterns / "test" / "sku-0" / "5.png"
    stream = matcher.stream([path] * 12, 1)
    first = [next(stream).matches[0].sku for _ in range(4)]
    remove_skus(open_gallery(gallery_path), ["sku-0"])
    matcher.refresh()
    assert first == ["sku-0"] * 4 and "sku-0" not in {crop.matches[0].sku for crop in stream}


def test_a_refresh_that_cannot_be_leaves_the_version_in_use(
    encoder: Encoder, gallery_path: Path, patterns: Path, make_encoder: Callable[[int], Encoder]
) -> None:
    gallery = open_gallery(gallery_path)
    narrow = Matcher(encoder, gallery, where={"brand": "brand-1"})
    set_facts(gallery, {f"sku-{i}": {"brand": "other"} for i in range(6)})
    with pytest.raises(GalleryError, match="no SKU has brand=brand-1 - nearest values are brand: no similar"):
        narrow.refresh()
    view = NewView("a", "", "", b"", np.eye(1, 32, dtype=np.float32)[0])
    create_from(gallery_path, make_encoder(1).spec, [view])
    with pytest.raises(SpecMismatch, match="built with another model"):
        narrow.refresh()
    (gallery_path / "CURRENT").write_bytes(b"v9")
    with pytest.raises(ArtefactError, match="CURRENT is corrupt"):
        narrow.refresh()
    assert narrow.gallery is gallery
    (found,) = narrow.match([patterns / "test" / "sku-1" / "5.png"], 1)
    assert found.matches[0].sku == "sku-1"


def test_many_threads_share_a_matcher_while_another_refreshes_it(
    matcher: Matcher, encoder: Encoder, gallery_path: Path, patterns: Path
) -> None:
    asked = [path for path in crops(patterns) if "sku-0" in str(path) or "sku-1" in str(path)]
    seen: list[tuple[str, list[str]]] = []

    def work() -> None:
        for _ in range(20):
            found = matcher.match(asked, 1)
            assert [crop.crop for crop in found] == asked
            for crop in found:
                seen.append((crop.version, [match.sku for match in crop.matches]))

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work) for _ in range(8)]
        remove_skus(open_gallery(gallery_path), ["sku-0"])
        assert matcher.refresh()
        for one in running:
            one.result()
        assert matcher.match(asked, 1)[0].version == "v000002"
    for version, skus in seen:
        assert ("sku-0" in skus) <= (version == "v000001")
    per_version = {version: [skus for at, skus in seen if at == version] for version in ("v000001", "v000002")}
    assert sum(map(len, per_version.values())) == len(seen) == 8 * 20 * 4
    assert all(skus != ["sku-0"] for skus in per_version["v000002"])


def test_matchers_share_what_is_open(matcher: Matcher, gallery_path: Path, patterns: Path) -> None:
    narrow = matcher.among({"brand": "brand-1"})
    assert narrow.gallery is matcher.gallery and narrow.encoder is matcher.encoder and not matcher.where
    assert {m.sku for crop in narrow.match(crops(patterns), 6) for m in crop.matches} == {"sku-1", "sku-3", "sku-5"}
    assert len(matcher.match(crops(patterns)[:1], 6)[0].matches) == 6
    remove_skus(open_gallery(gallery_path), ["sku-1"])
    later = narrow.on(narrow.gallery.refreshed())
    assert {m.sku for crop in later.match(crops(patterns), 6) for m in crop.matches} == {"sku-3", "sku-5"}
    assert narrow.gallery.version == "v000001" and later.gallery.version == "v000002"
    with pytest.raises(GalleryError, match="no SKU has brand=x"):
        matcher.among({"brand": "x"})


def test_paths_folders_and_globs_are_streamed(matcher: Matcher, patterns: Path) -> None:
    folder = patterns / "test"
    whole = [str(crop.crop) for crop in matcher.match_paths([folder], 1)]
    assert whole == [str(path) for path in crops(patterns)]
    some = list(matcher.match_paths([folder / "sku-2", str(folder / "sku-3" / "*.png"), folder / "sku-4" / "4.png"], 1))
    assert [crop.matches[0].sku for crop in some] == ["sku-2"] * 2 + ["sku-3"] * 2 + ["sku-4"]
    with pytest.raises(DataError, match="none does not exist"):
        list(matcher.match_paths(["none"]))
