"""A hub that is not there must be one error within seconds, never minutes of retries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skumatch import hub
from skumatch.errors import HubError, ModelError
from skumatch.towers.build import ModelSource, build

REPO = "nobody/skumatch-has-no-such-weights"
ASK = f"""
from skumatch import hub
from skumatch.errors import HubError
try:
    hub.fetch("{REPO}", "model.safetensors")
except HubError as error:
    print(error)
"""


def test_offline_is_an_error_at_once() -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        hub.fetch(REPO, "config.json")  # the import of huggingface_hub is not what is timed
    start = time.monotonic()
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*--weights FILE"):
        hub.fetch(REPO, "model.safetensors")
    assert time.monotonic() - start < 1


def test_a_name_that_no_repository_can_have() -> None:
    with pytest.raises(HubError, match=r"'a/b/c' is not a hub repository.*owner/name"):
        hub.fetch("a/b/c", "model.safetensors")


def test_an_unreachable_hub_is_an_error_within_seconds(tmp_path: Path) -> None:
    plain = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "HF_HUB_OFFLINE"}
    environment = {**plain, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 15
    assert done.returncode == 0, done.stderr
    assert "the hub cannot be reached" in done.stdout and "--weights FILE" in done.stdout


def test_a_hub_model_that_is_not_here_says_how_to_supply_it() -> None:
    with pytest.raises(HubError, match="--weights FILE"):
        build(ModelSource(f"hf:{REPO}"))


def test_names_without_published_weights_say_what_to_add() -> None:
    with pytest.raises(ModelError, match=r"names no weights.*--weights FILE / --random-init"):
        build(ModelSource("open_clip:skumatch-tiny-96"))
    with pytest.raises(ModelError, match=r"timm publishes no weights.*--weights FILE or --random-init"):
        build(ModelSource("timm:test_coatnet"))
