"""The versions of a gallery in Milvus: what each is, which is current, and one writer at a time.

A version exists from the moment its row does, so publishing it is the writing of one row. The lease of the writer is a
row too: best effort, as Milvus cannot compare and swap. Two writers that look at the very same moment are told apart by
looking again after a pause; a writer that lost its lease to another (it was away for a minute) publishes nothing. The
clocks of the machines that write must agree within that minute. It knows nothing about views.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from skumatch.errors import GalleryError, LockedError, ModelError
from skumatch.milvus.address import Address
from skumatch.milvus.client import Connection
from skumatch.milvus.rows import BLOCK, DUMMY, FLAT, VERSIONS
from skumatch.spec import Spec

FORMAT = 1
LEASE, JOB = 0, -1  # primary keys beside those of versions, which begin at 1
HELD = 60.0  # seconds that a lease lasts without being renewed
PAUSE = 0.2  # seconds until a writer looks whether it was alone
WAIT = 10.0  # seconds that a writer waits for another
TOLD = 10_000  # versions that are remembered


@dataclass(frozen=True)
class Head:
    """What a version is. ``number``: its own, from 1; ``at``: the version whose rows it shows (another one after going
    back); ``floor``: the oldest one whose rows are all there; ``generation``: number of its collections; ``kind``: the
    index that is wanted; ``columns``: facts that some SKU has."""

    number: int
    at: int
    generation: int
    generations: int
    spec: Spec
    views: int
    skus: int
    columns: tuple[str, ...]
    next_id: int
    kind: str
    index: str
    parent: str | None = None
    time: str = ""
    reason: str = ""
    added: int = 0
    removed: int = 0

    @property
    def name(self) -> str:
        """The version's name."""
        return version_name(self.number)

    def to_text(self) -> str:
        """Return the head as JSON."""
        return json.dumps({**vars(self), "spec": self.spec.to_json(), "format": FORMAT})

    @staticmethod
    def from_text(text: str, address: Address) -> Head:
        """Return the head that ``to_text`` wrote. Raises GalleryError for anything else."""
        try:
            said = json.loads(text)
            if said.pop("format") == FORMAT:
                spec = Spec.from_json(said.pop("spec"))
                return Head(spec=spec, columns=tuple(said.pop("columns")), **said)
        except (ValueError, KeyError, TypeError, AttributeError, ModelError):
            pass
        raise GalleryError(f"{address} holds something that this skumatch cannot read", "update it, or build it anew")


def version_name(number: int) -> str:
    """Return "v000003" for 3."""
    return f"v{number:06d}"


@dataclass(frozen=True)
class Place:
    """A gallery's name on a server, and with it those of its collections."""

    connection: Connection
    address: Address = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", self.connection.address)

    @property
    def versions(self) -> str:
        """The collection of versions."""
        return f"{self.address.name}__versions"

    def views(self, generation: int) -> str:
        """Return the collection of views."""
        return f"{self.address.name}__views_{generation}"

    def skus(self, generation: int) -> str:
        """Return the collection of what is known of SKUs."""
        return f"{self.address.name}__skus_{generation}"

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, ascending; none where there is no gallery."""
        if not self.connection.has(self.versions):
            return []
        return sorted(int(row["pk"]) for row in self.connection.query(self.versions, "pk > 0", ["pk"]))

    def head(self, number: int | None = None) -> Head | None:
        """Return the version ``number`` (the current one where it is None), None where there is none."""
        if number is None:
            numbers = self.numbers()
            number = numbers[-1] if numbers else 0
        found = self.connection.query(self.versions, f"pk == {number}", ["said"]) if number > 0 else []
        return Head.from_text(found[0]["said"], self.address) if found else None

    def told(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each version and what its row says, oldest first."""
        for rows in self.connection.stream(self.versions, "pk > 0", ["said"], BLOCK):
            yield from ((int(row["pk"]), str(row["said"])) for row in rows)

    def later(self, number: int) -> Head | None:
        """Return the current version where it is later than ``number``, else None."""
        if not self.connection.query(self.versions, f"pk == {number + 1}", ["pk"]):
            return None
        return self.head()

    def note(self, pk: int, said: dict[str, Any]) -> None:
        """Write a row beside the versions: a lease, or how far an import is."""
        text = json.dumps(said)
        self.connection.upsert(self.versions, [{"pk": pk, "said": text, "vector": DUMMY}])

    def noted(self, pk: int) -> dict[str, Any] | None:
        """Return what ``note`` wrote; None where there is nothing, or nothing that can be read."""
        found = self.connection.query(self.versions, f"pk == {pk}", ["said"])
        with contextlib.suppress(ValueError, TypeError):
            said = json.loads(found[0]["said"]) if found else None
            return said if isinstance(said, dict) else None
        return None

    def forget(self, pk: int) -> None:
        """Delete what ``note`` wrote."""
        self.connection.delete(self.versions, f"pk == {pk}")

    def publish(self, head: Head) -> None:
        """Write the version: from now on it is the current one."""
        self.connection.upsert(self.versions, [{"pk": head.number, "said": head.to_text(), "vector": DUMMY}])
        if head.number % 100 == 0:
            with contextlib.suppress(GalleryError):  # the next hundredth version does it
                self.connection.delete(self.versions, f"pk > 0 and pk <= {head.number - TOLD}")


class Lease:
    """The right to write, from ``__enter__`` to ``__exit__``. Raises LockedError where another has it."""

    _held: ClassVar[set[str]] = set()  # marks of the leases of this process

    def __init__(self, place: Place, what: str, wait: float | None = None) -> None:
        self.place = place
        self.mark = secrets.token_hex(8)
        self.what = what
        self.wait = WAIT if wait is None else wait
        self._until = 0.0

    def __enter__(self) -> Lease:
        self._held.add(self.mark)
        try:
            self._acquire()
        except BaseException:
            self._held.discard(self.mark)
            raise
        return self

    def _acquire(self) -> None:
        if not self.place.connection.has(self.place.versions):
            self.place.connection.create(self.place.versions, VERSIONS, FLAT)
        until = time.monotonic() + self.wait
        while not self._taken():
            if time.monotonic() >= until:
                raise LockedError(
                    f"{self.place.address} is being written by {self._holder()}",
                    "wait for it to end, then run it again",
                )
            time.sleep(PAUSE)

    def __exit__(self, *_: object) -> None:
        self._held.discard(self.mark)
        with contextlib.suppress(GalleryError):  # without a server it ends by itself
            if self._is_mine(self.place.noted(LEASE)):
                self.place.forget(LEASE)

    def renew(self) -> None:
        """Hold it for another minute. Raises LockedError when another writer has taken it meanwhile."""
        if time.time() < self._until - HELD / 2:
            return
        if not self._is_mine(self.place.noted(LEASE)):
            raise LockedError(f"{self.place.address} was taken over by {self._holder()}", "run it again")
        self._sign()

    def require(self) -> None:
        """Raise LockedError unless it is still held: to be called right before publishing."""
        self._until = 0.0
        self.renew()

    def _taken(self) -> bool:
        """Try to take it; return whether that was so."""
        held = self.place.noted(LEASE)
        if held is not None and not _over(held, self._held):
            return False
        self._sign()
        if self.place.address.folder is None:
            time.sleep(PAUSE)
        return self._is_mine(self.place.noted(LEASE))

    def _sign(self) -> None:
        self._until = time.time() + HELD
        said = {"mark": self.mark, "pid": os.getpid(), "host": socket.gethostname(), "what": self.what}
        self.place.note(LEASE, {**said, "until": self._until})

    def _is_mine(self, held: dict[str, Any] | None) -> bool:
        return held is not None and held.get("mark") == self.mark

    def _holder(self) -> str:
        held = self.place.noted(LEASE) or {}
        who = f"process {held.get('pid')} on {held.get('host')} ({held.get('what')})"
        return who if "pid" in held else "another process"


def _over(held: dict[str, Any], here: set[str]) -> bool:
    """Return whether a lease has run out, is none, or its holder is no more: a process of this machine that has ended,
    or a change of this process, whose leases are ``here``, that could not give it back."""
    try:
        until, pid = float(held["until"]), int(held["pid"])
    except (KeyError, TypeError, ValueError):
        return True
    if until < time.time():
        return True
    if held.get("host") != socket.gethostname():
        return False
    if pid == os.getpid():
        return held.get("mark") not in here
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
