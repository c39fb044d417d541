"""URLs that must not be fetched are refused before anything is connected."""

from __future__ import annotations

import asyncio

import pytest

from skumatch.errors import ImageError
from skumatch.serve.fetch import Fetcher, Place, parse, public
from skumatch.serve.settings import Settings

PUBLIC = "93.184.216.34"
NAMES = {"localhost": ["127.0.0.1", "::1"], "intern.example.com": ["10.1.2.3"], "metadata": ["169.254.169.254"]}
NAMES |= {"mixed.example.com": [PUBLIC, "192.168.0.1"], "nothing.example.com": [], "zone.example.com": ["fe80::1%eth0"]}
NAMES |= {"six.example.com": ["::ffff:10.0.0.1"], "example.com": [PUBLIC], "strange.example.com": ["not an address"]}

HOSTILE = """
file:///etc/passwd
gopher://example.com/
ftp://example.com/a.jpg
data:image/png;base64,AAAA
javascript:alert(1)
//example.com/a.jpg
example.com/a.jpg
http:/example.com/a.jpg
http:///a.jpg
https://
http://127.0.0.1/
http://127.1/
http://0/
http://0.0.0.0/
http://2130706433/
http://0x7f000001/
http://0x7f.0.0.1/
http://0177.0.0.1/
http://017700000001/
http://127.0.0.1./
http://010.8.8.8/
http://8.8.2056/
http://256.1.1.1/
http://10.0.0.1/
http://172.31.255.255/
http://192.168.1.1/
http://100.64.0.1/
http://100.100.100.200/latest/meta-data
http://169.254.169.254/latest/meta-data/
http://168.63.129.16/
http://192.0.0.192/
http://192.88.99.1/
http://198.18.0.1/
http://224.0.0.1/
http://255.255.255.255/
http://[::1]/
http://[::]/
http://[::ffff:127.0.0.1]/
http://[::ffff:7f00:1]/
http://[::127.0.0.1]/
http://[64:ff9b::7f00:1]/
http://[64:ff9b:1::a00:1]/
http://[2002:7f00:1::]/
http://[2001:0:7f00:1::]/
http://[2001:db8::1]/
http://[fc00::1]/
http://[fd00:ec2::254]/latest
http://[fe80::1]/
http://[fe80::1%25eth0]/
http://[fec0::1]/
http://[ff02::1]/
http://[::1]example.com/
http://example.com[::1]/
http://[example.com]/
http://localhost/
http://LOCALHOST./
http://metadata/computeMetadata/v1/
http://intern.example.com/
http://mixed.example.com/
http://six.example.com/
http://zone.example.com/
http://nothing.example.com/
http://strange.example.com/
http://unknown.example.com/
http://user@example.com/
http://user:secret@example.com/
http://example.com@127.0.0.1/
http://example.com:80@127.0.0.1/
http://127.0.0.1#@example.com/
http://example.com\\@127.0.0.1/
http://127.0.0.1\\example.com/
http://example.com:22/
http://example.com:8080/
http://example.com:65616/
http://example.com:-80/
http://example.com:080a/
http://example.com:/
http://example.com:0/
http://exam%70le.com/
http://-example.com/
http://exa..mple.com/
http://.example.com/
http://example.com../
http://example com/
"""
ODD = ["", " http://example.com/", "http://example.com/\r\nX: 1", "http://exa\tmple.com/", "http://example.com/\n"]
ODD += [
    "http://example\u3002com/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://example.com/\u00e9",
    "http://a\x00.com/",
]
ODD += ["http://example.com/" + "a" * 3000, "http://" + "a" * 64 + ".com/", "http://" + "a." * 130 + "com/"]


async def resolve(host: str, port: int) -> list[str]:
    if host not in NAMES:
        raise OSError("no such name")
    return NAMES[host]


async def never(address: str, port: int, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raise AssertionError(f"connected to {address}")


@pytest.mark.parametrize("url", [*HOSTILE.split("\n")[1:-1], *ODD])
def test_what_must_not_be_reached_is_refused_before_anything_is_connected(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        asyncio.run(Fetcher(Settings(), resolve, never).get(url))
    assert "secret" not in str(caught.value) and str(caught.value).isprintable() and str(caught.value).isascii()


def test_addresses_of_the_public_internet() -> None:
    for address in (PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"):
        assert public(address), address
    for address in ("64:ff9b::a9fe:a9fe", "2002:808:808::1", "3fff::1", "5f00::1", "::ffff:8.8.8.8", "240.0.0.1", ""):
        assert not public(address), address


def test_what_is_shown_has_no_query_and_no_credentials() -> None:
    assert parse("https://EXAMPLE.com:443/a.jpg?token=secret#x").shown == "https://EXAMPLE.com:443/a.jpg"
    place = parse("http://example.com.?a=1")
    assert (place.host, place.port, place.target, place.authority) == ("example.com", 80, "/?a=1", "example.com")
    assert parse("http://[2606:4700::1]:443/").authority == "[2606:4700::1]:443"
    assert parse("https://a_b.example.com/@me/a.jpg").shown == "https://a_b.example.com/@me/a.jpg"
    with pytest.raises(ImageError, match=r"^\.\.\.example\.com/a\.jpg: "):
        parse("ftp://me:secret@example.com/a.jpg?token=secret")
