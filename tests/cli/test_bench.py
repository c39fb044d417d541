"""``skumatch bench``: real rates of real engines, small ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.export import speed

Skumatch = Callable[..., Any]
BENCH = ("bench", "--model", "timm:test_efficientnet", "--random-init", "--device", "cpu")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what is measured short; it is really measured all the same."""
    for name, value in {"SIDE": 128, "TURN": 0.05, "ROUNDS": 2}.items():
        monkeypatch.setattr(speed, name, value)


@pytest.mark.slow
def test_every_part_is_measured(
    skumatch: Skumatch, tmp_path: Path, patterns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runtimes = ("--runtime", "torch", "--runtime", "onnx")
    ran = skumatch(*BENCH, patterns / "test", *runtimes, "--batch", "4", "--views", "500", "--json", "speed.json")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["crops"] == 12 and found["views"] == 500 and found["gflop_per_picture"] > 0
    rates = {(one["part"], one["engine"]): one for one in found["rates"]}
    engines = {"torch fp32", "torch bf16", "onnx fp32", "onnx int8"}
    assert set(rates) == {("decode", ""), ("search", "")} | {
        (part, engine) for part in ("encode", "end to end") for engine in engines
    }
    assert all(one["rate"] > 0 for one in rates.values())
    peak = found["peak_gflops"]
    assert set(peak) == {"fp32", "bf16", "int8"} and min(peak.values()) > 0
    plain = rates["encode", "onnx int8"]
    reached = plain["rate"] * found["gflop_per_picture"] / peak["int8"]
    assert plain["batch"] == 4 and plain["fraction"] == pytest.approx(reached)
    assert 0 < rates["end to end", "onnx fp32"]["fraction"] < 5
    assert "fastest matrix product, GFLOP/s: fp32" in ran.out and "of encoding" in ran.out


def test_operations_are_counted_in_attention_too() -> None:
    from skumatch.encoder import open_encoder
    from skumatch.towers.build import ModelSource

    found = speed.flops(open_encoder(ModelSource("open_clip:skumatch-tiny-96", random_init=True), "cpu"))
    width, layers, tokens, side = 192, 6, 37, 96
    import open_clip

    how = open_clip.get_model_config("skumatch-tiny-96")["vision_cfg"]
    width, layers, patch = how["width"], how["layers"], how["patch_size"]
    tokens = (side // patch) ** 2 + 1
    each = 2 * tokens * 12 * width * width + 4 * tokens * tokens * width
    assert found == pytest.approx(layers * each + 2 * (tokens - 1) * 3 * patch * patch * width, rel=0.05)


def test_what_cannot_be_is_one_line(skumatch: Skumatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        ((), "no workspace here and no --model"),
        (("--random-init",), "--random-init goes with --model SPEC"),
        ((*BENCH[1:], "--runtime", "caffe"), "unknown runtime 'caffe'"),
        ((*BENCH[1:], "absent"), "absent"),
    ):
        ran = skumatch("bench", *arguments)
        assert ran.code == 2 and len(ran.errors) == 1 and said in ran.errors[0], ran.err
