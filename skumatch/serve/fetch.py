"""Pictures named by URL, fetched from public addresses alone.

Whoever may ask the service to fetch a URL must not reach through it what only the service's machine can reach. So a
URL is taken apart by strict rules, its host is looked up once, every address found must be public, and the connection
goes to the very address that was checked: a name that changes its address in between changes nothing. What is not
here cannot go wrong: no redirects, proxies, .netrc, cookies, credentials, content encodings or kept connections.
It cannot know that a public address is this machine's own, or its network's: a firewall does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from skumatch.errors import ImageError
from skumatch.serve.settings import Settings

PORTS = {"http": 80, "https": 443}
LONGEST = 2048  # characters of a URL
FETCHES = 8  # at once
ADDRESSES = 3  # of one host are tried
PIECE = 65_536
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
BRACKETS = re.compile(r"\[[0-9a-fA-F:.]+\](:[0-9]+)?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
TYPES = ("image/", "application/octet-stream", "binary/octet-stream")  # the last is what object stores often say
# Not for the public, beside what ``ipaddress`` knows: protocol assignments, 6to4 relays, and Azure's metadata.
CLOSED_4 = [ipaddress.IPv4Network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]
OPEN_6 = ipaddress.IPv6Network("2000::/3")
# Inside it: protocol assignments with Teredo, documentation twice, 6to4.
CLOSED_6 = [ipaddress.IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16")]
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]
Connect = Callable[[str, int, "Place"], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(frozen=True)
class Place:
    """A URL that may be fetched: ``host`` in lower case, ``target`` path and query, ``shown`` for messages."""

    scheme: str
    host: str
    port: int
    target: str
    shown: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Fetcher:
    """Fetches pictures as ``settings`` limit them: ``max_body`` bytes, ``deadline`` seconds each.

    ``resolve`` returns the addresses of a host, and is asked once for each URL; ``connect`` opens a connection to one
    of them, with TLS verified against the host where the place is https. Tests give others.
    """

    def __init__(self, settings: Settings, resolve: Resolve | None = None, connect: Connect | None = None) -> None:
        self._limit = settings.max_body
        self._deadline = settings.deadline
        self._threads = ThreadPoolExecutor(FETCHES, thread_name_prefix="skumatch-resolve")
        self._resolve = resolve or self._look_up
        self._connect = connect or open_connection
        self._turns = asyncio.Semaphore(FETCHES)

    async def get(self, url: str, limit: int | None = None) -> bytes:
        """Return what ``url`` holds, ``limit`` bytes at most where given. Raises ImageError, which names the URL
        without credentials and query."""
        place = parse(url)
        most = self._limit if limit is None else min(limit, self._limit)
        try:
            async with asyncio.timeout(self._deadline), self._turns:
                return await self._fetch(place, most)
        except TimeoutError:
            raise failed(place, f"not fetched within {self._deadline:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:
            raise failed(place, f"cannot be fetched ({type(error).__name__})") from error

    async def _fetch(self, place: Place, limit: int) -> bytes:
        addresses = await self._addresses(place)
        async with contextlib.aclosing(receive(place, await self._any(addresses, place))) as events:
            content = bytearray()
            async for event in events:
                if isinstance(event, h11.Response):
                    check(place, event, limit)
                elif isinstance(event, h11.Data):
                    content += event.data
                    if len(content) > limit:
                        raise failed(place, f"over {limit} bytes")
            return bytes(content)

    async def _addresses(self, place: Place) -> list[str]:
        """Return the addresses of the host, all of them public; whether a private name exists is not told."""
        with contextlib.suppress(ValueError):
            found = [str(ipaddress.ip_address(place.host))]
            return self._public(place, found)
        try:
            found = await self._resolve(place.host, place.port)
        except (OSError, UnicodeError):
            found = []
        return self._public(place, found)

    def _public(self, place: Place, found: list[str]) -> list[str]:
        if not found or not all(public(address) for address in found):
            raise failed(place, "its host is not known or not public")
        return list(dict.fromkeys(found))[:ADDRESSES]

    async def _any(self, addresses: list[str], place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of ``addresses`` that answers."""
        for address in addresses[:-1]:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(self._deadline / ADDRESSES):
                    return await self._connect(address, place.port, place)
        return await self._connect(addresses[-1], place.port, place)

    async def _look_up(self, host: str, port: int) -> list[str]:
        """Ask the system, on a few threads of our own: slow name servers hold up nothing else."""
        ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Give the threads back."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def parse(url: str) -> Place:
    """Take ``url`` apart. Raises ImageError for all but plain http and https URLs of hosts, on ports 80 and 443."""
    shown = show(url)
    if len(url) > LONGEST or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise ImageError(f"{shown}: not a URL", f"give at most {LONGEST} printable ASCII characters, the rest escaped")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError as error:
        raise ImageError(f"{shown}: not a URL", "give one like https://example.com/crop.jpg") from error
    if parts.scheme not in PORTS or "@" in parts.netloc or not allowed_host(host, parts.netloc):
        raise ImageError(f"{shown}: not a URL that is fetched", "give http or https, a host name, and no credentials")
    if port not in (None, *PORTS.values()) or parts.netloc.endswith(":"):
        raise ImageError(f"{shown}: a port that is not fetched from", "pictures come from ports 80 and 443")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    place = f"{parts.scheme}://{parts.netloc}{parts.path}"[:200]
    return Place(parts.scheme, host, port or PORTS[parts.scheme], target, place)


def allowed_host(host: str, netloc: str) -> bool:
    """Whether ``host`` is a name of letters, digits and hyphens, or an address written the one usual way."""
    if "[" in netloc:
        return BRACKETS.fullmatch(netloc) is not None
    labels = host.split(".")
    if NUMBER.fullmatch(labels[-1]):  # systems read 2130706433, 0x7f.1 and 017700000001 as addresses
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv4Address(host)) == host
        return False
    return len(host) < 254 and all(LABEL.fullmatch(label) for label in labels)


def show(url: str) -> str:
    """Return ``url`` for messages: no query or fragment, nothing up to an @, which may end credentials, printable
    ASCII, 200 characters at most."""
    plain = re.split(r"[?#]", url, maxsplit=1)[0]
    before, _, after = plain.rpartition("@")
    return re.sub(r"[^!-~]", "?", f"...{after}" if before else plain)[:200] or "an empty URL"


def public(address: str) -> bool:
    """Whether ``address`` belongs to a host of the public Internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:  # an IPv4 host, as networks without IPv4 see it
            return public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        return ip in OPEN_6 and ip.scope_id is None and not any(ip in closed for closed in CLOSED_6)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in net for net in CLOSED_4)


def failed(place: Place, why: str) -> ImageError:
    """Return the error for a picture that did not come."""
    return ImageError(f"{place.shown}: {why}", "send the picture itself, or another URL")


def check(place: Place, response: h11.Response, limit: int) -> None:
    """Raise ImageError unless ``response`` announces a picture of at most ``limit`` bytes as it is stored."""
    headers = {name.decode("ascii"): value.decode("latin-1").strip().lower() for name, value in response.headers}
    if 300 <= response.status_code < 400:
        raise failed(place, "it redirects, which is not followed")
    if response.status_code != 200:
        raise failed(place, f"its server answered {response.status_code}")
    if not headers.get("content-type", "").startswith(TYPES):
        raise failed(place, "its server does not call it an image")
    if headers.get("content-encoding", "identity") != "identity":
        raise failed(place, "its server compressed it")
    if int(headers.get("content-length", 0)) > limit:
        raise failed(place, f"over {limit} bytes")


async def open_connection(address: str, port: int, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``address``, an IP address, so that nothing is looked up; TLS is verified against the host."""
    ipaddress.ip_address(address)
    if place.scheme == "http":
        return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(address, port, ssl=trust(), server_hostname=place.host)


@functools.cache
def trust() -> ssl.SSLContext:
    """Return the certificates that the system trusts; they are read once."""
    return ssl.create_default_context()


async def receive(
    place: Place, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> AsyncGenerator[h11.Response | h11.Data, None]:
    """Ask for ``place`` and yield what comes until the end of the answer; closes the connection."""
    reader, writer = streams
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", place.authority), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
    headers += [("User-Agent", "skumatch"), ("Connection", "close")]
    try:
        for event in (h11.Request(method="GET", target=place.target, headers=headers), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        while True:
            received = connection.next_event()
            if received is h11.NEED_DATA:
                connection.receive_data(await reader.read(PIECE))
            elif isinstance(received, (h11.Response, h11.Data)):
                yield received
            elif not isinstance(received, h11.InformationalResponse):
                return
    finally:
        writer.transport.abort()
        with contextlib.suppress(Exception):
            await writer.wait_closed()
