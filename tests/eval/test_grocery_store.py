"""Real photos: the untouched baseline on the Grocery Store data set, where the data lies on this machine.

SKUMATCH_TEST_DATA names a data root with grocery-store/ in it, SKUMATCH_TEST_WEIGHTS a folder with MobileNetV2's
ImageNet weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.eval.evaluate import Question, evaluate, plan
from skumatch.eval.pool import embed_pool
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource


@pytest.mark.slow
def test_the_untouched_encoder_scores_what_was_measured_elsewhere() -> None:
    data, folder = os.environ.get("SKUMATCH_TEST_DATA"), os.environ.get("SKUMATCH_TEST_WEIGHTS")
    if not data or not folder:
        pytest.skip("SKUMATCH_TEST_DATA and SKUMATCH_TEST_WEIGHTS are not set")
    weights = Path(folder) / "mobilenetv2_100_imagenet.safetensors"
    encoder = open_encoder(ModelSource("timm:mobilenetv2_100", weights), device="cpu")
    packaged = open_dataset(Path(data) / "grocery-store").where({"department": "packages"})
    question = Question(names=("k-shot", "catalogue"))
    what = plan(packaged, question)
    found = evaluate(what, question, embed_pool(what.rows, encoder, Pipeline(), None), encoder.spec).document
    assert (found["queries"], found["gallery_views"], found["skus"], found["leaks"]) == (781, 864, 31, 0)
    assert found["topk"]["1"] == pytest.approx(0.519, abs=0.015)
    assert found["topk_views"]["3"] == pytest.approx(0.717, abs=0.015)
    assert found["topk_views"]["5"] == pytest.approx(0.805, abs=0.015)
    others = {one["name"]: one["topk"]["1"] for one in found["protocols"]}
    assert others["catalogue"] == pytest.approx(0.416, abs=0.015)  # one studio picture per class
    assert others["k-shot 1"] < others["k-shot 3"] < others["k-shot 5"] < others["closed"] == found["topk"]["1"]
