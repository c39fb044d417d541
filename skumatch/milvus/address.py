"""Where a gallery in Milvus is.

    milvus+file:./g.db            Milvus Lite: a folder of this machine, served inside this process
    milvus://host:19530/name      a server or cluster; the gallery is ``name``
    milvus+tls://host:443/name    the same over TLS

The token comes from MILVUS_TOKEN ("user:password" or an API key), the time limit of a call from
SKUMATCH_MILVUS_TIMEOUT (seconds, 30).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from skumatch.errors import ConfigError

FILE, SERVER, TLS = "milvus+file:", "milvus://", "milvus+tls://"
NAME = "gallery"  # of the one gallery in a file
TOKEN, TIMEOUT = "MILVUS_TOKEN", "SKUMATCH_MILVUS_TIMEOUT"
_REMOTE = re.compile(
    r"(?P<host>\[[0-9a-fA-F:]+\]|[^/:@?#\[\]]+)(:(?P<port>\d{1,5}))?/(?P<name>[A-Za-z_][A-Za-z0-9_]{0,199})"
)


@dataclass(frozen=True)
class Address:
    """Where a gallery is: ``text`` as it was given, ``uri`` for the client, the ``name`` of the gallery there, and
    ``folder`` where it is on this machine."""

    text: str
    uri: str
    name: str
    folder: Path | None = None

    def __str__(self) -> str:
        return self.text


def is_milvus(text: object) -> bool:
    """Return whether ``text`` is the address of a gallery in Milvus."""
    return isinstance(text, str) and re.match(r"milvus(\+[a-z]+)?:", text) is not None


def parse(text: str, base: Path | None = None) -> Address:
    """Return the address that ``text`` means; a relative file is meant from ``base`` (the current folder).

    Raises ConfigError.
    """
    if text.startswith(FILE):
        folder = ((base or Path.cwd()) / Path(text.removeprefix(FILE)).expanduser()).absolute()
        if folder.suffix != ".db":
            raise ConfigError(f"'{text}' does not end in .db", "write for example --gallery milvus+file:./g.db")
        return Address(text, str(folder), NAME, folder)
    scheme = next((scheme for scheme in (SERVER, TLS) if text.startswith(scheme)), "")
    found = _REMOTE.fullmatch(text.removeprefix(scheme)) if scheme else None
    if found is None or not 0 < int(found["port"] or 19530) < 65536:
        raise ConfigError(
            f"'{re.sub('//.*@', '//...@', text)}' is no address of a gallery in Milvus",  # no token in a message
            f"write milvus+file:./g.db or milvus://host:19530/name (letters, digits, _); the token goes into {TOKEN}",
        )
    kind = "https" if scheme == TLS else "http"
    return Address(text, f"{kind}://{found['host']}:{found['port'] or 19530}", found["name"])


def time_limit() -> float:
    """Return how many seconds a call may take. Raises ConfigError."""
    text = os.environ.get(TIMEOUT, "30")
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 3600:
            return float(text)
    raise ConfigError(f"{TIMEOUT} is '{text}'", "give seconds, 0.1 to 3600")
