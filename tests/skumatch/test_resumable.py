"""A match that was interrupted goes on where it stopped, and ends in the file of an uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from skumatch.errors import ConfigError
from skumatch.match import CropMatches, Match
from skumatch.results import ResultFile, records
from skumatch.resumable import EVERY, ResumableFile

SAME = {"model": "abc", "topk": "2"}
CROPS = [Path(f"shelf/{number:05d}, \u00e5\udcff.jpg") for number in range(2 * EVERY + 50)]


def found(crop: Path) -> CropMatches:
    answers = (("sku-a", 0.9), ("sku\nb", 0.5))
    return CropMatches(
        crop,
        tuple(Match(sku, "", score, rank, rank, "v.jpg", "accept") for rank, (sku, score) in enumerate(answers, 1)),
    )


def whole(path: Path) -> bytes:
    with ResultFile(path) as out:
        for crop in CROPS:
            out.write(records(found(crop)))
    return path.read_bytes()


def interrupted(path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt), ResumableFile(path, SAME) as out:
        for crop in CROPS[:after]:
            out.write(records(found(crop)))
        raise KeyboardInterrupt


def go_on(path: Path, crops: list[Path] = CROPS) -> None:
    with ResumableFile(path, SAME, resume=True) as out:
        for crop in out.rest(iter(crops)):
            out.write(records(found(crop)))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("after", [1, EVERY, EVERY + 7])
def test_it_ends_in_the_same_file(tmp_path: Path, suffix: str, after: int) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("an older result")
    interrupted(path, after)
    assert path.read_text() == "an older result"
    go_on(path)
    assert path.read_bytes() == whole(tmp_path / f"whole{suffix}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"out{suffix}", f"whole{suffix}"]


def killed(path: Path, after: int) -> None:
    """Write in a child process that ends without any clean-up."""
    child = os.fork()
    if child == 0:
        out = ResumableFile(path, SAME)
        out.__enter__()
        for crop in CROPS[:after]:
            out.write(records(found(crop)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_kill_loses_only_what_came_after_the_last_note(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    killed(path, EVERY + 300)
    with (tmp_path / ".out.csv.part").open("ab") as part:
        part.write(b'"shelf/torn')  # wherever the kernel was cut off
    assert not path.exists()
    out = ResumableFile(path, SAME, resume=True)
    assert out.done == EVERY
    go_on(path)
    assert path.read_bytes() == whole(tmp_path / "whole.csv")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(ConfigError, match="no interrupted match"):
        ResumableFile(path, SAME, resume=True)
    interrupted(path, 5)
    with pytest.raises(ConfigError, match="differ"):
        ResumableFile(path, {**SAME, "topk": "3"}, resume=True)
    with pytest.raises(ConfigError, match="not shelf"):
        go_on(path, CROPS[1:])
    (tmp_path / ".out.csv.part").write_bytes(b"crop")
    with pytest.raises(ConfigError, match="shorter"):
        ResumableFile(path, SAME, resume=True)
    (tmp_path / ".out.csv.part.json").write_text("{")
    with pytest.raises(ConfigError, match="corrupt"):
        ResumableFile(path, SAME, resume=True)


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    interrupted(path, 5)
    with ResumableFile(path, SAME) as out:
        for crop in out.rest(iter(CROPS)):
            out.write(records(found(crop)))
    assert path.read_bytes() == whole(tmp_path / "whole.csv")
