"""Baselines without a hub: a line for each that cannot be had, and a real encoder where the hub's cache holds one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from skumatch.errors import ConfigError, DeviceError
from skumatch.eval.baselines import BASELINES, open_baselines
from skumatch.towers.build import check_name


def test_the_names_are_encoders_that_exist() -> None:
    assert list(BASELINES) == ["clip", "fashion-clip"]
    for model in BASELINES.values():
        check_name(model)


def test_unknown_names_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match="unknown baseline 'fashionclip' - did you mean fashion-clip"):
        open_baselines(["clip", "fashionclip"], "cpu")
    with pytest.raises(ConfigError, match="unknown baseline 'xyz' - choose clip, fashion-clip"):
        open_baselines(["xyz"], "cpu")
    assert open_baselines([], "cpu") == ([], [])


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache that the hub's client uses from now on."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_weights_out_of_reach_are_one_line_each(hub_cache: Path) -> None:
    open_baselines(["clip"], "cpu")  # the imports are not what is timed
    start = time.monotonic()
    found, missing = open_baselines(["clip", "fashion-clip", "clip"], "cpu")
    assert time.monotonic() - start < 10
    assert found == [] and len(missing) == 2
    for line, (name, model) in zip(missing, BASELINES.items(), strict=True):
        assert line.startswith(f"baseline {name} ({model}) is left out: the weights are not on this machine")
        assert "HF_HUB_OFFLINE is set" in line and "\n" not in line


def test_what_the_cache_holds_is_opened_beside_what_is_missing(hub_cache: Path, hf_folder: Path) -> None:
    repository = hub_cache / "models--patrickjohncyh--fashion-clip"
    shutil.copytree(hf_folder / "clip", repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found, missing = open_baselines(["clip", "fashion-clip"], "cpu")
    assert [name for name, _ in found] == ["fashion-clip"]
    assert len(missing) == 1 and missing[0].startswith("baseline clip ")
    encoder = found[0][1]
    vectors = encoder.encode(np.full((2, 3, encoder.spec.size, encoder.spec.size), 90, np.uint8))
    assert encoder.spec.name == BASELINES["fashion-clip"] and vectors.shape == (2, encoder.spec.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_device_that_is_not_granted_is_an_error_and_no_missing_baseline(hub_cache: Path) -> None:
    with pytest.raises(DeviceError):
        open_baselines(["clip"], "warp")
