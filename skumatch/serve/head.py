"""What is checked of a request's head, before its body is read or anybody is asked for a key.

Each function raises Problem. They know nothing about keys, routes or the server.
"""

from __future__ import annotations

import re
import uuid
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

from skumatch.serve.problems import Problem

LARGEST = 32_768  # bytes of all headers and the query together
MOST = 100  # headers
SAFE = ("GET", "HEAD")  # methods that change nothing
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?")
_PORTS = {"http": "80", "https": "443"}

Headers = dict[str, list[str]]  # lower-case name -> its values


def headers_of(scope: Scope) -> Headers:
    """Return the headers of ``scope``."""
    headers: Headers = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return headers


def request_id(headers: Headers) -> str:
    """Return the client's X-Request-Id where it is a plain word, else one of our own."""
    given = headers.get("x-request-id", [])
    return given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else uuid.uuid4().hex


def check_size(scope: Scope) -> None:
    """Refuse heads that no honest client sends (431)."""
    size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope.get("query_string", b""))
    if size > LARGEST or len(scope["headers"]) > MOST:
        raise Problem(431, "the head of the request is too large", f"send at most {MOST} headers, {LARGEST:,} bytes")


def declared(headers: Headers) -> int:
    """Return how many bytes the body has, -1 where it comes in pieces of unknown number.

    Refuses what two servers in a row could read differently (400): RFC 9112, section 6.3.
    """
    lengths, pieces = headers.get("content-length", []), headers.get("transfer-encoding", [])
    if len(lengths) > 1 or (lengths and pieces) or len(pieces) > 1:
        raise Problem(400, "the length of the body is given twice", "send Content-Length or Transfer-Encoding, once")
    if pieces:
        return -1
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 19):
        raise Problem(400, "Content-Length is not a number", "give the number of bytes in the body")
    return int(lengths[0]) if lengths else 0


def check_host(headers: Headers, names: frozenset[str]) -> None:
    """Refuse a Host that is none (400) or none of ``names`` (421).

    A page whose name was pointed at this machine (DNS rebinding) asks with that name.
    """
    host, _ = _authority(headers)
    if host.strip("[]") not in names:
        todo = "ask under its own name, or add this one to [service] hosts in skumatch.toml"
        raise Problem(421, "the service has another name than the request's Host", todo)


def check_origin(method: str, headers: Headers) -> None:
    """Refuse a change that a page of another site asks a browser for (403)."""
    if method in SAFE:
        return
    elsewhere = any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", []))
    if elsewhere or not all(_same(origin, headers) for origin in headers.get("origin", [])):
        raise Problem(
            403, "a page of another site asked for this", "ask from the service's own pages, or from a program"
        )


def network_of(scope: Scope) -> str:
    """Return what counts as one client where there is no key: an IPv4 address, or the /64 around an IPv6 address."""
    client = scope.get("client")
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:
        return str(client[0]) if client else "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or f"{address.exploded[:19]}::/64")
    return str(address)


def token_of(headers: Headers) -> str | None:
    """Return the API key of a request, None without one. Refuses two different ones (400)."""
    given = set(headers.get("x-api-key", []))
    for value in headers.get("authorization", []):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            given.add(token.strip())
    if len(given) > 1:
        raise Problem(
            400, "the request has two API keys", "send one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
        )
    return given.pop() if given else None


def _authority(headers: Headers) -> tuple[str, str]:
    """Return name and port ("" where it has none) of the Host header."""
    hosts = headers.get("host", [])
    found = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    if found is None:
        raise Problem(400, "the request has no valid Host", "send one Host header: NAME or NAME:PORT")
    return found[1], found[2] or ""


def _same(origin: str, headers: Headers) -> bool:
    """Return whether ``origin`` is the host that was asked; the scheme may differ, behind a gateway that ends TLS."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    found = _HOST.fullmatch(parts.netloc)
    if parts.scheme not in _PORTS or found is None:
        return False
    usual = _PORTS[parts.scheme]
    host, port = _authority(headers)
    return (found[1], found[2] or usual) == (host, port or usual)
