"""``skumatch keys``: add, list, remove, in a workspace's state folder or another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skumatch.serve.keys import Keys

Skumatch = Callable[..., Any]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the keys of a workspace lie, and make the workspace the current folder."""
    text = '[data]\npath = "shop"\n[model]\nname = "x"\n[service]\nstate = "mine"\n'
    (tmp_path / "skumatch.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def test_a_key_is_printed_once_and_gets_in(skumatch: Skumatch, state: Path) -> None:
    ran = skumatch("keys", "add", "till 7", "--scope", "match", "--scope", "read", "--days", "90")
    assert ran.code == 0 and len(ran.out.splitlines()) == 1 and "cannot be shown again" in ran.err
    token = ran.out.strip()
    principal = Keys(state / "keys.json").check(token)
    assert principal and principal.name == "till 7" and principal.scopes == {"match", "read"}
    assert token not in ran.err
    listed = skumatch("keys", "list")
    head, line = listed.out.splitlines()
    assert head.split("\t") == ["name", "id", "scopes", "made", "valid until"]
    assert line.split("\t")[:3] == ["till 7", token.split("_")[1], "read,match"] and not line.endswith("\t-")
    (key,) = json.loads(skumatch("keys", "list", "--json").out)
    assert key["expires"] - key["created"] == pytest.approx(90 * 86400)
    for said in (listed.out, listed.err, json.dumps(key)):
        assert token.split("_")[2] not in said


def test_an_expired_key_is_marked(skumatch: Skumatch, state: Path) -> None:
    Keys(state / "keys.json", lambda: 1_000_000.0).add("old", ["read"], 1)
    assert skumatch("keys", "list").out.splitlines()[1].endswith("1970-01-13 (expired)")


def test_a_removed_key_stays_out(skumatch: Skumatch, state: Path) -> None:
    first = skumatch("keys", "add", "one", "--scope", "write").out.strip()
    second = skumatch("keys", "add", "two", "--scope", "write").out.strip()
    removed = skumatch("keys", "remove", "one")
    assert (removed.code, removed.out, removed.err) == (0, "", "")
    keys = Keys(state / "keys.json")
    assert keys.check(first) is None and keys.check(second)
    assert "nobody gets in" in skumatch("keys", "remove", "two").err
    assert keys.required


def test_another_folder_and_no_workspace(skumatch: Skumatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    token = skumatch("keys", "add", "one", "--scope", "read", "--state", "elsewhere").out.strip()
    assert Keys(tmp_path / "elsewhere" / "keys.json").check(token)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "one"], "--scope"),
        (["add", "one", "--scope", "admin"], "scopes are admin - give some of read, match, write"),
        (["add", "local", "--scope", "read"], "cannot be named 'local'"),
        (["add", "one", "--scope", "read", "--days", "0"], "days is 0"),
        (["remove", "one"], "no key named one"),
    ],
)
def test_a_mistake_is_one_line(skumatch: Skumatch, state: Path, arguments: list[str], said: str) -> None:
    ran = skumatch("keys", *arguments)
    assert ran.code == 2 and ran.out == "" and len(ran.err.splitlines()) == 1 and said in ran.err


def test_a_damaged_file_is_an_error_of_one_line(skumatch: Skumatch, state: Path) -> None:
    state.mkdir()
    (state / "keys.json").write_text("{")
    for arguments in (["list"], ["add", "one", "--scope", "read"], ["remove", "one"]):
        ran = skumatch("keys", *arguments)
        assert ran.code == 2 and len(ran.err.splitlines()) == 1 and "is corrupt, so nobody gets in" in ran.err
