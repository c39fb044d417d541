"""What lies in Milvus: the collections of a gallery, their rows, and the conditions that choose among them.

    <name>__versions      one row per version: its number and, as JSON, what the version is; see versions.py
    <name>__views_<n>     reference views; a build or rebuild makes the next n
    <name>__skus_<n>      what is known of each SKU

A row of views or SKUs says in which version it was ``born`` and in which it ``died``. A reader of version v takes the
rows born by v that had not died by v, so what a writer has half done is not seen. A view that changes gets another
row: the primary key is the view's id times 2^20 plus how often that was. It knows nothing about servers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from skumatch import images
from skumatch.errors import GalleryError, ImageError
from skumatch.segment import THUMB_SIDE
from skumatch.sku_table import SKU

NEVER: Final = 1 << 62
CHANGES: Final = 20  # bits of a primary key that count a view's rows
LONGEST = {"sku": 4096, "source": 16_384, "sha256": 64, "thumb": 65_535}  # bytes of UTF-8
FACTS_BYTES = 60_000  # of a SKU's facts as JSON; Milvus holds 65,536
Fields = dict[str, tuple[str, Mapping[str, Any]]]

VERSIONS: Final[Fields] = {
    "pk": ("INT64", {}),
    "said": ("VARCHAR", {"max_length": 65_535}),
    "vector": ("FLOAT_VECTOR", {"dim": 2}),  # Milvus wants one
}
SKUS: Final[Fields] = {
    "pk": ("VARCHAR", {"max_length": 64}),
    "sku": ("VARCHAR", {"max_length": LONGEST["sku"]}),
    "facts": ("JSON", {}),
    "born": ("INT64", {}),
    "died": ("INT64", {}),
    "vector": ("FLOAT_VECTOR", {"dim": 2}),
}
BLOCK: Final = 1000  # rows per call where vectors come along
HEAVY: Final = 256  # rows per call where thumbnails come along
SEVERAL: Final = 8000  # rows per call where neither does
NAMED: Final = 4096  # views or SKUs named in one condition
REMEMBERED: Final = 200_000  # views of which search has told; more of them are forgotten
TOLD: Final = ("view", "sku", "source", "sha256", "facts")
DUMMY: Final = [1.0, 0.0]
# rows have unit length, questions need not: the inner product is what the other indexes answer with, too
FLAT: Final = {"index_type": "FLAT", "metric_type": "IP"}
WHOLE: Final = ("pk", "view", "vector", "sku", "source", "sha256", "thumb", "facts", "born", "died", "proof")


def view_fields(dim: int) -> Fields:
    """Return the fields of a collection of views."""
    texts: Fields = {name: ("VARCHAR", {"max_length": most}) for name, most in LONGEST.items()}
    numbers: Fields = {name: ("INT64", {}) for name in ("view", "born", "died", "proof")}
    return {
        "pk": ("INT64", {}),
        "vector": ("FLOAT_VECTOR", {"dim": dim}),
        **texts,
        **numbers,
        "facts": ("JSON", {}),
    }


def view_row(
    view: int, born: int, said: Mapping[str, Any], vector: list[float], facts: Mapping[str, str]
) -> dict[str, Any]:
    """Return a new view's row. ``said``: sku, source, sha256 and thumb (JPEG bytes). Raises GalleryError for text that
    is too long."""
    texts = {**said, "thumb": packed(said["thumb"])}
    for name, most in LONGEST.items():
        if len(texts[name].encode()) > most:
            raise GalleryError(f"the {name} '{texts[name][:60]}...' is longer than {most:,} bytes", "shorten it")
    return proven(
        {
            "pk": view << CHANGES,
            "view": view,
            "vector": vector,
            **texts,
            "facts": fitting(facts, texts[SKU]),
            "born": born,
            "died": NEVER,
        }
    )


def fitting(facts: Mapping[str, str], sku: str) -> dict[str, str]:
    """Return the facts that are known, "" being none. Raises GalleryError where they are too long for a row."""
    known = {name: value for name, value in facts.items() if value}
    if len(json.dumps(known, ensure_ascii=False).encode()) > FACTS_BYTES:
        raise GalleryError(f"what is known of SKU '{sku[:60]}' is longer than {FACTS_BYTES:,} bytes", "shorten it")
    return known


def packed(thumb: bytes) -> str:
    """Return a JPEG as text, made smaller where it is too long."""
    side = THUMB_SIDE
    while len(thumb) > LONGEST["thumb"] * 3 // 4:
        side = side * 3 // 4
        try:
            thumb = images.thumbnail(thumb, side)
        except ImageError:
            return ""
    return base64.b64encode(thumb).decode()


def unpacked(text: str) -> bytes:
    """Return the JPEG that ``packed`` took."""
    return base64.b64decode(text)


def renewed(row: Mapping[str, Any], born: int, facts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the next row of a view, alive from ``born`` on, with other ``facts`` where they are given."""
    news = {} if facts is None else {"facts": fitting(facts, row[SKU])}
    return proven({**row, **news, "pk": row["pk"] + 1, "born": born, "died": NEVER})


def proven(row: dict[str, Any]) -> dict[str, Any]:
    """Return ``row`` with the proof that it is as it was written."""
    return {**row, "proof": proof(row)}


def proof(row: Mapping[str, Any]) -> int:
    """Return 63 bits of a digest over a view's row but its life and key."""
    import numpy as np

    digest = hashlib.blake2b(np.asarray(row["vector"], "<f4").tobytes(), digest_size=8)
    said = [row["view"], row["sku"], row["source"], row["sha256"], row["thumb"], sorted(row["facts"].items())]
    digest.update(json.dumps(said).encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def sku_row(sku: str, born: int, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return a row that says all that is known of ``sku`` from version ``born`` on."""
    pk = f"{hashlib.sha256(sku.encode()).hexdigest()[:40]}.{born}"
    return {"pk": pk, "sku": sku, "facts": fitting(facts, sku), "born": born, "died": NEVER, "vector": DUMMY}


def text_of(value: str) -> str:
    """Return ``value`` as it is written in a condition."""
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(character, escape)
    return f'"{value}"'


def one_of(field: str, values: Iterable[str | int]) -> str:
    """Return the condition that ``field`` is one of ``values``."""
    listed = ", ".join(text_of(value) if isinstance(value, str) else str(int(value)) for value in values)
    return f"{field} in [{listed}]"


def alive(version: int) -> str:
    """Return the condition that a row is of ``version``."""
    return f"born <= {version} and died > {version}"


def both(*conditions: str) -> str:
    """Return the condition that all of ``conditions`` hold; empty ones do."""
    return " and ".join(f"({condition})" for condition in conditions if condition)


def like(filters: Mapping[str, str]) -> str:
    """Return the condition that a row's SKU and facts are ``filters``; "" is what nothing is known of."""
    said = []
    for name, value in filters.items():
        cell = f"facts[{text_of(name)}]"
        if name == SKU:
            said.append(f"sku == {text_of(value)}")
        elif value:
            said.append(f"{cell} == {text_of(value)}")
        else:
            said.append(f"not (exists {cell})")
    return both(*said)
