"""The audit log and the access log's lines: whole, durable, and nothing in them can break out."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skumatch.errors import ArtefactError
from skumatch.serve import access
from skumatch.serve.audit import Audit

NASTY = 'a\r\nb\x1b[2J\x00\x7f\u2028\u202e\udcff\u00e9\U0001f600\x85"\\'


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_are_added_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "state" / "audit.jsonl")
    audit.write(who="till 7", action="add views", sku="green-tea")
    Audit(audit.path).write(who="till 7", action="rollback", about={"to": None})
    first, second = lines(audit.path)
    assert first.pop("time") <= second.pop("time")
    assert first == {"who": "till 7", "action": "add views", "sku": "green-tea"}
    assert second == {"who": "till 7", "action": "rollback", "about": {"to": None}}
    assert audit.path.stat().st_mode & 0o777 == 0o600


def test_nothing_can_end_a_line_or_reach_a_terminal(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(sku=NASTY, about={NASTY: [NASTY]}, number=float("nan"), path=Path("/x"))
    data = audit.path.read_bytes()
    assert data.endswith(b"\n") and all(32 <= byte < 127 for byte in data[:-1])
    line = json.loads(data)
    assert (
        line["sku"] == NASTY and line["about"] == {NASTY: [NASTY]} and line["number"] == "NaN" and line["path"] == "/x"
    )


def test_a_line_is_on_disk_before_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    real, synced = os.fsync, list[bytes]()

    def recorded(handle: int) -> None:
        real(handle)
        if audit.path.exists() and os.path.samestat(os.fstat(handle), audit.path.stat()):
            synced.append(audit.path.read_bytes())

    monkeypatch.setattr(os, "fsync", recorded)
    for number in range(3):
        audit.write(number=number)
        assert len(synced) == number + 1 and synced[-1] == audit.path.read_bytes()


def test_many_writers_and_no_line_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    shared = Audit(path)

    def work(worker: int) -> None:
        for number in range(15):
            (shared if worker % 2 else Audit(path)).write(worker=worker, number=number, text="x" * 3000)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(path)
    assert len(found) == 90
    assert [line["number"] for line in found if line["worker"] == 3] == list(range(15))


def test_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(number=1)
    with audit.path.open("ab") as stream:
        stream.write(b'{"time": "2026-')  # the power went out
    audit.write(number=2)
    first, torn, second = audit.path.read_bytes().splitlines()
    assert json.loads(first)["number"] == 1 and json.loads(second)["number"] == 2 and torn == b'{"time": "2026-'


def test_a_full_disk_is_said_and_the_next_line_is_whole(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(number=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (audit.path.stat().st_size + 20, hard))
    try:
        for _ in range(2):  # half a line fits, then none of it
            with pytest.raises(ArtefactError, match="no space left"):
                audit.write(number=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    audit.write(number=3)
    first, *torn, last = audit.path.read_bytes().splitlines()
    assert json.loads(first)["number"] == 1 and json.loads(last)["number"] == 3 and len(torn) == 1


def test_what_the_disk_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "file" / "audit.jsonl", tmp_path / "folder", tmp_path / "link"):
        with pytest.raises(ArtefactError):
            Audit(path).write(number=1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_renamed_log_is_begun_anew(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(number=1)
    audit.path.rename(tmp_path / "audit.1")
    audit.write(number=2)
    assert [line["number"] for line in lines(tmp_path / "audit.1") + lines(audit.path)] == [1, 2]


LOGGED = NASTY.replace("\udcff", "")  # pytest hands what is logged to its other process, as UTF-8


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return what the service logs."""
    stream = io.StringIO()
    with access.to(stream):
        yield stream
    access.LOGGER.info("no more")
    assert "no more" not in stream.getvalue() and all(logger.propagate for logger in access.LOGGERS)


def test_an_access_line_is_one_line_without_keys(log: io.StringIO) -> None:
    token = "skm_0123abcd_" + "5e" * 32
    access.write({"path": f"/{LOGGED}/{token}", "status": 200})
    access.write({"path": "/" + "x" * 100_000, "status": 500, "error": f"Traceback\n {token.upper()}\n{LOGGED}"})
    text = log.getvalue()
    first, second = text.splitlines()
    assert text == f"{first}\n{second}\n" and all(32 <= ord(letter) < 127 for letter in first + second)
    assert "5e5e" not in text.lower() and json.loads(first)["path"] == f"/{LOGGED}/skm_0123abcd_***"
    assert len(json.loads(second)["path"]) < 3000 and set(json.loads(second)) == {"time", "path", "status", "error"}


def test_what_else_is_logged_are_lines_too(log: io.StringIO) -> None:
    access.LOGGER.info("loaded %s", LOGGED)
    try:
        raise ValueError(LOGGED)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("it broke")
    first, second = log.getvalue().splitlines()
    assert json.loads(first)["message"] == f"loaded {LOGGED}" and json.loads(first)["level"] == "INFO"
    assert json.loads(second)["message"] == "it broke" and "ValueError" in json.loads(second)["error"]
    assert (first + second).isascii() and (first + second).isprintable()


def test_a_line_takes_what_is_no_unicode_text() -> None:
    assert json.loads(access.line_of({"path": NASTY}))["path"] == NASTY
    assert access.line_of({"path": NASTY}).isascii()
