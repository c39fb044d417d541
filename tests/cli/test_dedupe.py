"""``skumatch dedupe``, ``dedupe-learn`` and ``dedupe-apply`` on made-up catalogues."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import MODEL, Skumatch
from tests.skumatch.catalogues import write_catalogue

SIZES = (2, 3, 2, 5, 2, 1, 3, 4, 2, 3, 2, 6, 2, 2, 3)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a labelled catalogue in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_catalogue(tmp_path / "shop", SIZES)


def vectors(shop: Path) -> Path:
    """Write vectors of the pictures, near for one product, and return the file."""
    with shop.open(newline="", encoding="utf-8") as stream:
        groups = [row["label_group"] for row in csv.DictReader(stream)]
    names = {group: place for place, group in enumerate(sorted(set(groups)))}
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(names), 16))
    rows = np.stack([centres[names[group]] + rng.normal(0, 0.3, 16) for group in groups])
    np.save(shop.parent / "vectors.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return shop.parent / "vectors.npy"


def test_it_works_with_nothing_but_a_catalogue(shop: Path, skumatch: Skumatch) -> None:
    ran = skumatch("dedupe", shop, "--eval", "--json")
    assert ran.code == 0, ran.err
    assert "pictures are compared by their hashes alone" in ran.err
    facts = json.loads(ran.out)
    assert facts["eval"]["f1"]["value"] > 0.6
    assert facts["postings"] == sum(SIZES) and facts["groups"] > 5
    folder = Path("dedupe")
    names = {"matches.csv", "groups.csv", "pairs.parquet", "errors.csv", "dedupe.json", ".work"}
    assert {file.name for file in folder.iterdir()} == names
    with (folder / "matches.csv").open() as stream:
        matches = {row["posting_id"]: row["matches"].split() for row in csv.DictReader(stream)}
    assert len(matches) == sum(SIZES)
    assert all(posting in found for posting, found in matches.items())


def test_vectors_made_before_do_better_and_a_rule_is_learned_and_used(shop: Path, skumatch: Skumatch) -> None:
    rows = vectors(shop)
    ran = skumatch("dedupe-learn", shop, "rule.json", "--vectors", rows, "--kind", "noisy-or", "--json")
    assert ran.code == 0, ran.err
    assert "on groups it had not seen" in ran.err
    told = json.loads(ran.out)["out_of_fold"]["noisy-or"]
    ran = skumatch("dedupe", shop, "--vectors", rows, "--rule", "rule.json", "--eval", "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["rule"]["threshold"] == told["threshold"]
    assert facts["eval"]["f1"]["value"] > 0.9
    assert facts["largest"] == max(SIZES) and facts["rule"]["most"] == 50
    ran = skumatch("dedupe", shop, "--vectors", rows, "--rule", "rule.json", "--largest", "3", "--json")
    assert ran.code == 0 and json.loads(ran.out)["largest"] == 3
    for option, learned, asked in (("--neighbours", 50, 20), ("--blend", 0, 1)):
        ran = skumatch("dedupe", shop, "--vectors", rows, "--rule", "rule.json", option, learned)
        assert ran.code == 0, ran.err
        ran = skumatch("dedupe", shop, "--vectors", rows, "--rule", "rule.json", option, asked)
        said = f"error: the rule was learned with {option} {learned}, not {asked} - "
        assert ran.code == 2 and [line[: len(said)] for line in ran.errors] == [said]


def test_a_model_sees_the_pictures_and_a_second_run_looks_at_none_again(
    shop: Path, skumatch: Skumatch, patterns: Path
) -> None:
    assert skumatch("init", ".", "--data", patterns, *MODEL).code == 0
    ran = skumatch("dedupe", shop, "--json")
    assert ran.code == 0, ran.err
    first = json.loads(ran.out)
    assert first["image"]["name"].startswith("timm:test_efficientnet")
    for picture in shop.parent.glob("*.png"):
        picture.unlink()
    ran = skumatch("dedupe", shop, "--json")
    assert ran.code == 0 and "unreadable" not in ran.err
    again = json.loads(ran.out)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_a_rule_of_other_models_is_refused(shop: Path, skumatch: Skumatch) -> None:
    rows = vectors(shop)
    assert skumatch("dedupe-learn", shop, "rule.json", "--vectors", rows, "--kind", "union").code == 0
    ran = skumatch("dedupe", shop, "--rule", "rule.json")
    assert ran.code == 2
    assert ran.errors == ["error: the rule was learned with another image encoder (--vectors) - give it with --model"]


def test_what_cannot_be_is_one_line(shop: Path, skumatch: Skumatch, tmp_path: Path) -> None:
    plain = write_catalogue(tmp_path / "plain", (2, 2), labels=False)
    few = write_catalogue(tmp_path / "few", (2, 2))
    (tmp_path / "one.csv").write_text("posting_id,title\n1,tea\n")
    (tmp_path / "twice.csv").write_text("posting_id,title\n1,tea\n1,tea\n")
    (tmp_path / "no.json").write_text("{}")
    for words, said in (
        (("dedupe", "absent.csv"), "cannot read absent.csv"),
        (("dedupe", plain, "--eval"), "has no column label_group"),
        (("dedupe", tmp_path / "one.csv"), "has one posting"),
        (("dedupe", tmp_path / "twice.csv"), "line 3, has the posting id '1' of line 2"),
        (("dedupe", shop, "--column", "titel=x"), "there is no column 'titel' to map"),
        (("dedupe", shop, "--rule", "no.json"), "no.json is no rule"),
        (("dedupe", shop, "--vectors", "absent.npy"), "cannot read absent.npy"),
        (("dedupe", shop, "--text", "sentences:nowhere"), "HF_HUB_OFFLINE"),
        (("dedupe", shop, "--vectors", "v.npy", "--model", "timm:x"), "--vectors and --model both say"),
        (("dedupe", shop, "--images", "nowhere"), "nowhere is no folder"),
        (("dedupe", shop, "--out", "no.json"), "cannot write no.json (File exists)"),
        (("dedupe-learn", shop, "plain"), "plain is a folder"),
        (("dedupe-learn", plain, "r.json"), "has no column label_group"),
        (("dedupe-learn", few, "r.json"), "too few to learn from"),
        (("dedupe-learn", shop, "r.json", "--kind", "oracle"), "there is no kind of rule 'oracle'"),
        (("dedupe-apply", "nowhere", "d.jsonl"), "nowhere"),
    ):
        ran = skumatch(*words)
        assert ran.code == 2 and len(ran.errors) == 1 and said in ran.errors[0], (words, ran.err)
        assert "Traceback" not in ran.err


def test_missing_pictures_are_listed_and_counted(shop: Path, skumatch: Skumatch) -> None:
    gone = sorted(shop.parent.glob("*.png"))[:3]
    gone[0].unlink()
    gone[1].write_bytes(b"no picture")
    ran = skumatch("dedupe", shop, "--out", "out")
    assert ran.code == 0, ran.err
    assert "2 pictures could not be read: matched by the title alone" in ran.err
    with Path("out/errors.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image"] for row in rows} == {gone[0].name, gone[1].name}
    assert all(row["error"] for row in rows)


def test_odd_rows_are_warned_of(shop: Path, skumatch: Skumatch) -> None:
    shop.write_text(shop.read_text() + "odd1,,,g0\nodd2,,tea,g1\n")
    ran = skumatch("dedupe", shop)
    assert ran.code == 0, ran.err
    assert "warning: 2 postings without a picture" in ran.err
    assert "warning: 1 posting without a title" in ran.err
    with Path("dedupe/matches.csv").open() as stream:
        matches = {row["posting_id"]: row["matches"] for row in csv.DictReader(stream)}
    assert matches["odd1"] == "odd1"
