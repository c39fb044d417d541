"""The examples of docs/examples/deploy: their lines parse, and what they say of skumatch is so."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skumatch.serve.settings import Settings

DEPLOY = Path(__file__).parents[2] / "docs" / "examples" / "deploy"
INSTRUCTIONS = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
INSTRUCTIONS |= {"ENTRYPOINT", "CMD"}


def unit() -> dict[str, list[str]]:
    """Return the values of each setting of the unit; each line is a section, a comment or a setting."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "skumatch.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            assert re.fullmatch(r"[A-Z][A-Za-z]+=.*", line), line
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def image() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def options(*command: str) -> set[str]:
    """Return the options that a command of skumatch has, as its help lists them."""
    call = [sys.executable, "-c", "from skumatch.cli.app import main; main()", *command, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def test_what_the_examples_start_takes_the_options_they_give() -> None:
    commands = [shlex.split(unit()["ExecStart"][0])[1:], json.loads(dict(image())["CMD"])]
    for command in commands:
        assert command[0] == "serve" and set(command[1::2]) <= options("serve"), command
    readme = (DEPLOY / "README.md").read_text()
    keys = re.findall(r"skumatch (keys add .*)", readme)
    assert keys and set(re.findall(r"--[a-z-]+", keys[0])) <= options("keys", "add")
    for name in re.findall(r"\b(max_body|deadline|drain|hosts|keep_alive)\b", readme):
        assert hasattr(Settings(), name)


def test_the_unit_gives_the_service_time_to_answer_and_reloads_it() -> None:
    found = unit()
    assert float(found["TimeoutStopSec"][0]) > Settings().drain + Settings().grace + 5
    assert found["KillSignal"] == ["SIGTERM"] and found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    for name, value in {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": ""}.items():
        assert found[name] == [value]
    assert found["WorkingDirectory"][0] in found["ReadWritePaths"][0].split()


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "skumatch.service").read_text().replace("/opt/skumatch/bin/skumatch", sys.executable)
    (tmp_path / "skumatch.service").write_text(text)
    done = subprocess.run([program, "verify", "skumatch.service"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "skumatch.service" not in done.stderr, done.stderr


def test_the_image_runs_as_nobody_special_without_a_shell() -> None:
    found = image()
    assert {name for name, _ in found} == INSTRUCTIONS
    stages = [index for index, (name, _) in enumerate(found) if name == "FROM"]
    last = dict(found[stages[-1] :])
    assert len(stages) == 2 and int(last["USER"].split(":")[0]) > 0
    for name, rest in found:
        if name in ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK", "VOLUME"):
            words = json.loads(rest[rest.index("[") :])
            assert words and all(isinstance(word, str) for word in words)
    assert last["EXPOSE"] == str(Settings().port) and last["WORKDIR"] == "/workspace"


def test_the_image_copies_what_is_there_and_asks_whether_it_is_ready() -> None:
    found = image()
    copied = {word for name, rest in found if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]}
    assert all((DEPLOY.parents[2] / word).exists() for word in copied)
    assert {"skumatch", "cli", "eval", "export", "finetune", "pyproject.toml"} <= copied
    probe = dict(found)["HEALTHCHECK"]
    code = json.loads(probe[probe.index("[") :])[-1]
    ast.parse(code)
    assert "/readyz" in code
