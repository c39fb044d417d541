"""From a catalogue to matches and groups, with the fake encoder and drawn pictures; what is written; going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from skumatch.catalogue import output
from skumatch.catalogue.dedupe import Evidence, Looks, evidence, judge, outcome, signals_of
from skumatch.catalogue.groups import Grouping
from skumatch.catalogue.judged import Judged, matches_of
from skumatch.catalogue.pictures import Pictures, look, with_vectors
from skumatch.catalogue.postings import Catalogue, read_catalogue
from skumatch.catalogue.rules import Rule, unlabelled
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, DataError
from skumatch.eval.duplicates import figures
from skumatch.spec import Pixels, Vectors
from tests.conftest import FakeEncoder
from tests.skumatch.catalogues import write_catalogue

SIZES = (2, 3, 2, 5, 2, 1, 1, 4, 2, 3, 2, 6)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return read_catalogue(write_catalogue(tmp_path / "shop", SIZES))


def gathered(catalogue: Catalogue, pictures: Pictures | None, looks: Looks | None = None) -> Evidence:
    looks = looks or Looks(20)
    return evidence(catalogue, signals_of(catalogue, pictures, None, looks), looks)


def rule_for(found: Evidence) -> Rule:
    return unlabelled(found.floors, Grouping())


def test_postings_of_a_product_are_matched_and_grouped(catalogue: Catalogue, encoder: Encoder, tmp_path: Path) -> None:
    pictures = look(catalogue, encoder, Pipeline(), tmp_path / "work")
    found = gathered(catalogue, pictures)
    rule = rule_for(found)
    answer = outcome(found.count, judge(found, rule), rule)
    assert catalogue.groups is not None
    measured = figures(answer.matches, catalogue.groups)
    assert measured["f1"]["value"] > 0.9
    assert [signal.name for signal in found.features.signals] == ["image", "words", "chars", "hash"]


def test_titles_alone_do_as_well_as_they_can(catalogue: Catalogue) -> None:
    found = gathered(catalogue, None)
    rule = rule_for(found)
    answer = outcome(found.count, judge(found, rule), rule)
    assert catalogue.groups is not None
    assert figures(answer.matches, catalogue.groups)["f1"]["value"] > 0.6


def test_a_picture_that_cannot_be_read_is_told_and_matched_by_its_title(
    catalogue: Catalogue, encoder: Encoder, tmp_path: Path
) -> None:
    first, second = catalogue.picture(0), catalogue.picture(1)
    assert first is not None and second is not None
    first.unlink()
    second.write_bytes(b"no picture")
    pictures = look(catalogue, encoder, Pipeline(), tmp_path / "work")
    assert [failure.place for failure in pictures.failures] == [0, 1]
    assert catalogue.pictures[0] in pictures.failures[0].why
    assert pictures.present.sum() == len(catalogue) - 2
    found = gathered(catalogue, pictures)
    touched = (found.pairs.left == 0) | (found.pairs.right == 0)
    assert touched.any()
    values = found.features.of(found.pairs)[touched]
    assert np.isnan(values[:, found.features.names.index("image")]).all()


class Stumbling(FakeEncoder):
    """Breaks off after some batches, and counts what it encodes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.seen = after, 0

    def encode(self, pixels: Pixels) -> Vectors:
        if self.seen >= self.after:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return super().encode(pixels)


def test_an_interrupted_look_goes_on_where_it_was(
    catalogue: Catalogue, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skumatch.catalogue.pictures.EVERY", 4)
    how = Pipeline(batch=4, workers=1)
    with pytest.raises(KeyboardInterrupt):
        look(catalogue, Stumbling(16), how, tmp_path / "work")
    rest = Stumbling(1000)
    done: list[int] = []
    again = look(catalogue, rest, how, tmp_path / "work", done.append)
    assert done[0] == 16 and sum(done) == len(catalogue)
    assert rest.seen == len(catalogue) - 16
    whole = look(catalogue, encoder, how, tmp_path / "other")
    assert again.vectors is not None and whole.vectors is not None
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    np.testing.assert_array_equal(again.hashes, whole.hashes)
    other = Stumbling(1000)
    other.spec = FakeEncoder(5).spec
    look(catalogue, other, how, tmp_path / "work")
    assert other.seen == len(catalogue)  # another encoder begins anew


def test_errors_are_told_again_when_nothing_is_left_to_do(
    catalogue: Catalogue, encoder: Encoder, tmp_path: Path
) -> None:
    picture = catalogue.picture(3)
    assert picture is not None
    picture.write_bytes(b"x")
    first = look(catalogue, encoder, Pipeline(), tmp_path / "work")
    second = look(catalogue, Stumbling(0), Pipeline(), tmp_path / "work")
    assert first.failures == second.failures and len(first.failures) == 1


@pytest.mark.parametrize("stopped", [False, True])
def test_pictures_that_were_mended_are_read_by_the_next_run(
    catalogue: Catalogue, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setattr("skumatch.catalogue.pictures.EVERY", 4)
    how = Pipeline(batch=4, workers=1)
    whole = look(catalogue, encoder, how, tmp_path / "other")
    broken = [picture for picture in (catalogue.picture(place) for place in (1, 2, 9)) if picture is not None]
    kept = [picture.read_bytes() for picture in broken]
    broken[0].unlink()
    broken[1].write_bytes(b"x")
    broken[2].write_bytes(b"x")
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            look(catalogue, Stumbling(12), how, tmp_path / "work")
    else:
        assert [one.place for one in look(catalogue, encoder, how, tmp_path / "work").failures] == [1, 2, 9]
    broken[0].write_bytes(kept[0])
    broken[1].unlink()
    broken[2].write_bytes(kept[2])
    done: list[int] = []
    (failure,) = look(catalogue, encoder, how, tmp_path / "work", done.append).failures
    assert failure.place == 2 and "No such file" in failure.why and sum(done) == len(catalogue)
    broken[1].write_bytes(kept[1])
    sees = Stumbling(100)
    last = look(catalogue, sees, how, tmp_path / "work")
    assert sees.seen == 1 and last.failures == () and last.present.all()
    assert last.vectors is not None and whole.vectors is not None
    np.testing.assert_array_equal(last.vectors, whole.vectors)
    np.testing.assert_array_equal(last.hashes, whole.hashes)


def test_without_an_encoder_pictures_are_hashed(catalogue: Catalogue, tmp_path: Path) -> None:
    pictures = look(catalogue, None, Pipeline(), tmp_path / "work")
    assert pictures.vectors is None
    assert pictures.hashed.all() and len(np.unique(pictures.hashes)) > 6


def test_given_hashes_are_kept(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path, (2, 2))
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0] + ",image_phash", lines[1] + ",00000000000000ff", *(x + "," for x in lines[2:])])
    )
    pictures = look(read_catalogue(path), None, Pipeline(), tmp_path / "work")
    assert pictures.hashed.tolist() == [True, False, False, False]
    assert pictures.hashes[0] == 0xFF and pictures.present.all()


def test_vectors_made_before_are_taken(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(len(catalogue), 8)).astype(np.float32)
    rows[2] = 0
    np.save(tmp_path / "v.npy", rows)
    pictures = with_vectors(catalogue, tmp_path / "v.npy")
    assert pictures.vectors is not None and not pictures.present[2]
    np.testing.assert_allclose(np.linalg.norm(pictures.vectors[pictures.present], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("wrong", ["rows", "kind", "nan", "text", "objects"])
def test_other_vectors_are_refused(catalogue: Catalogue, tmp_path: Path, wrong: str) -> None:
    rows: np.ndarray[tuple[int, int], np.dtype[np.float32]] = np.ones((len(catalogue), 4), np.float32)
    if wrong == "nan":
        rows[3, 1] = np.nan
    path = tmp_path / "v.npy"
    if wrong == "text":
        path.write_text("no array")
    else:
        made: dict[str, Any] = {"rows": rows[1:], "kind": rows.astype(np.float64), "objects": np.array([{}], object)}
        np.save(path, made.get(wrong, rows))
    with pytest.raises(DataError, match=r"v\.npy") as caught:
        with_vectors(catalogue, path)
    assert caught.value.todo


def test_one_posting_and_nothing_to_go_by_are_said(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path, (1,))
    with pytest.raises(DataError, match="has one posting"):
        gathered(read_catalogue(path), None)
    path.write_text("posting_id,title\n1,\n2,\n")
    with pytest.raises(DataError, match="no posting has a readable picture or a title"):
        gathered(read_catalogue(path), None)


def test_looks_out_of_range_are_refused() -> None:
    for k, blend in ((0, 0), (1001, 0), (5, 6)):
        with pytest.raises(ConfigError):
            Looks(k, blend)


def test_blending_and_joint_vectors_are_further_signals(catalogue: Catalogue, encoder: Encoder, tmp_path: Path) -> None:
    pictures = look(catalogue, encoder, Pipeline(), tmp_path / "work")
    texts = np.random.default_rng(0).normal(size=(len(catalogue), 6)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    looks = Looks(20, blend=1, joint=True)
    found = evidence(catalogue, signals_of(catalogue, pictures, texts, looks), looks)
    names = [signal.name for signal in found.features.signals]
    assert names == [
        "image",
        "image_blended",
        "text",
        "text_blended",
        "words",
        "chars",
        "hash",
        "joint",
        "joint_blended",
    ]


def test_what_is_written_reads_back(catalogue: Catalogue, encoder: Encoder, tmp_path: Path) -> None:
    pictures = look(catalogue, encoder, Pipeline(), tmp_path / "work")
    found = gathered(catalogue, pictures)
    rule = rule_for(found)
    names = [signal.name for signal in found.features.signals]
    with output.PairTable(tmp_path / output.PAIRS, catalogue.ids, found.features.names, names) as table:
        judged = judge(found, rule, table)
    answer = outcome(found.count, judged, rule)
    output.write_matches(tmp_path / output.MATCHES, catalogue.ids, answer.matches)
    count = output.write_groups(tmp_path / output.GROUPS, catalogue, answer.groups, judged)
    matches = output.read_matches(tmp_path / output.MATCHES)
    assert list(matches) == catalogue.ids
    for place, posting in enumerate(catalogue.ids):
        assert matches[posting] == [catalogue.ids[other] for other in answer.matches.of(place)]
        assert matches[posting][0] == posting
    pairs = pq.read_table(tmp_path / output.PAIRS)
    assert len(pairs) == len(judged)
    columns = ["left", "right", "probability", *names, "amounts_contradict", "amounts_agree"]
    assert pairs.column_names == columns
    np.testing.assert_array_equal(pairs["probability"].to_numpy(), judged.probability)
    assert pairs["left"][0].as_py() == catalogue.ids[judged.left[0]]
    lines = (tmp_path / output.GROUPS).read_text().splitlines()
    sizes = np.bincount(answer.groups)
    assert len(lines) == 1 + sizes[sizes > 1].sum() and count == (sizes > 1).sum()
    assert lines[0] == "group,posting_id,image,title,confidence"


def test_no_cell_runs_in_a_spreadsheet_and_ids_read_back(tmp_path: Path) -> None:
    ids = ["=1+1", "@x", "plain"]
    matches = matches_of(3, Judged(np.array([0], np.int32), np.array([2], np.int32), np.array([0.9], np.float32)))
    output.write_matches(tmp_path / output.MATCHES, ids, matches)
    lines = (tmp_path / output.MATCHES).read_text().splitlines()
    assert lines[1:3] == ["'=1+1,'=1+1 plain", "'@x,'@x"]
    assert output.read_matches(tmp_path / output.MATCHES) == {
        "=1+1": ["=1+1", "plain"],
        "@x": ["@x"],
        "plain": ["plain", "=1+1"],
    }


def test_the_same_twice(catalogue: Catalogue, encoder: Encoder, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        pictures = look(catalogue, encoder, Pipeline(), tmp_path / name)
        found = gathered(catalogue, pictures, Looks(20, seed=3))
        made.append(judge(found, rule_for(found)).probability)
    np.testing.assert_array_equal(made[0], made[1])


def test_a_failed_table_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / output.PAIRS
    path.write_text("older")
    with pytest.raises(KeyboardInterrupt), output.PairTable(path, ["a"], ("image", *output.AMOUNTS), ["image"]):
        raise KeyboardInterrupt
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == [output.PAIRS]
