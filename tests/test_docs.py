"""The README's and the docs' code blocks, run in order as a user would, with a tiny encoder in place of CLIP.

CLIP's weights cannot be had offline: a ``skumatch`` in front on PATH adds the tiny encoder to ``init`` and keeps
``finetune`` to one epoch. A service that a page asks is started as the page says, but on a free port, and its answers
must have the shape of the JSON that stands under a block. All else is what is written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import pytest
from PIL.Image import Image

import skumatch
from skumatch.finetune.recipe import recipe_from
from skumatch.serve.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$(?:\n\n```json\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8080"  # where the docs ask the service; here it listens on a free port
SERVE = re.compile(r"^skumatch (serve\b.*)$", re.MULTILINE)
CURLRC = "fail-with-body\nsilent\nshow-error\nmax-time = 60\n"
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
    text = page.read_text()
    blocks = [block for block in BLOCK.findall(text) if SET_UP not in block[1]]
    if any(re.search(r"^curl ", code, re.MULTILINE) for _, code, _ in blocks) and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    env = prepared(pictures, tmp_path)
    with ExitStack() as stack:
        address = ""
        for kind, code, answer in blocks:
            if ADDRESS in code and not address:
                address = stack.enter_context(serving(SERVE.findall(text)[0].split(), tmp_path, env))
            code = code.replace(ADDRESS, address or ADDRESS)
            command = ["bash", "-euc", code] if kind == "bash" else [sys.executable, "-W", "error", "-c", code]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"
            if address and answer:
                same_shape(json.loads(answer), last(done.stdout), code)


def prepared(pictures: Path, folder: Path) -> dict[str, str]:
    """Put the pictures, the examples and the shim into ``folder``; return the environment to run the blocks in."""
    for name in ("crops", "shelf", "photos"):
        shutil.copytree(pictures / name, folder / name)
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples", ignore=ignore_patterns("node_modules"))
    shim = folder / "bin" / "skumatch"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(real=Path(sys.executable).parent / "skumatch"))
    shim.chmod(0o755)
    (folder / ".curlrc").write_text(CURLRC)
    path = os.pathsep.join((str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "CURL_HOME": str(folder), "NO_PROXY": "127.0.0.1"}


@contextmanager
def serving(arguments: list[str], folder: Path, env: dict[str, str]) -> Iterator[str]:
    """Run the service that a page starts, on a free port, and yield its host and port; it must end well."""
    log = folder / "service.log"
    command = [str(folder / "bin" / "skumatch"), *arguments, "--port", "0"]
    with log.open("wb") as stream, subprocess.Popen(command, cwd=folder, env=env, stderr=stream) as process:
        try:
            until = time.monotonic() + 120
            while (found := re.search(r"listening on http://(\S+)", log.read_text())) is None:
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
        assert process.wait(60) == 0, log.read_text()


def last(text: str) -> Any:
    """Return the last of the JSON values that ``text`` consists of."""
    value, place = None, 0
    while place < len(text.rstrip()):
        value, place = json.JSONDecoder().raw_decode(text, place)
    return value


def same_shape(told: Any, got: Any, where: str) -> None:
    """Assert that an answer has the names and types that the page shows; null may stand for any."""
    if isinstance(told, dict):
        assert isinstance(got, dict) and told.keys() == got.keys(), where
        for name in told:
            same_shape(told[name], got[name], f"{where}: {name}")
    elif isinstance(told, list):
        assert isinstance(got, list) and bool(told) == bool(got), where
        for one in got:
            same_shape(told[0], one, where)
    elif told is not None and got is not None:
        kinds = [float if type(value) is int else type(value) for value in (told, got)]
        assert kinds[0] is kinds[1], where


def test_readme_shows_the_commands_and_runs_something() -> None:
    text = (ROOT / "README.md").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/skumatch demo" in text
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest' in text
    kinds = [kind for kind, code, _ in BLOCK.findall(text) if SET_UP not in code]
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


def grouped(page: str, heading: str) -> list[tuple[list[str], list[str]]]:
    """Return the rows of the first table under a heading: the names in backticks in the first cell, the other cells."""
    text = (ROOT / "docs" / page).read_text()
    rows = re.findall(r"^\| (`.*)\|$", text[text.index(f"\n{heading}\n") :].split("\n## ")[1], re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return [(re.findall(r"`([^`]+)`", row[0]), row[1:]) for row in cells]


def table(page: str, heading: str) -> list[str]:
    """Return the names in backticks in the first cells of a table."""
    return [name for names, _ in grouped(page, heading) for name in names]


def test_the_page_on_python_names_what_is_stable() -> None:
    assert table("python.md", "## Stable names") == skumatch.__all__


def test_the_page_on_the_service_tells_every_setting_with_its_default() -> None:
    told: dict[str, str] = {}
    for names, cells in grouped("service.md", "## Settings"):
        told |= dict(
            zip(names, (part.strip().replace(",", "") for part in re.split(r",(?!\d)", cells[0])), strict=True)
        )
    assert told == {field.name: str(field.default).lower() for field in fields(Settings)}
    (example,) = re.findall(
        r"^```toml\n(.*?)^```$", (ROOT / "docs" / "service.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert Settings(**tomllib.loads(example)["service"]) != Settings()


def test_the_page_on_the_service_tells_every_metric() -> None:
    from skumatch.serve.metrics import Metrics

    there = {family.name + "_total" * (family.type == "counter") for family in Metrics().registry.collect()}
    assert set(table("service.md", "## Metrics")) == there


def test_the_page_on_the_service_tells_every_status() -> None:
    from skumatch.serve.schemas import MEANING

    text = (ROOT / "docs" / "service.md").read_text()
    rows = re.findall(r"^\| (\d{3}[\d, ]*) \|", text[text.index("## Statuses") :], re.MULTILINE)
    assert sorted(int(status) for row in rows for status in row.split(", ")) == sorted(MEANING)
