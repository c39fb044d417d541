"""The README's and the docs' code blocks, run in order as a user would, with a tiny encoder in place of CLIP.

CLIP's weights cannot be had offline: a ``skumatch`` in front on PATH adds the tiny encoder to ``init`` and keeps
``finetune`` to one epoch. All else is what is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from shutil import ignore_patterns

import pytest
from PIL.Image import Image

from skumatch.finetune.recipe import recipe_from

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SET_UP = "python3 -m venv .venv"  # the gate runs these blocks verbatim in fresh environments
SHIM = """#!/bin/sh
case "$1" in
  init) exec "{real}" "$@" --model open_clip:skumatch-tiny-96 --random-init ;;
  finetune) exec "{real}" "$@" --epochs 1 ;;
  *) exec "{real}" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_view: Callable[[int, int], Image]) -> Path:
    """Folders as the docs name them: crops/<sku>/, shelf/, photos/; SKUs that even random weights can tell apart."""
    base = tmp_path_factory.mktemp("pictures")
    for sku in range(8):
        folder = base / "crops" / f"sku-{sku}"
        folder.mkdir(parents=True)
        for view in range(32):
            draw_view(sku, view).save(folder / f"{view}.jpg")
    (base / "shelf").mkdir()
    for number in range(6):
        draw_view(number, 50).save(base / "shelf" / f"{number:04d}.jpg")
    (base / "photos").mkdir()
    for view, name in enumerate(("pear-front.jpg", "pear-side.jpg")):
        draw_view(9, view).save(base / "photos" / name)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page: Path, pictures: Path, tmp_path: Path) -> None:
    blocks = [(kind, code) for kind, code in BLOCK.findall(page.read_text()) if SET_UP not in code]
    for name in ("crops", "shelf", "photos"):
        shutil.copytree(pictures / name, tmp_path / name)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples", ignore=ignore_patterns("node_modules"))
    shim = tmp_path / "bin" / "skumatch"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(real=Path(sys.executable).parent / "skumatch"))
    shim.chmod(0o755)
    path = os.pathsep.join((str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    for kind, code in blocks:
        command = ["bash", "-euc", code] if kind == "bash" else [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"


def test_readme_shows_the_commands_and_runs_something() -> None:
    text = (ROOT / "README.md").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/skumatch demo" in text
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest' in text
    kinds = [kind for kind, code in BLOCK.findall(text) if SET_UP not in code]
    assert "bash" in kinds and "python" in kinds


def test_the_recipe_in_the_docs_is_one() -> None:
    tables = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs" / "finetune.md").read_text(), re.MULTILINE | re.DOTALL)
    assert tables
    for table in tables:
        recipe = recipe_from(tomllib.loads(table))
        assert recipe.name == "mine" and recipe.objectives.arcface == 1


def test_local_links_lead_somewhere() -> None:
    for page in PAGES:
        text = FENCED.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
