"""What an ONNX file says of itself, read past its weights and without any library of ONNX.

Opening a session for it would load the whole network, which a start from a built engine does not need.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from skumatch.errors import ModelError
from skumatch.runtime.passport import KEY, Passport

# Numbers of fields: of ModelProto, of GraphProto, of a metadata entry, and of ValueInfoProto.
GRAPH, METADATA = 7, 14
INPUTS, OUTPUTS = 11, 12
KEYED, TEXT = 1, 2
NAME = 1
VARINT, EIGHT, DELIMITED, FOUR = 0, 1, 2, 5  # protobuf's wire types
LARGEST = 2**31 - 1  # bytes that a protobuf message can have


def read_passport(model: bytes | Path) -> Passport:
    """Return the passport in the metadata of an ONNX ``model``, serialised bytes or a file.

    Raises ModelError where there is no such file or it was not exported by skumatch.
    """
    if isinstance(model, bytes):
        return Passport.read(metadata(io.BytesIO(model)).get(KEY), "this model")
    if not model.is_file():
        raise ModelError(f"there is no {model}", "write it with `skumatch export`")
    with model.open("rb") as stream:
        return Passport.read(metadata(stream).get(KEY), str(model))


def metadata(stream: BinaryIO) -> dict[str, str]:
    """Return the metadata of the ONNX model in ``stream``; of what is no model, what could be read: mostly nothing."""
    found = {}
    try:
        for _, entry in _fields(stream, {METADATA}):
            parts = dict(_fields(io.BytesIO(entry), {KEYED, TEXT}))
            found[parts.get(KEYED, b"").decode()] = parts.get(TEXT, b"").decode()
    except ValueError:
        return found  # garbage: whoever asks finds that what it looks for is missing
    return found


def ends(stream: BinaryIO) -> set[str]:
    """Return the names of the inputs and outputs of the ONNX model in ``stream``, whose graph is read whole."""
    found = set()
    try:
        for _, graph in _fields(stream, {GRAPH}):
            for _, end in _fields(io.BytesIO(graph), {INPUTS, OUTPUTS}):
                found |= {name.decode() for _, name in _fields(io.BytesIO(end), {NAME})}
    except ValueError:
        return set()
    return found


def _fields(stream: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and content of the ``wanted`` delimited fields of a protobuf message, skipping all others."""
    while (tag := _varint(stream)) is not None:
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _varint(stream)
        elif wire in (EIGHT, FOUR):
            stream.seek(8 if wire == EIGHT else 4, io.SEEK_CUR)
        elif wire != DELIMITED:
            raise ValueError(f"wire type {wire}")
        elif (length := _varint(stream) or 0) > LARGEST:
            raise ValueError(f"a field of {length} bytes")
        elif number in wanted:
            yield number, stream.read(length)
        else:
            stream.seek(length, io.SEEK_CUR)


def _varint(stream: BinaryIO) -> int | None:
    """Return the next number in protobuf's encoding of seven bits per byte, None at the end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number of more than ten bytes")
