"""Picture files as no camera makes them: cut, flipped, spliced, blown up and misnamed, in an order that a seed decides.

Every tenth is a picture that is fine, so that whoever takes them must go on answering right. All are made from pictures
drawn in code; most are below 20 kB. Knows nothing about what reads them.
"""

from __future__ import annotations

import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

SKUS = 6
EVERY = 10  # each so-manieth is fine
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC = (b"\xff\xd8\xff\xe0", _PNG, b"RIFF\x00\x01\x00\x00WEBPVP8 ", b"GIF89a", b"BM", b"II*\0", b"\0\0\0\x1cftypavif")
_NO_PICTURES = {
    "empty": b"",
    "one-byte": b"\xff",
    "text": b"a list of what to buy\n" * 40,
    "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
    "html": b"<!doctype html><html><body onload=alert(1)>404</body></html>",
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(1)>>>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>1</script></svg>',
    "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]><a>&c;&c;</a>',
    "json": b'{"urls": ["file:///etc/passwd"]}',
    "zeros": bytes(4096),
}
Edit = Callable[[random.Random, str, bytes], bytes]


def draw(sku: int, view: int, side: int = 64) -> PILImage.Image:
    """Return one view of a made-up SKU, ``side`` pixels square: its 4 x 4 colours, in another light and with noise."""
    pattern = np.random.default_rng(1000 + sku).integers(20, 236, (4, 4, 3))
    rng = np.random.default_rng((sku + 1) * 100 + view)
    light = pattern.repeat(side // 4, 0).repeat(side // 4, 1) * rng.uniform(0.8, 1.1)
    return PILImage.fromarray((light + rng.normal(0, 6, (side, side, 3))).clip(0, 255).astype(np.uint8))


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` files as (name, bytes); names are distinct and end like those of pictures.

    ``sku_of`` tells from a name which SKU of ``draw`` it must be recognised as, if it is one that is fine.
    """
    rng = random.Random(seed)
    for number in range(count):
        if number % EVERY == EVERY - 1:
            sku, kind = rng.randrange(SKUS), rng.choice(FINE)
            yield f"{number:06d}-valid-sku-{sku}-{kind}{rng.choice(ENDINGS)}", picture(sku, kind)
            continue
        kind, edit = rng.choice((*FINE, *FOREIGN)), rng.choice(list(EDITS))
        data = EDITS[edit](rng, kind, picture(rng.randrange(SKUS), kind))
        yield f"{number:06d}-{edit}-{kind}{rng.choice(ENDINGS)}", data


def sku_of(name: str) -> str | None:
    """Return the SKU ("sku-3") of a mutant that is fine, None for the others."""
    found = re.search(r"-valid-(sku-\d+)-", name)
    return found[1] if found else None


@cache
def picture(sku: int, kind: str) -> bytes:
    """Return a fresh view of a SKU as a file of ``kind``, one of ``FINE`` and ``FOREIGN``."""
    image, buffer = draw(sku, 50), BytesIO()
    if kind in ("png-16", "png-interlaced"):
        return png(np.asarray(image), 16 if kind == "png-16" else 8, kind == "png-interlaced")
    if kind == "jpeg-rotated":
        exif = PILImage.Exif()
        exif[0x0112] = 6
        image.transpose(PILImage.Transpose.ROTATE_90).save(buffer, "JPEG", quality=92, exif=exif)
        return buffer.getvalue()
    how, mode, options = _SAVED[kind]
    others = [draw(sku, view) for view in (51, 52)]
    frames = {"save_all": True, "append_images": [other.convert(mode) for other in others]}
    image.convert(mode).save(buffer, how, **options, **(frames if kind in ("png-moving", "webp-moving") else {}))
    return buffer.getvalue()


_SAVED: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 90}),
    "jpeg-progressive": ("JPEG", "RGB", {"quality": 90, "progressive": True}),
    "jpeg-cmyk": ("JPEG", "CMYK", {"quality": 90}),
    "png": ("PNG", "RGB", {}),
    "png-palette": ("PNG", "P", {}),
    "png-moving": ("PNG", "RGB", {}),
    "webp": ("WEBP", "RGB", {"quality": 90}),
    "webp-lossless": ("WEBP", "RGB", {"lossless": True}),
    "webp-moving": ("WEBP", "RGB", {"quality": 90}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "avif": ("AVIF", "RGB", {}),
}
FOREIGN = ("gif", "bmp", "tiff", "avif")
FINE = ("jpeg-rotated", "png-16", "png-interlaced", *(kind for kind in _SAVED if kind not in FOREIGN))


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a PNG chunk with its checksum; ``length``: what it says of itself where that is not the truth."""
    said = len(data) if length is None else length
    return struct.pack(">I", said) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: bool = False) -> bytes:
    """Return a PNG's first bytes."""
    return _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(pixels: NDArray[np.uint8], depth: int, interlaced: bool) -> bytes:
    """Return (H, W, 3) uint8 as a PNG of 8 or 16 bits, interlaced or not: Pillow writes neither."""
    deep = pixels if depth == 8 else (pixels.astype(np.uint16) * 257).astype(">u2")
    passes = [deep[y::down, x::across] for x, y, across, down in _ADAM7] if interlaced else [deep]
    lines = b"".join(b"\0" + line.tobytes() for one in passes if one.size for line in one)
    height, width = pixels.shape[:2]
    return header(width, height, depth, 2, interlaced) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _cut(rng: random.Random, kind: str, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _flipped(rng: random.Random, kind: str, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 64)):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _header_edited(rng: random.Random, kind: str, data: bytes) -> bytes:
    """Write random or extreme sizes and lengths where formats keep theirs."""
    big = rng.choice([0, 1, 3, 64, 255, 4096, 32767, 65535])
    if kind.startswith("png"):
        width, height = (rng.choice([0, 1, 63, 65, 60_000, 2**31 - 1, 2**32 - 1]) for _ in range(2))
        if rng.random() < 0.5:
            return header(width, height, rng.choice([1, 2, 4, 8, 16, 77]), rng.randrange(8)) + data[33:]
        return data[:33] + struct.pack(">I", rng.choice([0, 1, len(data), 2**31 - 1, 2**32 - 1])) + data[37:]
    found = bytearray(data)
    if kind.startswith("jpeg"):
        marks = [m.start() for m in re.finditer(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xef]", data)]
        at = rng.choice(marks) + rng.choice([2, 5, 7])
        found[at : at + 2] = struct.pack(">H", big)
    else:
        at = rng.choice([4, 16, 20, 24, 26, 27]) if kind.startswith("webp") else rng.randrange(4, 30)
        found[at : at + 2] = struct.pack("<H", big)
    return bytes(found)


def _spliced(rng: random.Random, kind: str, data: bytes) -> bytes:
    other = picture(rng.randrange(SKUS), rng.choice((*FINE, *FOREIGN)))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _shuffled(rng: random.Random, kind: str, data: bytes) -> bytes:
    """Move, repeat or leave out blocks."""
    size = rng.choice([16, 64, 256])
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    at, to = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    blocks[at : at + 1] = rng.choice([[], [blocks[to]], [blocks[at]] * 2])
    return b"".join(blocks)


def _misnamed(rng: random.Random, kind: str, data: bytes) -> bytes:
    magic = rng.choice(_MAGIC)
    return magic + data[len(magic) if rng.random() < 0.5 else 0 :]


def _stuffed(rng: random.Random, kind: str, data: bytes) -> bytes:
    """Put a block of metadata into a picture: large, or small and a bomb when it is unpacked."""
    if kind.startswith("png"):
        bomb = b"icc\0\0" + _zeros(2_000_000)
        text = rng.choice(
            [(b"iCCP", bomb), (b"zTXt", bomb), (b"tEXt", b"a\0" + b"b" * 15_000), (b"eXIf", b"MM" * 7000)]
        )
        return data[:33] + chunk(*text) * rng.randint(1, 3) + data[33:]
    if kind.startswith("jpeg"):
        name = rng.choice(
            [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"ICC_PROFILE\0\1\1", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"]
        )
        body = (name + rng.randbytes(20_000))[: rng.randint(len(name), 15_000)]
        return (
            data[:2]
            + (b"\xff" + rng.choice([b"\xe1", b"\xe2", b"\xfe"]) + struct.pack(">H", len(body) + 2) + body)
            + data[2:]
        )
    return data + b"EXIF" + struct.pack("<I", 15_000) + bytes(15_000)


def _polyglot(rng: random.Random, kind: str, data: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../etc/passwd", "root")
    other = rng.choice([buffer.getvalue(), *_NO_PICTURES.values(), picture(0, rng.choice(FINE))])
    return data + other if rng.random() < 0.7 else other + data


def _no_picture(rng: random.Random, kind: str, data: bytes) -> bytes:
    return rng.choice([*_NO_PICTURES.values(), rng.randbytes(rng.randrange(2000))])


@cache
def _zeros(count: int) -> bytes:
    """Return ``count`` zeros, packed about a thousandfold."""
    return zlib.compress(bytes(count), 9)


def _bomb(rng: random.Random, kind: str, data: bytes) -> bytes:
    """A few bytes that say, or are, very many pixels."""
    end, line = chunk(b"IEND", b""), chunk(b"IDAT", zlib.compress(bytes(100)))
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    found = {
        "said": lambda: header(60_000, 60_000) + line + end,
        "strip": lambda: header(2**31 - 1, 1) + line + end,
        "true": lambda: header(30_000, 30_000, 1, 0) + chunk(b"IDAT", _zeros(30_000 * 3_751)) + end,
        "more": lambda: header(64, 64) + chunk(b"IDAT", _zeros(40_000_000)) + end,
        "parts": lambda: header(64, 64) + chunk(b"IDAT", b"") * 1500 + end,
        "palette": lambda: header(9, 9, 8, 3) + chunk(b"PLTE", bytes(15_000)) + line + end,
        "jpeg": lambda: (
            b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1" + picture(0, "jpeg")[2:]
        ),
        "webp": lambda: b"RIFF" + struct.pack("<I", 22 + len(data)) + b"WEBP" + canvas + data[12:],
    }
    rare = rng.random() < 0.1  # the one that is 100 kB
    return found["true" if rare else rng.choice([name for name in found if name != "true"])]()


EDITS: dict[str, Edit] = {
    "cut": _cut,
    "flipped": _flipped,
    "header": _header_edited,
    "spliced": _spliced,
    "shuffled": _shuffled,
    "misnamed": _misnamed,
    "stuffed": _stuffed,
    "polyglot": _polyglot,
    "none": _no_picture,
    "bomb": _bomb,
}
