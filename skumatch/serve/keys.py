"""API keys: who may ask the service for what.

A key is ``skm_<id>_<secret>``; the file keeps its SHA-256 alone, so that who reads the file cannot ask. A slow hash,
as passwords need, would add nothing: the secret is 256 random bits, and nobody tries them out however fast the hash
is. This module knows nothing about HTTP. A file that is damaged lets nobody in.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.errors import ArtefactError, ConfigError

FILE = "keys.json"
SCOPES = ("read", "match", "write")
LONGEST = 64  # characters of a name
_FORMAT = 1
_DAY = 86400.0
_ID = re.compile(r"[0-9a-f]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Principal:
    """Who asks: the ``name`` of a key and the scopes that it was given."""

    name: str
    scopes: frozenset[str]


LOCAL = Principal("local", frozenset(SCOPES))  # who asks where there are no keys


@dataclass(frozen=True)
class KeyInfo:
    """What is known of a key beside its secret; ``created`` and ``expires`` in seconds since 1970, None: never."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None


@dataclass(frozen=True)
class _Entry(KeyInfo):
    sha256: str  # of the whole key, in hex


KeyInfos = list[KeyInfo]
_NOBODY = _Entry("", "", (), 0.0, None, "0" * 64)  # what an unknown key is compared with


class Keys:
    """The keys in the file ``path``, which is read again whenever it changed.

    ``clock`` gives seconds since 1970. Every method raises ArtefactError for a file that is damaged or cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._mark: tuple[int, ...] | None = None
        self._seen = False

    @property
    def required(self) -> bool:
        """Whether a key is asked for: there is a key file, or there was one since this object was made.

        A file without keys, or one that vanished, closes the service instead of opening it.
        """
        self._current()
        return self._seen

    def check(self, token: str) -> Principal | None:
        """Return whose key ``token`` is; None for one that is unknown, wrong or expired.

        Takes the same steps in each case: one SHA-256, one comparison of 64 characters in constant time.
        """
        parts = token.split("_")
        entry = self._current().get(parts[1] if len(parts) == 3 else "", _NOBODY)
        same = hmac.compare_digest(_digest(token), entry.sha256)
        alive = entry.expires is None or self._clock() < entry.expires
        return Principal(entry.name, frozenset(entry.scopes)) if same and alive and entry is not _NOBODY else None

    def __len__(self) -> int:
        return len(self._current())

    def add(self, name: str, scopes: Collection[str], days: float | None = None) -> str:
        """Make a key that is valid for ``days``, None: for ever, and return it; it is written down nowhere.

        Raises ConfigError for a name that is taken or unfit, unknown scopes, and days that are not above 0.
        """
        _check_wish(name, scopes, days)
        with self._changing() as entries:
            if any(entry.name == name for entry in entries.values()):
                raise ConfigError(f"there is a key named {name} already", "take another name, or remove that one first")
            identity = secrets.token_hex(4)
            while identity in entries:
                identity = secrets.token_hex(4)
            token, now = f"skm_{identity}_{secrets.token_hex(32)}", self._clock()
            expires = None if days is None else now + days * _DAY
            ordered = tuple(scope for scope in SCOPES if scope in scopes)
            entries[identity] = _Entry(identity, name, ordered, now, expires, _digest(token))
        return token

    def remove(self, name: str) -> None:
        """Take back the key named ``name``, at once. Raises ConfigError where there is none."""
        with self._changing() as entries:
            gone = [identity for identity, entry in entries.items() if entry.name == name]
            if not gone:
                there = ", ".join(entry.name for entry in entries.values()) or "none"
                raise ConfigError(f"there is no key named {name}", f"keys there are: {there}")
            for identity in gone:
                del entries[identity]

    def list(self) -> KeyInfos:
        """Return what is known of the keys, in the order in which they were made."""
        return [KeyInfo(e.id, e.name, e.scopes, e.created, e.expires) for e in self._current().values()]

    def _current(self) -> dict[str, _Entry]:
        """Return the entries by id, read anew where the file is another one than before."""
        try:
            facts = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._entries, self._mark = {}, None
            return self._entries
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self._seen = True
        mark = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if mark != self._mark:
            self._entries, self._mark = {}, None
            self._entries = _parsed(self.path)
            self._mark = mark
        return self._entries

    @contextmanager
    def _changing(self) -> Iterator[dict[str, _Entry]]:
        """Yield the entries to change and write them afterwards; one process at a time."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        with artefact.disk_errors(lock):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            artefact.take_lock(handle, lock, fcntl.LOCK_EX)
            entries = dict(self._current())
            yield entries
            document = {"format": _FORMAT, "keys": [asdict(entry) for entry in entries.values()]}
            artefact.write_file(self.path, json.dumps(document, indent=1).encode() + b"\n", 0o600)
        finally:
            os.close(handle)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _check_wish(name: str, scopes: Collection[str], days: float | None) -> None:
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= LONGEST or name == LOCAL.name:
        raise ConfigError(f"a key cannot be named {name!r}", f"give 1 to {LONGEST} printable characters, not 'local'")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ConfigError(f"scopes are {', '.join(scopes) or 'none'}", f"give some of {', '.join(SCOPES)}")
    if days is not None and not 0 < days < 1e6:
        raise ConfigError(f"days is {days}", "give more than 0, or nothing for a key that never expires")


def _parsed(path: Path) -> dict[str, _Entry]:
    """Return the entries in ``path`` by id. Raises ArtefactError unless all of it is as it was written."""
    try:
        document = json.loads(path.read_bytes())
        entries = [_entry(raw) for raw in document["keys"]]
        if document["format"] != _FORMAT:
            raise ValueError("another format")
        for distinct in ({entry.id for entry in entries}, {entry.name for entry in entries}):
            if len(distinct) != len(entries):
                raise ValueError("an id or a name occurs twice")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "restore it from a copy, or remove it and make new keys with `skumatch keys add`"
        raise ArtefactError(f"{path} is corrupt, so nobody gets in", remedy) from error
    return {entry.id: entry for entry in entries}


def _entry(raw: dict[str, Any]) -> _Entry:
    """Return one entry of the file. Raises ValueError, KeyError or TypeError for whatever is not one."""
    expires = raw["expires"] if raw["expires"] is None else _seconds(raw["expires"])
    made = _Entry(raw["id"], raw["name"], tuple(raw["scopes"]), _seconds(raw["created"]), expires, raw["sha256"])
    if len(raw) != len(asdict(made)) or not _ID.fullmatch(made.id) or not _DIGEST.fullmatch(made.sha256):
        raise ValueError("not an entry")
    try:
        _check_wish(made.name, made.scopes, None)
    except ConfigError as error:
        raise ValueError(error.what) from error
    return made


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("not a time")
    return float(value)


def _unreadable(path: Path, error: OSError) -> ArtefactError:
    what = f"{path} cannot be read ({error.strerror}), so nobody gets in"
    return ArtefactError(what, "give it to the user that the service runs as, with mode 600")
