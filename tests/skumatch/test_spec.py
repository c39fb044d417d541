"""What an encoder is: refusing nonsense, the digest, and the round trip through JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from skumatch.encoder import Encoder
from skumatch.errors import HubError, ModelError, SkumatchError, SpecMismatch, nearest
from skumatch.spec import Preprocess, Spec, preprocess_of, spec_digest

HALF = (0.5, 0.5, 0.5)
CHANGES: dict[str, Any] = {
    "size": 72,
    "mean": (0.5, 0.5, 0.4),
    "std": (0.5, 0.4, 0.5),
    "resize": "pad",
    "crop_pct": 0.9,
    "interpolation": "bilinear",
}


def plain() -> Preprocess:
    return Preprocess(64, HALF, HALF, "crop", 1.0, "bicubic")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("size", 7, "image size 7"),
        ("size", 4097, "image size 4097"),
        ("crop_pct", 0.0, "crop_pct 0.0"),
        ("crop_pct", 1.01, "crop_pct 1.01"),
        ("crop_pct", float("nan"), "crop_pct nan"),
        ("resize", "stretch", "resize mode 'stretch'"),
        ("interpolation", "nearest", "interpolation 'nearest'"),
        ("mean", (0.5, 0.5), "three values"),
        ("std", (0.5, 0.5, 0.5, 0.5), "three values"),
        ("std", (0.5, 0.0, 0.5), "std above 0"),
    ],
)
def test_refuses_nonsense(field: str, value: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        replace(plain(), **{field: value})


def test_edges_of_the_ranges_are_allowed() -> None:
    assert replace(plain(), size=8, crop_pct=0.1).size == 8
    assert replace(plain(), size=4096, crop_pct=1).crop_pct == 1


def test_digest_changes_with_everything_that_changes_a_vector() -> None:
    assert set(CHANGES) == {f.name for f in fields(Preprocess)}
    architecture = {"library": "timm", "model": "a"}
    digests = [
        spec_digest(replace(plain(), **{key: value}), architecture, "features", "w") for key, value in CHANGES.items()
    ]
    digests.append(spec_digest(plain(), architecture, "features", "w"))
    digests.append(spec_digest(plain(), {**architecture, "model": "b"}, "features", "w"))
    digests.append(spec_digest(plain(), architecture, "head", "w"))
    digests.append(spec_digest(plain(), architecture, "features", "v"))
    assert len(set(digests)) == len(CHANGES) + 4
    assert digests[6] == spec_digest(plain(), dict(reversed(architecture.items())), "features", "w")


def test_digest_is_the_same_for_numbers_written_another_way() -> None:
    halves: Any = [0.5, 0.5, 0.5]
    listed = Preprocess(64, halves, HALF, "crop", 1.0, "bicubic")
    assert listed == plain()
    assert spec_digest(listed, {}, "features", "w") == spec_digest(plain(), {}, "features", "w")


def test_precision_leaves_the_digest_alone(encoder: Encoder) -> None:
    assert replace(encoder.spec, precision="int8").digest == encoder.spec.digest


def test_json_round_trip(encoder: Encoder) -> None:
    spec = replace(encoder.spec, mean=(0.1, 1 / 3, 0.3), precision="bf16")
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_with_a_field_missing_or_unknown_is_refused(encoder: Encoder) -> None:
    data = encoder.spec.to_json()
    for name in data:
        with pytest.raises(ModelError, match="incomplete"):
            Spec.from_json({key: value for key, value in data.items() if key != name})
    with pytest.raises(ModelError, match="incomplete"):
        Spec.from_json({**data, "colour": "red"})


def test_preprocess_of_a_spec_is_plain(encoder: Encoder) -> None:
    assert preprocess_of(encoder.spec) == Preprocess(64, HALF, HALF, "squash", 1.0, "bicubic")
    assert type(preprocess_of(encoder.spec)) is Preprocess


def test_errors_say_what_happened_and_what_to_do() -> None:
    error = HubError("no answer", "try later")
    assert (str(error), error.what, error.todo) == ("no answer - try later", "no answer", "try later")
    assert isinstance(error, ModelError) and issubclass(SpecMismatch, SkumatchError)
    assert str(SkumatchError("only this")) == "only this"


def test_nearest_names() -> None:
    assert nearest("galery", ["gallery", "model", "data"], 1) == "gallery"
    assert nearest("zzz", ["gallery", "model"]) == ""
