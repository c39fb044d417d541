"""``skumatch reviews``, and a fine-tune on what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skumatch.readers_lists import read_manifest
from skumatch.serve.reviews import Reviews
from skumatch.serve.settings import Settings
from tests.cli.conftest import Skumatch


@pytest.fixture
def judged(workspace: Path) -> Path:
    """Return a workspace whose service was told what two crops show."""
    reviews = Reviews(workspace / "service" / "reviews.db", Settings())
    for number, (verdict, sku) in enumerate((("new", "tea"), ("reject", ""))):
        crop = sorted((workspace / "shop" / "test").rglob("*.png"))[number].read_bytes()
        made = reviews.keep(crop, "review", {"candidates": [{"sku": "sku-1"}], "model": ""})
        assert made is not None
        reviews.verdict(made, verdict, sku, "eva")  # type: ignore[arg-type]
    reviews.close()
    return workspace


def test_corrections_are_written_and_trained_on(judged: Path, skumatch: Skumatch) -> None:
    ran = skumatch("reviews", "export", "out")
    assert ran.code == 0 and "1 corrections" in ran.err and "--also out/corrections.csv" in ran.err
    (row,) = read_manifest(judged / "out" / "corrections.csv", 0)
    assert (row.sku, row.split) == ("tea", "train") and row.path.is_file()
    ran = skumatch("finetune", "--epochs", "1", "--also", "out/corrections.csv", "--out", "tuned")
    assert ran.code == 0, ran.err
    (document,) = [json.loads(file.read_text()) for file in (judged / "tuned").rglob("model.json")]
    assert document["data"]["skus"] == 7


def test_what_cannot_be_is_one_line(judged: Path, skumatch: Skumatch) -> None:
    (judged / "full").mkdir()
    (judged / "full" / "x").touch()
    for words, said in (
        (("reviews", "export", "full"), "full is not an empty folder"),
        (("reviews", "export", "out", "--state", "nowhere"), "nowhere/reviews.db is not there"),
        (("finetune", "--also", "absent.csv"), "absent.csv"),
    ):
        ran = skumatch(*words)
        assert ran.code == 2 and len(ran.errors) == 1 and said in ran.errors[0]
