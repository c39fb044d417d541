"""Running the command line inside the test process, and a workspace with a fine-tuned model and a gallery."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from skumatch.cli import app
from skumatch.milvus import address, client

MODEL = ("--model", "timm:test_efficientnet", "--random-init", "--size", "32")


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that begin with ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


Skumatch = Callable[..., Ran]


@pytest.fixture
def skumatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Skumatch:
    """Return a function that runs ``skumatch ARGUMENTS`` in the current folder."""

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["skumatch", *map(str, arguments)])
        code = app._run(False)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(patterns: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace that was initialised, fine-tuned for an epoch and matched once (do not write to it)."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copytree(patterns, root / "shop")
    commands: list[list[str]] = [
        ["init", "--data", "shop", *MODEL],
        ["finetune", "--epochs", "1", "--device", "cpu"],
        ["gallery", "build", "--device", "cpu"],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SKUMATCH_CACHE", str(root / "cache"))
        for command in commands:
            patch.setattr(sys, "argv", ["skumatch", *command])
            assert app._run(False) == 0
    return root


@pytest.fixture(scope="session")
def finished_in_milvus(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``finished`` with its gallery in Milvus Lite (do not write to it)."""
    root = Path(shutil.copytree(finished, tmp_path_factory.mktemp("milvus") / "workspace"))
    shutil.rmtree(root / "gallery")
    config = root / "skumatch.toml"
    config.write_text(config.read_text().replace('path = "gallery"', 'path = "milvus+file:g.db"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["skumatch", "gallery", "build", "--device", "cpu"])
        assert app._run(False) == 0
    client.close(address.parse("milvus+file:g.db", root))
    return root


@pytest.fixture
def untouched(store: Path, skumatch: Skumatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fresh workspace around ``store`` with a random network, and make it the current folder."""
    monkeypatch.chdir(store.parent)
    assert skumatch("init", "--data", "store", *MODEL).code == 0
    return store.parent


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of ``finished`` that the test may change, and make it the current folder."""
    root = Path(shutil.copytree(finished, tmp_path / "copy"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(params=["folder", "milvus"])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of ``finished`` that the test may change, its gallery in a folder or in Milvus Lite, and make it
    the current folder."""
    name = "finished" if request.param == "folder" else "finished_in_milvus"
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "copy"))
    monkeypatch.chdir(root)
    yield root
    for folder in sorted(root.glob("*.db")):
        client.close(address.parse(f"milvus+file:{folder}"))
