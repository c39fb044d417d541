"""The one way to a Milvus server or file: a client per process and server, calls that are repeated, and collections.

A call that finds the server away is repeated with growing pauses until its time limit; all calls made here may be
repeated. A connection on which an answer did not come in time is not used again. It knows nothing about galleries.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.config
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from skumatch import artefact
from skumatch.errors import ConfigError, LockedError, ServerError
from skumatch.milvus.address import TOKEN, Address, time_limit
from skumatch.milvus.rows import FLAT
from skumatch.milvus.trouble import Away, Late, There, Unindexed, Unloaded, said
from skumatch.spec import Vectors

OLDEST = (2, 6)  # from there on rows can be changed in part
LOOKED_UP = ("sku", "sha256")
MOST = 16_384  # rows a query may return
CHANNEL = {  # how gRPC connects
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,  # not two minutes: a server that is back is found at once
    "grpc.min_reconnect_backoff_ms": 5000,  # time for a handshake, which a server that hangs never ends
    "grpc.use_local_subchannel_pool": 1,  # a new connection knows nothing of what became of others
}
LEAST = 0.1  # seconds that an attempt has
SHARES = 0.25, 0.5  # of the time left, for the first attempts to open a client; the last has the rest
PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts
T = TypeVar("T")
_opened: dict[str, _Opened] = {}  # by address of the server
_served: set[str] = set()  # files that this process has open
_opening = threading.Lock()


@dataclass(frozen=True)
class _Opened:
    """A client, and what it was opened with; closed when the last call that uses it is over."""

    client: Any
    token: str
    limit: float

    def __post_init__(self) -> None:
        weakref.finalize(self, self.client.close).atexit = False


def connect(address: Address) -> Connection:
    """Return a connection to ``address``; a process has one client per server.

    Raises ConfigError where pymilvus is not installed, LockedError where another process has the file open,
    ServerError.
    """
    connection = Connection(address)
    connection.open()
    return connection


def close(address: Address) -> None:
    """Let go of the client; a file can then be opened by other processes."""
    with _opening:
        held = _opened.pop(address.uri, None)
        served = address.uri in _served
        _served.discard(address.uri)
    if held is not None:
        held.client.close()
    if served:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(address.uri)


def _open(address: Address, within: float) -> _Opened:
    """Return the client of the process for ``address``, opened within so many seconds where there is none."""
    token, limit = os.environ.get(TOKEN, ""), time_limit()
    with _opening:
        held = _opened.get(address.uri)
        same = held is not None and (address.folder is not None or (held.token, held.limit) == (token, limit))
        if held is None or not same:
            _opened.pop(address.uri, None)
            held = _opened[address.uri] = _Opened(_client(address, token, within), token, limit)
        return held


def _retire(address: Address, held: _Opened) -> None:
    """Use ``held`` for no further call."""
    with _opening:
        if _opened.get(address.uri) is held:
            del _opened[address.uri]


def _client(address: Address, token: str, within: float) -> Any:
    needed = ["pymilvus"] + (["milvus_lite"] if address.folder else [])
    if any(find_spec(name) is None for name in needed):
        extra = "milvus-lite" if address.folder else "milvus"
        raise ConfigError(f"{address} needs packages that are not installed", f'run `pip install "skumatch[{extra}]"`')
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what they have to say comes as an error
    with _logging_left_alone():
        import pymilvus

    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if address.folder is not None and address.uri not in _served:
        _require_free(address, address.folder)
    options = {**CHANNEL, "grpc.enable_http_proxy": int(not address.folder)}
    with said(address):
        client = pymilvus.MilvusClient(address.uri, token=token, timeout=within, dedicated=True, grpc_options=options)
        version = str(client.get_server_version(timeout=within))
    if address.folder is not None:
        _served.add(address.uri)
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise ServerError(f"{address} is Milvus {version}", f"update it to {OLDEST[0]}.{OLDEST[1]} or later")
    return client


@contextlib.contextmanager
def _logging_left_alone() -> Iterator[None]:
    """Keep the block from configuring logging, as pymilvus does when it is imported: it would close the handlers of
    everybody else in the process, and with them whatever these write to."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


def _require_free(address: Address, folder: Path) -> None:
    """Raise LockedError where another process serves ``folder``, ArtefactError where it cannot be made."""
    with artefact.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not artefact.take_lock(handle, folder / "LOCK"):
            raise LockedError(f"{address} is open in another process", "wait for it to end, or run a Milvus server")
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Connection:
    """Calls to one server, each within the time limit. Raises ServerError."""

    address: Address

    def open(self) -> None:
        """Open the client, where the process has none yet."""
        self._do(lambda client, left: None)

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        """Call ``method`` of the client."""
        name = str(args[0]) if args else ""
        return self._do(lambda client, left: getattr(client, method)(*args, timeout=left, **named), name)

    def _do(self, action: Callable[[Any, float], T], collection: str = "") -> T:
        """Return what ``action`` (a client, seconds that it may take) does; again, where the server was away."""
        until = time.monotonic() + time_limit()
        pause, load = PAUSE, bool(collection)
        while True:
            try:
                return self._once(action, until)
            except Away:
                pause = min(pause, until - time.monotonic())
                if pause <= 0:
                    raise
            except Unloaded:
                if not load:
                    raise
                load = False
                self._load(collection)
                continue
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _once(self, action: Callable[[Any, float], T], until: float) -> T:
        held = self._held(until)
        try:
            with said(self.address):
                return action(held.client, max(LEAST, until - time.monotonic()))
        except Late:
            _retire(self.address, held)
            raise

    def _held(self, until: float) -> _Opened:
        """Return the client, opened where there is none; again where the answer to its first call got lost."""
        for share in SHARES:
            with contextlib.suppress(Late):
                return _open(self.address, max(LEAST, share * (until - time.monotonic())))
        return _open(self.address, max(LEAST, until - time.monotonic()))

    def _load(self, name: str) -> None:
        """Load a collection: the server was started again, or one that made it was cut off."""
        try:
            self.call("load_collection", name)
        except Unindexed:
            self._add_index(name, "vector", FLAT)
            self.call("load_collection", name)

    def _add_index(self, name: str, field: str, index: Mapping[str, Any]) -> None:
        from pymilvus import MilvusClient

        prepared = MilvusClient.prepare_index_params()
        prepared.add_index(field, index_name=field, **index)
        self.call("create_index", name, prepared, sync=False)  # its waiting has no time limit

    def _await_index(self, name: str, field: str) -> None:
        """Wait for the server to build an index, which may take long."""
        while (found := self.call("describe_index", name, field) or {}).get("state") != "Finished":
            if found.get("state") in (None, "Failed"):
                raise ServerError(f"{self.address} could not build the index", "see the server's log")
            time.sleep(LONGEST_PAUSE / 4)

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        return list(self.call("list_collections"))

    def has(self, name: str) -> bool:
        """Return whether there is a collection ``name``."""
        return bool(self.call("has_collection", name))

    def create(self, name: str, fields: Mapping[str, tuple[str, Mapping[str, Any]]], index: Mapping[str, Any]) -> None:
        """Create and load a collection. ``fields``: name -> (type, its settings), the primary key first; ``index``:
        settings of the index on the one vector field. On a server, fields that are looked up have an index, too."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for number, (field, (kind, settings)) in enumerate(fields.items()):
            schema.add_field(field, getattr(DataType, kind), is_primary=number == 0, **settings)
        with contextlib.suppress(There):  # made by a call whose answer was lost
            self.call("create_collection", name, schema=schema, consistency_level="Strong")
        for number, (field, (kind, _)) in enumerate(fields.items()):
            if kind == "FLOAT_VECTOR":
                self._add_index(name, field, index)
            elif self.address.folder is None and number and (kind == "INT64" or field in LOOKED_UP):
                self._add_index(name, field, {"index_type": "INVERTED"})
        self.call("load_collection", name)

    def reindex(self, name: str, field: str, index: Mapping[str, Any]) -> None:
        """Replace the index on a vector field; nothing can be searched meanwhile."""
        self.call("release_collection", name)
        with contextlib.suppress(Unindexed):  # dropped by a call whose answer was lost
            self.call("drop_index", name, field)
        self._add_index(name, field, index)
        self._await_index(name, field)
        self.call("load_collection", name)

    def drop(self, name: str) -> None:
        """Drop a collection; nothing happens where there is none."""
        self.call("drop_collection", name)

    def upsert(self, name: str, rows: Sequence[Mapping[str, Any]], partial: bool = False) -> None:
        """Write rows under their primary keys; ``partial``: only the fields named."""
        if rows:
            self.call("upsert", name, list(rows), **({"partial_update": True} if partial else {}))

    def delete(self, name: str, condition: str) -> None:
        """Delete the rows that meet ``condition``."""
        self.call("delete", name, filter=condition)

    def query(self, name: str, condition: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows that meet ``condition``, at most 16,384."""
        return list(
            self.call(
                "query", name, filter=condition, output_fields=list(fields), limit=MOST, consistency_level="Strong"
            )
        )

    def count(self, name: str, condition: str) -> int:
        """Return how many rows meet ``condition``."""
        found = self.call("query", name, filter=condition, output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    def stream(self, name: str, condition: str, fields: Sequence[str], batch: int) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows that meet ``condition`` in batches, by ascending primary key, which is "pk"."""
        # not pymilvus' query_iterator: it asks without a time limit, and twice before the first row
        named: dict[str, Any] = {"output_fields": list(dict.fromkeys(["pk", *fields])), "consistency_level": "Strong"}
        named |= {"limit": batch, "iterator": "True", "reduce_stop_for_best": "True"}  # those with the smallest keys
        rest = condition
        while rows := self.call("query", name, filter=rest, **named):
            yield list(rows)
            last = f"pk > {json.dumps(rows[-1]['pk'])}"
            rest = f"({condition}) and {last}" if condition else last

    def search(
        self, name: str, queries: Vectors, k: int, condition: str, fields: Sequence[str], settings: Mapping[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """Return the ``k`` nearest rows per query with pk, distance and entity."""
        found = self.call(
            "search",
            name,
            data=queries,
            limit=k,
            filter=condition,
            output_fields=list(fields),
            search_params={"metric_type": "IP", "params": dict(settings)},
            consistency_level="Strong",
        )
        return [list(hits) for hits in found]
