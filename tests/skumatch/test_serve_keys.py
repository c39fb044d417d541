"""API keys: who gets in, what is on disk, and that damage lets nobody in."""

from __future__ import annotations

import hmac
import json
import os
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from skumatch.errors import ArtefactError, ConfigError
from skumatch.serve.keys import LOCAL, SCOPES, Keys, Principal


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "state" / "keys.json")


def test_a_key_gets_in_with_its_name_and_scopes(keys: Keys) -> None:
    assert len(keys) == 0 and keys.list() == [] and not keys.required and keys.check("skm_a_b") is None
    token = keys.add("till 7", ["match", "read", "match"])
    assert re.fullmatch(r"skm_[0-9a-f]{8}_[0-9a-f]{64}", token)
    assert keys.check(token) == Principal("till 7", frozenset({"read", "match"}))
    assert keys.required and len(keys) == 1
    assert [(key.name, key.scopes, key.expires) for key in keys.list()] == [("till 7", ("read", "match"), None)]
    assert LOCAL.scopes == frozenset(SCOPES)


def test_whatever_is_not_a_key_stays_out(keys: Keys) -> None:
    rng = random.Random(0)
    token, other = keys.add("one", SCOPES), keys.add("two", SCOPES)
    wrong = [
        "",
        " ",
        "skm",
        "skm__",
        "_".join(token.split("_")[:2]),
        token + "0",
        token[:-1],
        token.upper(),
        f" {token}",
    ]
    wrong += [
        token + "_",
        "\ud800",
        "skm_\x00_\xff",
        token * 50,
        "_".join([*token.split("_")[:2], other.split("_")[2]]),
    ]
    for _ in range(300):
        place = rng.randrange(len(token))
        letter = rng.choice([c for c in "0123456789abcdef_skm" if c != token[place]])
        wrong.append(token[:place] + letter + token[place + 1 :])
    assert [keys.check(text) for text in wrong] == [None] * len(wrong)
    assert keys.check(token) and keys.check(other)


def test_every_refusal_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One digest and one comparison of equal length in constant time, whatever is wrong; counted, not timed."""
    clock = Clock()
    keys = Keys(tmp_path / "keys.json", clock)
    good, old = keys.add("good", ["read"]), keys.add("old", ["read"], days=1)
    clock.now += 2 * 86400
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def recorded(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    unknown, wrong = "skm_00000000_" + "0" * 64, good[:-1] + ("0" if good[-1] != "0" else "1")
    for token in (good, old, unknown, wrong, "", "nonsense", "skm_" + "x" * 500):
        compared.clear()
        assert (keys.check(token) is not None) == (token == good)
        assert compared == [(64, 64)]


def test_a_key_expires(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys(tmp_path / "keys.json", clock)
    token = keys.add("guest", ["read"], days=0.5)
    clock.now += 43_199
    assert keys.check(token)
    clock.now += 1
    assert keys.check(token) is None
    assert keys.required and keys.list()[0].expires == clock.now


def test_only_digests_are_on_disk_and_only_for_the_owner(keys: Keys) -> None:
    before = os.umask(0o000)
    try:
        token = keys.add("one", ["read"])
    finally:
        mask = os.umask(before)
    assert mask == 0o000  # the process's own is as it was
    files = sorted(keys.path.parent.iterdir())
    assert [path.name for path in files] == ["keys.json", "keys.json.lock"]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    assert keys.path.parent.stat().st_mode & 0o777 == 0o700
    assert not any(token.split("_")[2] in path.read_text() for path in files)


def test_a_change_by_another_process_is_seen(keys: Keys) -> None:
    other = Keys(keys.path)
    token = other.add("one", ["read"])
    assert keys.check(token)
    second = other.add("two", ["read"])
    assert keys.check(second)
    other.remove("one")
    assert keys.check(token) is None and keys.check(second)


def test_a_service_that_asked_for_keys_is_not_opened_by_losing_them(keys: Keys) -> None:
    token = keys.add("one", ["read"])
    assert keys.required
    keys.remove("one")
    assert len(keys) == 0 and keys.required and keys.check(token) is None
    assert Keys(keys.path).required  # an empty list is a list
    keys.path.unlink()
    assert len(keys) == 0 and keys.required
    assert not Keys(keys.path).required  # begun without one


def test_names_and_scopes_and_days_are_checked(keys: Keys) -> None:
    keys.add("one", ["read"])
    for name in ("one", "", " x", "a\nb", "\x1b[2J", "x" * 65, "local", "\u202eabc"):
        with pytest.raises(ConfigError, match="named"):
            keys.add(name, ["read"])
    for scopes in ([], ["admin"], ["read", "Match"]):
        with pytest.raises(ConfigError, match="scopes are"):
            keys.add("two", scopes)
    for days in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="days is"):
            keys.add("two", ["read"], days)
    with pytest.raises(ConfigError, match="no key named two - keys there are: one"):
        keys.remove("two")
    assert [key.name for key in keys.list()] == ["one"]


def damaged(whole: str) -> list[str]:
    """Return what may have become of a key file, none of it valid."""
    document = json.loads(whole)
    entry = document["keys"][0]
    changes: list[dict[str, Any]] = [
        {"id": "x"},
        {"id": 5},
        {"name": ""},
        {"name": None},
        {"scopes": ["all"]},
        {"scopes": []},
        {"extra": 1},
    ]
    changes += [{"sha256": "00"}, {"sha256": None}, {"expires": "never"}, {"expires": True}, {"created": None}]
    entries = [[{**entry, **change}] for change in changes] + [[entry, entry], [5], [[]]]
    entries += [[{name: value for name, value in entry.items() if name != left_out}] for left_out in entry]
    entries += [[entry, {**entry, "id": "00000000"}], [entry, {**entry, "name": "other"}]]
    parts = [json.dumps({**document, "keys": keys}) for keys in entries]
    parts += ["", "[]", "null", "{}", '{"keys": []}', '{"format": 2, "keys": []}', "[" * 100_000, "\x00" * 50]
    return parts + [whole[:length] for length in range(0, len(whole) - 2, 7)]


def test_a_damaged_file_lets_nobody_in(keys: Keys) -> None:
    token = keys.add("one", SCOPES, days=30)
    whole = keys.path.read_text()
    for text in damaged(whole):
        keys.path.write_text(text)
        for held in (keys, Keys(keys.path)):
            for ask in (lambda k: k.check(token), len, Keys.list, lambda k: k.required):
                with pytest.raises(ArtefactError, match="nobody gets in"):
                    ask(held)
        with pytest.raises(ArtefactError):
            keys.add("two", ["read"])
        assert keys.path.read_text() == text
    keys.path.write_text(whole)
    assert keys.check(token)


def test_a_file_that_cannot_be_read_lets_nobody_in(keys: Keys) -> None:
    token = keys.add("one", SCOPES)
    keys.path.unlink()
    keys.path.mkdir()
    for _ in range(2):
        with pytest.raises(ArtefactError, match="nobody gets in"):
            keys.check(token)


def test_keys_made_at_the_same_time_are_all_there(keys: Keys) -> None:
    made: list[str] = []

    def make(worker: int) -> None:
        own = Keys(keys.path)
        made.extend(own.add(f"{worker}-{number}", ["read"]) for number in range(5))

    threads = [threading.Thread(target=make, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(keys) == 20
    assert all(keys.check(token) for token in made)
