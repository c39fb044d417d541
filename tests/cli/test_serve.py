"""``skumatch serve`` as a process: it answers, takes up changes, refuses what is unsafe, and ends when told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Skumatch

SKUMATCH = [sys.executable, "-m", "skumatch.cli.app"]


class Running:
    """A service in its own process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "serve.log"
        with self.log.open("w") as stream:
            command = [*SKUMATCH, "serve", "--port", "0", *options]
            self.process = subprocess.Popen(command, cwd=folder, stderr=stream, stdout=subprocess.DEVNULL)
        while "listening on " not in (said := self.log.read_text()):
            assert self.process.poll() is None, said
        self.url = said.split("listening on ")[1].split()[0]

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def match(self, path: Path, **headers: str) -> tuple[int, Any]:
        """Ask which SKU a picture shows."""
        return self.ask("/v1/match?k=2", path.read_bytes(), **{"Content-Type": "image/png", **headers})

    def end(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """Run a service while the block runs; it must end well."""
    service = Running(folder, *options)
    try:
        yield service
        assert service.end() == 0
    finally:
        service.process.kill()
        service.process.wait(60)
    assert "Traceback" not in service.log.read_text()


def test_it_answers_as_match_does_and_takes_up_changes(workspace: Path, skumatch: Skumatch) -> None:
    crop = workspace / "shop" / "train" / "sku-2" / "1.png"
    with running(workspace) as service:
        status, said = service.match(crop)
        assert status == 200
        before = said["gallery"]["version"]
        lines = [json.loads(line) for line in skumatch("match", crop, "--json", "--topk", "2").out.splitlines()]
        found = said["results"][0]["matches"]
        assert [(one["sku"], one["rank"]) for one in found] == [(line["sku"], line["rank"]) for line in lines]
        assert [one["score"] for one in found] == pytest.approx([line["score"] for line in lines], abs=1e-4)
        assert skumatch("gallery", "remove", "sku-2").code == 0
        assert service.match(crop)[1]["gallery"]["version"] == before
        os.kill(service.process.pid, signal.SIGHUP)
        while (said := service.match(crop)[1])["gallery"]["version"] == before:
            pass
        assert said["results"][0]["matches"][0]["sku"] != "sku-2"
    log = service.log.read_text()
    access = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"method", "path", "status", "ms", "request"} <= set(access[0]) and access[0]["path"] == "/v1/match"
    assert "SIGHUP" in log


@pytest.mark.slow
def test_keys_and_limits_of_the_workspace_hold(workspace: Path, skumatch: Skumatch) -> None:
    made = skumatch("keys", "add", "app", "--scope", "match")
    assert made.code == 0, made.err
    key = next(word for word in made.out.split() if word.startswith("skm_"))
    config = workspace / "skumatch.toml"
    config.write_text(config.read_text() + "[service]\nmax_k = 2\n")
    crop = workspace / "shop" / "train" / "sku-1" / "1.png"
    ours = {"Authorization": f"Bearer {key}"}
    with running(workspace, "--host", "0.0.0.0") as service:
        service.url = service.url.replace("0.0.0.0", "127.0.0.1")
        assert service.match(crop)[0] == 401
        assert service.match(crop, **ours)[0] == 200
        assert service.ask("/v1/match?k=3", crop.read_bytes(), **{"Content-Type": "image/png", **ours})[0] == 422
        assert service.ask("/v1/reload", b"", **ours)[0] == 403
    assert key not in service.log.read_text() and key.rpartition("_")[2] not in service.log.read_text()


def test_what_is_unsafe_or_cannot_be_is_one_line_and_exit_code_2(workspace: Path, skumatch: Skumatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, words in (
            (("--host", "0.0.0.0"), "without API keys - make one with `skumatch keys add"),
            (("--port", port), f"127.0.0.1:{port}"),
            (("--tls-cert", "no.pem"), "tls_cert and tls_key go together"),
            (("--gallery", "none"), "there is no gallery"),
            (("--model", "none"), "does not exist"),
        ):
            done = skumatch("serve", *options)
            (line,) = done.errors
            assert done.code == 2 and words in line, (options, done.err)


@pytest.mark.parametrize("lacking", ["fastapi", "python_multipart", "sqlalchemy", "uvicorn"])
def test_an_extra_that_is_not_installed_is_named(lacking: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules[sys.argv.pop()] = None; from skumatch.cli.app import main; main()"
    command = [sys.executable, "-c", code, "serve", lacking]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr == f"error: {lacking} is not installed - pip install 'skumatch[serve]'\n"


def test_settings_that_cannot_be_are_named(workspace: Path, skumatch: Skumatch) -> None:
    config = workspace / "skumatch.toml"
    text = config.read_text()
    for section, words in (
        ("[service]\nprot = 1\n", "unknown key 'prot' - did you mean 'port'?"),
        ("[service]\nqueue = 0\n", "[service] queue is 0 - give more than 0"),
        ('[service]\nmax_k = "5"\n', "max_k is '5' - give a value of type int"),
    ):
        config.write_text(text + section)
        done = skumatch("serve")
        assert done.code == 2 and words in done.err, done.err
