"""How the service runs: the ``[service]`` section of skumatch.toml, and its checks. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from skumatch.errors import ConfigError

POSITIVE = (
    *("max_body", "max_pixels", "max_images", "max_k", "deadline", "header_timeout", "body_timeout", "keep_alive"),
    *("connections", "queue", "batch", "grace", "review_limit", "review_megabytes", "review_days", "review_claim"),
)


@dataclass(frozen=True)
class Settings:
    """``[service]``.

    ``host``, ``port``: where it listens; another address than this machine's own needs API keys. ``hosts``: names,
    comma-separated, under which it may be asked beside ``host`` and this machine's. ``tls_cert``, ``tls_key``: PEM
    files. ``state``: folder, in the workspace, of keys, audit log and uploads. Limits of one request: ``max_body``
    bytes, ``max_pixels`` of one picture, ``max_images``, ``max_k``. Seconds: ``deadline`` until an answer (a request
    may ask for less), ``header_timeout`` and ``body_timeout`` until the head and the body of a request are here,
    ``keep_alive`` of an idle connection. ``connections`` at most; ``queue``: pictures waiting or worked on at most;
    ``batch``: pictures per call of the encoder; ``delay``: seconds that a picture may wait for others that are being
    decoded. ``workers``: decode threads (0: one per core). ``rate``: requests per second and key, 0: no limit.
    ``urls``: pictures may be named by URL. ``reviews``: doubtful crops are kept, at most ``review_limit`` and
    ``review_megabytes``, for ``review_days``, and of the accepted ones the share ``review_sample``; who looks at one
    has it alone for ``review_claim`` seconds. ``catalogue``: folder of ``skumatch dedupe``, in the workspace, whose
    groups are reviewed. ``watch``: seconds between looks at whether the gallery changed, 0: only
    when told. ``drain``: seconds after SIGTERM in which new requests are still answered; ``grace``: until those begun
    must be done.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    state: str = "service"
    max_body: int = 32_000_000
    max_pixels: int = 32_000_000
    max_images: int = 64
    max_k: int = 100
    deadline: float = 10.0
    header_timeout: float = 10.0
    body_timeout: float = 20.0
    keep_alive: float = 30.0
    connections: int = 512
    queue: int = 256
    batch: int = 8
    delay: float = 0.004
    workers: int = 0
    rate: float = 0.0
    urls: bool = False
    reviews: bool = False
    review_limit: int = 10_000
    review_megabytes: int = 1_000
    review_days: float = 30.0
    review_sample: float = 0.0
    review_claim: float = 300.0
    catalogue: str = ""
    watch: float = 0.0
    drain: float = 1.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"[service] {name} is {getattr(self, name)}", "give more than 0")
        for name in ("delay", "workers", "rate", "watch", "drain"):
            if getattr(self, name) < 0:
                raise ConfigError(f"[service] {name} is {getattr(self, name)}", "give 0 or more")
        if not 0 <= self.review_sample <= 1:
            raise ConfigError(f"[service] review_sample is {self.review_sample}", "give 0 to 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"[service] port is {self.port}", "give 1 to 65535, or 0 for any free one")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("[service] tls_cert and tls_key go together", "give both or none")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def names(self) -> frozenset[str]:
        """Names that a Host header may have, lower case, without the port."""
        own = {"localhost", "127.0.0.1", "[::1]", self.host.lower()}
        return frozenset(own | {name.strip().lower() for name in self.hosts.split(",") if name.strip()})


NAMES = tuple(field.name for field in fields(Settings))
