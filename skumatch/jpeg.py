"""The segments of a JPEG file: cutting off its metadata, and telling a picture that any decoder reads alike.

It decodes nothing (ITU-T T.81, annex B, describes the segments).
"""

from __future__ import annotations

import re
from typing import Final

_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMON: Final = frozenset((0xC0, 0xC2))  # baseline and progressive, Huffman coded
_SCANS: Final = 100  # a picture has about ten; each more costs a pass over the whole frame
_ODD: Final = frozenset((0x01, 0xD8, 0xDC))  # a second start, a height that follows the picture: no usual file
# Frame headers, Huffman and quantisation tables, restart interval; JFIF and Adobe say how colours are coded.
_KEPT: Final = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE} - {0xC8})
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded data: neither a stuffed 255 nor a restart


def stripped(data: bytes) -> tuple[bytes, bytes]:
    """Return ``data`` without metadata segments, and the EXIF block.

    Raises ValueError where it ends too early and for more than 100 scans.
    """
    parts, exif, at = [data[:2]], b"", 2
    while True:
        at = data.find(b"\xff", at)  # decoders skip junk between segments, so this does too
        if at < 0 or at + 4 > len(data) or data[at + 1] == _END:
            raise ValueError("it ends before the picture")
        marker = data[at + 1]
        if marker == _SCAN:
            break
        if marker == 0xFF or marker <= 1 or 0xD0 <= marker <= 0xD8:  # padding or a marker without a body
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            raise ValueError("a segment has no length")
        end = at + 2 + length
        if marker == _EXIF and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : end]
        if marker in _KEPT:
            parts.append(data[at:end])
        at = end
    if data.rfind(b"\xff\xd9", at) < 0:
        raise ValueError("it has no end")
    if (scans := data.count(b"\xff\xda", at)) > _SCANS:  # coded data has no such bytes
        raise ValueError(f"it has {scans} scans")
    return b"".join([*parts, data[at:]]), exif


def one_picture(data: bytes) -> bytes | None:
    """Return ``stripped`` data up to the end of its picture, without what follows (a phone's second picture, say).

    None unless that is exactly one frame, baseline or progressive: with two, decoders differ in which size they
    believe, and a limit on pixels would hold for one of them alone.
    """
    frames, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None:
        at, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            return data[: at + 2] if frames == 1 else None
        frames += marker in _FRAMES
        if frames > 1 or marker in _ODD or marker in _FRAMES - _COMMON:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
