"""The connection on httptools: limits of heads that its parser lacks. Importable only where httptools is installed.

httptools keeps an unfinished header line in memory however long it grows, hands trailers over as if they were headers,
and takes a request that offers an upgrade for one without a body. Here these end at 32 kB, in nothing, and in a
request like any other.
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from skumatch.serve.problems import Problem
from skumatch.serve.protocol import HEAD, Careful

PIPELINE = 16  # requests of one connection that may wait for the answers to earlier ones
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
IGNORED = b"\r\nignored:"  # as long as what it replaces


class Refused(Exception):
    """Raised in the parser's callbacks to stop it; uvicorn then calls ``send_400_response``."""


class ByHttptools(Careful, HttpToolsProtocol):
    """See the module. ``_told``: bytes of lines that the parser handed over, of this head and its trailers;
    ``_silent``: bytes since a head, a piece of a body or a request was complete."""

    _told = 0
    _silent = 0
    _in_head = False

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # between requests: a head begins here, or goes on
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(IGNORED, head) + end + rest
        self._silent += len(data)
        super().data_received(data)
        if self._silent > HEAD and self.broken is None:
            self.refuse(too_long())

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINE:
            raise Refused
        self._told = 0
        self._in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._in_head:  # what trails a body comes after everything was decided
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._silent = 0
        if self.parser.should_upgrade():  # its body would be lost, and then be read as the next request
            raise Refused
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._told += size
        if self._told > HEAD:
            raise Refused

    def send_400_response(self, msg: str) -> None:
        if self._told > HEAD:
            self.refuse(too_long())
        else:
            super().send_400_response(msg)


def too_long() -> Problem:
    """Return the answer to a head that never ends."""
    return Problem(431, f"the head of the request is over {HEAD} bytes", "send fewer and shorter headers")
